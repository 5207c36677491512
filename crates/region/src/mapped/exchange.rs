//! Exchange over mapped files: each folio is mapped onto its partner's slot.
//!
//! A slot belongs to the folio that is mapped there, so two folios that trade places need none but
//! their own. Both are under the blind while the contents of the slots are swapped through the aliases.

use transhume_copy::swap::SwapJob;
use transhume_engine::{Entry, Exchange, Failure, Folio, Side, Step, Why};

use super::Mapped;
use super::session::{Held, Session};
use crate::failure::swap_here;
use crate::index_of;
use crate::keeper::Keeper;
use crate::table::FolioTable;

impl Mapped {
    /// How many calls it takes to map folios onto each other's slots.
    pub(crate) fn calls_of_exchange(
        &self,
        table: &FolioTable,
        pairs: impl Iterator<Item = (usize, usize)> + Clone,
    ) -> usize {
        let there = pairs.clone();
        let back = pairs.map(|(a, b)| (b, a));
        self.calls_one_way(table, there) + self.calls_one_way(table, back)
    }

    fn calls_one_way(
        &self,
        table: &FolioTable,
        moves: impl Iterator<Item = (usize, usize)>,
    ) -> usize {
        let mut calls = 0;
        let mut next = None;
        for (from, to) in moves {
            let (tier, slot) = (table.tier(to), self.slot(to));
            if next != Some((from, tier, slot)) {
                calls += 1;
            }
            next = Some((from + 1, tier, slot + 1));
        }
        calls
    }
}

impl<'r> Session<'r> {
    /// A session whose folios trade places.
    pub(crate) fn of_exchange(
        memory: &'r Mapped,
        table: &'r FolioTable,
        keeper: &'r Keeper,
    ) -> Self {
        // It takes no slot and leaves none.
        let mut session = Self::new(memory, table, keeper, 0);
        session.exchanges = true;
        session
    }
}

impl Exchange for Session<'_> {
    type SwapJob = SwapJob;

    fn provision_pairs(&mut self, pairs: &[(Folio, Folio)]) {
        self.hold_handlers_off();
        self.drop_ready();
        let pairs = pairs.iter().map(|&(a, b)| (index_of(a), index_of(b)));
        let calls = self.memory.calls_of_exchange(self.table, pairs);
        // What is refused here is missing when folios are paired.
        let _ = self.charge.add(2 * calls, self.memory.allowed);
    }

    fn are_alike(&self, a: &Held, b: &Held) -> bool {
        a.from == b.from
    }

    fn pair(&mut self, a: &mut [Entry<Held>], b: &mut [Entry<Held>]) {
        let refused = self.charge.count() == 0;
        for (a, b) in a.iter_mut().zip(b) {
            (a.held.to, b.held.to) = (b.held.from, a.held.from);
            (a.held.frame, b.held.frame) = (Some(b.held.source), Some(a.held.source));
            if refused {
                a.fail(Failure::new(Step::Reserve, Why::NoMemory));
            }
        }
    }

    fn swap_job(&mut self, a: &mut Held, b: &mut Held) -> SwapJob {
        let of_a = self.tier(a.from).alias_of(a.source..a.source + 1);
        let of_b = self.tier(b.from).alias_of(b.source..b.source + 1);
        // SAFETY: both are slots of our own alias mappings, in different files or different slots of
        // one, and the folios that they belong to are locked and cut off until the engine releases
        // them, after it has dropped the job: nobody else reads or stores there.
        unsafe {
            SwapJob::new(
                std::ptr::with_exposed_provenance_mut(of_a.start),
                std::ptr::with_exposed_provenance_mut(of_b.start),
                of_a.len(),
            )
        }
    }

    fn swap_on_cpu(&mut self, a: &mut Held, b: &mut Held) -> Result<(), (Side, Failure)> {
        swap_here(self.swap_job(a, b)).map_err(|failure| (Side::A, failure))
    }

    fn swap_back(&mut self, a: &mut Held, b: &mut Held) {
        // It does not fail: see `Buffered`.
        let _ = swap_here(self.swap_job(a, b));
    }

    fn follow(&mut self, held: &mut Held) {
        self.map_at_partners(held);
    }
}
