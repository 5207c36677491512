//! Owners: how an application with latches on its pages, such as a buffer pool, takes part in their
//! migration (\[batch-deadlock\]).
//!
//! The owner is named when the region is made, by [`Builder::owner`](crate::Builder::owner). A
//! [`Folio`] that it is asked for counts in base pages of 4 KiB from the region's start, whatever the
//! region's page size: `folio.page()` is the first, `folio.base_pages()` how many there are. In a
//! region of 4 KiB pages `folio.page()` is the number of the page as [`Region`](crate::Region)
//! counts; in one of 2 MiB pages it is 512 times that.
//!
//! # What an owner may do
//!
//! It runs on the thread that migrates, or on the region's own where a deferred switch is made, while
//! pages are locked. For a deferred request it is asked when the switch is made, and not before stores
//! are held off; a page that it refuses then stays where it was. What [`FolioOwner`] asks for holds
//! here: in a batch it waits for nothing, and it neither loads from the region nor stores to it. It
//! can look where pages are, and let go of a [`Pin`](crate::Pin); requests and new pins are refused
//! with [`RegionError::InsideOwner`].
//!
//! The application's threads may touch pages also while they hold latches: a page that is cut off
//! comes back without anybody's help. Two things wait for the lock of a page, which a migrator may
//! hold that waits in [`detach`](FolioOwner::detach): [`Region::pin`](crate::Region::pin), and the
//! first touch of a page that was given back with `madvise`. Do neither for a page whose latch you
//! hold, or let `detach` wait for so long only as your threads can.
//!
//! # Pages that are not to move
//!
//! Scattered pages of anonymous memory are cut off together with what lies between them, and the
//! owner is asked for these neighbours too, by [`try_detach`](FolioOwner::try_detach). They come back
//! to where they were; those that it refuses are not cut off, which costs a shootdown or two more.
//! Where letting go costs the owner much, [`Neighbours::Left`](crate::Neighbours::Left) spares it.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use transhume_engine::Folio;
pub use transhume_engine::{Alone, FolioOwner, Place, Refused, all_or_none};

use crate::error::RegionError;

thread_local! {
    /// Whether this thread is in a call of an owner's.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Refuses what would wait for pages, or lock more of them, while an owner is being asked.
pub(crate) fn check_outside() -> Result<(), RegionError> {
    if INSIDE.get() {
        return Err(RegionError::InsideOwner);
    }
    Ok(())
}

/// A call of an owner's, until it is dropped.
struct Inside;

impl Inside {
    fn begin() -> Self {
        INSIDE.set(true);
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

/// The application's owner, and the note on this thread that it is being asked.
pub(crate) struct Owner(pub(crate) Arc<dyn FolioOwner>);

impl FolioOwner for Owner {
    fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
        let _inside = Inside::begin();
        self.0.try_detach(folio)
    }

    fn detach(&self, folio: Folio, alone: &Alone) -> Result<(), Refused> {
        let _inside = Inside::begin();
        self.0.detach(folio, alone)
    }

    fn attach(&self, folio: Folio, at: Place) {
        let _inside = Inside::begin();
        self.0.attach(folio, at);
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").finish_non_exhaustive()
    }
}
