//! The flag sets of userfaultfd.

use bitflags::bitflags;

use super::abi;

bitflags! {
    /// What a userfaultfd can do beyond missing faults of anonymous memory (`UFFD_FEATURE_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// Write-protect faults.
        const PAGEFAULT_FLAG_WP = 1 << 0;
        /// [`Event::Fork`](super::Event::Fork); needs `CAP_SYS_PTRACE`.
        const EVENT_FORK = 1 << 1;
        /// [`Event::Remap`](super::Event::Remap).
        const EVENT_REMAP = 1 << 2;
        /// [`Event::Remove`](super::Event::Remove).
        const EVENT_REMOVE = 1 << 3;
        /// Missing faults of hugetlbfs.
        const MISSING_HUGETLBFS = 1 << 4;
        /// Missing faults of shared memory.
        const MISSING_SHMEM = 1 << 5;
        /// [`Event::Unmap`](super::Event::Unmap).
        const EVENT_UNMAP = 1 << 6;
        /// A fault raises `SIGBUS` in place of an event.
        const SIGBUS = 1 << 7;
        /// Faults say which thread they stopped.
        const THREAD_ID = 1 << 8;
        /// Minor faults of hugetlbfs.
        const MINOR_HUGETLBFS = 1 << 9;
        /// Minor faults of shared memory.
        const MINOR_SHMEM = 1 << 10;
        /// Faults give the whole address and not its page.
        const EXACT_ADDRESS = 1 << 11;
        /// Write protection of hugetlbfs and shared memory.
        const WP_HUGETLBFS_SHMEM = 1 << 12;
        /// Write protection of anonymous pages that are not there yet.
        const WP_UNPOPULATED = 1 << 13;
        /// `UFFDIO_POISON`.
        const POISON = 1 << 14;
        /// A store resolves its own write-protect fault, and only leaves a mark.
        const WP_ASYNC = 1 << 15;
        /// [`Uffd::move_range`](super::Uffd::move_range).
        const MOVE = 1 << 16;

        // A newer kernel may know more.
        const _ = !0;
    }
}

bitflags! {
    /// The ways to get a userfaultfd, of which [`Uffd::open`](super::Uffd::open) may try some.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Allowed: u32 {
        /// [`Access::Device`](super::Access::Device).
        const DEVICE = 1 << 0;
        /// [`Access::Syscall`](super::Access::Syscall).
        const SYSCALL = 1 << 1;
        /// [`Access::UserModeOnly`](super::Access::UserModeOnly).
        const USER_MODE_ONLY = 1 << 2;

        /// Those whose faults stop the kernel's own accesses as well.
        const ALL_FAULTS = Self::DEVICE.bits() | Self::SYSCALL.bits();
    }
}

bitflags! {
    /// The ioctls that a userfaultfd, or a registered range, has.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Ioctls: u64 {
        /// `UFFDIO_REGISTER`.
        const REGISTER = 1 << 0x00;
        /// `UFFDIO_UNREGISTER`.
        const UNREGISTER = 1 << 0x01;
        /// `UFFDIO_WAKE`.
        const WAKE = 1 << 0x02;
        /// `UFFDIO_COPY`.
        const COPY = 1 << 0x03;
        /// `UFFDIO_ZEROPAGE`.
        const ZEROPAGE = 1 << 0x04;
        /// `UFFDIO_MOVE`.
        const MOVE = 1 << 0x05;
        /// `UFFDIO_WRITEPROTECT`.
        const WRITEPROTECT = 1 << 0x06;
        /// `UFFDIO_CONTINUE`.
        const CONTINUE = 1 << 0x07;
        /// `UFFDIO_POISON`.
        const POISON = 1 << 0x08;
        /// `UFFDIO_API`.
        const API = 1 << 0x3f;

        // A newer kernel may know more.
        const _ = !0;
    }
}

bitflags! {
    /// Which faults of a range are caught.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct RegisterMode: u64 {
        /// Accesses to pages that are not there.
        const MISSING = 1 << 0;
        /// Stores to pages under [`Protection::Protect`](super::Protection::Protect).
        const WP = 1 << 1;
        /// Accesses to pages that are in the file and not in the page table.
        const MINOR = 1 << 2;
    }
}

bitflags! {
    /// How pages are copied in.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct CopyMode: u64 {
        /// Threads that wait for the pages go on waiting, for [`Uffd::wake`](super::Uffd::wake).
        const DONTWAKE = abi::COPY_MODE_DONTWAKE;
        /// The pages come in write-protected.
        const WP = abi::COPY_MODE_WP;
    }
}

bitflags! {
    /// How pages of a file are mapped.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct ContinueMode: u64 {
        /// Threads that wait for the pages go on waiting, for [`Uffd::wake`](super::Uffd::wake).
        const DONTWAKE = abi::CONTINUE_MODE_DONTWAKE;
        /// The pages come in write-protected.
        const WP = abi::CONTINUE_MODE_WP;
    }
}

bitflags! {
    /// How pages are moved.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct MoveMode: u64 {
        /// Threads that wait for the pages go on waiting, for [`Uffd::wake`](super::Uffd::wake).
        const DONTWAKE = abi::MOVE_MODE_DONTWAKE;
        /// A hole in the source is no reason to stop: the hole is moved.
        const ALLOW_SRC_HOLES = abi::MOVE_MODE_ALLOW_SRC_HOLES;
    }
}

bitflags! {
    /// What a page fault was.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct FaultFlags: u64 {
        /// A store, or an access that would have been one.
        const WRITE = 1 << 0;
        /// The page is write-protected. Without this and [`FaultFlags::MINOR`] it is missing.
        const WP = 1 << 1;
        /// The page is in the file and not in the page table.
        const MINOR = 1 << 2;

        // A newer kernel may know more.
        const _ = !0;
    }
}

/// What [`Uffd::write_protect`](super::Uffd::write_protect) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protection {
    /// Stores stop from now on.
    Protect,
    /// Stores are free again.
    Unprotect(Waiters),
}

impl Protection {
    pub(super) const fn bits(self) -> u64 {
        match self {
            Self::Protect => abi::WRITEPROTECT_MODE_WP,
            Self::Unprotect(Waiters::Wake) => 0,
            Self::Unprotect(Waiters::LeaveAsleep) => abi::WRITEPROTECT_MODE_DONTWAKE,
        }
    }
}

/// What becomes of the threads that wait for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Waiters {
    /// They go on.
    Wake,
    /// They wait for [`Uffd::wake`](super::Uffd::wake).
    LeaveAsleep,
}
