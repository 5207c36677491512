//! One swap to make.

use std::ops::Range;

use transhume_engine::SwapAnswer;

use crate::parts::Job;

/// Two ranges of equal length.
///
/// As for a [`CopyJob`](crate::CopyJob), making one is the promise that lets every swapper be safe to
/// call, and it ends with the job: a job cannot be made twice of one, nor shared between threads.
///
/// ```compile_fail,E0277
/// # use transhume_copy::swap::{Buffered, SwapJob};
/// # use transhume_engine::{SwapAnswer, Swapper};
/// /// Swaps a list on two threads at once, so that nobody knows what is where.
/// fn twice(pairs: &[SwapJob]) {
///     std::thread::scope(|scope| {
///         scope.spawn(|| Buffered.swap(pairs, &mut [SwapAnswer::Untouched])); // stays on its thread
///     });
/// }
/// ```
#[derive(Debug, PartialEq, Eq)]
pub struct SwapJob {
    a: *mut u8,
    b: *mut u8,
    bytes: usize,
}

// Not `Sync`, see above.
// SAFETY: the promise at `SwapJob::new` holds on whatever thread the swap is made.
unsafe impl Send for SwapJob {}

impl SwapJob {
    /// The swap of `bytes` bytes at `a` with as many at `b`, at any alignment. No bytes is a swap
    /// too.
    ///
    /// # Safety
    ///
    /// For as long as the job exists, any thread may read and write `bytes` bytes at `a` and as many
    /// at `b`; the two do not overlap, and neither is viewed as `&` or `&mut` while a swapper has the
    /// job.
    ///
    /// From the call of a swapper until it returns or unwinds:
    ///
    /// - nothing loads from or stores to either: no other thread, no other job of the same or another
    ///   list, and nobody through another mapping of the same memory.
    ///
    ///   A swapper may make jobs from the addresses of those it was lent, and promises all this anew:
    ///   such a job is gone before it returns.
    /// - A fault on either side is resolved without the thread that called the swapper.
    ///
    /// What another *process* or a device stores there through its own mapping breaks no rule of the
    /// language, but may be lost, or be stored to the wrong one of the two: the caller must make sure
    /// that nobody can do it.
    #[must_use]
    pub const unsafe fn new(a: *mut u8, b: *mut u8, bytes: usize) -> Self {
        Self { a, b, bytes }
    }

    /// Where one range begins.
    #[must_use]
    pub const fn a(&self) -> *mut u8 {
        self.a
    }

    /// Where the other does.
    #[must_use]
    pub const fn b(&self) -> *mut u8 {
        self.b
    }

    /// How many bytes each has.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Job for SwapJob {
    type Answer = SwapAnswer;
    const DONE: SwapAnswer = SwapAnswer::Swapped;
    const FAILED: SwapAnswer = SwapAnswer::Untouched;

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn stores_to(&self) -> usize {
        self.a.addr()
    }

    fn of(&self, bytes: Range<usize>) -> Self {
        Self {
            a: self.a.wrapping_add(bytes.start),
            b: self.b.wrapping_add(bytes.start),
            bytes: bytes.len(),
        }
    }
}
