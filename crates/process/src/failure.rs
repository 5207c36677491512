//! What an errno means.

use transhume_engine::{Errno as EngineErrno, Failure, Step, Why};
use transhume_sys::Errno;

/// A step that the kernel refused.
#[must_use]
pub fn failed(step: Step, why: Why, errno: Errno) -> Failure {
    Failure::new(step, why).with_errno(EngineErrno::new(errno.raw_os_error()))
}

/// What an errno means where it has no meaning of its own.
#[must_use]
pub fn why(errno: Errno) -> Why {
    match errno {
        Errno::AGAIN | Errno::INTR => Why::Again,
        Errno::NOMEM => Why::NoMemory,
        Errno::PERM | Errno::ACCESS => Why::NotPermitted,
        Errno::NOENT => Why::Absent,
        Errno::BUSY => Why::Pinned,
        Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS => Why::Unsupported,
        _ => Why::System,
    }
}
