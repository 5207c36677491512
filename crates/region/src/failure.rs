//! What both backings say to the engine: what the kernel's answers mean, and a copy by the CPU.

use std::time::Duration;

use std::ops::Range;
use transhume_copy::swap::{Buffered, SwapJob};
use transhume_copy::{CopyJob, Memcpy};
use transhume_engine::{Copier, CopyAnswer, Failure, Step, SwapAnswer, Swapper, Why};

use crate::kernel::Uffd;
use crate::table::Refused;

pub(crate) use transhume_process::{failed, why};

/// How long the single-folio path waits for a folio's lock: far longer than a batch, so that only
/// a holder that is gone is given up on.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_millis(200);

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

/// Makes one swap on this CPU.
pub(crate) fn swap_here(job: SwapJob) -> Result<(), Failure> {
    let mut answer = [SwapAnswer::Untouched];
    Buffered.swap(&[job], &mut answer);
    match answer {
        [SwapAnswer::Swapped] => Ok(()),
        _ => Err(Failure::new(Step::Copy, Why::CopyFailed)),
    }
}

/// Lets the threads try again that wait for these addresses. The kernel has no reason to refuse; if
/// it does, they are not left asleep for one refusal.
pub(crate) fn wake(uffd: &Uffd, range: Range<usize>) {
    const TRIES: u32 = 8;
    let _ = (0..TRIES).find(|_| uffd.wake(range.clone()).is_ok());
}
