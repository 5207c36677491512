//! Files that are in memory only.

use std::ffi::CStr;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags};

use crate::abi::{len, to_u64};
use crate::{Call, CallError, hook};

/// What the pages of a [`memfd`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemfdPages {
    /// Shared memory, of base pages, or of huge ones where shmem is told to.
    Shmem,
    /// hugetlbfs with pages of [`HUGE_PAGE`](super::HUGE_PAGE), from the pool of the machine.
    Huge,
}

/// Makes a file that is in memory only, closed on exec, with no bytes.
///
/// # Errors
///
/// `EMFILE`, `ENOMEM`; `ENOENT` or `ENODEV` without huge pages of that size.
///
/// # References
///
/// memfd_create(2).
pub fn memfd(name: &CStr, pages: MemfdPages) -> Result<OwnedFd, CallError> {
    let flags = match pages {
        MemfdPages::Shmem => MemfdFlags::CLOEXEC,
        MemfdPages::Huge => MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
    };
    hook::whole(Call::MemfdCreate)
        .and_then(|()| rustix::fs::memfd_create(name, flags))
        .map_err(|errno| CallError::new(Call::MemfdCreate, errno))
}

/// Makes a file longer or shorter.
///
/// # Errors
///
/// Whatever ftruncate(2) says: `EINVAL` for a length that is not of whole huge pages, `EPERM` for a
/// sealed file.
///
/// # References
///
/// ftruncate(2).
pub fn resize(file: impl AsFd, len: u64) -> Result<(), CallError> {
    hook::whole(Call::Ftruncate)
        .and_then(|()| rustix::fs::ftruncate(file, len))
        .map_err(|errno| CallError::new(Call::Ftruncate, errno))
}

/// Gives back the pages of a range of a file, in the file and in every mapping of it.
///
/// # Errors
///
/// `EOPNOTSUPP` for files that cannot, `EPERM` for a sealed file, `EINVAL` for no bytes.
///
/// # References
///
/// fallocate(2), `FALLOC_FL_PUNCH_HOLE`.
pub fn punch_hole(file: impl AsFd, range: Range<usize>) -> Result<(), CallError> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    hook::whole(Call::PunchHole)
        .and_then(|()| rustix::fs::fallocate(file, flags, to_u64(range.start), to_u64(len(&range))))
        .map_err(|errno| CallError::at(Call::PunchHole, range, errno))
}

/// Allocates the pages of a range of a file.
///
/// # Errors
///
/// `ENOSPC` without memory, or without huge pages in the pool; `EINVAL` for no bytes.
///
/// # References
///
/// fallocate(2).
pub fn allocate(file: impl AsFd, range: Range<usize>) -> Result<(), CallError> {
    let flags = FallocateFlags::empty();
    hook::whole(Call::Fallocate)
        .and_then(|()| rustix::fs::fallocate(file, flags, to_u64(range.start), to_u64(len(&range))))
        .map_err(|errno| CallError::at(Call::Fallocate, range, errno))
}
