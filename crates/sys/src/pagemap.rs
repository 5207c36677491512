//! What the pages of a range are, and which were written: `PAGEMAP_SCAN`, and the entries of the
//! page map for kernels that lack it.

mod entries;

use std::mem::{offset_of, size_of};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bitflags::bitflags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, opcode};
use rustix::process::Pid;

use crate::abi::{to_u64, to_usize};
use crate::{Call, CallError, hook};

pub use entries::{FrameFlags, Frames, PageEntry};

bitflags! {
    /// What a page can be (`PAGE_IS_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Categories: u64 {
        /// In a range with asynchronous write protection.
        const WPALLOWED = 1 << 0;
        /// Written since it was last write-protected, or never protected.
        const WRITTEN = 1 << 1;
        /// Of a file or shared memory.
        const FILE = 1 << 2;
        /// In memory.
        const PRESENT = 1 << 3;
        /// In swap, or on its way.
        const SWAPPED = 1 << 4;
        /// The zero page.
        const PFNZERO = 1 << 5;
        /// Mapped by a huge entry.
        const HUGE = 1 << 6;
        /// Soft-dirty.
        const SOFT_DIRTY = 1 << 7;
        /// A guard, Linux 6.14.
        const GUARD = 1 << 8;

        // A newer kernel may know more.
        const _ = !0;
    }
}

bitflags! {
    /// What a scan does besides looking.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ScanFlags: u64 {
        /// Write-protects the pages that match, where asynchronous write protection is on. It does
        /// not stop a store, it only lets the next scan tell. Where protection is synchronous it
        /// does nothing and says nothing.
        const WP_MATCHING = 1 << 0;
        /// Fails with `EPERM` where asynchronous write protection is not on.
        const CHECK_WPASYNC = 1 << 1;
    }
}

/// A run of pages that are alike in the categories that were asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

impl PageRegion {
    /// The addresses of the run.
    #[must_use]
    pub const fn range(&self) -> Range<usize> {
        to_usize(self.start)..to_usize(self.end)
    }

    /// What its pages are, of [`ScanArgs::report`].
    #[must_use]
    pub const fn categories(&self) -> Categories {
        Categories::from_bits_retain(self.categories)
    }
}

/// Which pages a scan finds, and what it says of them.
///
/// A page is found if it has all of `all_of` and, unless that is empty, one of `any_of`, where
/// having a category of `inverted` means not having it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanArgs {
    /// What the scan does besides looking.
    pub flags: ScanFlags,
    /// Categories that a page must have.
    pub all_of: Categories,
    /// Categories of which a page must have one.
    pub any_of: Categories,
    /// Categories that mean their opposite.
    pub inverted: Categories,
    /// Categories that are reported; runs are cut where they change.
    pub report: Categories,
    /// The scan ends when it has found so many pages; zero for no limit.
    pub max_pages: u64,
}

/// What a scan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// How many regions it filled.
    pub regions: usize,
    /// Where it ended: the end of the range, or where there was no more room or the limit of pages
    /// was reached.
    pub walk_end: usize,
}

/// The page map of a process.
#[derive(Debug)]
pub struct Pagemap {
    fd: OwnedFd,
}

impl AsFd for Pagemap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The page map that a descriptor is of: a file `/proc/PID/pagemap`, opened for reading.
impl From<OwnedFd> for Pagemap {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl Pagemap {
    /// Opens the page map of this process.
    ///
    /// # Errors
    ///
    /// `ENOENT` without procfs, `EACCES` where it is closed.
    ///
    /// # References
    ///
    /// proc_pid_pagemap(5), `Documentation/admin-guide/mm/pagemap.rst`.
    pub fn open_self() -> Result<Self, CallError> {
        Self::open_path("/proc/self/pagemap")
    }

    /// Opens the page map of another process.
    ///
    /// # Errors
    ///
    /// `ENOENT` without such a process, `EACCES` or `EPERM` for a process that may not be traced.
    ///
    /// # References
    ///
    /// proc_pid_pagemap(5), `Documentation/admin-guide/mm/pagemap.rst`.
    pub fn open(pid: Pid) -> Result<Self, CallError> {
        Self::open_path(&format!("/proc/{}/pagemap", pid.as_raw_nonzero()))
    }

