//! The frames of one place that no page of the region uses: those that wait to become
//! destinations, and the empty slots that sources are moved out to.
//!
//! A slot is an address range of one folio. `UFFDIO_MOVE` takes a frame out of the slot it is in
//! and leaves the slot empty, so frames travel between the region and two kinds of slots:
//!
//! - *staging* slots are registered with the userfaultfd, which the kernel wants of a destination
//!   of `UFFDIO_MOVE`. Sources are moved out to empty ones. They are never touched while empty.
//! - *fresh* slots are not registered, so that they can be filled by touching them.
//!
//! A pool of base pages has a third kind for huge pages, if requests want to make any: fresh slots, too,
//! and 512 of them hold one.
//!
//! A full slot of either kind can be the source of a move into the region. Slots are numbered by
//! address, so that a run of numbers is a range of memory and one call can move it.

mod huge;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use transhume_sys::CallError;
use transhume_sys::advise::{self, Advice};
use transhume_sys::map::{self, Mapping};
use transhume_sys::numa;
use transhume_sys::uffd::{RegisterMode, Uffd};

use crate::TABLE_BYTES;

use crate::free_runs::FreeRuns;
use crate::runs::RunSet;
use crate::tier::PageSize;

/// What the pool does with the frame of a page that has moved away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceFrames {
    /// It may become a destination.
    Reuse,
    /// The kernel may still hold a reference to it, so it is given back and never used again.
    Release,
}

/// How much of a pool is filled in the background before faults are looked at again.
const REFILL_BYTES: usize = 1 << 20;

/// Address space that a pool takes at a time, at the least.
const CHUNK_BYTES: usize = 4 << 20;

/// What a chunk of slots is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slots {
    Staging,
    Fresh,
    /// In a pool of base pages: slots for the parts of huge pages.
    Parts,
}

#[derive(Debug)]
struct Chunk {
    mapping: Mapping,
    slots: Slots,
}

#[derive(Debug, Default)]
struct State {
    /// Slots with a frame that may become a destination.
    full: FreeRuns,
    /// Slots with a frame that the kernel would not take back yet, or that it would not unlock.
    refused: RunSet,
    staging: FreeRuns,
    fresh: FreeRuns,
    parts: FreeRuns,
    /// Staging slots that were taken: each will come back with a frame, or empty.
    staged: usize,
    chunks: Vec<Chunk>,
}

/// The frames and empty slots of one place.
#[derive(Debug)]
pub(crate) struct FramePool {
    node: u32,
    page_size: PageSize,
    source_frames: SourceFrames,
    /// Frames that are kept when no request is under way.
    bound: usize,
    /// Frames that requests under way keep beyond that: a batch each.
    leave: AtomicUsize,
    wanted: AtomicBool,
    /// Frames that were allocated while a request waited for them.
    fresh: AtomicU64,
    state: Mutex<State>,
}

