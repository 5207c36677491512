//! A region's memory with the threads that keep it, and how its pairs settle.

use std::sync::Arc;
use std::time::Duration;

use transhume_engine::{Deferral as Defers, Ledger, Parked, Settlement};

use crate::deferral::{Cause, Left, Pending, Settle, Settler, Wants};
use crate::keeper::{Keep, Keeper};
use crate::runs::RunSet;
use crate::sync::sleep;
use crate::table::FolioTable;
use crate::tier::PageSize;
use crate::{folio_at, index_of};

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

/// A region's memory with the state of its folios.
#[derive(Debug)]
pub(crate) struct Core<M> {
    pub(crate) table: FolioTable,
    pub(crate) memory: M,
}

/// A core with the threads that keep it, which end first.
#[derive(Debug)]
pub(crate) struct Kept<M: Defer> {
    _settler: Option<Settler<Core<M>>>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) core: Arc<Core<M>>,
}

impl<M: Defer> Kept<M>
where
    Core<M>: Keep,
{
    pub(crate) fn start(core: Core<M>) -> std::io::Result<Self> {
        let core = Arc::new(core);
        let keeper = Arc::new(Keeper::start(Arc::clone(&core))?);
        let settler = match core.memory.pending() {
            Some(_) => Some(Settler::start(Arc::clone(&core), Arc::clone(&keeper))?),
            None => None,
        };
        Ok(Self {
            _settler: settler,
            keeper,
            core,
        })
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
    pub(crate) fn settle_pages(&self, keeper: &Keeper, pages: &RunSet, cause: Cause) -> Settlement {
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
            sleep(NAP);
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
