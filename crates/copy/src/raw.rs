//! The rate of a copier by itself.

use std::io;
use std::time::{Duration, Instant};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use transhume_engine::{Copier, CopyAnswer, SwapAnswer, Swapper};
use transhume_sys::numa::{BindFlags, Policy, mbind};

use crate::CopyJob;
use crate::swap::SwapJob;

const HUGE_PAGE: usize = 2 << 20;
const PAGE: usize = 4 << 10;

/// Makes the copies of `jobs` once, with nothing around them: no page table, no lock, no fault.
/// Says how long it took and how many bytes the copier confirmed. What a migration reaches of this
/// rate is what its other steps leave.
pub fn copy_once<C>(
    copier: &C,
    jobs: &[CopyJob],
    answers: &mut Vec<CopyAnswer>,
) -> (Duration, usize)
where
    C: Copier<CopyJob> + ?Sized,
{
    answers.clear();
    answers.resize(jobs.len(), CopyAnswer::Unconfirmed);
    let began = Instant::now();
    copier.copy(jobs, answers);
    let took = began.elapsed();
    let confirmed = jobs
        .iter()
        .zip(&*answers)
        .filter(|(_, answer)| **answer == CopyAnswer::Copied);
    (took, confirmed.map(|(job, _)| job.bytes()).sum())
}

/// Memory in which copiers are timed under the conditions of a migration: made of pages of one size,
/// all allocated, and walked through from end to end. Each list is copied over what the list before
/// was copied from, as a migration's frames are the ones that the batch before has left. So sources
/// are as cold as the area is large, and destinations as warm as frames that were just read.
#[derive(Debug)]
pub struct RawArea {
    area: Area,
    /// Where copies go, where that is not the same area.
    other: Option<Area>,
    unit: usize,
    at: usize,
    answers: Vec<CopyAnswer>,
}

impl RawArea {
    /// Allocates `units` units of `unit` bytes: huge pages if `unit` is 2 MiB or more. Lists can be
    /// as long as half of them.
    ///
    /// # Errors
    ///
    /// What the system says when there is not so much memory.
    pub fn allocate(units: usize, unit: usize) -> io::Result<Self> {
        let unit = unit.max(1);
        let area = Area::allocate(units, unit, None)?;
        Ok(Self::over(area, None, unit))
    }

    /// The same for copies from one NUMA node to another: as many units on either, of which those on
    /// the second are never read. Where a node has no room left the kernel takes another one.
    ///
    /// # Errors
    ///
    /// Also for nodes that have no memory or are not allowed.
    pub fn between(from: u32, to: u32, units: usize, unit: usize) -> io::Result<Self> {
        let unit = unit.max(1);
        let area = Area::allocate(units, unit, Some(from))?;
        let other = Area::allocate(units, unit, Some(to))?;
        Ok(Self::over(area, Some(other), unit))
    }

    fn over(area: Area, other: Option<Area>, unit: usize) -> Self {
        Self {
            area,
            other,
            unit,
            at: 0,
            answers: Vec::new(),
        }
    }

    /// Copies the next `count` units as one list; says how long it took and how many bytes it was.
    pub fn pass<C>(&mut self, copier: &C, count: usize) -> (Duration, usize)
    where
        C: Copier<CopyJob> + ?Sized,
    {
        let (from, to, count) = self.next_lists(count);
        let target = self.other.as_ref().unwrap_or(&self.area);
        let target = |unit: usize| target.start.wrapping_add(unit * self.unit);
        let job = |n: usize| {
            // SAFETY: the areas have both units, they are different, nobody else uses the areas, and
            // they outlive the call.
            unsafe { CopyJob::new(self.place(from + n), target(to + n), self.unit) }
        };
        let jobs = (0..count).map(job).collect::<Vec<_>>();
        copy_once(copier, &jobs, &mut self.answers)
    }

    /// Swaps the next `count` units with as many others as one list, in place, with nothing around
    /// it; says how long it took and how many bytes it was, those of both sides counted.
    pub fn swap_pass<S>(&mut self, swapper: &S, count: usize) -> (Duration, usize)
    where
        S: Swapper<SwapJob> + ?Sized,
    {
        // One list of both, so that both sides are as cold: nothing has just touched either.
        let (a, _, both) = self.next_lists(count.saturating_mul(2));
        let count = both / 2;
        let job = |n: usize| {
            // SAFETY: as in `pass`; the two halves of a list are different units.
            unsafe { SwapJob::new(self.place(a + n), self.place(a + count + n), self.unit) }
        };
        let pairs = (0..count).map(job).collect::<Vec<_>>();
        let mut answers = vec![SwapAnswer::Untouched; count];
        let began = Instant::now();
        swapper.swap(&pairs, &mut answers);
        let took = began.elapsed();
        let swapped = answers
            .iter()
            .filter(|&&answer| answer == SwapAnswer::Swapped);
        (took, swapped.count() * 2 * self.unit)
    }

