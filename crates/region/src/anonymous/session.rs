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

use transhume_copy::{CopyJob, Memcpy};
use transhume_engine::{
    Alone, Copier, CopyAnswer, Entry, Failure, Folio, Place, Platform, Step, Wait, Why,
};
use transhume_sys::map::{self, LockMode};
use transhume_sys::uffd::{CopyMode, MoveMode};
use transhume_sys::{CallError, Errno, advise};

use super::Anonymous;
use super::layout::Layout;
use super::pool::FramePool;
use super::seclusion::Secluded;
use crate::failure::{LOCK_PATIENCE, failed, refused, why};
use crate::keeper::Keeper;
use crate::runs::RunSet;
use crate::table::{FolioTable, Tally, Unlocked};
use crate::tier::TierId;
use crate::walk::{Stopped, Walk};
use crate::{BASE_PAGE, TABLE_BYTES, index_of};

/// One request's view of an anonymous region.
#[derive(Debug)]
pub(crate) struct Session<'r> {
    memory: &'r Anonymous,
    table: &'r FolioTable,
    keeper: &'r Keeper,
    epoch: Instant,
    /// Folios of this request that are cut off now.
    cut_off: usize,
    /// Held while `cut_off` is not zero.
    secluded: Option<Secluded<'r>>,
    /// Folios that the kernel called busy: shared since a fork, which can be cured, or pinned.
    busy: BTreeMap<usize, Busy>,
    /// How the region's memory is mapped, as far as this batch knows.
    layout: Arc<Layout>,
    /// Whether that is so, once this batch has had reason to look.
    layout_is_right: Option<bool>,
    granted: usize,
    /// Slots that this batch has taken and not reserved yet.
    ready: Vec<Ready>,
}

