//! The rate of a copier by itself.

use std::io;
use std::time::{Duration, Instant};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use transhume_engine::{Copier, CopyAnswer};

use crate::CopyJob;

const HUGE_PAGE: usize = 2 << 20;

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

/// Two areas of memory between which copiers are timed: made of pages of one size, all allocated,
/// and walked through from end to end, so that what is copied is as cold as the area is large.
#[derive(Debug)]
pub struct RawArea {
    from: Area,
    to: Area,
    unit: usize,
    at: usize,
    answers: Vec<CopyAnswer>,
}

impl RawArea {
    /// Allocates twice `units` units of `unit` bytes: huge pages if `unit` is 2 MiB or more.
    ///
    /// # Errors
    ///
    /// What the system says when there is not so much memory.
    pub fn allocate(units: usize, unit: usize) -> io::Result<Self> {
        let bytes = units.max(1) * unit.max(1);
        let area = || Area::allocate(bytes, unit >= HUGE_PAGE);
        Ok(Self {
            from: area()?,
            to: area()?,
            unit: unit.max(1),
            at: 0,
            answers: Vec::new(),
        })
    }

    /// Copies the next `count` units as one list; says how long it took and how many bytes it was.
    pub fn pass<C>(&mut self, copier: &C, count: usize) -> (Duration, usize)
    where
        C: Copier<CopyJob> + ?Sized,
    {
        let units = self.from.bytes / self.unit;
        let count = count.min(units);
        if self.at + count > units {
            self.at = 0;
        }
        let job = |n: usize| {
            let offset = n * self.unit;
            let (from, to) = (
                self.from.start.wrapping_add(offset),
                self.to.start.wrapping_add(offset),
            );
            // SAFETY: both areas have this unit, nobody else uses them, and they outlive the call.
            unsafe { CopyJob::new(from, to, self.unit) }
        };
        let jobs = (self.at..self.at + count).map(job).collect::<Vec<_>>();
        self.at += count;
        copy_once(copier, &jobs, &mut self.answers)
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
    fn allocate(bytes: usize, huge: bool) -> io::Result<Self> {
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

    #[test]
    fn passes_walk_through_the_area() {
        let mut area = RawArea::allocate(5, 4096).unwrap();
        for _ in 0..4 {
            assert_eq!(area.pass(&Memcpy, 2).1, 8192);
        }
        assert_eq!(area.pass(&Memcpy, 99).1, 5 * 4096);
    }
}