    fn units(&self) -> usize {
        self.area.bytes / self.unit
    }

    fn place(&self, unit: usize) -> *mut u8 {
        self.area.start.wrapping_add(unit * self.unit)
    }

    /// The first units of the next list and of the one before it, and how long both are.
    fn next_lists(&mut self, count: usize) -> (usize, usize, usize) {
        let count = count.clamp(1, self.units() / 2);
        // Lists begin at multiples of their length, so that source and destination are two lists.
        let lists = self.units() / count;
        let from = (self.at.div_ceil(count) + 1) % lists * count;
        let to = (from / count + lists - 1) % lists * count;
        self.at = from;
        (from, to, count)
    }
}

/// Anonymous memory that is unmapped on drop.
#[derive(Debug)]
struct Area {
    start: *mut u8,
    bytes: usize,
    mapped: (*mut u8, usize),
}

// SAFETY: it owns its memory, which is reached through `&mut RawArea` only.
unsafe impl Send for Area {}

impl Area {
    fn allocate(units: usize, unit: usize, node: Option<u32>) -> io::Result<Self> {
        let huge = unit >= HUGE_PAGE;
        let bytes = units.max(2).checked_mul(unit);
        let bytes = bytes.ok_or(io::ErrorKind::OutOfMemory)?;
        let room = bytes
            .checked_add(HUGE_PAGE)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping where the kernel likes.
        let mapped =
            unsafe { mmap_anonymous(std::ptr::null_mut(), room, protection, MapFlags::PRIVATE) }?;
        let mapped = mapped.cast::<u8>();
        let start = mapped.wrapping_add(mapped.align_offset(HUGE_PAGE));
        let area = Self {
            start,
            bytes,
            mapped: (mapped, room),
        };
        let advice = if huge {
            Advice::LinuxHugepage
        } else {
            Advice::LinuxNoHugepage
        };
        // SAFETY: the memory is this area's. Where there are no huge pages it is made of base pages.
        let _ = unsafe { madvise(start.cast(), bytes, advice) };
        if let Some(node) = node {
            let range = start.addr()..start.addr() + bytes.next_multiple_of(PAGE);
            // Preferred and not bound to, so that nothing is killed where the node is full.
            mbind(range, Policy::Preferred(node), BindFlags::empty())
                .map_err(|refused| refused.errno)?;
        }
        // SAFETY: as above; it allocates the memory.
        unsafe { madvise(start.cast(), bytes, Advice::LinuxPopulateWrite) }?;
        Ok(area)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let (start, bytes) = self.mapped;
        // SAFETY: the mapping is this area's and nobody has its address any more.
        let _ = unsafe { munmap(start.cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memcpy;
    use crate::swap::Buffered;

    #[test]
    fn passes_walk_through_the_area() {
        let mut area = RawArea::allocate(5, 4096).unwrap();
        for _ in 0..4 {
            assert_eq!(area.pass(&Memcpy, 2).1, 8192);
        }
        assert_eq!(area.pass(&Memcpy, 1).1, 4096);
        assert_eq!(area.pass(&Memcpy, 99).1, 2 * 4096);
        assert_eq!(area.swap_pass(&Buffered, 1).1, 2 * 4096);
        assert_eq!(area.swap_pass(&Buffered, 99).1, 2 * 4096);
        assert!(RawArea::allocate(usize::MAX, 2).is_err());
    }

    #[test]
    fn passes_go_from_one_area_to_the_other() {
        let Ok(nodes) = transhume_sys::numa::nodes_with_memory() else {
            return; // A kernel without NUMA.
        };
        let to = nodes[nodes.len() - 1];
        let mut area = RawArea::between(nodes[0], to, 4, 4096).unwrap();
        assert_eq!(area.pass(&Memcpy, 2).1, 8192);
        assert_eq!(area.pass(&Memcpy, 99).1, 8192);
        assert!(RawArea::between(nodes[0], 1023, 4, 4096).is_err());
    }
}