/// Slots for a run of folios.
#[derive(Debug)]
struct Ready {
    kind: Kind,
    pool: usize,
    slots: RunSet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Staging,
    Frame,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Busy {
    MaybeShared,
    Unshared,
}

/// What is kept for a locked folio.
#[derive(Debug)]
pub(crate) struct Held {
    index: usize,
    from: TierId,
    to: TierId,
    /// The slots, by number, once they are reserved.
    staging: Option<NonZeroUsize>,
    frame: Option<NonZeroUsize>,
    at: At,
    mlocked: bool,
}

/// Where the contents of a folio are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
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
    ) -> Self {
        for pool in &memory.pools {
            pool.grant(batch);
        }
        memory.sessions.fetch_add(1, Ordering::Relaxed);
        Self {
            memory,
            table,
            keeper,
            epoch: Instant::now(),
            cut_off: 0,
            secluded: None,
            busy: BTreeMap::new(),
            layout: memory.layouts.latest(),
            layout_is_right: None,
            granted: batch,
            ready: Vec::new(),
        }
    }

    fn page(&self) -> usize {
        self.memory.page_size.bytes()
    }

    /// The address of a folio in the region.
    fn address(&self, held: &Held) -> usize {
        self.memory.memory.range().start + held.index * self.page()
    }

    fn slot_address(&self, slot: Option<NonZeroUsize>) -> usize {
        slot.map_or(0, NonZeroUsize::get) * self.page()
    }

    fn slot_bytes(&self, slot: Option<NonZeroUsize>) -> Range<usize> {
        let start = self.slot_address(slot);
        start..start + self.page()
    }

    fn pool(&self, tier: TierId) -> &'r FramePool {
        self.memory.pool(tier)
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
        }
    }

    fn new_cut_off(&mut self) {
        self.cut_off += 1;
    }

    fn no_longer_cut_off(&mut self) {
        self.cut_off -= 1;
        if self.cut_off == 0 {
            self.secluded = None;
        }
    }

    /// Moves a run of folios, adjacent in the region and in the slots, out to the slots.
    fn move_out(&mut self, run: &mut [Entry<Held>]) {
        let first = &run[0].held;
        let (from, to) = (self.address(first), self.slot_address(first.staging));
        let mut walk = Walk::over(run.len(), self.page());
        while let Some(rest) = walk.rest() {
            // SAFETY: the folios are locked by this session, so no other migrator moves them, and
            // the staging slots are empty and reserved for them. Threads that use the region's
            // memory do so by atomics or raw pointers and wait in a fault until it is back.
            let progress = unsafe {
                self.memory.uffd.move_range(
                    to + rest.start,
                    from + rest.start,
                    rest.len(),
                    MoveMode::DONTWAKE,
                )
            };
            let (done, stopped) = walk.record(progress);
            for entry in &mut run[done] {
                entry.held.at = At::Staging;
                self.new_cut_off();
            }
            if let Some(Stopped { folio, torn, errno }) = stopped {
                let entry = &mut run[folio];
                if torn > 0 {
                    entry.held.at = At::Torn(torn);
                    self.new_cut_off();
                }
                let why = self.why_not_out(entry.held.index, errno);
                entry.fail(failed(Step::Shootdown, why, errno));
            }
        }
    }

    /// What the kernel means by `errno` when it will not move a folio out.
    fn why_not_out(&mut self, index: usize, errno: Errno) -> Why {
        match errno {
            Errno::BUSY => match self.busy.get(&index) {
                // Shared since a fork or pinned: the next pass unshares it first.
                None | Some(Busy::MaybeShared) => {
                    self.busy.insert(index, Busy::MaybeShared);
                    Why::Again
                }
                Some(Busy::Unshared) => Why::Pinned,
            },
            // The run reaches over two mappings, or the slots are not locked as the folio is; the
            // next batch knows better.
            Errno::INVAL => {
                let is_right = self.layout_is_right.unwrap_or_else(|| {
                    let memory = self.memory.memory.range();
                    !self
                        .memory
                        .layouts
                        .differs(&self.layout, &memory, self.page())
                });
                self.layout_is_right = Some(is_right);
                if is_right {
                    Why::Unsupported
                } else {
                    Why::Again
                }
            }
            _ => why(errno),
        }
    }

    /// Moves a run of frames, adjacent in the slots and in the region, into the region.
    fn move_in(&mut self, run: &mut [Entry<Held>]) {
        let first = &run[0].held;
        let (from, to) = (self.slot_address(first.frame), self.address(first));
        let page = self.page();
        let mut walk = Walk::over(run.len(), page);
        while let Some(rest) = walk.rest() {
            // SAFETY: the frames are reserved for these folios and only this session knows their
            // addresses; the folios' places in the region are empty since they were cut off.
            let progress = unsafe {
                self.memory.uffd.move_range(
                    to + rest.start,
                    from + rest.start,
                    rest.len(),
                    MoveMode::empty(),
                )
            };
            let (done, stopped) = walk.record(progress);
            for entry in &mut run[done] {
                entry.held.at = At::Destination;
                self.no_longer_cut_off();
            }
            if let Some(Stopped { folio, torn, errno }) = stopped {
                if torn == 0 {
                    run[folio].fail(failed(Step::Remap, why(errno), errno));
                } else {
                    // Threads may have stored to what arrived, so the folio can only go on.
                    let at = folio * page + torn;
                    self.bring_in(from + at, to + at, page - torn);
                    run[folio].held.at = At::Destination;
                    self.no_longer_cut_off();
                }
            }
        }
    }

    /// Moves bytes from slots into their places in the region, whatever it takes: where the kernel
    /// will not move a page it can still copy it, and where it has no memory for that it is asked
    /// again. Until then the threads that want the page wait, and its contents stay where they are.
    fn bring_in(&self, from: usize, to: usize, bytes: usize) {
        let mut done = 0;
        let mut nap = Duration::from_micros(20);
        while done < bytes {
            let (from, to, rest) = (from + done, to + done, bytes - done);
            // SAFETY: as in `move_in`; the slots belong to locked folios of this session.
            let moved = unsafe {
                self.memory
                    .uffd
                    .move_range(to, from, rest, MoveMode::empty())
            };
            done += moved.done;
            if moved.done > 0 || moved.stopped.is_none() {
                continue;
            }
            // SAFETY: the slot holds the page's contents, as the move failed before it.
            let copied = unsafe {
                let from = std::ptr::with_exposed_provenance(from);
                self.memory
                    .uffd
                    .copy(to, from, BASE_PAGE, CopyMode::empty())
            };
            match copied.stopped {
                None => done += copied.done,
                // It is there already: an earlier call brought it.
                Some(Errno::EXIST) => done += BASE_PAGE,
                Some(_) => {
                    std::thread::sleep(nap);
                    nap = (nap * 2).min(Duration::from_millis(10));
                }
            }
        }
    }

    /// Takes slots for a run of `folios` from `index` on, as many side by side as there are. What
    /// cannot be had is missing when it is to be reserved.
    fn make_ready(&mut self, index: usize, folios: usize, kind: Kind, pool: usize) {
        // The number of the run's first page in the address space.
        let first = self.memory.memory.range().start / self.page() + index;
        let (from, uffd) = (&self.memory.pools[pool], &self.memory.uffd);
        let mut done = 0;
        while done < folios {
            let (want, beside) = (folios - done, first + done);
            let taken = match kind {
                Kind::Staging => from.take_staging(want, beside, uffd),
                Kind::Frame => from.take_frames(want, beside, uffd),
            };
            let Some(slots) = taken else { return };
            done += slots.len();
            self.ready_slots(kind, pool).insert(slots);
        }
    }

    fn ready_slots(&mut self, kind: Kind, pool: usize) -> &mut RunSet {
        let known = self
            .ready
            .iter()
            .position(|ready| ready.kind == kind && ready.pool == pool);
        let at = known.unwrap_or_else(|| {
            self.ready.push(Ready {
                kind,
                pool,
                slots: RunSet::default(),
            });
            self.ready.len() - 1
        });
        &mut self.ready[at].slots
    }

    /// Puts slots back that were taken and not reserved.
    fn drop_ready(&mut self) {
        for Ready { kind, pool, slots } in self.ready.drain(..) {
            let pool = &self.memory.pools[pool];
            for run in slots.iter() {
                match kind {
                    Kind::Staging => pool.put_staging(run),
                    Kind::Frame => pool.put_unused(run),
                }
            }
        }
    }

    /// Reserves slots for a run of folios that lie side by side in the region.
    fn reserve_run(&mut self, run: &mut [Entry<Held>], to: TierId) {
        let Some(first) = run.first() else { return };
        let beside = self.address(&first.held) / self.page();
        let modulus = (TABLE_BYTES / self.page()).max(1);
        let (source, target) = (
            self.memory.pool_number(first.held.from),
            self.memory.pool_number(to),
        );
        let staging = self.ready_slots(Kind::Staging, source);
        give_slots(
            run,
            |want, at| staging.take_in_phase(want, beside + at, modulus),
            |held, slot| held.staging = slot,
        );
        let frames = self.ready_slots(Kind::Frame, target);
        give_slots(
            run,
            |want, at| frames.take_in_phase(want, beside + at, modulus),
            |held, slot| held.frame = slot,
        );
        for entry in run.iter_mut() {
            entry.held.to = to;
            if entry.held.staging.is_none() || entry.held.frame.is_none() {
                entry.fail(Failure::new(Step::Reserve, Why::NoMemory));
            } else if entry.held.mlocked
                && let Err(refused) = self.mlock_slots(&entry.held)
            {
                entry.fail(failed(Step::Reserve, Why::NotPermitted, refused.errno));
            }
        }
    }

    /// Locks a folio's slots as the folio is locked: the kernel moves only between such.
    fn mlock_slots(&self, held: &Held) -> Result<(), CallError> {
        map::lock(self.slot_bytes(held.staging), LockMode::ON_FAULT)?;
        map::lock(self.slot_bytes(held.frame), LockMode::ON_FAULT)
    }

    fn munlock_slots(&self, held: &Held) {
        for slot in [held.staging, held.frame]
            .into_iter()
            .filter(Option::is_some)
        {
            // What stays locked is only kept from being swapped.
            let _ = map::unlock(self.slot_bytes(slot));
        }
    }
}

