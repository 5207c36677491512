//! Copies by several threads at once (\[fast-copy\]).

use std::fmt;
use std::num::NonZeroUsize;

use transhume_engine::{Copier, CopyAnswer};

use crate::parts::Job;
use crate::pool::Pool;
use crate::{CopyJob, Memcpy, Mover, Streaming, Topology};

/// More threads than this are a mistake.
const MOST_THREADS: usize = 1024;
/// What [`ThreadsOptions::new`] takes as the least for a thread, in bytes: in a virtual machine, where
/// to wake a thread is dear, two threads lost against one at 512 KiB a list and gained from 1 MiB on.
pub(crate) const MIN_BYTES_PER_THREAD: NonZeroUsize = NonZeroUsize::new(512 << 10).unwrap();

/// By what the threads copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inner {
    /// [`Memcpy`].
    Memcpy,
    /// [`Streaming`].
    Streaming(Streaming),
}

impl Inner {
    /// Streaming stores where there are any.
    #[must_use]
    pub fn best() -> Self {
        Streaming::detect().map_or(Self::Memcpy, Self::Streaming)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Memcpy => "memcpy",
            Self::Streaming(_) => "streaming",
        }
    }
}

/// How a [`Threads`] is made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadsOptions {
    /// How many threads copy, the calling one among them: 1 to 1024. More than there are CPUs share
    /// CPUs.
    pub threads: NonZeroUsize,
    /// By what.
    pub inner: Inner,
    /// The NUMA node on whose CPUs the threads should run. If it has none that this process may run
    /// on, all are taken.
    pub node: Option<u32>,
    /// A list is shared by one thread for each so many bytes of it, and copied by the calling thread
    /// alone if that makes one: to wake a thread for a small copy costs more than it gains
    /// (\[offload\]: one 2 MiB folio, 7.96 GB/s by one thread and 6.43 by several).
    pub min_bytes_per_thread: NonZeroUsize,
}

impl ThreadsOptions {
    /// So many threads, the calling one among them, with the best stores there are, on any node, and
    /// 512 KiB a thread at least.
    #[must_use]
    pub fn new(threads: NonZeroUsize) -> Self {
        Self {
            threads,
            inner: Inner::best(),
            node: None,
            min_bytes_per_thread: MIN_BYTES_PER_THREAD,
        }
    }
}

/// Why the threads could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ThreadsError {
    /// So many were not meant.
    #[error("{0} copy threads are too many; the most is {MOST_THREADS}")]
    TooMany(NonZeroUsize),
    /// The system has no more.
    #[error("cannot start {threads} copy threads: {source}")]
    Start {
        /// How many were asked for.
        threads: NonZeroUsize,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Copies by a pool of pinned threads. One large folio is split by bytes, and many folios are
/// shared out; a job is confirmed when all its parts are copied (\[fast-copy\]).
///
/// The calling thread copies too, and does what no other thread has begun: a thread that does not
/// come, because its CPU is taken, holds nothing up. Several callers at once do not wait for each
/// other either: one has the pool, the others copy alone. So does a caller in the child of a fork,
/// where the threads do not exist. A thread that panics fails the jobs that its part touched, and
/// those only, and stays in the pool. No signal handler runs on one. A thread whose CPU the caller has come to moves out of its way.
/// A call allocates nothing.
///
/// # What it waits for
///
/// A part that another thread has begun is waited for without a deadline, because the caller may not
/// return while someone writes to a destination. It is of 1 MiB at most (up to the 4096th part of
/// lists over 4 GiB), so this is bounded by the scheduler's patience with that thread. One that panics
/// gives its part back, and Linux ends no thread without the others of its process: only a foreign
/// `pthread_cancel` could, and it must not be aimed at these.
pub struct Threads {
    pool: Pool<CopyJob>,
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
    /// Starts the threads, on CPUs that the thread which calls this may run on
    /// ([`Topology::workers`]): start them before pinning it.
    ///
    /// # Errors
    ///
    /// [`ThreadsError`] if they are too many, for this crate or for the system.
    pub fn start(options: ThreadsOptions) -> Result<Self, ThreadsError> {
        let mover: Box<dyn Mover> = match options.inner {
            Inner::Streaming(streaming) => Box::new(streaming),
            Inner::Memcpy => Box::new(Memcpy),
        };
        Self::with_mover(options, mover)
    }

    pub(crate) fn with_mover(
        options: ThreadsOptions,
        mover: Box<dyn Mover>,
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
            name: format!("threads:{}:{}", options.threads, options.inner.name()),
        })
    }

    /// How it was made up.
    #[must_use]
    pub const fn options(&self) -> &ThreadsOptions {
        &self.options
    }
}

/// A pool in which `threads` threads work, the calling one among them.
pub(crate) fn start_pool<J: Job + 'static>(
    mover: Box<dyn Mover<J>>,
    threads: NonZeroUsize,
    node: Option<u32>,
    min_bytes_per_thread: NonZeroUsize,
) -> Result<Pool<J>, ThreadsError> {
    if threads.get() > MOST_THREADS {
        return Err(ThreadsError::TooMany(threads));
    }
    let workers = threads.get() - 1;
    let caller = rustix::thread::sched_getcpu();
    // One more, to be kept spare.
    let cpus = Topology::here().workers(workers + 1, node, Some(caller));
    let cpus = cpus.iter().map(|cpu| cpu.number).collect::<Vec<_>>();
    Pool::start(mover, workers, &cpus, min_bytes_per_thread)
        .map_err(|source| ThreadsError::Start { threads, source })
}

impl Copier<CopyJob> for Threads {
    fn name(&self) -> &str {
        &self.name
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        self.pool.share_out(jobs, answers);
    }
}

#[cfg(test)]
mod tests;
