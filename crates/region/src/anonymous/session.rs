//! The engine's platform over anonymous memory: `UFFDIO_MOVE` out, copy, `UFFDIO_MOVE` in.
//!
//! Where each step is done, and what makes it right:
//!
//! - **unmap** only gathers: in user space cutting off and invalidating are one call.
//! - **shootdown** moves each run of pages out to staging slots, by one `UFFDIO_MOVE` a run. The
//!   kernel takes the pages out of the region's page table, flushes every CPU, and only then puts
//!   them into the staging slots; an access that comes later faults and waits in the kernel. A page
//!   that something has pinned is refused there, so no device writes to a page that was cut off.
//! - **copy** reads the staging slots and writes frames of the destination's pool, at addresses that
//!   only the migrator knows.
//! - **remap** moves the frames into the region, again by one call a run, which wakes who waits.
//! - **putback** moves the source frames from the staging slots into the region.
//!
//! Everything from shootdown to remap or putback is [secluded](super::seclusion).

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use transhume_copy::CopyJob;
use transhume_engine::{Alone, Entry, Failure, Folio, FolioOwner, Place, Platform, Reshaped, Wait};
use transhume_sys::advise::{self, Advice};
use transhume_sys::signals::HeldOff;

use super::Anonymous;
use super::collapse::{Collapse, Shape};
use super::pool::FramePool;
use super::reach::Effort;
use super::seclusion::Secluded;
use super::slots::{Kind, Ready, Returned};
use super::span::Span;
use crate::deferral::Marks;
use crate::failure::{LOCK_PATIENCE, copy_here, refused};
use crate::faults::{self, Pages};
use crate::index_of;
use crate::keeper::Keeper;
use crate::layout::Layout;
use crate::options::Neighbours;
use crate::runs::RunSet;
use crate::table::{FolioTable, Tally};
use crate::tier::{PageSize, TierId};

/// One request's view of an anonymous region.
#[derive(Debug)]
pub(crate) struct Session<'r> {
    pub(super) memory: &'r Anonymous,
    pub(super) table: &'r FolioTable,
    pub(super) keeper: &'r Keeper,
    pub(super) epoch: Instant,
    /// Held while folios of a region are locked from which stores may be held off: one by a handler on
    /// this thread would wait for itself.
    pub(super) no_handlers: Option<HeldOff>,
    /// Folios of this request that are cut off now.
    pub(super) cut_off: usize,
    /// Held while `cut_off` is not zero.
    pub(super) secluded: Option<Secluded<'r>>,
    /// Folios that the kernel called busy: shared since a fork, which can be cured, or pinned.
    pub(super) busy: BTreeMap<usize, Busy>,
    /// Those that this batch has found. Has room for all of a batch: memory that is allocated while
    /// pages are cut off could be such a page.
    pub(super) new_busy: Vec<usize>,
    /// How the region's memory is mapped, as far as this batch knows.
    pub(super) layout: Arc<Layout>,
    /// Whether that was looked at for this batch.
    pub(super) layout_is_right: bool,
    /// Whether the kernel has refused what should be right.
    pub(super) layout_in_doubt: bool,
    /// Folios of this batch that are in the tier asked for by the table, but not on its node.
    pub(super) astray: Vec<usize>,
    pub(super) neighbours: Neighbours,
    /// How many pages apart two may be to be cut off with what lies between them, in this batch.
    pub(super) reach: usize,
    pub(super) effort: Effort,
    /// The spans of this batch, in order.
    pub(super) spans: Vec<Span>,
    /// Whether this batch counts as one that may hold neighbours.
    pub(super) holds: bool,
    /// Sources to give up; has room for all of a batch.
    pub(super) sources: Vec<advise::Span>,
    pub(super) granted: usize,
    /// Slots that this batch has taken and not reserved yet.
    pub(super) ready: Vec<Ready>,
    /// Folios from which stores are held off before their turn.
    pub(super) held_ahead: RunSet,
    /// Whether its folios trade places, and the frame of each is its partner's staging slot.
    pub(super) exchanges: bool,
    /// Whether its folios become pairs, or are pairs.
    pub(super) defers: bool,
    /// Whether it was looked which of its pairs are locked into memory.
    pub(super) locks_are_known: bool,
    pub(super) shape: Shape,
    /// Base pages of this batch that are to arrive as huge pages, in order.
    pub(super) collapses: Vec<Collapse>,
    /// Whether a huge page was not to be had.
    pub(super) lacks_huge_pages: bool,
    /// What was a huge page and what was not, where that is looked at: folios of 2 MiB, and the first
    /// of base pages that are to become a huge page; in order.
    pub(super) shapes: Vec<(usize, bool)>,
    pub(super) reshaped: Reshaped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Busy {
    MaybeShared,
    Unshared,
}

