//! The plain copy.

use transhume_engine::{Copier, CopyAnswer};

use crate::{CopyJob, Mover};

/// `memcpy` on the calling thread: whatever the C library holds to be best for the length.
///
/// On x86-64 the GNU library's uses vector registers for lengths up to a few KiB, `rep movsb` above
/// where the processor has it fast, and non-temporal stores only for a single copy that is a large
/// share of the last-level cache. The copies of a migration, of 4 KiB to 2 MiB each, mostly stay
/// below that however many there are, so their destinations go through the cache. That is right for
/// data that is used at once, and [`Streaming`](crate::Streaming) is for the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memcpy;

impl Memcpy {
    pub(crate) fn copy_one(job: &CopyJob) {
        // SAFETY: by the promise at `CopyJob::new`.
        unsafe { std::ptr::copy_nonoverlapping(job.source(), job.destination(), job.bytes()) }
    }
}

impl Mover for Memcpy {
    fn move_all(&self, jobs: &mut dyn Iterator<Item = CopyJob>) {
        jobs.for_each(|job| Self::copy_one(&job));
    }
}

impl Copier<CopyJob> for Memcpy {
    fn name(&self) -> &'static str {
        "memcpy"
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        for (job, answer) in jobs.iter().zip(answers) {
            Self::copy_one(job);
            *answer = CopyAnswer::Copied;
        }
    }
}
