//! The protocol by which threads share one list of copies or swaps.
//!
//! A list is cut into parts of equal length ([`parts`](crate::parts)). The caller who has the
//! *turn* writes the list to the board and says how many parts are *untaken*. Everybody, the caller
//! included, *takes* a part by lowering that number by one, copies it, and gives it back *done* by
//! lowering the number of parts *undone*. The caller returns when nothing is undone.
//!
//! - **Nobody waits for a thread that has not begun.** A thread whose CPU is busy elsewhere takes
//!   nothing, and others take what it would have. The caller waits for parts that were taken, each
//!   of bounded length, and for nothing else.
//! - **A list is read only with a part of it in hand.** A late thread reads the number of untaken
//!   parts, never the list; when it does take a part, that part is of the list that is there now,
//!   whatever was there when it looked. The list cannot be replaced until the part is done. So
//!   there is no question of a thread that wakes late and follows an old address.
//! - **A part that is not confirmed has failed.** [`Part`] gives itself back when dropped, so a
//!   panic ends in a failed part and not in a caller who waits for ever. There is nothing for a thread
//!   that ends without unwinding: Linux kills a process and not a thread of it, and no mover calls
//!   `pthread_exit`.
//! - **Nothing is allocated** after the board is made.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use rustix::thread::futex;

use crate::parts::{Job, Walk};

/// A list has no more parts than this; those of a longer list are longer.
pub(crate) const MOST_PARTS: u32 = 4096;
/// Looks at a number that should change soon, before sleeping on it: a few microseconds.
pub(crate) const LOOKS: u32 = 100;
/// A bit of `undone`: the caller sleeps on it.
const WAITED_FOR: u32 = 1 << 31;

/// Alone in its cache line, and in the neighbour that is fetched with it.
#[derive(Default)]
#[repr(align(128))]
struct Apart<T>(T);

/// Where the list is that is being worked off.
pub(crate) struct Board<J> {
    turn: Mutex<()>,
    jobs: AtomicPtr<J>,
    count: AtomicUsize,
    /// Bytes in all, and in a part.
    total: AtomicUsize,
    piece: AtomicUsize,
    /// How many lists there were, so that a thread knows when to walk from the beginning.
    number: AtomicU64,
    parts: AtomicU32,
    failed: Box<[AtomicU64]>,
    any_failed: AtomicBool,
    untaken: Apart<AtomicU32>,
    undone: Apart<AtomicU32>,
}

impl<J: Job> Board<J> {
    pub(crate) fn new() -> Self {
        Self {
            turn: Mutex::new(()),
            jobs: AtomicPtr::default(),
            count: AtomicUsize::new(0),
            total: AtomicUsize::new(0),
            piece: AtomicUsize::new(0),
            number: AtomicU64::new(0),
            parts: AtomicU32::new(0),
            failed: (0..MOST_PARTS / 64).map(|_| AtomicU64::new(0)).collect(),
            any_failed: AtomicBool::new(false),
            untaken: Apart::default(),
            undone: Apart::default(),
        }
    }

    /// The right to put a list on the board, if nobody has it.
    pub(crate) fn try_turn(&self) -> Option<Turn<'_, J>> {
        let held = match self.turn.try_lock() {
            Ok(held) => held,
            // Whoever panicked with the turn had its list taken back by `Shared`.
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Turn {
            board: self,
            _held: held,
        })
    }

    /// Takes a part of the list that is there now, if one is left.
    pub(crate) fn take(&self) -> Option<Part<'_, J>> {
        // Acquire: what `share` wrote before it raised the number is seen with it. A number that
        // comes round again is no danger, since it means what it says: a part is untaken.
        let before = self
            .untaken
            .0
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .ok()?;
        Some(Part {
            board: self,
            number: self.parts.load(Ordering::Relaxed).saturating_sub(before),
            copied: false,
        })
    }

    fn range(&self, part: u32) -> Range<usize> {
        let total = self.total.load(Ordering::Relaxed);
        let piece = self.piece.load(Ordering::Relaxed);
        let start = piece.saturating_mul(part as usize).min(total);
        start..start.saturating_add(piece).min(total)
    }

    fn failed_bit(&self, part: u32) -> Option<(&AtomicU64, u64)> {
        let word = self.failed.get(part as usize / 64)?;
        Some((word, 1 << (part % 64)))
    }
}

/// The right to put lists on the board, one after the other.
pub(crate) struct Turn<'b, J> {
    board: &'b Board<J>,
    _held: MutexGuard<'b, ()>,
}

