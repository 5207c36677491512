//! Deferred switches (\[deferred-flush\]): what a program asks for and what it can see of them.
//!
//! A page to which nobody can store may be in two places. So a deferred request holds stores off,
//! copies while readers go on, and leaves source and destination as a pair; many pairs are switched
//! by one shootdown. What that means in user space:
//!
//! - **No call defers a flush.** Each that takes a translation away flushes before it returns. What
//!   waits here is the switch itself, and with it the reuse of the source frame. Only an owner of
//!   page tables could map the destination at once and leave stale translations to the source alone.
//! - **Stores are held off by write protection** of the userfaultfd, which is a shootdown too, one for
//!   many pages. A store is not lost: it waits until its pair is settled, with those beside it.
//! - **Anonymous memory is flushed for each page table**, 512 base pages, out and in, however many are
//!   switched together. There deferral does not save flushes; it keeps the copy out of the time in
//!   which threads wait. A page that is shared since a fork when its turn comes, or was given back with
//!   `madvise`, stays at its source.

mod bits;
mod pending;
mod pressure;
mod settler;
mod stores;

use std::num::NonZeroUsize;
use std::time::Duration;

pub(crate) use self::bits::Bits;
pub(crate) use self::pending::{AnyPending, Cause, Desk, Pending};
pub(crate) use self::settler::{Left, Settle, Settler, Wants};
pub(crate) use self::stores::{Marks, Stores, Waits, refuse_all};

/// How much may wait, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deferral {
    /// The most bytes of pages that wait, which is the memory held beyond the pages themselves.
    pub limit_bytes: NonZeroUsize,
    /// The most bytes that are switched by one shootdown. Threads that want one of these pages then
    /// wait for the whole switch. The default is the limit. Of anonymous memory no more than 512 base
    /// pages, one page table, are switched at once whatever is asked for: the kernel flushes for each.
    pub at_once_bytes: NonZeroUsize,
    /// The longest that a pair waits; 1 s unless told. It is looked at ten times in that time.
    pub max_age: Duration,
    /// Where fewer bytes of memory than this are available on the machine (`MemAvailable`, which leaves
    /// out the pool of huge pages), pairs are settled and no new ones made. The same is done where tasks wait for memory for a tenth of the time
    /// (`/proc/pressure/memory`). Unless told, as much as the limit.
    pub keep_free_bytes: u64,
}

impl Deferral {
    /// Pages of up to `limit` bytes may wait, for up to a second.
    #[must_use]
    pub fn new(limit: NonZeroUsize) -> Self {
        Self {
            limit_bytes: limit,
            at_once_bytes: limit,
            max_age: Duration::from_secs(1),
            keep_free_bytes: u64::try_from(limit.get()).unwrap_or(u64::MAX),
        }
    }

    /// Sets the most bytes that are switched by one shootdown.
    #[must_use]
    pub const fn at_once_bytes(mut self, bytes: NonZeroUsize) -> Self {
        self.at_once_bytes = bytes;
        self
    }

    /// Sets the longest that a pair waits.
    #[must_use]
    pub const fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// Sets how much memory must stay available.
    #[must_use]
    pub const fn keep_free_bytes(mut self, bytes: u64) -> Self {
        self.keep_free_bytes = bytes;
        self
    }
}

/// What a region's pairs are and have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeferralUsage {
    /// Pages that wait for their switch now.
    pub pages: usize,
    /// Bytes of memory that they hold beyond themselves.
    pub bytes: usize,
    /// The most bytes that they have held.
    pub most_bytes: usize,
    /// Whether memory is short, so that no new pairs are made.
    pub paused: bool,
    /// Pages that were settled, by what made it necessary.
    pub settled: Settled,
    /// Pages of those that could not be switched and stayed where they were.
    pub stayed: u64,
    /// Shootdowns by the machine's own counter for all switches, or `None` where it has none.
    pub shootdowns: Option<u64>,
    /// The longest time that a switch cut pages off.
    pub longest_cut_off: Duration,
}

/// Pages that were settled, by what made it necessary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settled {
    /// [`Region::settle`](crate::Region::settle) asked for it.
    pub asked: u64,
    /// The page, or one beside it, was to be stored to.
    pub by_store: u64,
    /// The page was to migrate again, or to be pinned.
    pub by_request: u64,
    /// The limit left no room for others.
    pub by_limit: u64,
    /// They had waited for long enough.
    pub by_age: u64,
    /// Memory was short.
    pub by_pressure: u64,
}
