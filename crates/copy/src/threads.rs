//! Copies by several threads at once (\[fast-copy\]).

use std::fmt;
use std::num::NonZeroUsize;

use transhume_engine::{Copier, CopyAnswer};

use crate::pool::Pool;
use crate::{CopyJob, Memcpy, Mover, Streaming, Topology};

/// How a [`Threads`] is made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadsOptions {
    /// How many threads copy, the calling one among them.
    pub threads: NonZeroUsize,
    /// By streaming stores rather than `memcpy`.
    pub streaming: Option<Streaming>,
    /// The NUMA node on whose CPUs the threads should run.
    pub node: Option<u32>,
}

/// Why the threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {threads} copy threads: {source}")]
pub struct ThreadsError {
    /// How many were asked for.
    pub threads: NonZeroUsize,
    /// What the system said.
    pub source: std::io::Error,
}

/// Copies by a pool of pinned threads. One large folio is split by bytes, and many folios are
/// shared out; a job is confirmed when all its parts are copied.
///
/// The calling thread copies too. The others are placed on CPUs of different caches first, and not
/// on the CPU of the thread that makes this while there are others. Several callers at once do not
/// wait for each other: one has the pool, the others copy alone.
pub struct Threads {
    pool: Pool,
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
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// [`ThreadsError`] if the system has no more.
    pub fn start(options: ThreadsOptions) -> Result<Self, ThreadsError> {
        let mover: Box<dyn Mover> = match options.streaming {
            Some(streaming) => Box::new(streaming),
            None => Box::new(Memcpy),
        };
        Self::with_mover(options, mover)
    }

    pub(crate) fn with_mover(
        options: ThreadsOptions,
        mover: Box<dyn Mover>,
    ) -> Result<Self, ThreadsError> {
        let ThreadsOptions {
            threads,
            streaming,
            node,
        } = options;
        let topology = Topology::here();
        let mut cpus = topology.spread(topology.len().max(threads.get()), node);
        // The caller's CPU is its own; it is shared only when every other has a thread.
        let here = rustix::thread::sched_getcpu();
        if let Some(at) = cpus.iter().position(|cpu| cpu.number == here) {
            let cpu = cpus.remove(at);
            cpus.push(cpu);
        }
        let workers = threads.get() - 1;
        let mut cpus = cpus.into_iter().map(Some).take(workers).collect::<Vec<_>>();
        cpus.resize(workers, None);
        let pool = Pool::start(mover, &cpus).map_err(|source| ThreadsError { threads, source })?;
        let inner = if streaming.is_some() {
            "streaming"
        } else {
            "memcpy"
        };
        Ok(Self {
            pool,
            options,
            name: format!("threads:{threads}:{inner}"),
        })
    }
}

impl Copier<CopyJob> for Threads {
    fn name(&self) -> &str {
        &self.name
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        self.pool.copy(jobs, answers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn options(threads: usize) -> ThreadsOptions {
        let threads = NonZeroUsize::new(threads).unwrap();
        ThreadsOptions {
            threads,
            streaming: None,
            node: None,
        }
    }

    /// Panics at one call in so many.
    struct Stumbling {
        every: usize,
        calls: AtomicUsize,
    }

    impl Mover for Stumbling {
        fn move_bytes(&self, job: &CopyJob) {
            let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
            assert!(
                !call.is_multiple_of(self.every),
                "a mover that panics, on purpose"
            );
            Memcpy.move_bytes(job);
        }
    }

    #[test]
    fn what_a_thread_panics_at_is_failed_and_the_rest_is_copied() {
        let mover = Stumbling {
            every: 5,
            calls: AtomicUsize::new(0),
        };
        let threads = Threads::with_mover(options(3), Box::new(mover)).unwrap();
        let source = (0..64)
            .map(|n: u8| vec![n + 1; 256 << 10])
            .collect::<Vec<_>>();
        for _ in 0..20 {
            let mut target = vec![vec![0u8; 256 << 10]; 64];
            let jobs = source.iter().zip(&mut target);
            // SAFETY: separate vectors, not used otherwise while the jobs are.
            let jobs = jobs
                .map(|(from, to)| unsafe { CopyJob::new(from.as_ptr(), to.as_mut_ptr(), to.len()) })
                .collect::<Vec<_>>();
            let mut answers = [CopyAnswer::Unconfirmed; 64];
            threads.copy(&jobs, &mut answers);
            assert!(answers.contains(&CopyAnswer::Failed));
            for ((from, to), answer) in source.iter().zip(&target).zip(answers) {
                assert!(answer == CopyAnswer::Failed || from == to);
            }
        }
    }
}
