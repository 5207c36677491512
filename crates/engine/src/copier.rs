//! What moves the bytes (\[offload\], \[fast-copy\]).
//!
//! A copier knows nothing of pages. It is handed a list of jobs, each a source, a destination and a
//! length, and answers for each job on its own. What it does not confirm is copied by the CPU in the
//! remap step, once; so a copier may decline, fail or give up half way and no folio is lost.

/// Copies jobs of type `J`, which the platform makes and the engine only passes on.
///
/// One call takes the whole list of a batch: the batch holds many folio locks, so a copier must not
/// wait without a deadline, and must not allocate memory that could make the kernel reclaim
/// (\[batch-deadlock\]).
pub trait Copier<J>: Sync {
    /// The name that reports and the command line use, such as `memcpy`.
    fn name(&self) -> &str;

    /// Copies `jobs` and writes the answer for `jobs[i]` to `answers[i]`.
    ///
    /// Both slices have the same length; every answer is [`CopyAnswer::Unconfirmed`] at the start,
    /// and an answer left so means that the copy is not known to have happened. When the call
    /// returns or unwinds, the copier touches no byte of any job any more, whatever it answered.
    fn copy(&self, jobs: &[J], answers: &mut [CopyAnswer]);
}

/// What a [`Copier`] says about one job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CopyAnswer {
    /// Nothing was said: not copied, or not known to be.
    #[default]
    Unconfirmed,
    /// Every byte of the job is at its destination, visible to every CPU.
    Copied,
    /// Not tried, because this copier would not gain on such a job.
    Declined,
    /// Tried, and failed.
    Failed,
    /// Tried, and not done by the copier's deadline; it was called off and writes no more.
    TimedOut,
}
