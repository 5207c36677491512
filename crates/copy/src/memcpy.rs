//! The plain copy.

use transhume_engine::{Copier, CopyAnswer};

use crate::{CopyJob, Mover};

/// `memcpy` on the calling thread: whatever the C library holds to be best for the length, which
/// for a page is mostly `rep movsb` or vector stores through the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memcpy;

impl Mover for Memcpy {
    fn move_bytes(&self, job: &CopyJob) {
        // SAFETY: by the promise at `CopyJob::new`.
        unsafe { std::ptr::copy_nonoverlapping(job.source(), job.destination(), job.bytes()) }
    }
}

impl Copier<CopyJob> for Memcpy {
    fn name(&self) -> &'static str {
        "memcpy"
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        for (job, answer) in jobs.iter().zip(answers) {
            self.move_bytes(job);
            *answer = CopyAnswer::Copied;
        }
    }
}
