//! Mappings and the files behind them.

mod file;

use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use bitflags::bitflags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, MlockFlags, MremapFlags, ProtFlags};

use crate::abi::{len, pointer};
use crate::{Call, CallError, hook};

pub use file::{MemfdPages, allocate, memfd, punch_hole, resize};

/// The size of the huge pages that this crate aligns to and asks hugetlbfs for.
pub const HUGE_PAGE: usize = 2 << 20;

/// The addresses at the beginning of a line of `/proc/PID/maps` or `smaps` such as
/// `7f00-7f10 rw-p 00000000 00:00 0`; `None` if it is no such line.
///
/// # References
///
/// proc_pid_maps(5).
#[must_use]
pub fn range_of_line(line: &str) -> Option<Range<usize>> {
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    let address = |hex| usize::from_str_radix(hex, 16).ok();
    Some(address(start)?..address(end)?)
}

/// Memory of this process that is unmapped on drop.
///
/// It owns its addresses and nothing else: what is mapped there may be changed by the functions of
/// this crate, and it hands out no references.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process and not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: there is nothing that `&Mapping` allows to do to the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves anonymous private memory to read and write, in whole pages, of which nothing is allocated yet and
    /// no swap is set aside.
    ///
    /// # Errors
    ///
    /// `ENOMEM` without room, or with too many mappings; `EINVAL` for no bytes.
    ///
    /// # References
    ///
    /// mmap(2).
    pub fn reserve(len: usize) -> Result<Self, CallError> {
        let len = whole_pages(len)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        hook::whole(Call::Mmap)
            // SAFETY: the kernel picks addresses that nobody uses.
            .and_then(|()| unsafe {
                rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, flags)
            })
            .and_then(|start| Self::adopt(start.cast(), len))
            .map_err(|errno| CallError::at(Call::Mmap, 0..len, errno))
    }

    /// As [`reserve`](Self::reserve), at a multiple of `align`, a power of two of at least a page.
    ///
    /// # Errors
    ///
    /// As [`reserve`](Self::reserve), which needs room for `align` bytes more for a moment; `EINVAL`
    /// for another `align`.
    ///
    /// # References
    ///
    /// mmap(2), munmap(2).
    pub fn reserve_aligned(len: usize, align: usize) -> Result<Self, CallError> {
        let fail = |errno| CallError::at(Call::Mmap, 0..len, errno);
        let page = rustix::param::page_size();
        if !align.is_power_of_two() || align < page {
            return Err(fail(Errno::INVAL));
        }
        let len = whole_pages(len)?;
        let room = len.checked_add(align - page).ok_or(fail(Errno::NOMEM))?;
        let mut mapping = Self::reserve(room)?;
        let Range { start, end } = mapping.range();
        // The end of the mapping is an address, so it cannot overflow.
        let aligned = start.next_multiple_of(align);
        // The parts that are cut off are unmapped first; were that to fail, all of it is dropped.
        if aligned > start {
            // SAFETY: this is the mapping's own memory, which nobody has seen yet.
            unsafe { unmap(start..aligned) }?;
            mapping.start = mapping
                .start
                .map_addr(|start| start.saturating_add(aligned - start.get()));
            mapping.len = end - aligned;
        }
        if aligned + len < end {
            // SAFETY: as above.
            unsafe { unmap(aligned + len..end) }?;
            mapping.len = len;
        }
        Ok(mapping)
    }

    /// Maps a range of a file, in whole pages, shared, to read and write.
    ///
    /// # Errors
    ///
    /// `EACCES` for a file not open for both, `EINVAL` for an offset that is not of whole pages,
    /// `ENOMEM` without room.
    ///
    /// # References
    ///
    /// mmap(2).
    pub fn file(file: impl AsFd, offset: u64, len: usize) -> Result<Self, CallError> {
        let len = whole_pages(len)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        hook::whole(Call::Mmap)
            // SAFETY: the kernel picks addresses that nobody uses.
            .and_then(|()| unsafe {
                rustix::mm::mmap(
                    std::ptr::null_mut(),
                    len,
                    prot,
                    MapFlags::SHARED,
                    file,
                    offset,
                )
            })
            .and_then(|start| Self::adopt(start.cast(), len))
            .map_err(|errno| CallError::at(Call::Mmap, 0..len, errno))
    }

    fn adopt(start: *mut u8, len: usize) -> Result<Self, Errno> {
        // Memory from the kernel is reached by number as well: by its calls, and by fault events.
        start.expose_provenance();
        let start = NonNull::new(start).ok_or(Errno::NOMEM)?;
        Ok(Self { start, len })
    }

    /// Where it starts.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        let start = self.start.addr().get();
        start..start + self.len
    }

    /// How many bytes it has.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Says whether it has none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Gives the addresses away: they stay mapped until somebody calls [`unmap`].
    #[must_use = "the addresses stay mapped"]
    pub fn into_range(self) -> Range<usize> {
        let range = self.range();
        std::mem::forget(self);
        range
    }
}

/// As mmap(2) rounds a length up.
fn whole_pages(len: usize) -> Result<usize, CallError> {
    len.checked_next_multiple_of(rustix::param::page_size())
        .ok_or(CallError::at(Call::Mmap, 0..len, Errno::NOMEM))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping owns these addresses. If it fails they stay mapped, which is a leak
        // and no more.
        let _ = unsafe { unmap(self.range()) };
    }
}

