//! What settles the pairs of a region: its own thread, its requests, and whoever asks for it.

use std::time::Duration;

use transhume_engine::{Deferral as Defers, Failure, Folio, Ledger, Parked, Settlement};

use super::{Backing, Core, Kept, Region};
use crate::anonymous::{self, Anonymous};
use crate::deferral::{AnyPending, Cause, DeferralUsage, Left, Pending, Settle, Wants};
use crate::error::RegionError;
use crate::keeper::Keeper;
use crate::mapped::{self, Mapped};
use crate::options::Pages;
use crate::runs::RunSet;
use crate::table::FolioTable;
use crate::tier::PageSize;
use crate::{folio_at, index_of, owner};

/// How long the region's thread waits for a pair that is just being recorded.
const NAP: Duration = Duration::from_micros(20);

/// Memory of a region whose switches can wait.
pub(crate) trait Defer: Send + Sync + 'static {
    /// What is kept for a folio that waits.
    type Held: Send;
    /// What settles.
    type Session<'r>: Defers<Held = Self::Held>
    where
        Self: 'r;

    /// What waits, if that is allowed.
    fn pending(&self) -> Option<&Pending<Self::Held>>;

    /// The size of its pages.
    fn page_size(&self) -> PageSize;

    /// A session that only settles.
    fn settling<'r>(&'r self, table: &'r FolioTable, keeper: &'r Keeper) -> Self::Session<'r>;
}

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

impl<M: Defer> Core<M> {
    /// Settles what `which` takes out of the ledger.
    fn settle(
        &self,
        keeper: &Keeper,
        cause: Cause,
        which: impl FnMut(&mut Ledger<M::Held>) -> Parked<M::Held>,
    ) -> Settlement {
        let Some(pending) = self.memory.pending() else {
            return Settlement::default();
        };
        pending.settle(cause, which, || self.memory.settling(&self.table, keeper))
    }

    /// Settles those of these pages that wait.
    fn settle_pages(&self, keeper: &Keeper, pages: &RunSet, cause: Cause) -> Settlement {
        let Some(at_once) = self.memory.pending().map(Pending::at_once) else {
            return Settlement::default();
        };
        self.settle(keeper, cause, |ledger| {
            ledger.take_some(|folio| pages.contains(index_of(folio)), at_once)
        })
    }
}

impl<M: Defer> Settle for Core<M> {
    fn wants(&self) -> Option<&Wants> {
        self.memory.pending().map(|pending| &pending.wants)
    }

    fn max_age(&self) -> Duration {
        self.memory
            .pending()
            .map_or(Duration::MAX, |pending| pending.max_age)
    }

    fn settle_for_store(&self, keeper: &Keeper, folio: usize) {
        let Some(named) = folio_at(folio, self.memory.page_size().order()) else {
            return;
        };
        let settled = self.settle(keeper, Cause::Store, |ledger| {
            ledger.take_run(named, ledger.at_once())
        });
        let waits = |pending: &Pending<_>| pending.parked.is_set(folio);
        if settled.outcomes.is_empty()
            && let Some(pending) = self.memory.pending().filter(|&pending| waits(pending))
        {
            // It is parked, and its batch is about to record it.
            std::thread::sleep(NAP);
            pending.wants.store(folio);
        }
    }

    fn settle_due(&self, keeper: &Keeper) -> Left {
        let Some(pending) = self.memory.pending().filter(|pending| !pending.is_empty()) else {
            return Left::Nothing;
        };
        let cause = if pending.is_pressed() {
            Some(Cause::Pressure)
        } else {
            pending.is_due().then_some(Cause::Age)
        };
        let Some(cause) = cause else {
            return Left::Waiting;
        };
        // Stores that wait have their turn between.
        let some = |ledger: &mut Ledger<_>| ledger.take_some(|_| true, pending.at_once());
        pending.settle_once(cause, some, || self.memory.settling(&self.table, keeper));
        if pending.is_empty() {
            Left::Nothing
        } else {
            Left::Due
        }
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