impl<J: Job> Turn<'_, J> {
    /// Puts a list of `total` bytes on the board, in parts of `piece` bytes or a little more, lets
    /// `work` run, takes the rest of the list back and waits for the parts that others are at. Then
    /// says which jobs are done and which failed.
    ///
    /// `work` wakes the others and takes parts itself. What nobody took by its end has failed. The
    /// parts that are done of jobs that failed go to `undo`.
    pub(crate) fn share(
        &mut self,
        jobs: &[J],
        answers: &mut [J::Answer],
        total: usize,
        piece: usize,
        work: impl FnOnce(),
        mut undo: impl FnMut(J),
    ) {
        let board = self.board;
        let piece = piece.max(total.div_ceil(MOST_PARTS as usize)).max(1);
        // Not more than `MOST_PARTS`, by the line above.
        let parts = u32::try_from(total.div_ceil(piece)).unwrap_or(MOST_PARTS);
        if board.any_failed.swap(false, Ordering::Relaxed) {
            board
                .failed
                .iter()
                .for_each(|word| word.store(0, Ordering::Relaxed));
        }
        board
            .jobs
            .store(jobs.as_ptr().cast_mut(), Ordering::Relaxed);
        board.count.store(jobs.len(), Ordering::Relaxed);
        board.total.store(total, Ordering::Relaxed);
        board.piece.store(piece, Ordering::Relaxed);
        board.number.fetch_add(1, Ordering::Relaxed);
        board.parts.store(parts, Ordering::Relaxed);
        board.undone.0.store(parts, Ordering::Relaxed);
        let shared = Shared { board };
        board.untaken.0.store(parts, Ordering::Release);
        work();
        drop(shared);
        answers
            .iter_mut()
            .take(jobs.len())
            .for_each(|answer| *answer = J::DONE);
        if board.any_failed.load(Ordering::Relaxed) {
            let failed = |part: &u32| {
                board
                    .failed_bit(*part)
                    .is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
            };
            let mut walk = Walk::default();
            for part in (0..parts).filter(failed) {
                for (index, _) in walk.parts(jobs, board.range(part)) {
                    if let Some(answer) = answers.get_mut(index) {
                        *answer = J::FAILED;
                    }
                }
            }
            let mut walk = Walk::default();
            for part in (0..parts).filter(|part| !failed(part)) {
                for (index, done) in walk.parts(jobs, board.range(part)) {
                    if answers.get(index) == Some(&J::FAILED) {
                        undo(done);
                    }
                }
            }
        }
    }
}

/// A list is on the board. Dropped, also by a panic, it is taken back and nobody is at it any more.
struct Shared<'b, J: Job> {
    board: &'b Board<J>,
}

impl<J: Job> Drop for Shared<'_, J> {
    fn drop(&mut self) {
        while self.board.take().is_some() {}
        let undone = &self.board.undone.0;
        for _ in 0..LOOKS {
            if undone.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        // Acquire: the bytes that others wrote, and their failures, are seen here.
        let mut left = undone.fetch_or(WAITED_FOR, Ordering::Acquire) | WAITED_FOR;
        while left != WAITED_FOR {
            // Interrupted, changed or woken: look again in any case.
            let _ = futex::wait(undone, futex::Flags::PRIVATE, left, None);
            left = undone.load(Ordering::Acquire);
        }
    }
}

/// A part of the list on the board, in hand. Dropped without [`copied`](Self::copied), it failed.
pub(crate) struct Part<'b, J: Job> {
    board: &'b Board<J>,
    number: u32,
    copied: bool,
}

impl<J: Job> Part<'_, J> {
    /// Which list it is a part of.
    pub(crate) fn list(&self) -> u64 {
        self.board.number.load(Ordering::Relaxed)
    }

    /// The list it is a part of.
    pub(crate) fn jobs(&self) -> &[J] {
        let jobs = self.board.jobs.load(Ordering::Relaxed);
        let count = self.board.count.load(Ordering::Relaxed);
        // SAFETY: `Turn::share` wrote both from one slice, which it borrows until no part is in
        // hand; this part is. Taking it made both visible. Jobs are not `Sync` because two threads
        // could move the same bytes; what is moved here is this part only, and it is taken once.
        unsafe { std::slice::from_raw_parts(jobs, count) }
    }

    /// Which bytes of the list it has.
    pub(crate) fn range(&self) -> Range<usize> {
        self.board.range(self.number)
    }

    /// Confirms that it was copied and is visible to every CPU.
    pub(crate) fn copied(mut self) {
        self.copied = true;
    }
}

