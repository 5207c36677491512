//! The application: threads that read and write a region at random, time every access, and check
//! every value.
//!
//! Each word of the region holds its own index and a version. In each cache line one word is in
//! use: the thread that owns it alone stores there, one version after the other, and remembers the
//! last. So a store that was lost, a value that is old, torn or another page's, and a page of zeros
//! are each found at the next load. The other words keep what they were filled with, and are looked
//! at in the sweep at the end.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// One word in so many is in use: one a cache line.
const STRIDE: usize = 8;
const VERSION_BITS: u32 = 24;
const VERSION_MASK: u64 = (1 << VERSION_BITS) - 1;

/// The value of a word at a version.
fn value(index: usize, version: u64) -> u64 {
    ((index as u64) << VERSION_BITS) | (version & VERSION_MASK)
}

/// Fills all words with their first version.
pub(crate) fn fill(words: &[AtomicU64]) {
    for (index, word) in words.iter().enumerate() {
        word.store(value(index, 0), Ordering::Relaxed);
    }
}

/// What was seen in some time.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) loads: u64,
    pub(crate) stores: u64,
    pub(crate) errors: u64,
    /// How long accesses took, in nanoseconds.
    pub(crate) stalls: Histogram<u64>,
    pub(crate) time: Duration,
}

impl Seen {
    fn nothing() -> Self {
        Self {
            loads: 0,
            stores: 0,
            errors: 0,
            stalls: histogram(),
            time: Duration::ZERO,
        }
    }

    pub(crate) fn operations(&self) -> u64 {
        self.loads.max(self.stores)
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.operations() as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// Passes time on a CPU that is as awake then as that of who migrates.
pub(crate) fn stay_awake(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// From a nanosecond to a minute, to three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3)
        .unwrap_or_else(|_| Histogram::new_from(&empty()))
}

fn empty() -> Histogram<u64> {
    // One digit is always allowed.
    #[allow(clippy::unwrap_used, reason = "the number of digits is right")]
    Histogram::new(1).unwrap()
}

/// The threads' side and the measuring side of a workload.
#[derive(Debug)]
pub(crate) struct Workload {
    threads: usize,
    /// Grows whenever the threads are to hand over what they have seen.
    window: AtomicUsize,
    stop: AtomicBool,
    pause: AtomicBool,
    handed: Mutex<Vec<Seen>>,
    arrived: AtomicUsize,
}

impl Workload {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            threads,
            window: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            pause: AtomicBool::new(false),
            handed: Mutex::default(),
            arrived: AtomicUsize::new(0),
        }
    }

    /// What one of the threads does until [`stop`](Self::stop). Says how many of its words did not
    /// hold their last value at the end.
    pub(crate) fn run(&self, words: &[AtomicU64], thread: usize) -> u64 {
        let mut herd = Thread::new(words, thread, self.threads);
        // Not what it is now: it may have grown before this thread began.
        let mut window = 0;
        let mut began = Instant::now();
        let mut before = began;
        while !self.stop.load(Ordering::Relaxed) {
            herd.step();
            let now = Instant::now();
            let took = u64::try_from((now - before).as_nanos()).unwrap_or(u64::MAX);
            herd.seen.stalls.saturating_record(took.max(1));
            before = now;
            while self.pause.load(Ordering::Relaxed) && !self.stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(100));
                before = Instant::now();
            }
            if self.window.load(Ordering::Relaxed) != window {
                window = self.window.load(Ordering::Acquire);
                let mut seen = std::mem::replace(&mut herd.seen, Seen::nothing());
                seen.time = now - began;
                self.handed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(seen);
                self.arrived.fetch_add(1, Ordering::Release);
                began = Instant::now();
                before = began;
            }
        }
        herd.check_last()
    }

    /// Everything that the threads have seen since the last call.
    pub(crate) fn take(&self) -> Seen {
        self.arrived.store(0, Ordering::Relaxed);
        self.window.fetch_add(1, Ordering::Release);
        // Asleep the caller would come late, and the threads be at work alone meanwhile.
        while self.arrived.load(Ordering::Acquire) < self.threads {
            std::thread::yield_now();
        }
        let mut sum = Seen::nothing();
        for seen in self
            .handed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            sum.loads += seen.loads;
            sum.stores += seen.stores;
            sum.errors += seen.errors;
            sum.time = sum.time.max(seen.time);
            // Both have the same bounds.
            let _ = sum.stalls.add(&seen.stalls);
        }
        sum
    }

    /// What the threads see in a time in which nobody else does anything, while the caller keeps its CPU awake.
    pub(crate) fn for_a_while(&self, time: Duration) -> Seen {
        self.take();
        stay_awake(time);
        self.take()
    }

    /// Lets the threads sleep while `work` is done.
    pub(crate) fn while_paused<T>(&self, work: impl FnOnce() -> T) -> T {
        self.pause.store(true, Ordering::Relaxed);
        // Long enough for an access under way to end and its thread to see the flag.
        std::thread::sleep(Duration::from_millis(1));
        let done = work();
        self.pause.store(false, Ordering::Relaxed);
        done
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Thread<'w> {
    words: &'w [AtomicU64],
    thread: usize,
    threads: usize,
    /// The last version of each word that this thread owns.
    versions: Vec<u32>,
    random: u64,
    seen: Seen,
}

