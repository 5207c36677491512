//! Swaps by several threads at once (\[fast-copy\]).

use std::fmt;
use std::num::NonZeroUsize;

use transhume_engine::{SwapAnswer, Swapper};

use super::{Buffered, Registers, SwapJob};
use crate::Mover;
use crate::pool::Pool;
use crate::threads::{MIN_BYTES_PER_THREAD, ThreadsError, start_pool};

/// How a [`Threads`] is made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadsOptions {
    /// How many threads swap, the calling one among them: 1 to 1024.
    pub threads: NonZeroUsize,
    /// The NUMA node on whose CPUs the threads should run. If it has none that this process may run
    /// on, all are taken.
    pub node: Option<u32>,
    /// A list is shared by one thread for each so many bytes of it, one side of each pair counted, and
    /// swapped by the calling thread alone if that makes one.
    pub min_bytes_per_thread: NonZeroUsize,
}

impl ThreadsOptions {
    /// So many threads, the calling one among them, on any node, and 512 KiB a thread at least.
    #[must_use]
    pub fn new(threads: NonZeroUsize) -> Self {
        Self {
            threads,
            node: None,
            min_bytes_per_thread: MIN_BYTES_PER_THREAD,
        }
    }
}

/// Swaps by a pool of pinned threads, through registers where there are any: one large pair is split
/// by bytes, and many pairs are shared out. What is said of [`crate::Threads`] holds here too.
///
/// If a thread fails at a part of a pair, the parts that are done are swapped back, and the pair is
/// untouched.
pub struct Threads {
    pool: Pool<SwapJob>,
    options: ThreadsOptions,
    name: String,
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Threads {
    /// Starts the threads, on CPUs that the thread which calls this may run on: start them before
    /// pinning it.
    ///
    /// # Errors
    ///
    /// [`ThreadsError`] if they are too many, for this crate or for the system.
    pub fn start(options: ThreadsOptions) -> Result<Self, ThreadsError> {
        match Registers::detect() {
            Ok(registers) => Self::with_mover(options, Box::new(registers)),
            Err(_) => Self::with_mover(options, Box::new(Buffered)),
        }
    }

    fn with_mover(
        options: ThreadsOptions,
        mover: Box<dyn Mover<SwapJob>>,
    ) -> Result<Self, ThreadsError> {
        let pool = start_pool(
            mover,
            options.threads,
            options.node,
            options.min_bytes_per_thread,
        )?;
        Ok(Self {
            pool,
            options,
            name: format!("threads:{}", options.threads),
        })
    }

    /// How it was made up.
    #[must_use]
    pub const fn options(&self) -> &ThreadsOptions {
        &self.options
    }
}

impl Swapper<SwapJob> for Threads {
    fn name(&self) -> &str {
        &self.name
    }

    fn swap(&self, pairs: &[SwapJob], answers: &mut [SwapAnswer]) {
        self.pool.share_out(pairs, answers);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Panics at the parts of a job that begin at or after an address, before it touches them.
    struct Panics {
        from: usize,
        panicked: &'static AtomicUsize,
    }

    impl Mover<SwapJob> for Panics {
        fn move_all(&self, jobs: &mut dyn Iterator<Item = SwapJob>) {
            let jobs = jobs.collect::<Vec<_>>();
            if jobs.iter().any(|job| job.a().addr() >= self.from) {
                self.panicked.fetch_add(1, Ordering::Relaxed);
                std::panic::resume_unwind(Box::new("planned"));
            }
            Buffered.move_all(&mut jobs.into_iter());
        }

        fn undo(&self, part: SwapJob) {
            Buffered.undo(part);
        }
    }

    #[test]
    fn a_pair_of_which_a_part_failed_is_untouched() {
        const BYTES: usize = 4 << 20;
        static PANICKED: AtomicUsize = AtomicUsize::new(0);
        let mut a = (0..=250_u8).cycle().take(BYTES).collect::<Vec<_>>();
        let mut b = (0..=240_u8).cycle().take(BYTES).collect::<Vec<_>>();
        let before = (a.clone(), b.clone());
        let threads = Threads::with_mover(
            ThreadsOptions {
                min_bytes_per_thread: NonZeroUsize::MIN,
                ..ThreadsOptions::new(NonZeroUsize::new(3).unwrap())
            },
            Box::new(Panics {
                from: a.as_ptr().addr() + 3 * BYTES / 4,
                panicked: &PANICKED,
            }),
        )
        .unwrap();
        // SAFETY: two vectors, not used otherwise while the jobs are.
        let pairs = [unsafe { SwapJob::new(a.as_mut_ptr(), b.as_mut_ptr(), BYTES) }];
        let mut answers = [SwapAnswer::Untouched];
        threads.swap(&pairs, &mut answers);
        assert!(PANICKED.load(Ordering::Relaxed) > 0);
        assert_eq!(answers, [SwapAnswer::Untouched]);
        assert!((a, b) == before, "what was swapped is swapped back");
    }
}
