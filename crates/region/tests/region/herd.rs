//! Application threads that use a region's memory all the while and notice whatever goes wrong.
//!
//! Every word holds its index and a version. A thread owns every n-th word: it alone stores there,
//! and remembers what it stored last, so a lost store, an old value, a torn value or another page's
//! value is seen at the next load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use transhume_region::Region;

/// One word in so many is used: eight a page, so that all pages and many cache lines are.
const STRIDE: usize = 64;
const VERSION_BITS: u32 = 32;

fn value(word: usize, version: u32) -> u64 {
    ((word as u64) << VERSION_BITS) | u64::from(version)
}

/// Fills the used words with version 0.
pub(crate) fn fill(region: &Region) {
    for (index, word) in region.words().iter().enumerate().step_by(STRIDE) {
        word.store(value(index, 0), Ordering::Relaxed);
    }
}

/// Checks that each used word holds its own index.
pub(crate) fn sweep(words: &[AtomicU64]) {
    for (index, word) in words.iter().enumerate().step_by(STRIDE) {
        let seen = word.load(Ordering::Relaxed);
        assert_eq!(
            seen >> VERSION_BITS,
            index as u64,
            "word {index} holds {seen:#x}"
        );
    }
}

/// Does something while `threads` threads use all of a region's memory, and checks it then.
pub(crate) fn under_a_herd(region: &Region, threads: usize, work: impl FnOnce()) {
    fill(region);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, region, threads, &stop);
        work();
        assert!(herd.gather() > 0);
    });
    sweep(region.words());
}

/// Threads of the application.
pub(crate) struct Herd<'scope> {
    threads: Vec<ScopedJoinHandle<'scope, u64>>,
    stop: &'scope AtomicBool,
}

impl<'scope> Herd<'scope> {
    /// Starts `threads` threads on a region that [`fill`] has filled, until `stop`; returns when all
    /// of them are at it.
    pub(crate) fn graze<'env>(
        scope: &'scope Scope<'scope, 'env>,
        region: &'env Region,
        threads: usize,
        stop: &'scope AtomicBool,
    ) -> Self {
        let grazing = Arc::new(AtomicUsize::new(0));
        let start = |thread| {
            let grazing = Arc::clone(&grazing);
            scope.spawn(move || graze(region.words(), thread, threads, &grazing, stop))
        };
        let herd = Self {
            threads: (0..threads).map(start).collect(),
            stop,
        };
        while grazing.load(Ordering::Relaxed) < threads {
            // One that has panicked never begins, and says so when it is gathered.
            if herd.threads.iter().any(ScopedJoinHandle::is_finished) {
                break;
            }
            std::thread::yield_now();
        }
        herd
    }

    /// Ends the threads; panics if one saw something wrong. Says how many accesses they made.
    pub(crate) fn gather(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        std::mem::take(&mut self.threads)
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    }
}

/// A test that fails must not wait for its threads for ever.
impl Drop for Herd<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn graze(
    words: &[AtomicU64],
    thread: usize,
    threads: usize,
    grazing: &AtomicUsize,
    stop: &AtomicBool,
) -> u64 {
    let used = words.len() / STRIDE;
    let mine = (used - thread).div_ceil(threads);
    // Another run may have left versions behind.
    let word_of = |n: usize| (n * threads + thread) * STRIDE;
    let mut last = (0..mine)
        .map(|n| words[word_of(n)].load(Ordering::Relaxed))
        .collect::<Vec<_>>();
    let mut random = 0x9E37_79B9_7F4A_7C15 ^ (thread as u64 + 1);
    let mut accesses = 0;
    while !stop.load(Ordering::Relaxed) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let n = (random >> 8) as usize % mine;
        let word = &words[word_of(n)];
        let seen = word.load(Ordering::Relaxed);
        assert_eq!(seen, last[n], "word {} of thread {thread}", word_of(n));
        if random & 1 == 0 {
            let version = (seen as u32).wrapping_add(1);
            last[n] = value(word_of(n), version);
            word.store(last[n], Ordering::Relaxed);
        } else {
            let other = (random >> 40) as usize % used * STRIDE;
            let seen = words[other].load(Ordering::Relaxed);
            assert_eq!(
                seen >> VERSION_BITS,
                other as u64,
                "word {other}, another thread's"
            );
        }
        if accesses == 0 {
            grazing.fetch_add(1, Ordering::Relaxed);
        }
        accesses += 2;
    }
    for (n, &last) in last.iter().enumerate() {
        assert_eq!(
            words[word_of(n)].load(Ordering::Relaxed),
            last,
            "word {}",
            word_of(n)
        );
    }
    accesses
}
