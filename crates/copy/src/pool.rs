//! A pool of pinned threads around a [`Board`].
//!
//! The threads are pinned and the caller is not, so the caller can come to rest on the CPU of one of
//! them. The scheduler does not move a pinned thread out of the way, nor a running caller for the
//! sake of one, and the thread would help no more. So the caller says on which CPU it is, one CPU is
//! kept spare, and a thread that is woken on the caller's CPU exchanges its own for the spare one.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use rustix::thread::{CpuSet, futex, sched_getcpu, sched_setaffinity};
use transhume_sys::signals::HeldOff;

use crate::Mover;
use crate::board::{Board, LOOKS};
use crate::parts::{Job, Walk};

/// The shortest and the longest part, in bytes: below, taking parts costs more than it evens out;
/// above, the caller waits too long for the last one.
const SHORTEST: usize = 64 << 10;
const LONGEST: usize = 1 << 20;
/// Parts a thread, so that a thread which comes late or is interrupted holds up little.
const PARTS_PER_THREAD: usize = 4;
const PAGE: usize = 4 << 10;
/// No CPU.
const NOWHERE: usize = usize::MAX;

struct Common<J> {
    mover: Box<dyn Mover<J>>,
    board: Board<J>,
    /// Counts calls, and is what idle threads sleep on.
    begin: AtomicU32,
    stop: AtomicBool,
    /// The CPU of the last caller, and one that no thread is pinned to.
    caller: AtomicUsize,
    spare: AtomicUsize,
}

impl<J: Job> Common<J> {
    /// Takes and moves parts until none is left. Panics at nothing that it does with a part in hand,
    /// so a thread outlives what its mover does; a part that it panicked at has failed.
    fn work(&self) {
        let mut walk = Walk::default();
        let mut list = None;
        while let Some(part) = self.board.take() {
            let copied = unharmed(|| {
                if list != Some(part.list()) {
                    list = Some(part.list());
                    walk = Walk::default();
                }
                let mut parts = walk.parts(part.jobs(), part.range()).map(|(_, job)| job);
                self.mover.move_all(&mut parts);
            });
            if copied {
                part.copied();
            } else {
                // Where the walk had got to is not known.
                list = None;
            }
        }
    }

    fn call(&self, threads: usize) {
        self.begin.fetch_add(1, Ordering::Release);
        let threads = u32::try_from(threads).unwrap_or(u32::MAX).min(1 << 30);
        // It can fail for a wrong address only.
        let _ = futex::wake(&self.begin, futex::Flags::PRIVATE, threads);
    }
}

/// Whether `f` returned rather than panicked.
fn unharmed(f: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(()) => true,
        Err(payload) => {
            // Dropping it could panic once more.
            std::mem::forget(payload);
            false
        }
    }
}

/// The threads.
pub(crate) struct Pool<J: Job> {
    common: Arc<Common<J>>,
    threads: Vec<JoinHandle<()>>,
    min_bytes_per_thread: NonZeroUsize,
    process: u32,
}

