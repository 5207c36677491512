//! Huge pages made and split on the way.
//!
//! Where all base pages of an aligned 2 MiB are cut off together, they can arrive as one huge page:
//!
//! 1. Before anything is locked the pool gives one huge page, and each base page gets its place in it
//!    as its frame. Cutting off and copying know nothing of that.
//! 2. `UFFDIO_MOVE` moves a huge page whole only to where there is no page table. The one that the base
//!    pages have left is empty, and `MADV_DONTNEED` of all that it maps frees it (Linux 6.14).
//! 3. A thread that touches the memory just then would have the kernel make it anew, so the range is
//!    advised `MADV_HUGEPAGE` for that time: then such a fault waits without one.
//! 4. One `UFFDIO_MOVE` brings the huge page in.
//!
//! Whatever of that fails, the kernel splits the huge page and the pages arrive as base pages. So no
//! step is relied upon: what has arrived is looked up in the page map.
//!
//! A region of huge pages has frames of 2 MiB anyway, which are huge pages where the kernel has them.
//! There a folio that the kernel had split can become one again, by steps 2 and 4; and one that was
//! whole is split where there was no huge page for its frame.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::OnceLock;

use transhume_engine::Entry;
use transhume_sys::CallError;
use transhume_sys::advise::{self, Advice};
use transhume_sys::map::{self, Mapping};
use transhume_sys::pagemap::{Categories, PageRegion, ScanArgs};
use transhume_sys::uffd::{MoveMode, RegisterMode};

use super::Anonymous;
use super::session::{At, Held, Session};
use super::slots::Kind;
use crate::runs::RunSet;
use crate::tier::PageSize;
use crate::{BASE_PAGE, TABLE_BYTES};

/// Base pages of a huge page.
const PARTS: usize = TABLE_BYTES / BASE_PAGE;

/// How a request wants its folios to arrive.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    /// The pages of the request, if they are to become huge pages where they can.
    pub(crate) collapse: Option<RunSet>,
    /// Whether a folio of 2 MiB stays for which there is no huge page.
    pub(crate) whole: bool,
}

impl Shape {
    fn wants_huge(&self) -> bool {
        self.whole || self.collapse.is_some()
    }
}

/// Base pages that are to arrive as one huge page.
#[derive(Debug)]
pub(super) struct Collapse {
    /// The first of them, by number in the region.
    first: usize,
    /// The pool that the huge page is of, and the slot of its first part.
    pool: usize,
    slot: usize,
    /// Slots that no folio has been given.
    left: RunSet,
}

/// Whether the kernel frees page tables that are empty, once that has been tried.
#[derive(Debug, Default)]
pub(super) struct FreesTables(OnceLock<bool>);

impl Anonymous {
    /// Whether a range is mapped by huge entries only; `None` if it cannot be told.
    pub(super) fn is_huge(&self, range: Range<usize>) -> Option<bool> {
        let args = ScanArgs {
            all_of: Categories::HUGE,
            report: Categories::HUGE,
            ..ScanArgs::default()
        };
        let mut found = [PageRegion::default(); 1];
        let scan = self
            .pagemap
            .as_ref()?
            .scan(range.clone(), &args, &mut found);
        Some(scan.ok()?.regions == 1 && found[0].range() == range)
    }

    /// Whether base pages can become huge pages here: `Some(false)` if the kernel leaves empty page
    /// tables in place, `None` if there was no huge page to try it with.
    pub(crate) fn can_collapse(&self) -> Option<bool> {
        // What has been made whole can be split again before it is looked at.
        const TRIES: u32 = 3;
        if let Some(&known) = self.frees_tables.0.get() {
            return Some(known);
        }
        let mut can = false;
        for _ in 0..TRIES {
            can = self.try_collapse().ok().flatten()?;
            if can {
                break;
            }
        }
        Some(*self.frees_tables.0.get_or_init(|| can))
    }

    /// Makes a huge page of what was a base page, in memory of its own.
    fn try_collapse(&self) -> Result<Option<bool>, CallError> {
        let memory = Mapping::reserve_aligned(2 * TABLE_BYTES, TABLE_BYTES)?;
        let Range { start, end } = memory.range();
        let (place, frame) = (start..start + TABLE_BYTES, start + TABLE_BYTES..end);
        advise::advise(memory.range(), Advice::DontFork)?;
        advise::advise(place.clone(), Advice::NoHugePage)?;
        advise::advise(frame.clone(), Advice::HugePage)?;
        map::unlock(memory.range())?;
        advise::populate_write(start..start + BASE_PAGE)?;
        // SAFETY: the memory is this function's own.
        unsafe { advise::dont_need(frame.clone()) }?;
        advise::populate_write(frame.clone())?;
        if self.is_huge(frame.clone()) != Some(true) {
            return Ok(None);
        }
        // SAFETY: the memory is this function's own and only the kernel touches it.
        unsafe { self.uffd.register(place.clone(), RegisterMode::MISSING) }?;
        // SAFETY: as above.
        unsafe { advise::dont_need(place.clone()) }?;
        // SAFETY: as above.
        let moved = unsafe { self.move_range(start, frame.start, TABLE_BYTES, MoveMode::DONTWAKE) };
        Ok(if moved.done == TABLE_BYTES {
            self.is_huge(place)
        } else {
            None
        })
    }
}

