//! What both backings say to the engine: what the kernel's answers mean, and a copy by the CPU.

use std::time::Duration;

use std::ops::Range;
use transhume_copy::{CopyJob, Memcpy};
use transhume_engine::{Copier, CopyAnswer, Errno as EngineErrno, Failure, Step, Why};

use transhume_sys::Errno;
use transhume_sys::uffd::Uffd;

use crate::table::Refused;

/// How long the single-folio path waits for a folio's lock: far longer than a batch, so that only
/// a holder that is gone is given up on.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// A step that the kernel refused.
pub(crate) fn failed(step: Step, why: Why, errno: Errno) -> Failure {
    Failure::new(step, why).with_errno(EngineErrno::new(errno.raw_os_error()))
}

/// What an errno means where it has no meaning of its own.
pub(crate) fn why(errno: Errno) -> Why {
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

/// A folio lock that was not to be had.
pub(crate) fn refused(refused: Refused) -> Failure {
    Failure::new(
        Step::Lock,
        match refused {
            Refused::Locked => Why::Busy,
            Refused::Pinned => Why::Pinned,
        },
    )
}

/// Makes one copy on this CPU.
pub(crate) fn copy_here(job: CopyJob) -> Result<(), Failure> {
    let mut answer = [CopyAnswer::Unconfirmed];
    Memcpy.copy(&[job], &mut answer);
    match answer {
        [CopyAnswer::Copied] => Ok(()),
        _ => Err(Failure::new(Step::Copy, Why::CopyFailed)),
    }
}

/// Lets the threads try again that wait for these addresses. The kernel has no reason to refuse; if
/// it does, they are not left asleep for one refusal.
pub(crate) fn wake(uffd: &Uffd, range: Range<usize>) {
    const TRIES: u32 = 8;
    let _ = (0..TRIES).find(|_| uffd.wake(range.clone()).is_ok());
}
