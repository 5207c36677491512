//! What settles the pairs of a region: its own thread, its requests, and whoever asks for it.

use transhume_engine::{Failure, Folio, Settlement};

use super::{Backing, Region};
use crate::anonymous::{self, Anonymous};
use crate::deferral::{AnyPending, Cause, DeferralUsage, Pending};
use crate::error::RegionError;
use crate::keeper::Keeper;
use crate::kept::{Defer, Kept};
use crate::mapped::{self, Mapped};
use crate::options::Pages;
use crate::owner;
use crate::runs::RunSet;
use crate::table::FolioTable;
use crate::tier::PageSize;

impl Defer for Anonymous {
    type Held = anonymous::Held;
    type Session<'r> = anonymous::Session<'r>;

    fn pending(&self) -> Option<&Pending<anonymous::Held>> {
        self.pending.as_ref()
    }

    fn page_size(&self) -> PageSize {
        self.page_size
    }

    fn settling<'r>(&'r self, table: &'r FolioTable, keeper: &'r Keeper) -> anonymous::Session<'r> {
        anonymous::Session::deferring(self, table, keeper, 0)
    }
}

impl Defer for Mapped {
    type Held = mapped::Held;
    type Session<'r> = mapped::Session<'r>;

    fn pending(&self) -> Option<&Pending<mapped::Held>> {
        self.pending.as_ref()
    }

    fn page_size(&self) -> PageSize {
        self.page_size
    }

    fn settling<'r>(&'r self, table: &'r FolioTable, keeper: &'r Keeper) -> mapped::Session<'r> {
        mapped::Session::new(self, table, keeper, 0)
    }
}

impl Region {
    /// Switches pages whose switch waits to their destinations now, by as few shootdowns as can be
    /// (\[deferred-flush\]); returns when they are there, or back at their source. Pages that do not wait
    /// are left alone.
    ///
    /// # Errors
    ///
    /// [`RegionError::NoDeferral`], [`RegionError::OutsideRegion`], [`RegionError::NoPages`],
    /// [`RegionError::Forked`], [`RegionError::InsideOwner`].
    pub fn settle(&self, pages: impl Into<Pages>) -> Result<Settlement, RegionError> {
        self.check_process()?;
        owner::check_outside()?;
        let pages = pages.into().resolve(self.pages())?;
        if self.pending().is_none() {
            return Err(RegionError::NoDeferral);
        }
        Ok(self.settle_pages(&pages, Cause::Asked))
    }

    /// What waits for its switch, and what has been settled why; `None` for a region without
    /// [`Builder::deferral`](crate::Builder::deferral).
    #[must_use]
    pub fn deferral(&self) -> Option<DeferralUsage> {
        self.pending().map(AnyPending::usage)
    }

    /// Takes out which pages were reported as deferred and then could not be switched, and why: those
    /// since the last call, up to 65,536. They are where they were, with their data.
    #[must_use]
    pub fn take_stayed(&self) -> Vec<(Folio, Failure)> {
        self.pending()
            .map(AnyPending::take_stayed)
            .unwrap_or_default()
    }

    pub(super) fn pending(&self) -> Option<&dyn AnyPending> {
        match &self.backing {
            Backing::Mapped(Kept { core, .. }) => Some(core.memory.pending.as_ref()?),
            Backing::Anonymous(Kept { core, .. }) => Some(core.memory.pending.as_ref()?),
            Backing::MovePages(_) => None,
        }
    }

    /// Settles those of these pages that wait.
    pub(super) fn settle_pages(&self, pages: &RunSet, cause: Cause) -> Settlement {
        match &self.backing {
            Backing::Mapped(Kept { keeper, core, .. }) => core.settle_pages(keeper, pages, cause),
            Backing::Anonymous(Kept { keeper, core, .. }) => {
                core.settle_pages(keeper, pages, cause)
            }
            Backing::MovePages(_) => Settlement::default(),
        }
    }
}