/// Frees the page table of 2 MiB. If the kernel does not, a huge page is split when it is moved
/// there.
///
/// # Safety
///
/// There is nothing in the range, and nobody puts anything there meanwhile.
unsafe fn free_table(range: Range<usize>) {
    // SAFETY: by this function's contract there is nothing to lose.
    let _ = unsafe { advise::dont_need(range) };
}

impl Session<'_> {
    /// How many base pages from this one on are to arrive as one huge page, if all goes well.
    pub(super) fn collapses_from(&self, index: usize) -> usize {
        let wanted = |pages: &RunSet| pages.has_all(&(index..index + PARTS));
        let begins = self.memory.page_size == PageSize::Base && index.is_multiple_of(PARTS);
        if begins && self.shape.collapse.as_ref().is_some_and(wanted) {
            PARTS
        } else {
            1
        }
    }

    /// Takes a huge page, and staging slots, for each aligned 2 MiB of which all pages leave
    /// together. `leaving` is sorted and keeps the others.
    pub(super) fn make_collapses_ready(
        &mut self,
        leaving: &mut Vec<(usize, usize)>,
        target: usize,
    ) {
        if self.shape.collapse.is_none() || self.memory.page_size != PageSize::Base {
            return;
        }
        let mut rest = Vec::with_capacity(leaving.len());
        let mut ahead = &leaving[..];
        while let Some(&(index, source)) = ahead.first() {
            let count = if self.leaves_together(ahead) && self.take_huge_page(index, target) {
                self.make_collapse_leave(index, source);
                PARTS
            } else {
                rest.push(ahead[0]);
                1
            };
            ahead = &ahead[count..];
        }
        *leaving = rest;
    }

    /// Takes staging slots for base pages that are to become a huge page, or are one already: then
    /// where no page table is in its way either.
    fn make_collapse_leave(&mut self, first: usize, pool: usize) {
        let from = &self.memory.pools[pool];
        let mut done = 0;
        if self.was_huge(first) == Some(true)
            && let Some(slots) = from.take_staging(PARTS, 0, &self.memory.uffd)
        {
            from.free_tables(&slots);
            done = slots.len();
            self.ready_slots(Kind::Staging, pool).insert(slots);
        }
        self.make_ready(first + done, PARTS - done, Kind::Staging, pool);
    }

    /// Whether what leaves next is all of an aligned 2 MiB, of one tier and in one mapping that is
    /// not locked.
    fn leaves_together(&self, ahead: &[(usize, usize)]) -> bool {
        let Some(ahead) = ahead.get(..PARTS) else {
            return false;
        };
        let (first, source) = ahead[0];
        first.is_multiple_of(PARTS)
            && ahead[PARTS - 1].0 == first + PARTS - 1
            && ahead.iter().all(|&(index, pool)| {
                let divides = index > first && self.layout.is_seam(index);
                pool == source && !divides && !self.layout.is_mlocked(index)
            })
    }

    fn take_huge_page(&mut self, first: usize, pool: usize) -> bool {
        if self.lacks_huge_pages {
            return false;
        }
        let is_huge = |range| self.memory.is_huge(range) == Some(true);
        let Some(slots) = self.memory.pools[pool].take_huge(&self.memory.uffd, is_huge) else {
            // Looking for another each time would take long, and there may be none for long.
            self.lacks_huge_pages = true;
            return false;
        };
        self.look_at_shape(first);
        let mut left = RunSet::default();
        left.insert(slots.clone());
        self.collapses.push(Collapse {
            first,
            pool,
            slot: slots.start,
            left,
        });
        true
    }

    /// Gives a folio its part of a huge page, if it is to become one.
    pub(super) fn give_part(&mut self, held: &mut Held) {
        let ends = |collapse: &Collapse| collapse.first + PARTS <= held.index;
        let number = self.collapses.partition_point(ends);
        let Some(collapse) = self.collapses.get_mut(number) else {
            return;
        };
        let part = held.index.checked_sub(collapse.first);
        if let Some(slot) = part.and_then(|part| collapse.left.take_at(collapse.slot + part, 1)) {
            held.collapse = Some(number);
            held.frame = NonZeroUsize::new(slot.start);
        }
    }

    /// Puts back what no folio was given.
    pub(super) fn drop_collapses(&mut self) {
        for Collapse { pool, left, .. } in self.collapses.drain(..) {
            for slots in left.iter() {
                self.memory.pools[pool].put_unused(slots);
            }
        }
    }

    /// Before folios leave: which of them are huge pages, where folios are of their size.
    pub(super) fn look_at_shapes(&mut self, leaving: &[(usize, usize)]) {
        self.shapes.clear();
        if self.memory.page_size == PageSize::Huge {
            leaving
                .iter()
                .for_each(|&(index, _)| self.look_at_shape(index));
        }
    }

    fn look_at_shape(&mut self, index: usize) {
        let address = self.address_of(index);
        let is_huge = self.memory.is_huge(address..address + TABLE_BYTES);
        self.shapes.extend(is_huge.map(|is_huge| (index, is_huge)));
    }

    fn was_huge(&self, index: usize) -> Option<bool> {
        let at = self.shapes.binary_search_by_key(&index, |shape| shape.0);
        at.ok().map(|at| self.shapes[at].1)
    }

    /// Takes others for frames that are to be huge pages and are not. Where there are none, folios
    /// that must stay whole have no frame.
    pub(super) fn choose_frames(&mut self, pool: usize) {
        if self.memory.page_size == PageSize::Base || !self.shape.wants_huge() {
            return;
        }
        let from = &self.memory.pools[pool];
        let frames = self.ready_slots(Kind::Frame, pool);
        let slots = frames.iter().flatten().collect::<Vec<_>>();
        for slot in slots {
            if self.is_split_frame(slot)
                && let Some(frame) = self.ready_slots(Kind::Frame, pool).take_at(slot, 1)
            {
                from.discard(frame);
                if let Some(other) = self.another_frame(slot, pool) {
                    self.ready_slots(Kind::Frame, pool).insert(other);
                }
            }
        }
    }

    /// Where it cannot be told, the kernel is believed to have given what it was asked for.
    fn is_split_frame(&self, slot: usize) -> bool {
        let address = slot * TABLE_BYTES;
        self.memory.is_huge(address..address + TABLE_BYTES) == Some(false)
    }

    fn another_frame(&mut self, beside: usize, pool: usize) -> Option<Range<usize>> {
        let (from, uffd) = (&self.memory.pools[pool], &self.memory.uffd);
        // Any that waits may be such another, and the last is a new one.
        let tries = if self.lacks_huge_pages {
            0
        } else {
            from.frames() + 1
        };
        for _ in 0..tries {
            let frame = from.take_frames(1, beside, uffd)?;
            if !self.is_split_frame(frame.start) {
                return Some(frame);
            }
            from.discard(frame);
        }
        self.lacks_huge_pages = true;
        if self.shape.whole {
            None
        } else {
            from.take_frames(1, beside, uffd)
        }
    }

    /// Moves a run of frames in, so that huge pages arrive whole where that is wanted and possible.
    pub(super) fn move_in_shaped(&mut self, run: &mut [Entry<Held>]) {
        let start = self.address(&run[0].held);
        let all = start..start + run.len() * self.page();
        if run[0].held.collapse.is_some() && run.len() == PARTS {
            let hinted = advise::advise(all.clone(), Advice::HugePage).is_ok();
            // SAFETY: all pages of the range are of folios that this session has locked, and out.
            unsafe { free_table(all.clone()) };
            self.move_in(run);
            if hinted {
                // It merges with the mapping around it again. If this fails, and the others after
                // it, the range is a mapping of its own, over which no run reaches.
                const TRIES: u32 = 8;
                let unhint = |_: &u32| advise::advise(all.clone(), Advice::NoHugePage).is_ok();
                let _ = (0..TRIES).find(unhint);
            }
            return;
        }
        if self.memory.page_size == PageSize::Huge && self.shape.wants_huge() {
            for entry in &*run {
                if self.was_huge(entry.held.index) == Some(false) {
                    let start = self.address(&entry.held);
                    // SAFETY: the folio is locked by this session, and out.
                    unsafe { free_table(start..start + TABLE_BYTES) };
                }
            }
        }
        self.move_in(run);
    }

    /// After folios have arrived: counts the huge pages that have come into being and ended.
    pub(super) fn count_shapes(&mut self, entries: &mut [Entry<Held>]) {
        let folios = TABLE_BYTES / self.page();
        for &(index, was) in &self.shapes {
            let first = entries.partition_point(|entry| entry.held.index < index);
            let Some(parts) = entries.get_mut(first..first + folios) else {
                continue;
            };
            let arrived = |entry: &Entry<Held>| entry.held.at == At::Destination;
            if parts[0].held.index != index || !parts.iter().all(arrived) {
                continue;
            }
            let address = self.address_of(index);
            match (was, self.memory.is_huge(address..address + TABLE_BYTES)) {
                (false, Some(true)) => self.reshaped.collapsed += 1,
                (true, Some(false)) => self.reshaped.split += 1,
                _ => {}
            }
            if self.memory.page_size == PageSize::Huge && self.shape.wants_huge() && !was {
                // What it was made of is no frame for a folio that is to be a huge page.
                parts[0].held.soiled.staging = true;
            }
        }
    }
}
