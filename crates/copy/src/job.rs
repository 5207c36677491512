//! One copy to make.

use std::ops::Range;

use transhume_engine::CopyAnswer;

use crate::parts::Job;

/// A source, a destination and a length.
///
/// Making one is the promise that lets every copier be safe to call. The promise ends with the job,
/// so a job cannot be made twice of one, and a copier, which has its jobs lent, cannot keep them:
///
/// ```
/// # use transhume_copy::{CopyJob, Memcpy};
/// # use transhume_engine::{Copier, CopyAnswer};
/// /// Copies the first half of a list.
/// struct Half;
///
/// impl Copier<CopyJob> for Half {
///     fn name(&self) -> &str {
///         "half"
///     }
///
///     fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
///         let half = jobs.len() / 2;
///         Memcpy.copy(&jobs[..half], &mut answers[..half]);
///     }
/// }
/// ```
///
/// ```compile_fail,E0508
/// # use std::sync::Mutex;
/// # use transhume_copy::{CopyJob, Memcpy};
/// # use transhume_engine::{Copier, CopyAnswer};
/// /// Copies the first job once more, when its memory may be gone.
/// struct Keeps(Mutex<Vec<CopyJob>>);
///
/// impl Copier<CopyJob> for Keeps {
///     fn name(&self) -> &str {
///         "keeps"
///     }
///
///     fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
///         let mut kept = self.0.lock().unwrap();
///         Memcpy.copy(&kept, answers);
///         kept.push(jobs[0]); // a job cannot be moved out of its list
///     }
/// }
/// ```
///
/// Nor is it shared between threads, because two that copy it at once would both store to one
/// destination:
///
/// ```compile_fail,E0277
/// # use transhume_copy::{CopyJob, Memcpy};
/// # use transhume_engine::{Copier, CopyAnswer};
/// /// Copies a list twice at once.
/// struct Twice;
///
/// impl Copier<CopyJob> for Twice {
///     fn name(&self) -> &str {
///         "twice"
///     }
///
///     fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
///         std::thread::scope(|scope| {
///             scope.spawn(|| Memcpy.copy(jobs, answers)); // a list stays on its thread
///             Memcpy.copy(jobs, &mut vec![CopyAnswer::Unconfirmed; jobs.len()]);
///         });
///     }
/// }
/// ```
///
/// [`Threads`](crate::Threads) is there for copies by several threads.
#[derive(Debug, PartialEq, Eq)]
pub struct CopyJob {
    source: *const u8,
    destination: *mut u8,
    bytes: usize,
}

// Not `Sync`, see above.
// SAFETY: the promise at `CopyJob::new` holds on whatever thread the copy is made.
unsafe impl Send for CopyJob {}

impl CopyJob {
    /// The copy of `bytes` bytes from `source` to `destination`, at any alignment. No bytes is a
    /// copy too.
    ///
    /// # Safety
    ///
    /// For as long as the job exists, any thread may read `bytes`
    /// bytes at `source` and write `bytes` bytes at `destination`; the two do not overlap, and
    /// neither is viewed as `&` or `&mut` while a copier has the job.
    ///
    /// From the call of a copier until it returns or unwinds:
    ///
    /// - nothing stores to the source, and nothing loads from or stores to the destination: no other
    ///   thread, no other job of the same or another list, and nobody through another mapping of the
    ///   same memory. Jobs may share a source.
    ///
    ///   A copier may make jobs from the addresses of those it was lent, and promises all this anew:
    ///   such a job is gone before it returns, and no other job is copied to the same bytes meanwhile.
    /// - A fault on either side is resolved without the thread that called the copier.
    ///
    /// What another *process* or a device stores through its own mapping breaks no rule of the
    /// language, but what is copied is then any mixture of old and new: the caller must make sure
    /// that the copy is not used, or that nobody can do it.
    #[must_use]
    pub const unsafe fn new(source: *const u8, destination: *mut u8, bytes: usize) -> Self {
        Self {
            source,
            destination,
            bytes,
        }
    }

    /// Where it reads.
    #[must_use]
    pub const fn source(&self) -> *const u8 {
        self.source
    }

    /// Where it writes.
    #[must_use]
    pub const fn destination(&self) -> *mut u8 {
        self.destination
    }

    /// How many bytes it has.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Job for CopyJob {
    type Answer = CopyAnswer;
    const DONE: CopyAnswer = CopyAnswer::Copied;
    const FAILED: CopyAnswer = CopyAnswer::Failed;

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn stores_to(&self) -> usize {
        self.destination.addr()
    }

    fn of(&self, bytes: Range<usize>) -> Self {
        Self {
            source: self.source.wrapping_add(bytes.start),
            destination: self.destination.wrapping_add(bytes.start),
            bytes: bytes.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stay_inside() {
        let source = [0u8; 100];
        let mut destination = [0u8; 100];
        // SAFETY: two arrays, not used otherwise.
        let job = unsafe { CopyJob::new(source.as_ptr(), destination.as_mut_ptr(), 100) };
        let part = |from, bytes| {
            let part = job.part(from, bytes);
            (part.source().addr() - source.as_ptr().addr(), part.bytes())
        };
        assert_eq!(part(0, 100), (0, 100));
        assert_eq!(part(30, 40), (30, 40));
        assert_eq!(part(90, 40), (90, 10));
        assert_eq!(part(100, 1), (100, 0));
        assert_eq!(part(usize::MAX, usize::MAX), (100, 0));
        assert_eq!(job.part(30, usize::MAX).bytes(), 70);
        assert_eq!(
            job.part(30, 1).destination(),
            job.destination().wrapping_add(30)
        );
        assert_eq!(job.whole(), job);
    }
}