impl<J: Job + 'static> Pool<J> {
    /// Starts `count` threads beside the threads that call [`share_out`](Self::share_out), one on each of
    /// `cpus` as far as they go; the next is the spare one. The others' places are left to the
    /// scheduler.
    pub(crate) fn start(
        mover: Box<dyn Mover<J>>,
        count: usize,
        cpus: &[usize],
        min_bytes_per_thread: NonZeroUsize,
    ) -> std::io::Result<Self> {
        let common = Arc::new(Common {
            mover,
            board: Board::new(),
            begin: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            caller: AtomicUsize::new(NOWHERE),
            spare: AtomicUsize::new(cpus.get(count).copied().unwrap_or(NOWHERE)),
        });
        let mut pool = Self {
            common,
            threads: Vec::new(),
            min_bytes_per_thread,
            process: std::process::id(),
        };
        // A handler of the application on one of them could touch a page that is cut off, and wait for
        // it with a part in hand, without which the page never comes back. They inherit this.
        let _handlers = HeldOff::begin();
        for number in 0..count {
            let cpu = cpus.get(number).copied().unwrap_or(NOWHERE);
            let common = Arc::clone(&pool.common);
            let thread = std::thread::Builder::new()
                // The kernel keeps fifteen characters.
                .name(format!("transhume-cp-{number}"))
                .spawn(move || serve(&common, cpu))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Works a list off with as many threads as it is worth, and answers for each job.
    pub(crate) fn share_out(&self, jobs: &[J], answers: &mut [J::Answer]) {
        let total = jobs
            .iter()
            .try_fold(0_usize, |sum, job| sum.checked_add(job.bytes()))
            .filter(|&total| total <= usize::MAX / 2);
        // Where the bytes cannot be counted, jobs must overlap; they are done one by one.
        let helpers = total.map_or(0, |total| {
            (total / self.min_bytes_per_thread)
                .saturating_sub(1)
                .min(self.threads.len())
        });
        // In a child of a fork there are no threads.
        let here = helpers > 0 && self.process == std::process::id();
        let turn = if here {
            self.common.board.try_turn()
        } else {
            None
        };
        let (Some(mut turn), Some(total)) = (turn, total) else {
            return self.work_alone(jobs, answers);
        };
        let piece = (total / ((helpers + 1) * PARTS_PER_THREAD))
            .clamp(SHORTEST, LONGEST)
            .next_multiple_of(PAGE);
        let work = || {
            self.common.caller.store(sched_getcpu(), Ordering::Relaxed);
            self.common.call(helpers);
            self.common.work();
        };
        turn.share(jobs, answers, total, piece, work, |done| {
            unharmed(|| self.common.mover.undo(done));
        });
    }

    fn work_alone(&self, jobs: &[J], answers: &mut [J::Answer]) {
        let mut all = jobs.iter().map(J::whole);
        let done = unharmed(|| self.common.mover.move_all(&mut all));
        let answer = if done { J::DONE } else { J::FAILED };
        answers
            .iter_mut()
            .take(jobs.len())
            .for_each(|place| *place = answer);
    }

    #[cfg(test)]
    pub(crate) fn pretend_forked(&mut self) {
        self.process = self.process.wrapping_add(1);
    }
}

impl<J: Job> Drop for Pool<J> {
    fn drop(&mut self) {
        let threads = std::mem::take(&mut self.threads);
        if self.process != std::process::id() {
            // The threads are the parent's, and so is what their handles stand for.
            return std::mem::forget(threads);
        }
        self.common.stop.store(true, Ordering::Relaxed);
        self.common.call(usize::MAX);
        for thread in threads {
            // See `Common::work`; nothing else in a thread panics.
            let _ = thread.join();
        }
    }
}

/// Pins this thread. Where that is forbidden the scheduler places it.
fn pin(cpu: usize) {
    if cpu < CpuSet::MAX_CPU {
        let mut set = CpuSet::new();
        set.set(cpu);
        let _ = sched_setaffinity(None, &set);
    }
}

/// What a thread of the pool does.
fn serve<J: Job>(common: &Common<J>, mut cpu: usize) {
    pin(cpu);
    loop {
        // Before the board is looked at, so that a list which comes after is not slept through.
        let seen = common.begin.load(Ordering::Acquire);
        if common.stop.load(Ordering::Relaxed) {
            return;
        }
        if cpu != NOWHERE
            && cpu == common.caller.load(Ordering::Relaxed)
            && common.spare.load(Ordering::Relaxed) != NOWHERE
        {
            cpu = common.spare.swap(cpu, Ordering::Relaxed);
            pin(cpu);
        }
        common.work();
        let called = || common.begin.load(Ordering::Relaxed) != seen;
        let soon = (0..LOOKS).any(|_| {
            std::hint::spin_loop();
            called()
        });
        if !soon {
            // Interrupted, changed or woken: look again in any case.
            let _ = futex::wait(&common.begin, futex::Flags::PRIVATE, seen, None);
        }
    }
}
