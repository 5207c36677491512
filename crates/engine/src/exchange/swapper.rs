//! What swaps the bytes.

/// Swaps contents by jobs of type `S`, which the platform makes and the engine only passes on.
///
/// As for a [`Copier`](crate::Copier), one call takes the whole list of a batch with many folio locks
/// held: it must not wait without a deadline, and must not allocate memory that could make the kernel
/// reclaim (\[batch-deadlock\]).
pub trait Swapper<S>: Sync {
    /// The name that reports and the command line use, such as `registers`.
    fn name(&self) -> &str;

    /// Swaps the pairs and writes the answer for `pairs[i]` to `answers[i]`.
    ///
    /// Both slices have the same length, and every answer is [`SwapAnswer::Untouched`] at the start.
    /// When the call returns or unwinds each pair is wholly swapped and its answer says so, or is as
    /// it was: a swap has no source that is still right when it stops half way.
    fn swap(&self, pairs: &[S], answers: &mut [SwapAnswer]);
}

/// What a [`Swapper`] says about one job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SwapAnswer {
    /// Every byte is where it was. The CPU swaps the pair in the next step.
    #[default]
    Untouched,
    /// Every byte of either is where the other's was, visible to every CPU.
    Swapped,
}
