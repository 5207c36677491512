//! What this machine offers, and which mechanism a region takes.

use std::fmt;

use transhume_sys::limits;
use transhume_sys::uffd::{Access, Allowed, Features, OpenError, Uffd, probe};

use crate::error::BuildError;
use crate::options::KernelAccess;

/// How a region cuts its pages off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mechanism {
    /// Anonymous memory, moved out and in by `UFFDIO_MOVE`.
    Move,
    /// Mapped files, covered by a blind that a userfaultfd serves.
    Blind,
    /// Anonymous memory, moved by the kernel itself with `move_pages(2)`: for machines without
    /// `UFFDIO_MOVE`. It works between different nodes only, and the copiers take no part.
    ///
    /// A page that a child shares since a fork stays ([`Why::Shared`](crate::Why::Shared)) until the
    /// child has gone or either has written to it. One that the program gave back is not there to be
    /// moved ([`Why::Absent`](crate::Why::Absent)); when it is used again the kernel chooses the node,
    /// and the next request that asks for the page's tier moves it there.
    MovePages,
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Move => "UFFDIO_MOVE",
            Self::Blind => "userfaultfd blind",
            Self::MovePages => "move_pages(2)",
        })
    }
}

impl Mechanism {
    const fn features(self) -> Features {
        match self {
            Self::Move => Features::MOVE,
            Self::Blind => Features::EVENT_REMAP,
            Self::MovePages => Features::empty(),
        }
    }
}

/// Something that the machine lacks and the region does without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What is missing, and what that means.
    pub what: String,
    /// What to do about it.
    pub cure: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; cure: {}", self.what, self.cure)
    }
}

/// Whether `UFFDIO_MOVE` flushes once a run, and not once a page.
pub(crate) fn moves_in_batches() -> bool {
    limits::kernel_release().is_at_least(6, 18)
}

/// What it takes to hold stores off, and off shared memory.
const STORES: Features = Features::PAGEFAULT_FLAG_WP;
const SHARED_STORES: Features = STORES.union(Features::WP_HUGETLBFS_SHMEM);

/// Opens a userfaultfd that does what the mechanism needs, or says what is missing.
pub(crate) fn open(
    mechanism: Mechanism,
    kernel_access: KernelAccess,
    holds_stores_off: bool,
) -> Result<Uffd, BuildError> {
    let allowed = match kernel_access {
        KernelAccess::Expected => Allowed::ALL_FAULTS,
        KernelAccess::Never => Allowed::all(),
    };
    let mut features = mechanism.features();
    if holds_stores_off {
        features |= match mechanism {
            Mechanism::Blind => SHARED_STORES,
            Mechanism::Move | Mechanism::MovePages => STORES,
        };
    }
    Uffd::open(features, allowed).map_err(|error| explain(&error, kernel_access))
}

fn explain(error: &OpenError, kernel_access: KernelAccess) -> BuildError {
    let no = |reason: String, cure: &str| BuildError::NoMechanism {
        reason,
        cure: cure.to_owned(),
    };
    match error {
        OpenError::Features { missing, .. } if missing.contains(Features::MOVE) => no(
            "this kernel has no UFFDIO_MOVE".to_owned(),
            "a kernel from 6.8 on, or mapped backing (memfd, hugetlb, files)",
        ),
        OpenError::Features { missing, .. } if missing.contains(STORES) => no(
            "this kernel's userfaultfd cannot hold stores off, so nothing can be deferred".to_owned(),
            "no Builder::deferral",
        ),
        OpenError::Features { missing, .. } if missing.intersects(SHARED_STORES) => no(
            "this kernel's userfaultfd cannot hold stores off shared memory, so nothing can be deferred"
                .to_owned(),
            "a kernel from 5.19 on, or no Builder::deferral",
        ),
        OpenError::Unavailable(_)
            if kernel_access == KernelAccess::Expected && user_mode_only() =>
        {
            no(
                "only an unprivileged userfaultfd is to be had, with which system calls on pages \
                 under migration would fail with EFAULT"
                    .to_owned(),
                "sysctl vm.unprivileged_userfaultfd=1, or access to /dev/userfaultfd, or the promise \
                 KernelAccess::Never",
            )
        }
        OpenError::Features { .. } => no(
            "this kernel's userfaultfd does not report mremap".to_owned(),
            "a kernel from 4.11 on",
        ),
        OpenError::Handshake { errno, .. } => no(
            format!("the kernel refuses what its userfaultfd offers: {errno}"),
            "no security policy that forbids it, or another kernel",
        ),
        OpenError::Unavailable(_) => no(
            error.to_string(),
            "a kernel with CONFIG_USERFAULTFD, and no seccomp filter that forbids userfaultfd(2)",
        ),
    }
}

fn user_mode_only() -> bool {
    probe(Allowed::USER_MODE_ONLY).is_ok_and(|probe| probe.access == Access::UserModeOnly)
}
