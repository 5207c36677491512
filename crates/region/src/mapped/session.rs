//! The engine's platform over mapped files: a blind over the pages, copy, the new file over the
//! blind. See the [module above](super) for why that is right.

use std::ops::Range;
use std::time::{Duration, Instant};

use transhume_copy::CopyJob;
use transhume_engine::{Alone, Entry, Failure, Folio, Place, Platform, Step, Wait, Why};
use transhume_sys::CallError;
use transhume_sys::advise::{self, Advice};
use transhume_sys::map::{self, Source};

use super::Mapped;
use super::tier::FileTier;
use crate::failure::{LOCK_PATIENCE, copy_here, failed, refused, wake, why};
use crate::gate::{self, Pass};
use crate::index_of;
use crate::table::{FolioTable, Unlocked};
use crate::tier::TierId;

/// One request's view of a mapped region.
#[derive(Debug)]
pub(crate) struct Session<'r> {
    memory: &'r Mapped,
    table: &'r FolioTable,
    epoch: Instant,
    /// Folios of this request that are cut off now.
    cut_off: usize,
    /// Held while `cut_off` is not zero.
    pass: Option<Pass>,
    /// Slots that have been made ready for runs of folios, and not been reserved yet.
    ready: Vec<Ready>,
    granted: usize,
}

/// Slots for a run of folios.
#[derive(Debug)]
struct Ready {
    folios: Range<usize>,
    slot: usize,
    tier: TierId,
}

/// What is kept for a locked folio.
#[derive(Debug)]
pub(crate) struct Held {
    index: usize,
    from: TierId,
    to: TierId,
    source: usize,
    frame: Option<usize>,
    at: At,
}

/// Where a folio is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Source,
    /// Nowhere: the blind is over it, or a call failed that should have put something there.
    Blind,
    Destination,
}

/// A folio that has come to a slot.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) index: usize,
    pub(super) tier: TierId,
    pub(super) slot: usize,
}

impl<'r> Session<'r> {
    /// A session whose batches take up to `batch` folios.
    pub(crate) fn new(memory: &'r Mapped, table: &'r FolioTable, batch: usize) -> Self {
        for tier in &memory.tiers {
            tier.grant(batch);
        }
        Self {
            memory,
            table,
            epoch: Instant::now(),
            cut_off: 0,
            pass: None,
            ready: Vec::new(),
            granted: batch,
        }
    }

    fn page(&self) -> usize {
        self.memory.page_size.bytes()
    }