/// Hands out slots to a run of folios, as many side by side as `take` finds at a time for what is
/// left of the run from some place on.
fn give_slots(
    run: &mut [Entry<Held>],
    mut take: impl FnMut(usize, usize) -> Option<Range<usize>>,
    mut give: impl FnMut(&mut Held, Option<NonZeroUsize>),
) {
    let mut rest = run;
    let mut at = 0;
    while let Some(slots) = take(rest.len(), at) {
        at += slots.len();
        let (now, later) = rest.split_at_mut(slots.len());
        for (entry, slot) in now.iter_mut().zip(slots) {
            give(&mut entry.held, NonZeroUsize::new(slot));
        }
        rest = later;
    }
}

/// Whether one call can take both folios: they lie side by side in one mapping.
fn adjacent(layout: &Layout, a: &Held, b: &Held) -> bool {
    a.index + 1 == b.index && !layout.is_seam(b.index)
}

fn slots_adjacent(a: Option<NonZeroUsize>, b: Option<NonZeroUsize>) -> bool {
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

    fn provision(&mut self, folios: &[Folio], to: TierId) {
        self.layout = self.memory.layouts.latest();
        self.layout_is_right = None;
        self.drop_ready();
        let mut leaving = Vec::with_capacity(folios.len());
        for &folio in folios {
            let index = index_of(folio);
            let from = self.table.tier(index);
            if from == to {
                continue;
            }
            leaving.push((index, self.memory.pool_number(from)));
            if let Some(busy) = self.busy.get_mut(&index) {
                *busy = Busy::Unshared;
                // A store by nobody: what is shared since a fork becomes ours alone. If that fails,
                // or the process forks again, the folio is found busy again.
                let address = self.memory.memory.range().start + index * self.page();
                let _ = advise::populate_write(address..address + self.page());
            }
        }
        leaving.sort_unstable();
        leaving.dedup();
        let target = self.memory.pool_number(to);
        for run in leaving.chunk_by(|a, b| a.0 + 1 == b.0 && a.1 == b.1) {
            let (index, source) = run[0];
            self.make_ready(index, run.len(), Kind::Staging, source);
            self.make_ready(index, run.len(), Kind::Frame, target);
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
        let layout = Arc::clone(&self.layout);
        let runs = entries.chunk_by_mut(|a, b| {
            let (a, b) = (&a.held, &b.held);
            adjacent(&layout, a, b) && a.from == b.from && a.mlocked == b.mlocked
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
        let fail_all = |entries: &mut [Entry<Held>], error: &CallError| {
            for entry in entries {
                entry.fail(failed(Step::Shootdown, Why::System, error.errno));
            }
        };
        match self.memory.seclusion.enter() {
            Ok(secluded) => self.secluded = Some(secluded),
            Err(error) => return fail_all(entries, &error),
        }
        let runs = entries.chunk_by_mut(|a, b| {
            let (a, b) = (&a.held, &b.held);
            adjacent(&layout, a, b) && slots_adjacent(a.staging, b.staging)
        });
        for run in runs {
            self.move_out(run);
        }
        if self.cut_off == 0 {
            self.secluded = None;
        } else if let Some(Err(error)) = self.secluded.as_ref().map(Secluded::wait_out) {
            fail_all(entries, &error);
        }
    }

    fn job(&mut self, _folio: Folio, held: &mut Held) -> CopyJob {
        let (from, to) = (
            self.slot_address(held.staging),
            self.slot_address(held.frame),
        );
        // SAFETY: both slots are reserved for this folio until it is released, which the engine
        // does after it has dropped the job; they are different memory, and nobody else knows them.
        unsafe {
            CopyJob::new(
                std::ptr::with_exposed_provenance(from),
                std::ptr::with_exposed_provenance_mut(to),
                self.page(),
            )
        }
    }

    fn copy_on_cpu(&mut self, folio: Folio, held: &mut Held) -> Result<(), Failure> {
        let job = self.job(folio, held);
        let mut answer = [CopyAnswer::Unconfirmed];
        Memcpy.copy(&[job], &mut answer);
        match answer {
            [CopyAnswer::Copied] => Ok(()),
            _ => Err(Failure::new(Step::Copy, Why::CopyFailed)),
        }
    }

    fn remap(&mut self, entries: &mut [Entry<Held>]) {
        let layout = Arc::clone(&self.layout);
        let runs = entries.chunk_by_mut(|a, b| {
            let (a, b) = (&a.held, &b.held);
            adjacent(&layout, a, b) && slots_adjacent(a.frame, b.frame)
        });
        for run in runs {
            self.move_in(run);
        }
    }

    fn putback(&mut self, entries: &mut [Entry<Held>]) {
        let layout = Arc::clone(&self.layout);
        let runs = entries.chunk_by_mut(|a, b| {
            let (a, b) = (&a.held, &b.held);
            a.at == At::Staging
                && b.at == At::Staging
                && adjacent(&layout, a, b)
                && slots_adjacent(a.staging, b.staging)
        });
        for run in runs {
            let Some(first) = run.first() else { continue };
            let bytes = match first.held.at {
                At::Staging => run.len() * self.page(),
                At::Torn(bytes) => bytes,
                At::Source | At::Destination => continue,
            };
            self.bring_in(
                self.slot_address(first.held.staging),
                self.address(&first.held),
                bytes,
            );
            for entry in run {
                entry.held.at = At::Source;
                self.no_longer_cut_off();
            }
        }
    }

    fn release(&mut self, folios: &mut dyn Iterator<Item = (Folio, Held)>, at: Place) {
        let moved = at == Place::Destination;
        let mut tally = Tally::new(self.table);
        let mut staging = Returned::new(if moved {
            FramePool::retire
        } else {
            FramePool::put_staging
        });
        let mut frames = Returned::new(if moved {
            FramePool::put_empty
        } else {
            FramePool::put_unused
        });
        for (_, held) in folios {
            if held.mlocked {
                self.munlock_slots(&held);
            }
            staging.add(self.pool(held.from), held.staging);
            frames.add(self.pool(held.to), held.frame);
            if moved {
                tally.moved(held.index, held.from, held.to);
            }
            if self.table.unlock(held.index) == Unlocked::FaultWaits {
                // A wake that fails has nobody to wake.
                let start = self.address(&held);
                let _ = self.memory.uffd.wake(start..start + self.page());
            }
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.memory.sessions.fetch_sub(1, Ordering::Relaxed);
        self.drop_ready();
        for pool in &self.memory.pools {
            pool.revoke(self.granted);
        }
    }
}

/// Slots on their way back to a pool, gathered while they lie side by side.
struct Returned<'p> {
    run: Option<(&'p FramePool, Range<usize>)>,
    give: fn(&FramePool, Range<usize>),
}

impl<'p> Returned<'p> {
    fn new(give: fn(&FramePool, Range<usize>)) -> Self {
        Self { run: None, give }
    }

    fn add(&mut self, pool: &'p FramePool, slot: Option<NonZeroUsize>) {
        let Some(slot) = slot.map(NonZeroUsize::get) else {
            return;
        };
        match &mut self.run {
            Some((same, run)) if std::ptr::eq(*same, pool) && run.end == slot => run.end += 1,
            _ => {
                self.flush();
                self.run = Some((pool, slot..slot + 1));
            }
        }
    }

    fn flush(&mut self) {
        if let Some((pool, run)) = self.run.take() {
            (self.give)(pool, run);
        }
    }
}

impl Drop for Returned<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
