//! The engine's platform over mapped files: a blind over the pages, copy, the new file over the
//! blind. See the [module above](super) for why that is right.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use transhume_copy::CopyJob;
use transhume_engine::{
    Alone, Entry, Failure, Folio, FolioOwner, Place, Platform, Step, Wait, Why,
};
use transhume_sys::advise::{self, Advice};
use transhume_sys::limits;
use transhume_sys::map::{self, LockMode};
use transhume_sys::signals::HeldOff;
use transhume_sys::{CallError, Errno};

use super::budget::Charge;
use super::tier::FileTier;
use crate::deferral::Marks;
use crate::failure::{LOCK_PATIENCE, copy_here, failed, refused, wake, why};
use crate::faults;
use crate::gate;
use crate::keeper::Keeper;
use crate::layout::Layout;
use crate::runs::{RunSet, by_run_or_each};
use crate::table::{FolioTable, Tally};
use crate::tier::TierId;
use crate::{SPARE_BYTES, index_of};

/// One request's view of a mapped region.
#[derive(Debug)]
pub(crate) struct Session<'r> {
    pub(super) memory: &'r super::Mapped,
    pub(super) table: &'r FolioTable,
    epoch: Instant,
    keeper: &'r Keeper,
    /// Which folios were locked into memory when the request began, if any of the process was.
    locked: Option<Layout>,
    /// Folios of this request that are cut off now.
    cut_off: usize,
    /// Held while `cut_off` is not zero.
    handlers: Option<HeldOff>,
    /// Held while folios of a region are locked from which stores may be held off: one by a handler on
    /// this thread would wait for itself.
    no_handlers: Option<HeldOff>,
    /// Slots that have been made ready for runs of folios, and not been reserved yet.
    ready: Vec<Ready>,
    /// Folios of this batch that were pinned when it was provided for, and where they are to go. They
    /// have no slots: those who do not wait will find them pinned.
    passed_over: Vec<(usize, TierId)>,
    /// For the mappings that this batch can add.
    pub(super) charge: Charge,
    /// Folios from which stores are held off before their turn.
    pub(super) held_ahead: RunSet,
    granted: usize,
    /// Whether its folios trade places, and the frame of each is its partner's slot.
    pub(super) exchanges: bool,
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
    pub(super) index: usize,
    pub(super) from: TierId,
    pub(super) to: TierId,
    pub(super) source: usize,
    pub(super) frame: Option<usize>,
    at: At,
    mapped_by: Option<MappedBy>,
    pub(super) marks: Marks,
}

/// What the call that mapped a folio again did to its neighbours.
#[derive(Clone, Copy, Debug)]
struct MappedBy {
    begins_here: bool,
    ends_here: bool,
}

/// Where a folio is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Source,
    /// Nowhere: the blind is over it, or a call failed that should have put something there.
    Blind,
    Destination,
}

/// A folio that has been mapped again.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) index: usize,
    /// Where it has come to, unless it is where it was.
    pub(super) arrived: Option<(TierId, usize)>,
    /// Whether the call that did it began or ended with this folio.
    pub(super) begins: bool,
    pub(super) ends: bool,
}

impl<'r> Session<'r> {
    /// A session that keeps up to `kept` free slots of each tier, with their memory.
    pub(crate) fn new(
        memory: &'r super::Mapped,
        table: &'r FolioTable,
        keeper: &'r Keeper,
        kept: usize,
    ) -> Self {
        memory.sessions.fetch_add(1, Ordering::Relaxed);
        for tier in &memory.tiers {
            tier.grant(kept);
        }
        Self {
            memory,
            table,
            epoch: memory
                .pending
                .as_ref()
                .map_or_else(Instant::now, |pending| pending.epoch),
            keeper,
            locked: memory.locked(),
            cut_off: 0,
            handlers: None,
            no_handlers: None,
            ready: Vec::new(),
            passed_over: Vec::new(),
            charge: Charge::default(),
            held_ahead: RunSet::default(),
            granted: kept,
            exchanges: false,
        }
    }

    fn page(&self) -> usize {
        self.memory.page_size.bytes()
    }