    fn tier(&self, tier: TierId) -> &'r FileTier {
        &self.memory.tiers[tier.index()]
    }

    /// The addresses of `count` folios of the region from `index` on.
    fn addresses(&self, index: usize, count: usize) -> Range<usize> {
        let start = self.memory.memory.range().start + index * self.page();
        start..start + count * self.page()
    }

    fn held(&self, index: usize) -> Held {
        let from = self.table.tier(index);
        let source = self.memory.slot(index);
        Held {
            index,
            from,
            to: from,
            source,
            frame: None,
            at: At::Source,
        }
    }

    fn no_longer_cut_off(&mut self, folios: usize) {
        self.cut_off -= folios;
        if self.cut_off == 0 {
            self.pass = None;
        }
    }

    /// Makes slots ready for a run of folios, as many side by side as there are.
    fn make_ready(&mut self, mut folios: Range<usize>, to: TierId) {
        while !folios.is_empty() {
            let Some(slots) = self.tier(to).take(folios.len(), folios.start) else {
                return;
            };
            let now = folios.start..folios.start + slots.len();
            folios.start = now.end;
            self.ready.push(Ready {
                folios: now,
                slot: slots.start,
                tier: to,
            });
        }
    }

    /// The slot that was made ready for a folio.
    fn take_ready(&mut self, index: usize) -> Option<usize> {
        let found = self
            .ready
            .iter_mut()
            .find(|ready| ready.folios.contains(&index))?;
        // Folios come in order, so those before this one are not wanted any more.
        let skipped = index - found.folios.start;
        if skipped > 0 {
            let unused = found.slot..found.slot + skipped;
            self.memory.tiers[found.tier.index()].retire(unused);
        }
        let slot = found.slot + skipped;
        found.slot = slot + 1;
        found.folios.start = index + 1;
        Some(slot)
    }

    /// Puts slots back that were made ready and not reserved.
    fn drop_ready(&mut self) {
        for Ready { folios, slot, tier } in self.ready.drain(..) {
            if !folios.is_empty() {
                self.memory.tiers[tier.index()].retire(slot..slot + folios.len());
            }
        }
    }

    /// Lays the blind over a run of folios.
    fn cut_off(&mut self, run: &mut [Entry<Held>]) {
        let blind = self.memory.blind.range();
        let most = (blind.len() / self.page()).max(1);
        for part in run.chunks_mut(most) {
            let addresses = self.addresses(part[0].held.index, part.len());
            let cover = blind.start..blind.start + addresses.len();
            // SAFETY: the folios are locked by this session, so no other migrator maps anything
            // there; the region's memory is only reached by atomics and raw pointers, and whoever
            // meets the blind waits. The blind has no page, so nothing is moved.
            let laid = unsafe { map::remap(cover, addresses.start, Source::LeftEmpty) };
            for entry in part {
                // After an error too: it does not say whether the old mapping is still there.
                entry.held.at = At::Blind;
                self.cut_off += 1;
                if let Err(error) = &laid {
                    let errno = error.errno;
                    entry.fail(failed(Step::Shootdown, why(errno), errno));
                }
            }
        }
    }

    /// Maps slots of a tier over a run of folios and wakes who waits for them.
    fn map_over(&self, folios: Range<usize>, tier: TierId, slot: usize) -> Result<(), CallError> {
        let addresses = self.addresses(folios.start, folios.len());
        let file = self.tier(tier);
        // SAFETY: the folios are locked by this session and their contents are in these slots.
        unsafe { map::map_file_fixed(addresses.clone(), file, file.offset(slot)) }?;
        // Kept from children before anybody can store through it. If this fails the page is right
        // all the same, and a child that a raw clone makes in this moment shares it.
        let _ = advise::advise(addresses.clone(), Advice::DontFork);
        wake(&self.memory.uffd, addresses);
        Ok(())
    }
}

fn adjacent(a: &Held, b: &Held) -> bool {
    a.index + 1 == b.index
}

