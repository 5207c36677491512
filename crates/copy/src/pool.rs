//! A pool of pinned threads that share one list of copies at a time.
//!
//! # The protocol
//!
//! The bytes of a list are numbered from its first job's first to its last job's last. A cursor
//! says how far they have been handed out. Each thread, the caller among them, takes the next piece
//! from the cursor until nothing is left. So nobody waits for a thread whose CPU is busy elsewhere:
//! what it does not take, others do. The caller then waits only for pieces that were taken, each
//! of at most [`MAX_PIECE`] bytes.
//!
//! A thread joins a task under the lock, which counts it, and leaves under the lock. The caller
//! takes the task away under the lock and returns when the count is zero. So no thread has the list
//! after that, however late it wakes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

use rustix::thread::{CpuSet, sched_setaffinity};
use transhume_engine::CopyAnswer;

use crate::{CopyJob, Cpu, Mover};

/// The smallest and the largest piece that one thread takes at a time.
const MIN_PIECE: usize = 64 << 10;
const MAX_PIECE: usize = 1 << 20;
/// Pieces end where a page does, so that no line is shared by two threads.
const PIECE_ALIGN: usize = 4 << 10;
/// Pieces a thread, so that an uneven rest is small.
const PIECES_PER_THREAD: usize = 4;

/// A list of copies that the threads are at, by its address and length: the list itself is the
/// caller's, who does not return before every thread has left.
#[derive(Clone, Copy)]
struct Task {
    jobs: *const CopyJob,
    count: usize,
    piece: usize,
}

// SAFETY: jobs are `Sync`, and the list outlives the task, by the protocol above.
unsafe impl Send for Task {}

impl Task {
    /// # Safety
    ///
    /// The caller has joined the task and has not left it.
    unsafe fn jobs<'t>(self) -> &'t [CopyJob] {
        // SAFETY: the list lives until everybody has left, by the protocol above; nobody changes it.
        unsafe { std::slice::from_raw_parts(self.jobs, self.count) }
    }
}

#[derive(Default)]
struct State {
    task: Option<Task>,
    /// Grows with each task, so that a thread joins each once.
    number: u64,
    /// Threads that have joined and not left.
    inside: usize,
    /// The bytes that a thread was at when it panicked, if one did.
    failed: Option<(usize, usize)>,
    stop: bool,
}

struct Shared {
    mover: Box<dyn Mover>,
    state: Mutex<State>,
    cursor: AtomicUsize,
    begin: Condvar,
    left: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change to the state is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes pieces until nothing is left. Says which bytes were being copied if the mover panicked.
    fn work(&self, jobs: &[CopyJob], piece: usize) -> Option<(usize, usize)> {
        // Where the job at `index` begins among the bytes of the list; both only grow.
        let (mut index, mut begins) = (0, 0);
        let total = jobs.iter().map(CopyJob::bytes).sum::<usize>();
        let mut failed = None;
        loop {
            let start = self.cursor.fetch_add(piece, Ordering::Relaxed);
            if start >= total {
                break;
            }
            let end = total.min(start + piece);
            let copied = catch_unwind(AssertUnwindSafe(|| {
                let mut at = start;
                while at < end {
                    while begins + jobs[index].bytes() <= at {
                        begins += jobs[index].bytes();
                        index += 1;
                    }
                    let part = jobs[index].part(at - begins, end - at);
                    self.mover.move_bytes(&part);
                    at += part.bytes();
                }
            }));
            if copied.is_err() {
                failed = join_ranges(failed, Some((start, end)));
            }
        }
        self.mover.finish();
        failed
    }
}

fn join_ranges(a: Option<(usize, usize)>, b: Option<(usize, usize)>) -> Option<(usize, usize)> {
    match (a, b) {
        (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
        (a, b) => a.or(b),
    }
}

/// The threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Held by the caller whose list the threads are at.
    turn: Mutex<()>,
    process: u32,
}

impl Pool {
    /// Starts a thread on each of `cpus`, beside the threads that call [`copy`](Self::copy).
    pub(crate) fn start(mover: Box<dyn Mover>, cpus: &[Option<Cpu>]) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            mover,
            state: Mutex::default(),
            cursor: AtomicUsize::new(0),
            begin: Condvar::new(),
            left: Condvar::new(),
        });
        let mut pool = Self {
            shared,
            threads: Vec::with_capacity(cpus.len()),
            turn: Mutex::new(()),
            process: std::process::id(),
        };
        for (number, &cpu) in cpus.iter().enumerate() {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name(format!("transhume-copy-{number}"))
                .spawn(move || serve(&shared, cpu))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Makes the copies of a list with all threads and answers for each. A list that comes while
    /// another caller's is being copied is copied by its caller alone.
    pub(crate) fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        let total = jobs.iter().map(CopyJob::bytes).sum::<usize>();
        let turn = match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        // In a child of a fork there are no threads.
        let alone = self.process != std::process::id() || total < 2 * MIN_PIECE;
        let (Some(_turn), false) = (turn, alone) else {
            jobs.iter()
                .for_each(|job| self.shared.mover.move_bytes(job));
            self.shared.mover.finish();
            answers
                .iter_mut()
                .take(jobs.len())
                .for_each(|answer| *answer = CopyAnswer::Copied);
            return;
        };
        let piece = (total / ((self.threads.len() + 1) * PIECES_PER_THREAD))
            .clamp(MIN_PIECE, MAX_PIECE)
            .next_multiple_of(PIECE_ALIGN);
        {
            let mut state = self.shared.lock();
            self.shared.cursor.store(0, Ordering::Relaxed);
            state.task = Some(Task {
                jobs: jobs.as_ptr(),
                count: jobs.len(),
                piece,
            });
            state.number += 1;
            state.failed = None;
        }
        self.shared.begin.notify_all();
        let failed_here = self.shared.work(jobs, piece);
        let failed_there = {
            let mut state = self.shared.lock();
            state.task = None;
            while state.inside > 0 {
                state = self
                    .shared
                    .left
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.failed
        };
        let failed = join_ranges(failed_here, failed_there);
        let mut begins = 0;
        for (job, answer) in jobs.iter().zip(answers) {
            let ends = begins + job.bytes();
            let touched = failed.is_some_and(|(start, end)| begins < end && start < ends);
            *answer = if touched {
                CopyAnswer::Failed
            } else {
                CopyAnswer::Copied
            };
            begins = ends;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        self.shared.lock().stop = true;
        self.shared.begin.notify_all();
        for thread in self.threads.drain(..) {
            // A thread catches what its mover does; nothing else in it panics.
            let _ = thread.join();
        }
    }
}

/// What a thread of the pool does.
fn serve(shared: &Shared, cpu: Option<Cpu>) {
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        set.set(cpu.number);
        // Where that is forbidden the scheduler places the thread.
        let _ = sched_setaffinity(None, &set);
    }
    let mut seen = 0;
    let mut state = shared.lock();
    loop {
        let task = state.task.filter(|_| state.number != seen);
        if state.stop {
            return;
        }
        let Some(task) = task else {
            state = shared
                .begin
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        seen = state.number;
        state.inside += 1;
        drop(state);
        // SAFETY: this thread joined the task under the lock just now, and leaves it below.
        let failed = shared.work(unsafe { task.jobs() }, task.piece);
        state = shared.lock();
        state.failed = join_ranges(state.failed, failed);
        state.inside -= 1;
        if state.inside == 0 {
            shared.left.notify_all();
        }
    }
}
