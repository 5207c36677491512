//! Whether memory is short: pairs hold frames that others may need more (\[deferred-flush\]).

use std::time::Duration;

use crate::kernel::limits;
use crate::sync::Instant;

/// For how long one look is good.
const GOOD_FOR: Duration = Duration::from_millis(10);
/// How long memory is taken to be short after it was last seen so.
const CALM: Duration = Duration::from_secs(1);
/// Memory is short when tasks waited for it for more than one part in so many of the time.
const STALLED_PART: u32 = 10;

/// What was seen last.
#[derive(Debug)]
pub(crate) struct Pressure {
    /// Bytes that must stay available.
    keep_free: u64,
    looked: Option<Look>,
    short_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    /// How long tasks had waited for memory by then, if the kernel counts it.
    stalled: Option<Duration>,
}

impl Pressure {
    pub(crate) fn new(keep_free: u64) -> Self {
        Self {
            keep_free,
            looked: None,
            short_until: None,
        }
    }

    /// Whether memory is short now, or was within the last second.
    pub(crate) fn is_high(&mut self) -> bool {
        let now = Instant::now();
        if self.looked.is_none_or(|look| now - look.at >= GOOD_FOR) {
            // Where the kernel does not tell, nothing is known to be short.
            let available = limits::memory_available().unwrap_or(u64::MAX);
            let stalled = limits::memory_stalled().ok();
            self.learn(Look { at: now, stalled }, available);
        }
        self.short_until.is_some_and(|until| now < until)
    }

    fn learn(&mut self, look: Look, available: u64) {
        let stalled = self.looked.and_then(|before| {
            let stalled = look.stalled?.saturating_sub(before.stalled?);
            Some(stalled * STALLED_PART > look.at - before.at)
        });
        if available < self.keep_free || stalled == Some(true) {
            self.short_until = Some(look.at + CALM);
        }
        self.looked = Some(look);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watermark_and_stalls_each_mean_pressure() {
        let start = Instant::now();
        let at = |millis, stalled| Look {
            at: start + Duration::from_millis(millis),
            stalled: Some(Duration::from_millis(stalled)),
        };
        let high = |pressure: &Pressure, millis| {
            let now = start + Duration::from_millis(millis);
            pressure.short_until.is_some_and(|until| now < until)
        };
        let mut pressure = Pressure::new(100);
        pressure.learn(at(0, 500), 100);
        pressure.learn(at(100, 509), 100);
        assert!(!high(&pressure, 100), "nine of a hundred milliseconds");
        pressure.learn(at(200, 530), 100);
        assert!(high(&pressure, 200) && high(&pressure, 1199) && !high(&pressure, 1200));
        pressure.learn(at(2000, 530), 99);
        assert!(high(&pressure, 2000));
    }

    #[test]
    fn this_machine_can_be_asked() {
        assert!(!Pressure::new(0).is_high() || limits::memory_stalled().is_ok());
        assert!(Pressure::new(u64::MAX).is_high());
    }
}