    fn open_path(path: &str) -> Result<Self, CallError> {
        let fd = hook::whole(Call::PagemapOpen)
            .and_then(|()| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()))
            .map_err(|errno| CallError::new(Call::PagemapOpen, errno))?;
        Ok(Self { fd })
    }

    /// Scans a range, into as many regions as there is room for.
    ///
    /// # Errors
    ///
    /// `ENOTTY` before Linux 6.7, `EINVAL` for a range not of whole pages or flags that do not
    /// exist, `EFAULT`, `EINTR`, and `EPERM` by [`ScanFlags::CHECK_WPASYNC`].
    ///
    /// # References
    ///
    /// PAGEMAP_SCAN(2const).
    pub fn scan(
        &self,
        range: Range<usize>,
        args: &ScanArgs,
        regions: &mut [PageRegion],
    ) -> Result<Scan, CallError> {
        let mut arg = ScanArg {
            size: to_u64(size_of::<ScanArg>()),
            flags: args.flags.bits(),
            start: to_u64(range.start),
            end: to_u64(range.end),
            walk_end: 0,
            vec: to_u64(regions.as_mut_ptr().expose_provenance()),
            vec_len: to_u64(regions.len()),
            max_pages: args.max_pages,
            category_inverted: args.inverted.bits(),
            category_mask: args.all_of.bits(),
            category_anyof_mask: args.any_of.bits(),
            return_mask: args.report.bits(),
        };
        let filled = hook::whole(Call::PagemapScan)
            // SAFETY: the structure is the one for this number, and the array that it names is
            // ours to write.
            .and_then(|()| unsafe { ioctl::ioctl(&self.fd, ScanCall(&mut arg)) })
            .map_err(|errno| CallError::at(Call::PagemapScan, range, errno))?;
        let found = &regions[..filled.min(regions.len())];
        let walk_end = walk_end(to_usize(arg.walk_end), found);
        Ok(Scan {
            regions: found.len(),
            walk_end,
        })
    }
}

/// Where a scan really ended.
///
/// The kernel fills its buffer of 512 regions several times over, and when the last of these rounds
/// reaches the end it leaves in `walk_end` where the round before had stopped. But it goes through
/// the range in order, so what it found last was before the end.
fn walk_end(said: usize, found: &[PageRegion]) -> usize {
    found.last().map_or(said, |last| said.max(last.range().end))
}

/// `struct pm_scan_arg` of `<linux/fs.h>`.
#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGEMAP_SCAN: Opcode = opcode::read_write::<ScanArg>(b'f', 16);

const _: () = {
    assert!(size_of::<ScanArg>() == 96);
    assert!(offset_of!(ScanArg, flags) == 8 && offset_of!(ScanArg, start) == 16);
    assert!(offset_of!(ScanArg, end) == 24 && offset_of!(ScanArg, walk_end) == 32);
    assert!(offset_of!(ScanArg, vec) == 40 && offset_of!(ScanArg, vec_len) == 48);
    assert!(offset_of!(ScanArg, max_pages) == 56);
    assert!(offset_of!(ScanArg, category_inverted) == 64);
    assert!(offset_of!(ScanArg, category_mask) == 72);
    assert!(offset_of!(ScanArg, category_anyof_mask) == 80);
    assert!(offset_of!(ScanArg, return_mask) == 88);
    assert!(size_of::<PageRegion>() == 24);
    assert!(offset_of!(PageRegion, end) == 8 && offset_of!(PageRegion, categories) == 16);
};

#[cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
))]
const _: () = assert!(PAGEMAP_SCAN == 0xc060_6610);

struct ScanCall<'a>(&'a mut ScanArg);

// SAFETY: `PAGEMAP_SCAN` reads and writes a `ScanArg`, and answers the number of regions filled.
unsafe impl Ioctl for ScanCall<'_> {
    type Output = usize;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut libc::c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut libc::c_void) -> Result<usize, Errno> {
        usize::try_from(out).map_err(|_| Errno::IO)
    }
}
