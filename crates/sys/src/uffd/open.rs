//! Getting a userfaultfd, and finding out what it could do.

use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, Updater};
use rustix::mm::UserfaultfdFlags;

use super::abi;
use super::flags::{Allowed, Features, Ioctls};
use crate::{Call, hook};

/// How a userfaultfd was got, which decides whose accesses it can stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// By `/dev/userfaultfd`: every access, the kernel's own too.
    Device,
    /// By userfaultfd(2) with privilege: every access, the kernel's own too.
    Syscall,
    /// By userfaultfd(2) without: where the kernel itself meets a missing page, as in read(2) into
    /// it, the call fails with `EFAULT`.
    UserModeOnly,
}

impl Access {
    const fn allowed_by(self) -> Allowed {
        match self {
            Self::Device => Allowed::DEVICE,
            Self::Syscall => Allowed::SYSCALL,
            Self::UserModeOnly => Allowed::USER_MODE_ONLY,
        }
    }
}

/// Why each of the ways to a userfaultfd is closed; `None` for those that were not tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// [`Access::Device`]: `ENOENT` without the device, `EACCES` or `EPERM` without the right.
    pub device: Option<Errno>,
    /// [`Access::Syscall`]: `EPERM` without the right, `ENOSYS` without the call.
    pub syscall: Option<Errno>,
    /// [`Access::UserModeOnly`]: `ENOSYS` without the call, `EINVAL` before Linux 5.11, `EPERM`
    /// where a filter forbids it.
    pub user_mode_only: Option<Errno>,
}

impl std::fmt::Display for Refusals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ways = [
            ("/dev/userfaultfd", self.device),
            ("userfaultfd(2)", self.syscall),
            ("userfaultfd(2) for user mode only", self.user_mode_only),
        ];
        let mut separator = "";
        for (way, errno) in ways {
            if let Some(errno) = errno {
                write!(f, "{separator}{way}: {errno}")?;
                separator = "; ";
            }
        }
        if separator.is_empty() {
            f.write_str("no way was allowed")
        } else {
            Ok(())
        }
    }
}

/// There is no userfaultfd to be had, or not the one that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// None of the allowed ways is open.
    #[error("no userfaultfd: {0}")]
    Unavailable(Refusals),
    /// The kernel lacks some of the features.
    #[error("userfaultfd without {missing:?}, which this kernel lacks")]
    Features {
        /// Those that it lacks.
        missing: Features,
        /// Those that it has.
        supported: Features,
    },
    /// The kernel has the features and still refuses them: `EPERM` for [`Features::EVENT_FORK`]
    /// without `CAP_SYS_PTRACE`.
    #[error("UFFDIO_API of a userfaultfd by {access:?} with {wanted:?}: {errno}")]
    Handshake {
        /// How the userfaultfd was got.
        access: Access,
        /// What was asked for.
        wanted: Features,
        /// What the kernel said.
        errno: Errno,
    },
}

/// What a userfaultfd could do here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The best way that is open.
    pub access: Access,
    /// Why the better ones are not.
    pub refusals: Refusals,
    /// What the kernel has.
    pub features: Features,
    /// The ioctls of the descriptor itself; those of a range are known when it is registered.
    pub ioctls: Ioctls,
}

/// Finds out what a userfaultfd could do, on a descriptor that is closed again.
///
/// # Errors
///
/// [`OpenError::Unavailable`] with a reason for each way, or [`OpenError::Handshake`].
///
/// # References
///
/// userfaultfd(2), ioctl_userfaultfd(2), `Documentation/admin-guide/mm/userfaultfd.rst`.
pub fn probe(allowed: Allowed) -> Result<Probe, OpenError> {
    let (fd, access, refusals) = open_any(allowed)?;
    let answer = handshake(&fd, access, Features::empty())?;
    Ok(Probe {
        access,
        refusals,
        features: Features::from_bits_retain(answer.features),
        ioctls: Ioctls::from_bits_retain(answer.ioctls),
    })
}

pub(super) fn open(want: Features, allowed: Allowed) -> Result<(OwnedFd, Access), OpenError> {
    let (fd, access, _) = open_any(allowed)?;
    match handshake(&fd, access, want) {
        Ok(_) => Ok((fd, access)),
        // The kernel does not say which feature it misses, so ask what it has.
        Err(OpenError::Handshake {
            errno: Errno::INVAL,
            wanted,
            ..
        }) => {
            let supported = probe(allowed)?.features;
            let missing = want.difference(supported);
            if missing.is_empty() {
                Err(OpenError::Handshake {
                    access,
                    wanted,
                    errno: Errno::INVAL,
                })
            } else {
                Err(OpenError::Features { missing, supported })
            }
        }
        Err(error) => Err(error),
    }
}

fn open_any(allowed: Allowed) -> Result<(OwnedFd, Access, Refusals), OpenError> {
    let mut refusals = Refusals::default();
    for access in [Access::Device, Access::Syscall, Access::UserModeOnly] {
        if !allowed.contains(access.allowed_by()) {
            continue;
        }
        let refusal = match hook::whole(Call::UffdOpen).and_then(|()| open_by(access)) {
            Ok(fd) => return Ok((fd, access, refusals)),
            Err(errno) => Some(errno),
        };
        match access {
            Access::Device => refusals.device = refusal,
            Access::Syscall => refusals.syscall = refusal,
            Access::UserModeOnly => refusals.user_mode_only = refusal,
        }
    }
    Err(OpenError::Unavailable(refusals))
}

fn open_by(access: Access) -> Result<OwnedFd, Errno> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    let flags = match access {
        Access::Device => {
            let device = rustix::fs::open(
                c"/dev/userfaultfd",
                OFlags::RDWR | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            // SAFETY: this device has the one ioctl, which takes flags and answers a descriptor.
            return unsafe { ioctl::ioctl(device, New { flags }) };
        }
        Access::Syscall => flags,
        Access::UserModeOnly => flags | UserfaultfdFlags::from_bits_retain(abi::USER_MODE_ONLY),
    };
    // SAFETY: a fresh userfaultfd reaches no memory before `Uffd::register` or `Uffd::move_range`,
    // which are unsafe and say what must hold.
    unsafe { rustix::mm::userfaultfd(flags) }
}

fn handshake(fd: &OwnedFd, access: Access, wanted: Features) -> Result<abi::Api, OpenError> {
    let mut api = abi::Api {
        api: abi::UFFD_API,
        features: wanted.bits(),
        ioctls: 0,
    };
    let mut shake = || {
        hook::whole(Call::UffdApi)?;
        // SAFETY: `UFFDIO_API` reads and writes one `Api`.
        let call = unsafe { Updater::<{ abi::UFFDIO_API }, _>::new(&mut api) };
        // SAFETY: `fd` is a userfaultfd, and the structure is the one for this number.
        unsafe { ioctl::ioctl(fd, call) }
    };
    match shake() {
        Ok(()) => Ok(api),
        Err(errno) => Err(OpenError::Handshake {
            access,
            wanted,
            errno,
        }),
    }
}

struct New {
    flags: UserfaultfdFlags,
}

// SAFETY: the argument of `USERFAULTFD_IOC_NEW` is flags and not memory, and its answer is a new
// descriptor.
unsafe impl Ioctl for New {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        abi::USERFAULTFD_IOC_NEW
    }

    fn as_ptr(&mut self) -> *mut libc::c_void {
        ptr::without_provenance_mut(self.flags.bits() as usize)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut libc::c_void) -> Result<OwnedFd, Errno> {
        // SAFETY: the ioctl succeeded, so `out` is a descriptor that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}