impl Platform for Session<'_> {
    type Tier = TierId;
    type Held = Held;
    type Gather = ();
    type Job = CopyJob;

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn shootdowns(&self) -> Option<u64> {
        crate::shootdowns::of_this_thread()
    }

    fn provision(&mut self, folios: &[Folio], to: TierId) {
        self.drop_ready();
        let leaving = |&folio: &Folio| {
            let index = index_of(folio);
            (self.table.tier(index) != to).then_some(index)
        };
        let mut indices = folios.iter().filter_map(leaving).collect::<Vec<_>>();
        indices.sort_unstable();
        indices.dedup();
        for run in indices.chunk_by(|a, b| a + 1 == *b) {
            if let [first, .., last] | [first @ last] = run {
                self.make_ready(*first..*last + 1, to);
            }
        }
    }

    fn try_lock(&mut self, folio: Folio) -> Result<Held, Failure> {
        let index = index_of(folio);
        self.table.try_lock(index).map_err(refused)?;
        Ok(self.held(index))
    }

    fn lock(&mut self, folio: Folio, _alone: &Alone) -> Result<Held, Failure> {
        let index = index_of(folio);
        self.table.lock(index, LOCK_PATIENCE).map_err(refused)?;
        Ok(self.held(index))
    }

    fn tier(&self, _folio: Folio, held: &Held) -> TierId {
        held.from
    }

    fn reserve(&mut self, entries: &mut [Entry<Held>], to: TierId, _wait: &Wait) {
        for entry in entries {
            entry.held.to = to;
            entry.held.frame = self.take_ready(entry.held.index);
            if entry.held.frame.is_none() {
                entry.fail(Failure::new(Step::Reserve, Why::NoMemory));
            }
        }
    }

    fn unmap(
        &mut self,
        _folio: Folio,
        _held: &mut Held,
        _gather: &mut (),
        _wait: &Wait,
    ) -> Result<(), Failure> {
        Ok(())
    }

    fn shootdown(&mut self, (): (), entries: &mut [Entry<Held>]) {
        self.pass = Some(gate::enter());
        for run in entries.chunk_by_mut(|a, b| adjacent(&a.held, &b.held)) {
            self.cut_off(run);
        }
    }

    fn job(&mut self, _folio: Folio, held: &mut Held) -> CopyJob {
        let source = self.tier(held.from).alias_of(held.source..held.source + 1);
        let slot = held.frame.unwrap_or(held.source);
        let target = self.tier(held.to).alias_of(slot..slot + 1);
        // SAFETY: both are slots of our own alias mappings, in different files or different slots
        // of one, which stay reserved for this folio until the engine releases it, after it has
        // dropped the job. The folio is cut off, so nobody stores to its source.
        unsafe {
            CopyJob::new(
                std::ptr::with_exposed_provenance(source.start),
                std::ptr::with_exposed_provenance_mut(target.start),
                source.len(),
            )
        }
    }

    fn copy_on_cpu(&mut self, folio: Folio, held: &mut Held) -> Result<(), Failure> {
        copy_here(self.job(folio, held))
    }

    fn remap(&mut self, entries: &mut [Entry<Held>]) {
        let runs = entries.chunk_by_mut(|a, b| {
            let (a, b) = (&a.held, &b.held);
            adjacent(a, b) && a.frame.map(|slot| slot + 1) == b.frame
        });
        for run in runs {
            let first = &run[0].held;
            let folios = first.index..first.index + run.len();
            let mapped = self.map_over(folios.clone(), first.to, first.frame.unwrap_or_default());
            match mapped {
                Ok(()) => {
                    run.iter_mut()
                        .for_each(|entry| entry.held.at = At::Destination);
                    self.no_longer_cut_off(run.len());
                    // The pages are there; this only saves the threads a fault for each. What it
                    // cannot do now they do themselves.
                    let _ = advise::populate_write(self.addresses(folios.start, folios.len()));
                }
                Err(error) => {
                    let errno = error.errno;
                    for entry in run {
                        entry.fail(failed(Step::Remap, why(errno), errno));
                    }
                }
            }
        }
    }

    fn putback(&mut self, entries: &mut [Entry<Held>]) {
        let runs = entries.chunk_by_mut(|a, b| {
            let (a, b) = (&a.held, &b.held);
            let alike = a.at == At::Blind && b.at == At::Blind && a.from == b.from;
            alike && adjacent(a, b) && a.source + 1 == b.source
        });
        for run in runs {
            let first = &run[0].held;
            if first.at != At::Blind {
                continue;
            }
            // There is no other place for these pages, so it is tried until it works; until then
            // the threads that want them wait.
            let folios = first.index..first.index + run.len();
            let mut nap = Duration::from_micros(20);
            while self
                .map_over(folios.clone(), first.from, first.source)
                .is_err()
            {
                std::thread::sleep(nap);
                nap = (nap * 2).min(Duration::from_millis(10));
            }
            run.iter_mut().for_each(|entry| entry.held.at = At::Source);
            self.no_longer_cut_off(run.len());
        }
    }

    fn release(&mut self, folios: &mut dyn Iterator<Item = (Folio, Held)>, at: Place) {
        let mut freed: Vec<(TierId, Range<usize>)> = Vec::new();
        let mut unlocked = Vec::new();
        let mut free = |tier: TierId, slot: usize| match freed.last_mut() {
            Some((same, run)) if *same == tier && run.end == slot => run.end += 1,
            _ => freed.push((tier, slot..slot + 1)),
        };
        let arrived = folios.filter_map(|(_, held)| {
            unlocked.push(held.index);
            match (at, held.frame) {
                (Place::Destination, Some(slot)) => {
                    free(held.from, held.source);
                    Some(Arrived {
                        index: held.index,
                        tier: held.to,
                        slot,
                    })
                }
                (_, Some(slot)) => {
                    free(held.to, slot);
                    None
                }
                (_, None) => None,
            }
        });
        self.memory.record(self.table, arrived);
        for index in unlocked {
            if self.table.unlock(index) == Unlocked::FaultWaits {
                wake(&self.memory.uffd, self.addresses(index, 1));
            }
        }
        for (tier, slots) in freed {
            self.tier(tier).retire(slots);
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.drop_ready();
        for tier in &self.memory.tiers {
            tier.revoke(self.granted);
        }
    }
}
