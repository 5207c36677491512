//! Which shootdowns began after something happened, and have finished.

use core::sync::atomic::{AtomicU64, Ordering};

/// A moment, told by the number of shootdowns that had begun by then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(u64);

/// The shootdowns of a set of CPUs: those that began, and those that have finished on every CPU that
/// could hold a translation from before (\[deferred-flush\]).
///
/// A translation that was there at some moment is gone once a shootdown that *began* later has
/// finished. One that was under way at that moment proves nothing: it may have passed the CPU
/// before. So moments are compared by number and not by a flag that a shootdown clears, and 64 bits
/// do not wrap.
#[derive(Debug, Default)]
pub struct Generations {
    begun: AtomicU64,
    /// The latest beginning among the shootdowns that have finished.
    finished: AtomicU64,
}

impl Generations {
    /// No shootdown yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            begun: AtomicU64::new(0),
            finished: AtomicU64::new(0),
        }
    }

    /// This moment. What is done before the call is before every shootdown that counts as later.
    #[must_use]
    pub fn now(&self) -> Generation {
        Generation(self.begun.load(Ordering::SeqCst))
    }

    /// A shootdown begins: what it needs to invalidate is fixed from here on.
    #[must_use]
    pub fn begin(&self) -> Generation {
        Generation(self.begun.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// The shootdown that began so has finished everywhere.
    pub fn finish(&self, shootdown: Generation) {
        self.finished.fetch_max(shootdown.0, Ordering::SeqCst);
    }

    /// Whether a shootdown that began after this moment has finished.
    #[must_use]
    pub fn has_flushed(&self, since: Generation) -> bool {
        self.finished.load(Ordering::SeqCst) > since.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_began_later_counts() {
        let all = Generations::new();
        let before = all.now();
        assert!(
            !all.has_flushed(before),
            "nothing has been flushed at first"
        );
        let under_way = all.begin();
        let during = all.now();
        all.finish(under_way);
        assert!(all.has_flushed(before) && !all.has_flushed(during));
        let next = all.begin();
        assert!(!all.has_flushed(during), "it has only begun");
        all.finish(next);
        assert!(all.has_flushed(during));
    }

    #[test]
    fn a_later_one_may_finish_first() {
        let all = Generations::new();
        let (first, moment, second) = (all.begin(), all.now(), all.begin());
        all.finish(second);
        assert!(all.has_flushed(moment));
        let after = all.now();
        all.finish(first);
        assert!(!all.has_flushed(after), "an earlier one proves nothing new");
    }
}