/// Maps a range of a file, shared, to read and write, over what is mapped at `range`.
///
/// No huge pages are set aside for it: on hugetlbfs, populate what will be touched, or a touch of
/// an empty pool ends in `SIGBUS`.
///
/// The new mapping is not registered with any userfaultfd.
///
/// # Safety
///
/// The caller owns the addresses and nobody views what is there as `&` or `&mut`; its contents are
/// replaced.
///
/// # Errors
///
/// As [`Mapping::file`]; what was mapped may then be gone.
///
/// # References
///
/// mmap(2), `MAP_FIXED`.
pub unsafe fn map_file_fixed(
    range: Range<usize>,
    file: impl AsFd,
    offset: u64,
) -> Result<(), CallError> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
    hook::whole(Call::MmapFixed)
        // SAFETY: the caller gives up what is there.
        .and_then(|()| unsafe {
            rustix::mm::mmap(pointer(range.start), len(&range), prot, flags, file, offset)
        })
        .map_err(|errno| CallError::at(Call::MmapFixed, range, errno))?;
    Ok(())
}

/// Maps fresh anonymous private memory over what is mapped at `range`.
///
/// # Safety
///
/// As [`map_file_fixed`].
///
/// # Errors
///
/// As [`Mapping::reserve`]; what was mapped may then be gone.
///
/// # References
///
/// mmap(2), `MAP_FIXED`.
pub unsafe fn map_anonymous_fixed(range: Range<usize>) -> Result<(), CallError> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    hook::whole(Call::MmapFixed)
        // SAFETY: the caller gives up what is there.
        .and_then(|()| unsafe {
            rustix::mm::mmap_anonymous(pointer(range.start), len(&range), prot, flags)
        })
        .map_err(|errno| CallError::at(Call::MmapFixed, range, errno))?;
    Ok(())
}

/// What [`remap`] leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nothing: the addresses are free.
    Unmapped,
    /// An empty mapping (`MREMAP_DONTUNMAP`), for anonymous memory and, since Linux 5.13, others.
    /// It stays registered with its userfaultfd.
    LeftEmpty,
}

/// Moves the pages of a range to `dst`, over what is mapped there (`MREMAP_FIXED`).
///
/// # Safety
///
/// The caller owns both ranges, and nobody views either as `&` or `&mut`.
///
/// # Errors
///
/// `EINVAL` for ranges that overlap or are not of whole pages, `EFAULT` for a source that is not
/// one mapping, `ENOMEM` with too many mappings.
///
/// # References
///
/// mremap(2).
pub unsafe fn remap(from: Range<usize>, dst: usize, source: Source) -> Result<(), CallError> {
    let flags = match source {
        Source::Unmapped => MremapFlags::MAYMOVE,
        Source::LeftEmpty => MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP,
    };
    let (start, len) = (pointer(from.start), len(&from));
    hook::whole(Call::Mremap)
        // SAFETY: the caller gives up both ranges.
        .and_then(|()| unsafe { rustix::mm::mremap_fixed(start, len, len, flags, pointer(dst)) })
        .map_err(|errno| CallError::at(Call::Mremap, from, errno))?;
    Ok(())
}

/// Unmaps a range.
///
/// # Safety
///
/// The caller owns the addresses, and nobody uses them any more.
///
/// # Errors
///
/// `ENOMEM` if a hole in a mapping would make too many, `EINVAL` for no whole pages.
///
/// # References
///
/// munmap(2).
pub unsafe fn unmap(range: Range<usize>) -> Result<(), CallError> {
    hook::whole(Call::Munmap)
        // SAFETY: the caller gives up the addresses.
        .and_then(|()| unsafe { rustix::mm::munmap(pointer(range.start), len(&range)) })
        .map_err(|errno| CallError::at(Call::Munmap, range, errno))
}

bitflags! {
    /// How a range is locked.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct LockMode: u32 {
        /// Pages are locked as they come, and not fetched now.
        const ON_FAULT = 1;
    }
}

/// Keeps the pages of a range in memory.
///
/// # Errors
///
/// `ENOMEM` over the limit of locked memory or where nothing is mapped, `EPERM` if the limit is
/// zero, `EAGAIN` if pages could not be fetched.
///
/// # References
///
/// mlock2(2).
pub fn lock(range: Range<usize>, mode: LockMode) -> Result<(), CallError> {
    let flags = MlockFlags::from_bits_truncate(mode.bits());
    hook::whole(Call::Mlock)
        // SAFETY: the contents of memory are the same, locked or not.
        .and_then(|()| unsafe { rustix::mm::mlock_with(pointer(range.start), len(&range), flags) })
        .map_err(|errno| CallError::at(Call::Mlock, range, errno))
}

/// Lets go of the pages that [`lock`] keeps.
///
/// # Errors
///
/// `ENOMEM` where nothing is mapped.
///
/// # References
///
/// munlock(2).
pub fn unlock(range: Range<usize>) -> Result<(), CallError> {
    hook::whole(Call::Munlock)
        // SAFETY: the contents of memory are the same, locked or not.
        .and_then(|()| unsafe { rustix::mm::munlock(pointer(range.start), len(&range)) })
        .map_err(|errno| CallError::at(Call::Munlock, range, errno))
}
