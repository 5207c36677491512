//! How far apart scattered pages may be to be cut off with what lies between them.
//!
//! That depends on the machine and on what the application's threads are doing: a shootdown costs
//! little while they sleep. So it is measured as batches go.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use transhume_sys::advise::OwnProcess;

use crate::mechanism::moves_in_batches;
use crate::options::Neighbours;
use crate::tier::PageSize;

/// What spans need of the machine, and what batches cost here; shared by the requests of a region.
#[derive(Debug)]
pub(super) struct Spans {
    /// `None` where one call cannot give up scattered pages.
    pub(super) process: Option<OwnProcess>,
    /// Whether the kernel has refused to.
    pub(super) refused: AtomicBool,
    /// Requests with a batch that may hold neighbours.
    pub(super) holders: AtomicUsize,
    /// What a wanted page costs that goes by itself.
    single: Cost,
    /// What each page of a span costs, wanted or not. The first guess is by the kernel's version.
    page: Cost,
    /// Wanted pages that got a frame in their slot.
    pub(super) replaced: AtomicU64,
}

/// What a wanted page in a span costs beyond that, in nanoseconds: the copy, giving up its frame,
/// allocating another. Measured on one machine; it decides close calls only.
const REPLACING: u32 = 1_500;

/// No more pages than this are cut off between two that are wanted.
const FARTHEST: u32 = 128;

/// How long something has taken lately, in nanoseconds. It depends on what the application's threads
/// are doing, so what has not been measured for a while is forgotten.
#[derive(Debug)]
struct Cost {
    average: AtomicU32,
    guess: u32,
}

impl Cost {
    const fn new(guess: u32) -> Self {
        Self {
            average: AtomicU32::new(guess),
            guess,
        }
    }

    fn get(&self) -> u32 {
        self.average.load(Ordering::Relaxed)
    }

    fn approach(&self, value: u32, part: u32) {
        let before = self.get();
        let after = if value >= before {
            before + (value - before) / part
        } else {
            before - (before - value) / part
        };
        self.average.store(after, Ordering::Relaxed);
    }

    /// One that took far longer than usual was interrupted, and is cut short.
    fn learn(&self, took: Duration, of: usize) {
        let each = took.as_nanos() / of.max(1) as u128;
        let each = u32::try_from(each).unwrap_or(u32::MAX);
        self.approach(each.min(self.get().saturating_mul(4).max(self.guess)), 4);
    }

    fn forget(&self) {
        self.approach(self.guess, 256);
    }
}

/// What a batch cut off, and since when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    began: Instant,
    /// Folios that went in runs, and the runs.
    folios: usize,
    runs: usize,
    /// Pages of spans, and those of them that were wanted.
    pub(super) pages: usize,
    pub(super) wanted: usize,
}

impl Effort {
    pub(super) fn begin() -> Self {
        Self {
            began: Instant::now(),
            folios: 0,
            runs: 0,
            pages: 0,
            wanted: 0,
        }
    }

    pub(super) fn run(&mut self, folios: usize) {
        self.folios += folios;
        self.runs += 1;
    }
}

impl Spans {
    pub(super) fn new(page_size: PageSize) -> Self {
        // Huge pages go alone or in few, and each call for one is long.
        let process = match page_size {
            PageSize::Base => OwnProcess::open().ok(),
            PageSize::Huge => None,
        };
        Self {
            process,
            refused: AtomicBool::new(false),
            holders: AtomicUsize::new(0),
            single: Cost::new(6_000),
            page: Cost::new(if moves_in_batches() { 200 } else { 20_000 }),
            replaced: AtomicU64::new(0),
        }
    }

    /// How many pages apart two wanted pages may be to be cut off with what lies between them.
    pub(super) fn reach(&self, neighbours: Neighbours) -> usize {
        if neighbours == Neighbours::Left
            || self.process.is_none()
            || self.refused.load(Ordering::Relaxed)
        {
            return 1;
        }
        let saved = self.single.get().saturating_sub(REPLACING);
        (saved / self.page.get().max(1)).clamp(1, FARTHEST) as usize
    }

    /// How many wanted pages got a frame that the kernel had to allocate for them.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Learns from a batch that has come to its end.
    pub(super) fn learn(&self, effort: &Effort) {
        const ENOUGH: usize = 8;
        let took = effort.began.elapsed();
        if effort.runs == 0 && effort.wanted >= ENOUGH {
            let replacing = Duration::from_nanos(u64::from(REPLACING) * effort.wanted as u64);
            self.page
                .learn(took.saturating_sub(replacing), effort.pages);
            self.single.forget();
        } else if effort.pages == 0 && effort.runs >= ENOUGH && effort.folios < 2 * effort.runs {
            self.single.learn(took, effort.runs);
            self.page.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans() -> Spans {
        let spans = Spans::new(PageSize::Base);
        spans.page.average.store(200, Ordering::Relaxed);
        spans
    }

    fn effort(runs: usize, wanted: usize, pages: usize, took: Duration) -> Effort {
        Effort {
            began: Instant::now().checked_sub(took).unwrap(),
            folios: runs,
            runs,
            pages,
            wanted,
        }
    }

    #[test]
    fn pages_that_cost_much_alone_go_with_more_between() {
        let spans = spans();
        let before = spans.reach(Neighbours::Taken);
        for _ in 0..100 {
            spans.learn(&effort(64, 0, 0, Duration::from_millis(2)));
        }
        assert!(spans.reach(Neighbours::Taken) > before);
        assert_eq!(spans.reach(Neighbours::Left), 1);
    }

    #[test]
    fn where_spans_cost_much_pages_go_alone() {
        let spans = spans();
        for _ in 0..100 {
            spans.learn(&effort(0, 64, 512, Duration::from_millis(10)));
        }
        assert_eq!(spans.reach(Neighbours::Taken), 1);
    }

    #[test]
    fn huge_pages_have_no_spans() {
        assert_eq!(Spans::new(PageSize::Huge).reach(Neighbours::Taken), 1);
    }

    #[test]
    fn an_interruption_counts_little_and_is_forgotten() {
        let cost = Cost::new(1_000);
        cost.learn(Duration::from_secs(1), 1);
        assert!(cost.get() < 2_000);
        (0..5_000).for_each(|_| cost.forget());
        assert!(cost.get() < 1_300);
    }
}
