//! How large the slices of work are, and when they may begin.

use std::num::NonZeroU64;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use transhume_engine::{Limit, StallGovernor};

use crate::BASE_PAGE;

/// Base pages a call where nothing speaks against it. The kernel cuts them into batches of 512, and
/// the call's own cost of 30 to 50 us, for which it empties the LRU caches of all CPUs, is spread
/// over them.
pub const SLICE_PAGES: u64 = 8192;

/// How long a slice may take of the bandwidth that is allowed.
const BURST: Duration = Duration::from_millis(50);

/// Once in so many calls the cost of a call without pages is measured.
const MEASURE: u32 = 32;

/// One worker's slices: closed-loop, by how long the calls before took.
#[derive(Debug)]
pub(crate) struct Pace {
    governor: StallGovernor,
    most: u64,
    limited: bool,
    /// What a call takes before any page is cut off, lately.
    before: Duration,
    calls: u32,
}

impl Pace {
    /// `by_turns` is for slices that have to be made room for.
    pub(crate) fn new(
        max_stall: Option<Duration>,
        bandwidth: Option<NonZeroU64>,
        by_turns: bool,
    ) -> Self {
        let base_pages = if max_stall.is_some() || by_turns {
            // A call is one batch then, and no access waits for longer than it takes.
            Limit::DEFAULT_BASE_PAGES
        } else {
            NonZeroU64::new(SLICE_PAGES).unwrap_or(NonZeroU64::MIN)
        };
        let burst = |rate: NonZeroU64| {
            let bytes = u128::from(rate.get()) * BURST.as_millis() / 1000;
            u64::try_from(bytes / BASE_PAGE as u128)
                .unwrap_or(u64::MAX)
                .max(1)
        };
        Self {
            governor: StallGovernor::new(Limit {
                base_pages,
                max_stall,
            }),
            most: bandwidth.map_or(u64::MAX, burst),
            limited: max_stall.is_some(),
            before: Duration::ZERO,
            calls: 0,
        }
    }

    /// How many base pages the next call may have; a larger folio goes alone.
    pub(crate) fn base_pages(&self) -> u64 {
        self.governor.base_pages().min(self.most)
    }

    /// Learns from a call, by how long pages were cut off. `without_pages` measures a call that moves
    /// nothing.
    pub(crate) fn observe(
        &mut self,
        base_pages: u64,
        took: Duration,
        without_pages: impl FnOnce() -> Duration,
    ) {
        if !self.limited {
            return;
        }
        if self.calls.is_multiple_of(MEASURE) {
            let now = without_pages();
            // One that was held up says nothing of the others.
            self.before = if self.calls == 0 {
                now
            } else {
                (self.before + now) / 2
            }
            .min(now);
        }
        self.calls = self.calls.wrapping_add(1);
        self.governor
            .observe(base_pages, took.saturating_sub(self.before));
    }
}

/// Keeps all workers together below a rate.
#[derive(Debug)]
pub(crate) struct Throttle {
    rate: Option<NonZeroU64>,
    /// When what was begun will have taken its time.
    free_at: Mutex<Option<Instant>>,
}

impl Throttle {
    /// `rate` in bytes a second.
    pub(crate) fn new(rate: Option<NonZeroU64>) -> Self {
        Self {
            rate,
            free_at: Mutex::new(None),
        }
    }

    /// How long to wait before bytes may move.
    pub(crate) fn wait_for(&self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut free_at = self.free_at.lock().unwrap_or_else(|held| held.into_inner());
        let begin = free_at.map_or(now, |free| free.max(now));
        // In a hundred years nobody waits.
        *free_at = begin.checked_add(takes).or(Some(begin));
        begin - now
    }
}

/// How often one that waits looks whether it is over.
const NAP: Duration = Duration::from_millis(20);

/// Sleeps, unless it is over before.
pub(crate) fn sleep_unless(time: Duration, is_over: impl Fn() -> bool) {
    let until = Instant::now() + time;
    while !is_over() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(NAP));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_follow_the_limits() {
        assert_eq!(Pace::new(None, None, false).base_pages(), SLICE_PAGES);
        let slow = Pace::new(None, NonZeroU64::new(8 << 20), false);
        assert_eq!(slow.base_pages(), (8 << 20) / 20 / 4096);
        assert_eq!(Pace::new(None, NonZeroU64::new(1), false).base_pages(), 1);
        assert_eq!(Pace::new(None, None, true).base_pages(), 512);
        let mut gentle = Pace::new(Some(Duration::from_millis(1)), None, false);
        for _ in 0..100 {
            let pages = gentle.base_pages();
            assert!(pages <= 512);
            let fixed = Duration::from_millis(5);
            gentle.observe(pages, fixed + Duration::from_micros(10 * pages), || fixed);
        }
        let settled = gentle.base_pages();
        assert!(
            (40..=100).contains(&settled),
            "{settled} pages of 10 us each"
        );
    }

    #[test]
    fn bytes_wait_for_those_before_them() {
        let throttle = Throttle::new(NonZeroU64::new(1000));
        let now = Instant::now();
        assert_eq!(throttle.wait_for(500, now), Duration::ZERO);
        assert_eq!(throttle.wait_for(500, now), Duration::from_millis(500));
        let later = now + Duration::from_secs(9);
        assert_eq!(
            throttle.wait_for(1, later),
            Duration::ZERO,
            "nothing is saved up"
        );
        let free = Throttle::new(None);
        assert_eq!(free.wait_for(u64::MAX, now), Duration::ZERO);
    }
}