impl<'w> Thread<'w> {
    fn new(words: &'w [AtomicU64], thread: usize, threads: usize) -> Self {
        let used = words.len() / STRIDE;
        let mine = (used.max(thread) - thread).div_ceil(threads);
        let random = 0x9E37_79B9_7F4A_7C15 ^ (thread as u64 + 1);
        let mut herd = Self {
            words,
            thread,
            threads,
            versions: vec![0; mine],
            random,
            seen: Seen::nothing(),
        };
        for n in 0..mine {
            let version = words[herd.word(n)].load(Ordering::Relaxed) & VERSION_MASK;
            herd.versions[n] = u32::try_from(version).unwrap_or_default();
        }
        herd
    }

    /// The index of the `n`th word that this thread owns.
    fn word(&self, n: usize) -> usize {
        (n * self.threads + self.thread) * STRIDE
    }

    /// One load, and by turns a store.
    fn step(&mut self) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let pick = usize::try_from(self.random >> 16).unwrap_or_default();
        self.seen.loads += 1;
        if self.random & 1 == 0 && !self.versions.is_empty() {
            let n = pick % self.versions.len();
            let index = self.word(n);
            let expected = value(index, u64::from(self.versions[n]));
            if self.words[index].load(Ordering::Relaxed) != expected {
                self.seen.errors += 1;
            }
            let next = value(index, u64::from(self.versions[n]) + 1);
            self.versions[n] = u32::try_from(next & VERSION_MASK).unwrap_or_default();
            self.words[index].store(next, Ordering::Relaxed);
            self.seen.stores += 1;
        } else {
            let index = pick % (self.words.len() / STRIDE) * STRIDE;
            let seen = self.words[index].load(Ordering::Relaxed);
            if seen >> VERSION_BITS != index as u64 {
                self.seen.errors += 1;
            }
        }
    }

    fn check_last(&self) -> u64 {
        let wrong = |n: &usize| {
            let expected = value(self.word(*n), u64::from(self.versions[*n]));
            self.words[self.word(*n)].load(Ordering::Relaxed) != expected
        };
        (0..self.versions.len()).filter(wrong).count() as u64
    }
}

/// Looks at every word: those in use must hold their index, the others what they were filled with.
/// Says how many do not.
pub(crate) fn sweep(words: &[AtomicU64]) -> u64 {
    let wrong = |&(index, word): &(usize, &AtomicU64)| {
        let seen = word.load(Ordering::Relaxed);
        if index.is_multiple_of(STRIDE) {
            seen >> VERSION_BITS != index as u64
        } else {
            seen != value(index, 0)
        }
    };
    words.iter().enumerate().filter(wrong).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Vec<AtomicU64> {
        let words = (0..4096).map(AtomicU64::new).collect::<Vec<_>>();
        fill(&words);
        words
    }

    fn steps(herd: &mut Thread<'_>) -> u64 {
        (0..20_000).for_each(|_| herd.step());
        std::mem::take(&mut herd.seen.errors)
    }

    #[test]
    fn right_memory_has_no_errors() {
        let words = memory();
        let mut herd = Thread::new(&words, 0, 1);
        assert_eq!(
            (steps(&mut herd), herd.check_last(), sweep(&words)),
            (0, 0, 0)
        );
        assert!(herd.seen.stores > 0 && herd.seen.loads > herd.seen.stores);
        // Another begins where this one ended.
        assert_eq!(steps(&mut Thread::new(&words, 0, 1)), 0);
    }

    #[test]
    fn a_lost_store_is_seen() {
        let words = memory();
        let mut herd = Thread::new(&words, 0, 1);
        steps(&mut herd);
        let before = value(64, u64::from(herd.versions[8]) - 1);
        words[64].store(before, Ordering::Relaxed);
        assert_eq!(herd.check_last(), 1);
        assert!(steps(&mut herd) > 0);
        assert_eq!(sweep(&words), 0, "an old version is right to a stranger");
    }

    #[test]
    fn swapped_pages_are_seen() {
        let words = memory();
        for offset in 0..512 {
            let first = words[offset].load(Ordering::Relaxed);
            words[offset].store(
                words[512 + offset].swap(first, Ordering::Relaxed),
                Ordering::Relaxed,
            );
        }
        assert_eq!(sweep(&words), 1024);
        assert!(steps(&mut Thread::new(&words, 0, 1)) > 0);
    }

    #[test]
    fn a_page_of_zeros_is_seen() {
        let words = memory();
        words[1024..1536]
            .iter()
            .for_each(|word| word.store(0, Ordering::Relaxed));
        assert_eq!(sweep(&words), 512);
        assert!(steps(&mut Thread::new(&words, 0, 1)) > 0);
    }

    #[test]
    fn one_wrong_byte_anywhere_is_swept_up() {
        for index in [0, 1, 9, 4095] {
            let words = memory();
            words[index].fetch_xor(1 << 40, Ordering::Relaxed);
            assert_eq!(sweep(&words), 1);
        }
    }

    #[test]
    fn windows_take_what_was_seen() {
        let words = memory();
        let workload = Workload::new(2);
        std::thread::scope(|scope| {
            let threads = [0, 1].map(|thread| {
                let (workload, words) = (&workload, &words);
                scope.spawn(move || workload.run(words, thread))
            });
            workload.take();
            std::thread::sleep(Duration::from_millis(5));
            let seen = workload.take();
            assert!(seen.loads > 0 && seen.errors == 0);
            assert_eq!(seen.stalls.len(), seen.loads);
            workload.stop();
            assert_eq!(threads.map(|thread| thread.join().unwrap()), [0, 0]);
        });
    }
}