/// What is kept for a locked folio.
#[derive(Debug)]
pub(crate) struct Held {
    pub(super) index: usize,
    pub(super) from: TierId,
    pub(super) to: TierId,
    /// The slots, by number, once they are reserved.
    pub(super) staging: Option<NonZeroUsize>,
    pub(super) frame: Option<NonZeroUsize>,
    pub(super) at: At,
    pub(super) mlocked: bool,
    /// On another node than its tier's.
    pub(super) astray: bool,
    /// The span with which it is cut off, by number.
    pub(super) span: Option<usize>,
    /// The huge page of which its frame is a part, by number.
    pub(super) collapse: Option<usize>,
    /// The frame itself has gone into the region, and not its contents only.
    pub(super) frame_is_spent: bool,
    pub(super) soiled: Soiled,
    /// In an exchange: whether the slot that it puts back may be locked into memory.
    pub(super) slot_is_mlocked: bool,
    /// In an exchange: whether its partner is locked into memory and it is not, or the other way round.
    pub(super) is_unlike: bool,
    pub(super) marks: Marks,
}

/// Which slots are to be emptied before they serve again: they hold something that could not be removed
/// and that nobody needs, or could not be unlocked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Soiled {
    pub(super) staging: bool,
    pub(super) frame: bool,
}

/// Where the contents of a folio are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Source,
    /// The first so many bytes are in the staging slot, the rest is in the region: a huge page of
    /// base pages of which only some could be moved.
    Torn(usize),
    Staging,
    Destination,
}

impl<'r> Session<'r> {
    /// A session whose batches take up to `batch` folios.
    pub(crate) fn new(
        memory: &'r Anonymous,
        table: &'r FolioTable,
        keeper: &'r Keeper,
        batch: usize,
        neighbours: Neighbours,
    ) -> Self {
        for pool in &memory.pools {
            pool.grant(batch);
        }
        memory.sessions.fetch_add(1, Ordering::SeqCst);
        Self {
            memory,
            table,
            keeper,
            epoch: memory
                .pending
                .as_ref()
                .map_or_else(Instant::now, |pending| pending.epoch),
            no_handlers: None,
            cut_off: 0,
            secluded: None,
            busy: BTreeMap::new(),
            new_busy: Vec::new(),
            layout: memory.layouts.latest(),
            layout_is_right: false,
            layout_in_doubt: false,
            astray: Vec::new(),
            neighbours,
            reach: memory.spans.reach(neighbours),
            effort: Effort::begin(),
            spans: Vec::new(),
            holds: false,
            sources: Vec::new(),
            granted: batch,
            ready: Vec::new(),
            held_ahead: RunSet::default(),
            exchanges: false,
            defers: false,
            locks_are_known: false,
            shape: Shape::default(),
            collapses: Vec::new(),
            lacks_huge_pages: false,
            shapes: Vec::new(),
            reshaped: Reshaped::default(),
        }
    }

    /// The same, with folios that are to arrive like this.
    pub(crate) fn in_shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    pub(super) fn page(&self) -> usize {
        self.memory.page_size.bytes()
    }

    /// The address of a folio in the region.
    pub(super) fn address(&self, held: &Held) -> usize {
        self.address_of(held.index)
    }

    pub(super) fn address_of(&self, index: usize) -> usize {
        self.memory.memory.range().start + index * self.page()
    }

    pub(super) fn slot_address(&self, slot: Option<NonZeroUsize>) -> usize {
        slot.map_or(0, NonZeroUsize::get) * self.page()
    }

    pub(super) fn slot_bytes(&self, slot: Option<NonZeroUsize>) -> Range<usize> {
        let start = self.slot_address(slot);
        start..start + self.page()
    }

