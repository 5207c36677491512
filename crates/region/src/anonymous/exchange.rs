//! Exchange of anonymous memory: both folios of a pair move out to staging slots, the contents of the
//! slots are swapped, and each frame moves in at the other's address. No frame is taken and none is
//! left over; the slots, which are addresses only, are empty again in the end.

use std::num::NonZeroUsize;
use std::sync::Arc;

use transhume_copy::swap::SwapJob;
use transhume_engine::{Entry, Exchange, Failure, Folio, Side, Step, Why};
use transhume_sys::map;

use super::Anonymous;
use super::pool::FramePool;
use super::session::{At, Held, Session, adjacent};
use super::slots::{Kind, Returned, of_frame, of_staging};
use crate::failure::{failed, swap_here};
use crate::index_of;
use crate::keeper::Keeper;
use crate::options::Neighbours;
use crate::table::{FolioTable, Tally};

impl<'r> Session<'r> {
    /// A session whose folios trade places.
    pub(crate) fn of_exchange(
        memory: &'r Anonymous,
        table: &'r FolioTable,
        keeper: &'r Keeper,
    ) -> Self {
        // No frame goes to a pool, so none may be kept beyond its bound.
        let mut session = Self::new(memory, table, keeper, 0, Neighbours::Left);
        session.exchanges = true;
        session
    }

    /// Locks slots into memory, or not, as their pages' new places are: the kernel moves only between
    /// such. A folio for which that fails does not move in; it is put back then, or copied in if its
    /// partner has moved.
    pub(super) fn mlock_as_destinations(&self, entries: &mut [Entry<Held>]) {
        let frame_is_mlocked = |held: &Held| held.is_unlike && !held.mlocked;
        let frame_is_not = |held: &Held| held.is_unlike && held.mlocked;
        self.mlock(entries, of_frame, frame_is_not, Step::Remap);
        let wanted = |entry: &Entry<Held>| entry.is_alive() && frame_is_mlocked(&entry.held);
        self.by_runs(entries, of_frame, wanted, map::unlock, |entry, refused| {
            entry.fail(failed(Step::Remap, Why::NotPermitted, refused.errno));
        });
    }

    /// Gives up the locks of folios of an exchange. Each puts one slot back, which is empty: its own
    /// if it has stayed, and its partner's, from which it has come, if it has moved.
    pub(super) fn release_pairs(
        &mut self,
        folios: &mut dyn Iterator<Item = (Folio, Held)>,
        moved: bool,
    ) {
        let mut tally = Tally::of_exchange(self.table);
        let mut emptied = Returned::staging(FramePool::put_staging);
        for (_, held) in folios {
            let (tier, slot, soiled) = if moved {
                (held.to, held.frame, held.soiled.frame)
            } else {
                (held.from, held.staging, held.soiled.staging)
            };
            let pool = self.memory.pool(tier);
            if soiled {
                emptied.add_soiled(pool, slot);
            } else {
                emptied.add(pool, slot, held.slot_is_mlocked);
            }
            if moved {
                tally.moved(held.index, held.from, held.to);
            }
            self.unlock(&held);
        }
    }
}

impl Exchange for Session<'_> {
    type SwapJob = SwapJob;

    fn provision_pairs(&mut self, pairs: &[(Folio, Folio)]) {
        self.begin_batch(2 * pairs.len());
        // It may not, but others have let their neighbours go then.
        self.may_span();
        let indices = pairs.iter().map(|&(a, b)| (index_of(a), index_of(b)));
        let apart = indices.filter(|&(a, b)| self.table.tier(a) != self.table.tier(b));
        let apart = apart.collect::<Vec<_>>();
        let leaving = self.leaving(apart.into_iter().flat_map(|(a, b)| [a, b]));
        for run in leaving.chunk_by(|a, b| a.0 + 1 == b.0 && a.1 == b.1) {
            let (index, source) = run[0];
            self.make_ready(index, run.len(), Kind::Staging, source);
        }
    }

    fn are_alike(&self, a: &Held, b: &Held) -> bool {
        a.from == b.from
    }

    fn pair(&mut self, a: &mut [Entry<Held>], b: &mut [Entry<Held>]) {
        let layout = Arc::clone(&self.layout);
        for entries in [&mut *a, &mut *b] {
            let runs = entries.chunk_by_mut(|a, b| {
                let (a, b) = (&a.held, &b.held);
                adjacent(&layout, a, b) && a.from == b.from && a.mlocked == b.mlocked
            });
            for run in runs {
                self.reserve_staging(run);
            }
        }
        for (a, b) in a.iter_mut().zip(&mut *b) {
            (a.held.to, b.held.to) = (b.held.from, a.held.from);
            (a.held.frame, b.held.frame) = (b.held.staging, a.held.staging);
            let either = a.held.mlocked || b.held.mlocked;
            (a.held.slot_is_mlocked, b.held.slot_is_mlocked) = (either, either);
            let unlike = a.held.mlocked != b.held.mlocked;
            (a.held.is_unlike, b.held.is_unlike) = (unlike, unlike);
            for one in [a, b] {
                if one.held.staging.is_none() {
                    one.fail(Failure::new(Step::Reserve, Why::NoMemory));
                }
            }
        }
        for entries in [a, b] {
            self.mlock(entries, of_staging, |held| held.mlocked, Step::Reserve);
        }
    }

    fn swap_job(&mut self, a: &mut Held, b: &mut Held) -> SwapJob {
        let place = |slot: Option<NonZeroUsize>| {
            std::ptr::with_exposed_provenance_mut(self.slot_address(slot))
        };
        // SAFETY: both slots are reserved for these folios until they are released, which the engine
        // does after it has dropped the job; they are different memory, and nobody else knows them.
        unsafe { SwapJob::new(place(a.staging), place(b.staging), self.page()) }
    }

    fn swap_on_cpu(&mut self, a: &mut Held, b: &mut Held) -> Result<(), (Side, Failure)> {
        swap_here(self.swap_job(a, b)).map_err(|failure| (Side::A, failure))
    }

    fn swap_back(&mut self, a: &mut Held, b: &mut Held) {
        // It does not fail: see `Buffered`.
        let _ = swap_here(self.swap_job(a, b));
    }

    fn follow(&mut self, held: &mut Held) {
        // Nothing is left in its slot, if it is called again.
        if held.at == At::Destination {
            return;
        }
        let (from, to) = (self.slot_address(held.frame), self.address(held));
        held.soiled.frame = !self.bring_in(from, to, self.page());
        held.at = At::Destination;
        self.no_longer_cut_off();
    }
}