impl FramePool {
    pub(crate) fn new(
        node: u32,
        page_size: PageSize,
        source_frames: SourceFrames,
        bound: usize,
    ) -> Self {
        Self {
            node,
            page_size,
            source_frames,
            bound,
            leave: AtomicUsize::new(0),
            wanted: AtomicBool::new(false),
            fresh: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// Where its frames are.
    pub(crate) fn node(&self) -> u32 {
        self.node
    }

    /// Where the frames must be that pages leave to it, if these serve again.
    pub(crate) fn reused_on(&self) -> Option<u32> {
        (self.source_frames == SourceFrames::Reuse).then_some(self.node)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change to the sets is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self, slots: &Range<usize>) -> Range<usize> {
        let page = self.page_size.bytes();
        slots.start * page..slots.end * page
    }

    /// Lets a request keep `frames` frames more than the bound while it is under way.
    pub(crate) fn grant(&self, frames: usize) {
        self.leave.fetch_add(frames, Ordering::Relaxed);
    }

    /// Takes back what [`grant`](Self::grant) gave, and releases what is now too much.
    pub(crate) fn revoke(&self, frames: usize) {
        self.leave.fetch_sub(frames, Ordering::Relaxed);
        self.trim();
    }

    fn keep(&self) -> usize {
        self.bound + self.leave.load(Ordering::Relaxed)
    }

    /// Marks the pool as one that frames are taken from; says whether it should be filled now.
    pub(crate) fn want(&self) -> bool {
        let state = self.lock();
        let short = state.full.len() < self.target(&state);
        self.wanted.store(short, Ordering::Relaxed);
        short
    }

    /// How many frames should wait: what is staged now will be some of them, unless it is released.
    fn target(&self, state: &State) -> usize {
        let returning = match self.source_frames {
            SourceFrames::Reuse => state.staged,
            SourceFrames::Release => 0,
        };
        self.bound.saturating_sub(returning)
    }

    /// Fills a wanted pool by a little, up to its bound; says whether there is more to do.
    pub(crate) fn refill(&self, uffd: &Uffd) -> bool {
        if !self.wanted.load(Ordering::Relaxed) {
            return false;
        }
        let (before, target) = {
            let state = self.lock();
            (state.full.len(), self.target(&state))
        };
        let step = (REFILL_BYTES / self.page_size.bytes()).max(1);
        let (after, _) = self.stock(target.min(before + step), uffd);
        let more = before < after && after < target;
        self.wanted.store(more, Ordering::Relaxed);
        more
    }

    /// How many frames are waiting.
    pub(crate) fn frames(&self) -> usize {
        self.lock().full.len()
    }

    /// How many frames were allocated while a request waited for them.
    pub(crate) fn fresh(&self) -> u64 {
        self.fresh.load(Ordering::Relaxed)
    }

    /// Fills the pool up to `frames` frames, as far as memory goes; says how many there are, and how
    /// many of them were allocated for that.
    ///
    /// May block in the kernel's allocator, so no folio may be locked.
    fn stock(&self, frames: usize, uffd: &Uffd) -> (usize, usize) {
        let mut filled = 0;
        loop {
            let slots = {
                let mut state = self.lock();
                let missing = frames.saturating_sub(state.full.len());
                if missing == 0 {
                    return (state.full.len(), filled);
                }
                match state.fresh.take(missing) {
                    Some(slots) => slots,
                    None if self
                        .add_chunk(&mut state, Slots::Fresh, missing, uffd)
                        .is_ok() =>
                    {
                        continue;
                    }
                    None => return (state.full.len(), filled),
                }
            };
            let count = slots.len();
            if !self.fill(slots) {
                return (self.frames(), filled);
            }
            filled += count;
        }
    }

    /// Puts a frame into each of `slots`; says whether all got one.
    fn fill(&self, slots: Range<usize>) -> bool {
        if self.page_size == PageSize::Huge {
            self.free_tables(&slots);
        }
        let filled = advise::populate_write(self.bytes(&slots));
        let mut state = self.lock();
        match filled {
            Ok(()) => {
                state.full.insert(slots);
                true
            }
            Err(_) => {
                // How far it came is not known: begin again with empty slots.
                drop(state);
                self.empty(slots);
                false
            }
        }
    }

    /// Takes up to `want` adjacent frames, which suit a run of pages that begins with page number
    /// `beside` of the address space; allocates them if none are waiting. `None` if there is no
    /// memory. May block, so no folio may be locked.
    pub(crate) fn take_frames(
        &self,
        want: usize,
        beside: usize,
        uffd: &Uffd,
    ) -> Option<Range<usize>> {
        loop {
            // What is stocked another may take first; then it is stocked again.
            let (there, filled) = self.stock(want, uffd);
            self.fresh.fetch_add(filled as u64, Ordering::Relaxed);
            if there == 0 {
                return None;
            }
            let frames = self
                .lock()
                .full
                .take_in_phase(want, beside, self.pages_per_table());
            if frames.is_some() {
                return frames;
            }
        }
    }

    /// The kernel moves, and flushes, one page table at a time, so a run should cross from one to
    /// the next where its slots do.
    fn pages_per_table(&self) -> usize {
        (TABLE_BYTES / self.page_size.bytes()).max(1)
    }

    /// Takes up to `want` adjacent empty staging slots, which suit a run of pages that begins with
    /// page number `beside` of the address space. `None` if there are no addresses left.
    pub(crate) fn take_staging(
        &self,
        want: usize,
        beside: usize,
        uffd: &Uffd,
    ) -> Option<Range<usize>> {
        let mut state = self.lock();
        if state.staging.longest() < want {
            // Without one, shorter runs will do.
            let _ = self.add_chunk(&mut state, Slots::Staging, want, uffd);
        }
        let slots = state
            .staging
            .take_in_phase(want, beside, self.pages_per_table())?;
        state.staged += slots.len();
        drop(state);
        if self.page_size == PageSize::Huge {
            self.free_tables(&slots);
        }
        Some(slots)
    }

    /// Puts staging slots back that are empty, because their pages did not move away.
    pub(crate) fn put_staging(&self, slots: Range<usize>) {
        let mut state = self.lock();
        state.staged -= slots.len();
        state.staging.insert(slots);
    }

    /// Puts a staging slot back that holds something nobody needs, to be emptied.
    pub(crate) fn put_soiled_staging(&self, slot: Option<NonZeroUsize>) {
        self.lock().staged -= usize::from(slot.is_some());
        self.put_soiled(slot);
    }

    /// Unlocks slots that may be locked into memory.
    pub(crate) fn munlock(&self, slots: &Range<usize>) -> Result<(), CallError> {
        map::unlock(self.bytes(slots))
    }

    /// Puts a slot back that holds something nobody needs, to be emptied.
    pub(crate) fn put_soiled(&self, slot: Option<NonZeroUsize>) {
        if let Some(slot) = slot.map(NonZeroUsize::get) {
            self.lock().refused.insert(slot..slot + 1);
        }
    }

    /// Puts slots back whose frames have become pages of the region.
    pub(crate) fn put_empty(&self, slots: Range<usize>) {
        let mut state = self.lock();
        match self.kind_of(&state, &slots) {
            Some(Slots::Staging) => state.staging.insert(slots),
            Some(Slots::Fresh) => state.fresh.insert(slots),
            Some(Slots::Parts) => state.parts.insert(slots),
            None => debug_assert!(false, "{slots:?} are not slots of this pool"),
        }
    }

    fn kind_of(&self, state: &State, slots: &Range<usize>) -> Option<Slots> {
        let start = slots.start * self.page_size.bytes();
        let mut chunks = state.chunks.iter();
        let chunk = chunks.find(|chunk| chunk.mapping.range().contains(&start));
        chunk.map(|chunk| chunk.slots)
    }

    /// Puts frames back that were reserved and not used. Nobody else has seen them. Parts of huge
    /// pages are no destinations for others and go back to the kernel.
    pub(crate) fn put_unused(&self, slots: Range<usize>) {
        let mut state = self.lock();
        if self.kind_of(&state, &slots) == Some(Slots::Parts) {
            drop(state);
            self.empty(slots);
        } else {
            state.full.insert(slots);
        }
    }

    /// Takes the frames of pages that have moved away, in the slots where they were staged.
    pub(crate) fn retire(&self, slots: Range<usize>) {
        self.lock().staged -= slots.len();
        match self.source_frames {
            SourceFrames::Release => {
                self.empty(slots);
            }
            SourceFrames::Reuse => {
                self.lock().full.insert(slots);
                self.trim();
            }
        }
    }

    /// Gives frames back to the kernel until no more are left than may be kept.
    pub(crate) fn trim(&self) {
        let refused = std::mem::take(&mut self.lock().refused);
        for slots in refused.iter() {
            // What is locked into memory goes nowhere from there, empty or not.
            if self.munlock(&slots).is_ok() {
                self.empty(slots);
            } else {
                self.lock().refused.insert(slots);
            }
        }
        loop {
            let excess = {
                let mut state = self.lock();
                let excess = state.full.len().saturating_sub(self.keep());
                state.full.take(excess)
            };
            let Some(excess) = excess else { return };
            if !self.empty(excess) {
                return;
            }
        }
    }

    /// Gives the frames in `slots` back to the kernel and counts the slots as empty; says whether
    /// the kernel took them. If not they are set aside, neither full nor empty, for the next trim.
    fn empty(&self, slots: Range<usize>) -> bool {
        let bytes = self.bytes(&slots);
        // SAFETY: the slots are this pool's own memory, reserved for us by the caller who took them
        // out of the sets, and nothing refers to their contents any more.
        let given = unsafe { advise::dont_need(bytes) }.is_ok();
        if given {
            self.put_empty(slots);
        } else {
            self.lock().refused.insert(slots);
        }
        given
    }

    /// Adds a chunk with at least `slots` slots, all empty.
    fn add_chunk(
        &self,
        state: &mut State,
        kind: Slots,
        slots: usize,
        uffd: &Uffd,
    ) -> Result<(), CallError> {
        let page = self.page_size.bytes();
        // Room for a run in any phase.
        let slots = slots.next_multiple_of(self.pages_per_table()) + self.pages_per_table();
        let slots = slots.max(CHUNK_BYTES / page);
        // One slot more than is used keeps runs of slots from reaching into the next mapping.
        let mapping = Mapping::reserve_aligned((slots + 1) * page, TABLE_BYTES)?;
        // A child of a fork would share the frames, and shared ones cannot be moved.
        advise::advise(mapping.range(), Advice::DontFork)?;
        let pages = match kind {
            Slots::Staging | Slots::Fresh => self.page_size,
            Slots::Parts => PageSize::Huge,
        };
        advise::advise(mapping.range(), pages.advice())?;
        numa::bind(mapping.range(), self.node)?;
        // A process that locks all its memory gets it locked and full.
        map::unlock(mapping.range())?;
        // SAFETY: the mapping is the pool's own, and nothing has been stored there.
        unsafe { advise::dont_need(mapping.range()) }?;
        if kind == Slots::Staging {
            // SAFETY: the mapping is the pool's own and is only reached by raw pointers.
            unsafe { uffd.register(mapping.range(), RegisterMode::MISSING) }?;
        }
        let first = mapping.range().start / page;
        match kind {
            Slots::Staging => state.staging.insert(first..first + slots),
            Slots::Fresh => state.fresh.insert(first..first + slots),
            Slots::Parts => state.parts.insert(first..first + slots),
        }
        state.chunks.push(Chunk {
            mapping,
            slots: kind,
        });
        Ok(())
    }
}