    pub(super) fn tier(&self, tier: TierId) -> &'r FileTier {
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
            mapped_by: None,
            marks: Marks::default(),
        }
    }

    /// Before anything is locked. Those that have waited since the last batch run first.
    pub(super) fn hold_handlers_off(&mut self) {
        self.no_handlers = None;
        if self.memory.pending.is_some() {
            self.no_handlers = Some(HeldOff::begin());
        }
    }

    /// Maps a folio into its partner's slot, which must not fail any more.
    pub(super) fn map_at_partners(&mut self, held: &mut Held) {
        // It is not counted twice, if it is called again.
        if held.at == At::Destination {
            return;
        }
        let folios = held.index..held.index + 1;
        self.map_until_it_works(folios, held.to, held.frame.unwrap_or(held.source));
        held.at = At::Destination;
        held.mapped_by = Some(MappedBy {
            begins_here: true,
            ends_here: true,
        });
        self.no_longer_cut_off(1);
    }

    fn no_longer_cut_off(&mut self, folios: usize) {
        self.cut_off -= folios;
        if self.cut_off == 0 {
            self.handlers = None;
        }
    }

    /// Makes slots ready for a run of folios, as many side by side as there are, while there are
    /// mappings for them: each piece can cut one in two places.
    fn make_ready(&mut self, mut folios: Range<usize>, to: TierId) {
        while !folios.is_empty() && self.charge.add(2, self.memory.allowed) {
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
    pub(super) fn drop_ready(&mut self) {
        for Ready { folios, slot, tier } in self.ready.drain(..) {
            if !folios.is_empty() {
                self.memory.tiers[tier.index()].retire(slot..slot + folios.len());
            }
        }
        self.charge.set(0);
    }

    /// Lays the blind over a run of folios.
    fn cut_off(&mut self, run: &mut [Entry<Held>]) {
        let most = (self.memory.blind.len() / self.page()).max(1);
        for part in run.chunks_mut(most) {
            let addresses = self.addresses(part[0].held.index, part.len());
            // SAFETY: the folios are locked by this session, so no other migrator maps anything
            // there; the region's memory is only reached by atomics and raw pointers, and whoever
            // meets the blind waits.
            let laid = unsafe { self.memory.blind.lay_over(addresses) };
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
        {
            // A child that is made before the mapping is kept from it would share it, which does no
            // harm to anybody else. So this does not wait for a fork that takes long.
            let _pass = gate::enter();
            // SAFETY: the folios are locked by this session and their contents are in these slots.
            unsafe { map::map_file_fixed(addresses.clone(), file, file.offset(slot)) }?;
            let _ = advise::advise(addresses.clone(), Advice::DontFork);
        }
        if let Some(stores) = self.memory.stores() {
            // What is refused is tried again when stores are to be held off.
            let _ = self.memory.register_for_stores(addresses.clone());
            stores.are_free(&folios);
        }
        self.lock_again(folios);
        wake(&self.memory.uffd, addresses);
        Ok(())
    }

    /// Maps slots of a tier over a run of folios for which there is no other place: it is tried until
    /// it works, and until then the threads that want them wait.
    fn map_until_it_works(&self, folios: Range<usize>, tier: TierId, slot: usize) {
        let mut nap = Duration::from_micros(20);
        while self.map_over(folios.clone(), tier, slot).is_err() {
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(10));
        }
    }

    /// Locks into memory what was locked before: the lock went away with the old mapping. What it
    /// took of the limit went with it, so it is there for this.
    fn lock_again(&self, folios: Range<usize>) {
        let Some(layout) = &self.locked else { return };
        let lock = |folios: Range<usize>| {
            map::lock(
                self.addresses(folios.start, folios.len()),
                LockMode::ON_FAULT,
            )
        };
        for run in layout.mlocked_of(folios) {
            // What is refused all the same is only not kept from being swapped.
            by_run_or_each(run, lock, |_, _| {});
        }
    }
}

/// Notes for a run of folios that one call has mapped them.
fn mapped_by_one_call(run: &mut [Entry<Held>], at: At) {
    let last = run.len().saturating_sub(1);
    for (n, entry) in run.iter_mut().enumerate() {
        entry.held.at = at;
        entry.held.mapped_by = Some(MappedBy {
            begins_here: n == 0,
            ends_here: n == last,
        });
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

    fn owner(&self) -> Option<&dyn FolioOwner> {
        self.table.owner()
    }

    fn provision(&mut self, folios: &[Folio], to: TierId) {
        self.hold_handlers_off();
        self.drop_ready();
        let leaving = folios.iter().map(|&folio| index_of(folio));
        let leaving = leaving.filter(|&index| self.table.tier(index) != to);
        let (pinned, mut indices): (Vec<_>, Vec<_>) =
            leaving.partition(|&index| self.table.is_pinned(index));
        self.passed_over.clear();
        self.passed_over
            .extend(pinned.into_iter().map(|index| (index, to)));
        self.passed_over.sort_unstable_by_key(|&(index, _)| index);
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
        // Nothing is locked yet, and it may become free.
        if let Some((index, to)) = self.passed_over.pop() {
            self.make_ready(index..index + 1, to);
        }
        self.table.lock(index, LOCK_PATIENCE).map_err(refused)?;
        Ok(self.held(index))
    }

    fn is_in(&self, _folio: Folio, held: &Held, tier: TierId) -> bool {
        held.from == tier
    }

    fn reserve(&mut self, entries: &mut [Entry<Held>], to: TierId, _wait: &Wait) {
        for entry in entries {
            entry.held.to = to;
            entry.held.frame = self.take_ready(entry.held.index);
            if entry.held.frame.is_none() {
                let of_pinned = |&(index, _): &(usize, _)| index;
                let pinned = &self.passed_over;
                let was_pinned = pinned.binary_search_by_key(&entry.held.index, of_pinned);
                let why = was_pinned.map_or(Why::NoMemory, |_| Why::Again);
                entry.fail(Failure::new(Step::Reserve, why));
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
        let room = limits::address_space_left();
        if room.is_some_and(|room| room < entries.len() * self.page() + SPARE_BYTES) {
            for entry in entries {
                entry.fail(failed(Step::Shootdown, Why::NoMemory, Errno::NOMEM));
            }
            return;
        }
        self.handlers = Some(HeldOff::begin());
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
        // dropped the job. The folio is cut off, or stores to it are held off, so nobody stores to its
        // source.
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
            // Pairs of several requests settle together.
            adjacent(a, b) && a.to == b.to && a.frame.map(|slot| slot + 1) == b.frame
        });
        for run in runs {
            let first = &run[0].held;
            let folios = first.index..first.index + run.len();
            let mapped = self.map_over(folios.clone(), first.to, first.frame.unwrap_or_default());
            match mapped {
                Ok(()) => {
                    mapped_by_one_call(run, At::Destination);
                    self.no_longer_cut_off(run.len());
                    // The pages are there; this only saves the threads a fault for each. What it
                    // cannot do now they do themselves.
                    let addresses = self.addresses(folios.start, folios.len());
                    let _ = if run[0].held.marks.parked {
                        // They are read, so they stay clean.
                        advise::advise(addresses, Advice::PopulateRead)
                    } else {
                        advise::populate_write(addresses)
                    };
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
            adjacent(a, b)
                && match (a.at, b.at) {
                    (At::Blind, At::Blind) => a.from == b.from && a.source + 1 == b.source,
                    // These are there already; a call lets stores go to a run of them.
                    (At::Source, At::Source) => a.marks.stores_held == b.marks.stores_held,
                    _ => false,
                }
        });
        for run in runs {
            let first = &run[0].held;
            if first.at != At::Blind {
                let folios = first.index..first.index + run.len();
                if let Some(stores) = self.memory.stores().filter(|_| first.marks.stores_held) {
                    stores.let_go(&folios);
                }
                continue;
            }
            // There is no other place for these pages.
            let folios = first.index..first.index + run.len();
            self.map_until_it_works(folios, first.from, first.source);
            mapped_by_one_call(run, At::Source);
            self.no_longer_cut_off(run.len());
        }
    }

    fn release(&mut self, folios: &mut dyn Iterator<Item = (Folio, Held)>, at: Place) {
        let (exchanges, stores) = (self.exchanges, self.memory.stores());
        let mut freed: Vec<(TierId, Range<usize>)> = Vec::new();
        let mut unlocked = Vec::new();
        let mut free = |tier: TierId, slot: usize| match freed.last_mut() {
            Some((same, run)) if *same == tier && run.end == slot => run.end += 1,
            _ => freed.push((tier, slot..slot + 1)),
        };
        let mapped = folios.filter_map(|(_, held)| {
            unlocked.push(held.index);
            let arrived = match (at, held.frame) {
                (Place::Destination, Some(slot)) if exchanges => Some((held.to, slot)),
                // It is the partner's.
                (Place::Source, Some(_)) if exchanges => None,
                (Place::Destination, Some(slot)) => {
                    free(held.from, held.source);
                    Some((held.to, slot))
                }
                (_, Some(slot)) => {
                    free(held.to, slot);
                    if let Some(stores) = stores.as_ref().filter(|_| held.marks.parked) {
                        stores.has_stayed(self.table, held.index, held.to);
                    }
                    None
                }
                (_, None) => None,
            };
            held.mapped_by.map(|call| Mapped {
                index: held.index,
                arrived,
                begins: call.begins_here,
                ends: call.ends_here,
            })
        });
        // Until the slots are free again too, both tiers have the folios.
        let mut tally = if exchanges {
            Tally::of_exchange(self.table)
        } else {
            Tally::new(self.table)
        };
        self.memory.record(self.table, &mut tally, mapped);
        for index in unlocked {
            let bytes = self.addresses(index, 1);
            faults::unlock(self.table, &self.memory.uffd, index, bytes);
        }
        for (tier, slots) in freed {
            self.tier(tier).retire(slots);
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(stores) = self.memory.stores() {
            stores.let_ahead_go(self.table, &self.held_ahead);
        }
        self.drop_ready();
        let mut short = false;
        for tier in &self.memory.tiers {
            tier.revoke(self.granted);
            short |= tier.is_short();
        }
        if self.memory.sessions.fetch_sub(1, Ordering::Relaxed) == 1 && short {
            self.keeper.refill();
        }
    }
}