impl<J: Job> Drop for Part<'_, J> {
    fn drop(&mut self) {
        if !self.copied {
            if let Some((word, bit)) = self.board.failed_bit(self.number) {
                word.fetch_or(bit, Ordering::Relaxed);
            }
            self.board.any_failed.store(true, Ordering::Relaxed);
        }
        let undone = &self.board.undone.0;
        // Release: what was copied, and the last look at the list, are before it.
        if undone.fetch_sub(1, Ordering::Release) == WAITED_FOR | 1 {
            // It can fail for a wrong address only.
            let _ = futex::wake(undone, futex::Flags::PRIVATE, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use transhume_engine::CopyAnswer;

    use super::*;
    use crate::CopyJob;

    fn jobs() -> Vec<CopyJob> {
        jobs_of(4096)
    }

    fn large_jobs() -> Vec<CopyJob> {
        jobs_of(2 << 13)
    }

    fn jobs_of(bytes: usize) -> Vec<CopyJob> {
        let job = |n: usize| {
            let at = (n + 1) << 16;
            let (from, to) = (
                std::ptr::without_provenance(at),
                std::ptr::without_provenance_mut(at + (1 << 30)),
            );
            // SAFETY: these jobs are shared out and never copied.
            unsafe { CopyJob::new(from, to, bytes) }
        };
        (0..10).map(job).collect()
    }

    #[test]
    fn only_jobs_of_failed_parts_fail() {
        let board = Board::new();
        let mut turn = board.try_turn().unwrap();
        assert!(board.try_turn().is_none(), "one turn at a time");
        for bad in [vec![], vec![0], vec![1, 3], vec![4], vec![]] {
            let mut answers = [CopyAnswer::Unconfirmed; 10];
            let mut undone = Vec::new();
            turn.share(
                &jobs(),
                &mut answers,
                40_960,
                8192,
                || {
                    let mut number = 0;
                    while let Some(part) = board.take() {
                        assert_eq!(part.range(), number * 8192..(number + 1) * 8192);
                        if !bad.contains(&number) {
                            part.copied();
                        }
                        number += 1;
                    }
                    assert_eq!(number, 5);
                },
                |done: CopyJob| undone.push(done),
            );
            for (index, answer) in answers.into_iter().enumerate() {
                assert_eq!(answer == CopyAnswer::Failed, bad.contains(&(index / 2)));
            }
            assert!(undone.is_empty(), "no job has parts of both kinds");
        }
    }

    #[test]
    fn what_is_done_of_a_failed_job_is_undone() {
        let board = Board::new();
        let mut turn = board.try_turn().unwrap();
        let mut answers = [CopyAnswer::Unconfirmed; 10];
        let mut undone = 0;
        let work = || {
            for number in 0..20 {
                let part = board.take().unwrap();
                if number != 7 {
                    part.copied();
                }
            }
        };
        // Two parts a job, of which one fails.
        turn.share(
            &large_jobs(),
            &mut answers,
            20 << 13,
            1 << 13,
            work,
            |done| {
                undone += done.bytes();
            },
        );
        let failed = |n: &usize| answers[*n] == CopyAnswer::Failed;
        assert_eq!((0..10).filter(failed).collect::<Vec<_>>(), [3]);
        assert_eq!(undone, 1 << 13);
    }

    #[test]
    fn what_nobody_took_failed() {
        let board = Board::new();
        let mut answers = [CopyAnswer::Unconfirmed; 10];
        let mut turn = board.try_turn().unwrap();
        turn.share(
            &jobs(),
            &mut answers,
            40_960,
            4096,
            || {
                board.take().unwrap().copied();
            },
            |_| {},
        );
        assert_eq!(answers[0], CopyAnswer::Copied);
        assert_eq!(answers[1..], [CopyAnswer::Failed; 9]);
        assert!(board.take().is_none());
    }

    #[test]
    fn the_caller_waits_for_a_part_in_hand() {
        let board = Board::new();
        let done = AtomicBool::new(false);
        let mut answers = [CopyAnswer::Unconfirmed; 10];
        std::thread::scope(|scope| {
            let mut turn = board.try_turn().unwrap();
            turn.share(
                &jobs(),
                &mut answers,
                40_960,
                40_960,
                || {
                    let part = board.take().unwrap();
                    let done = &done;
                    scope.spawn(move || {
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        done.store(true, Ordering::Relaxed);
                        part.copied();
                    });
                },
                |_| {},
            );
            assert!(done.load(Ordering::Relaxed));
        });
        assert_eq!(answers, [CopyAnswer::Copied; 10]);
    }

    #[test]
    fn a_list_is_taken_back_when_its_caller_panics() {
        let board = Board::new();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut answers = [CopyAnswer::Unconfirmed; 10];
            let mut turn = board.try_turn().unwrap();
            turn.share(
                &jobs(),
                &mut answers,
                40_960,
                4096,
                || panic!("on purpose"),
                |_| {},
            );
        }));
        assert!(caught.is_err());
        assert!(board.take().is_none());
        assert!(board.try_turn().is_some());
    }
}