    fn pool(&self, tier: TierId) -> &'r FramePool {
        self.memory.pool(tier)
    }

    /// Before a batch of so many folios is made ready.
    pub(super) fn begin_batch(&mut self, folios: usize) {
        self.hold_handlers_off();
        self.locks_are_known = false;
        self.look_at_layout();
        let busy = self
            .new_busy
            .drain(..)
            .map(|index| (index, Busy::MaybeShared));
        self.busy.extend(busy);
        self.new_busy.reserve(folios);
        self.drop_ready();
    }

    /// What leaves its place: each folio with the number of the pool that it is staged in, in order.
    /// One that was found busy is made ours alone first.
    pub(super) fn leaving(&mut self, indices: impl Iterator<Item = usize>) -> Vec<(usize, usize)> {
        let mut leaving = Vec::with_capacity(indices.size_hint().0);
        for index in indices {
            leaving.push((index, self.memory.pool_number(self.table.tier(index))));
            if let Some(busy) = self.busy.get_mut(&index) {
                *busy = Busy::Unshared;
                // A store by nobody: what is shared since a fork becomes ours alone. If that fails,
                // or the process forks again, the folio is found busy again.
                let address = self.memory.memory.range().start + index * self.page();
                let _ = advise::populate_write(address..address + self.page());
                if self.memory.page_size == PageSize::Huge {
                    // Where a store has replaced the first part of a shared huge page, the kernel takes
                    // the other parts for shared for ever. The contents in a new huge page are not.
                    let _ = advise::advise(address..address + self.page(), Advice::Collapse);
                }
            }
        }
        leaving.sort_unstable();
        leaving.dedup();
        leaving
    }

    fn held(&self, index: usize) -> Held {
        let from = self.table.tier(index);
        let mlocked = self.layout.is_mlocked(index);
        Held {
            index,
            from,
            to: from,
            staging: None,
            frame: None,
            at: At::Source,
            mlocked,
            astray: self.astray.binary_search(&index).is_ok(),
            span: None,
            collapse: None,
            frame_is_spent: false,
            soiled: Soiled::default(),
            slot_is_mlocked: false,
            is_unlike: false,
            marks: Marks::default(),
        }
    }

    /// Finds out how the memory is mapped: as it was last seen, unless that is in doubt.
    pub(super) fn look_at_layout(&mut self) {
        let doubt = std::mem::take(&mut self.layout_in_doubt);
        let memory = self.memory.memory.range();
        let layouts = &self.memory.layouts;
        self.layout_is_right = doubt && !layouts.differs(&self.layout, &memory, self.page());
        self.layout = layouts.latest();
    }

    /// Gives up a folio's lock.
    pub(super) fn unlock(&self, held: &Held) {
        let start = self.address(held);
        let bytes = start..start + self.page();
        faults::unlock(self.table, &self.memory.uffd, held.index, bytes);
    }

    pub(super) fn new_cut_off(&mut self) {
        self.cut_off += 1;
    }

    pub(super) fn no_longer_cut_off(&mut self) {
        self.cut_off -= 1;
        if self.cut_off == 0 {
            self.secluded = None;
        }
    }
}

/// Whether one call can take both folios: they lie side by side in one mapping.
pub(super) fn adjacent(layout: &Layout, a: &Held, b: &Held) -> bool {
    a.index + 1 == b.index && !layout.is_seam(b.index)
}

pub(super) fn slots_adjacent(a: Option<NonZeroUsize>, b: Option<NonZeroUsize>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if a.get() + 1 == b.get())
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

    fn cut_off_with(&self, before: Option<Folio>, folio: Folio) -> u64 {
        let both = before.map(|before| (index_of(before), index_of(folio)));
        if both.is_some_and(|(before, index)| self.tables_differ(before, index)) {
            return u64::MAX;
        }
        let between = both
            .filter(|&(before, index)| self.is_in_reach(before, index))
            .map_or(0, |(before, index)| (index - before - 1) as u64);
        folio.base_pages() + between
    }

    fn together(&self, folio: Folio) -> u64 {
        folio.base_pages() * self.collapses_from(index_of(folio)) as u64
    }

    fn reshaped(&self) -> Reshaped {
        self.reshaped
    }

    fn provision(&mut self, folios: &[Folio], to: TierId) {
        self.begin_batch(folios.len());
        let (there, elsewhere): (Vec<usize>, Vec<usize>) = folios
            .iter()
            .map(|&folio| index_of(folio))
            .partition(|&index| self.table.tier(index) == to);
        self.astray = if self.memory.has_several_nodes() {
            self.astray(&there, self.pool(to).node())
        } else {
            Vec::new()
        };
        self.astray.sort_unstable();
        let astray = self.astray.clone();
        let mut leaving = self.leaving(elsewhere.into_iter().chain(astray));
        let target = self.memory.pool_number(to);
        self.look_at_shapes(&leaving);
        self.make_collapses_ready(&mut leaving, target);
        self.make_spans_ready(&mut leaving, target);
        for run in leaving.chunk_by(|a, b| a.0 + 1 == b.0 && a.1 == b.1) {
            let (index, source) = run[0];
            self.make_ready(index, run.len(), Kind::Staging, source);
            self.make_ready(index, run.len(), Kind::Frame, target);
        }
        self.choose_frames(target);
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

    fn is_in(&self, _folio: Folio, held: &Held, tier: TierId) -> bool {
        held.from == tier && !held.astray
    }

    fn reserve(&mut self, entries: &mut [Entry<Held>], to: TierId, _wait: &Wait) {
        for entry in entries.iter_mut() {
            if let Some((span, slot)) = self.span_of(entry.held.index) {
                entry.held.span = Some(span);
                entry.held.staging = NonZeroUsize::new(slot);
            } else {
                self.give_part(&mut entry.held);
            }
        }
        let layout = Arc::clone(&self.layout);
        let runs = entries.chunk_by_mut(|a, b| {
            let (a, b) = (&a.held, &b.held);
            adjacent(&layout, a, b)
                && a.from == b.from
                && a.mlocked == b.mlocked
                && a.span == b.span
                && a.collapse == b.collapse
        });
        for run in runs {
            self.reserve_run(run, to);
        }
        if self.pool(to).want() {
            self.keeper.refill();
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
        let layout = Arc::clone(&self.layout);
        let fail_all = |entries: &mut [Entry<Held>], failure: Failure| {
            for entry in entries {
                entry.fail(failure);
            }
        };
        match self.memory.seclusion.enter() {
            Ok(secluded) => self.secluded = Some(secluded),
            Err(failure) => return fail_all(entries, failure),
        }
        self.effort = Effort::begin();
        self.lock_neighbours(entries);
        self.let_go_before_cut(entries);
        let runs = entries.chunk_by_mut(|a, b| {
            let (a, b) = (&a.held, &b.held);
            a.span == b.span && adjacent(&layout, a, b) && slots_adjacent(a.staging, b.staging)
        });
        for run in runs {
            if run[0].held.span.is_none() {
                self.effort.run(run.len());
                self.move_out(run);
            }
        }
        self.move_spans_out(entries);
        if self.cut_off == 0 {
            self.secluded = None;
        } else if let Some(Err(failure)) = self.secluded.as_ref().map(Secluded::wait_out) {
            fail_all(entries, failure);
        }
    }

    fn job(&mut self, _folio: Folio, held: &mut Held) -> CopyJob {
        let from = if held.at == At::Source {
            // Stores are held off from it.
            self.address(held)
        } else {
            self.slot_address(held.staging)
        };
        let to = self.slot_address(held.frame);
        // SAFETY: both slots are reserved for this folio until it is released, which the engine
        // does after it has dropped the job; they are different memory, and nobody else knows them.
        // The region's memory is only reached by atomics and raw pointers; nobody stores there now,
        // or, if the page is given back and filled anew, the copy is not used.
        unsafe {
            CopyJob::new(
                std::ptr::with_exposed_provenance(from),
                std::ptr::with_exposed_provenance_mut(to),
                self.page(),
            )
        }
    }

    fn copy_on_cpu(&mut self, folio: Folio, held: &mut Held) -> Result<(), Failure> {
        copy_here(self.job(folio, held))
    }

    fn remap(&mut self, entries: &mut [Entry<Held>]) {
        if self.exchanges {
            self.mlock_as_destinations(entries);
        }
        let layout = Arc::clone(&self.layout);
        let runs = entries.chunk_by_mut(|a, b| {
            let alike = a.is_alive() == b.is_alive();
            let (a, b) = (&a.held, &b.held);
            let beside = adjacent(&layout, a, b) && slots_adjacent(a.frame, b.frame);
            a.span == b.span && a.collapse == b.collapse && beside && alike
        });
        for run in runs {
            if run[0].held.span.is_none() && run[0].is_alive() {
                self.move_in_shaped(run);
            }
        }
        if self.exchanges {
            // There are no spans, and no frame goes to a pool.
            return;
        }
        self.move_spans_in(entries);
        if !self.defers {
            self.memory.spans.learn(&self.effort);
        }
        self.reach = self.memory.spans.reach(self.neighbours);
        self.count_shapes(entries);
        self.set_strays_aside(entries);
    }

    fn putback(&mut self, entries: &mut [Entry<Held>]) {
        let layout = Arc::clone(&self.layout);
        let runs = entries.chunk_by_mut(|a, b| {
            let (a, b) = (&a.held, &b.held);
            match (a.at, b.at) {
                (At::Staging, At::Staging) => {
                    a.span == b.span
                        && adjacent(&layout, a, b)
                        && slots_adjacent(a.staging, b.staging)
                }
                // These are there already; a call lets stores go to a run of them.
                (At::Source, At::Source) => {
                    a.index + 1 == b.index && a.marks.stores_held == b.marks.stores_held
                }
                _ => false,
            }
        });
        for run in runs {
            let Some(first) = run.first() else { continue };
            let bytes = match first.held.at {
                At::Staging => run.len() * self.page(),
                At::Torn(bytes) => bytes,
                At::Source | At::Destination => {
                    self.let_stores_go(run);
                    continue;
                }
            };
            let (from, to) = (
                self.slot_address(first.held.staging),
                self.address(&first.held),
            );
            let soiled = !self.bring_in(from, to, bytes);
            self.let_stores_go(run);
            for entry in run {
                entry.held.soiled.staging |= soiled;
                entry.held.at = At::Source;
                self.part_is_home(&entry.held);
                self.no_longer_cut_off();
            }
        }
        self.close_finished_spans();
    }

    fn release(&mut self, folios: &mut dyn Iterator<Item = (Folio, Held)>, at: Place) {
        let moved = at == Place::Destination;
        if self.exchanges {
            return self.release_pairs(folios, moved);
        }
        let stores = self.memory.stores();
        let mut tally = Tally::new(self.table);
        let mut staging = Returned::staging(if moved {
            FramePool::retire
        } else {
            FramePool::put_staging
        });
        let mut frames = Returned::frames(if moved {
            FramePool::put_empty
        } else {
            FramePool::put_unused
        });
        let mut unused = Returned::frames(FramePool::put_unused);
        for (_, held) in folios {
            let (from, to) = (self.pool(held.from), self.pool(held.to));
            if held.span.is_some() {
                // The slot goes with the span.
            } else if held.soiled.staging {
                staging.add_soiled(from, held.staging);
            } else {
                staging.add(from, held.staging, held.mlocked);
            }
            if held.soiled.frame {
                frames.add_soiled(to, held.frame);
            } else if held.span.is_some() && !held.frame_is_spent {
                unused.add(to, held.frame, held.mlocked);
            } else {
                frames.add(to, held.frame, held.mlocked);
            }
            if held.from != held.to {
                if moved {
                    tally.moved(held.index, held.from, held.to);
                } else if let Some(stores) = stores.as_ref().filter(|_| held.marks.parked) {
                    stores.has_stayed(self.table, held.index, held.to);
                }
            }
            self.unlock(&held);
        }
        self.let_go_of_neighbours();
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(stores) = self.memory.stores() {
            stores.let_ahead_go(self.table, &self.held_ahead);
        }
        self.close_spans();
        self.memory.sessions.fetch_sub(1, Ordering::SeqCst);
        self.drop_ready();
        for pool in &self.memory.pools {
            pool.revoke(self.granted);
        }
    }
}
