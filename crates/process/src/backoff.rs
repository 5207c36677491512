//! How many workers are worth having: fewer where the kernel's locks or the memory are the limit.

use std::time::Duration;

/// How long one measurement takes at least.
const MEASURE: Duration = Duration::from_millis(100);
/// A worker is worth having if it adds so much to the rate of those before it, in percent of one
/// worker's share.
const WORTH: u64 = 40;
/// How many measurements what was found is kept for.
const KEEP: u32 = 30;
/// How many go by before the first: what is over soon is not made slower by trials.
const BEGIN: u32 = 10;

/// Climbs down from all workers as long as one less costs little, and looks again later.
#[derive(Debug)]
pub(crate) struct BackOff {
    workers: usize,
    active: usize,
    /// Bytes a second with one worker more than are active now, when that is being tried out.
    with_one_more: Option<u64>,
    keep: u32,
    since: Duration,
    bytes: u64,
}

impl BackOff {
    /// For so many workers, at least one.
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers,
            active: workers,
            with_one_more: None,
            keep: BEGIN,
            since: Duration::ZERO,
            bytes: 0,
        }
    }

    /// How many may work.
    pub(crate) fn active(&self) -> usize {
        self.active
    }

    /// Learns how many bytes all have moved so far, at a time.
    pub(crate) fn observe(&mut self, now: Duration, bytes: u64) {
        let took = now.saturating_sub(self.since);
        if took < MEASURE || self.workers == 1 {
            return;
        }
        let moved = bytes.saturating_sub(self.bytes);
        let rate = u128::from(moved) * 1_000_000 / took.as_micros().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        (self.since, self.bytes) = (now, bytes);
        if self.keep > 0 {
            self.keep -= 1;
            if self.keep == 0 {
                self.active = self.workers;
            }
            return;
        }
        match self.with_one_more {
            Some(more) if !is_worth(more, rate, self.active + 1) => {
                // It went as well without.
                self.with_one_more = Some(rate);
                self.step_down();
            }
            Some(_) => {
                self.active += 1;
                self.settle();
            }
            None => {
                self.with_one_more = Some(rate);
                self.step_down();
            }
        }
    }

    fn step_down(&mut self) {
        if self.active > 1 {
            self.active -= 1;
        } else {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.with_one_more = None;
        self.keep = KEEP;
    }
}

/// Whether the last of so many workers, at this rate with it and without, was worth having.
fn is_worth(with: u64, without: u64, workers: usize) -> bool {
    let added = with.saturating_sub(without);
    u128::from(added) * 100 * workers as u128 >= u128::from(with) * u128::from(WORTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many work in each measurement, if so many bring this rate.
    fn run(workers: usize, rate: impl Fn(usize) -> u64, measurements: usize) -> Vec<usize> {
        let mut backoff = BackOff::new(workers);
        let (mut now, mut bytes) = (Duration::ZERO, 0);
        (0..measurements)
            .map(|_| {
                let active = backoff.active();
                now += MEASURE;
                bytes += rate(active) / 10;
                backoff.observe(now, bytes);
                active
            })
            .collect()
    }

    #[test]
    fn workers_that_add_to_the_rate_stay() {
        let active = run(4, |workers| workers as u64 * 1_000_000, 300);
        let all = active.iter().filter(|&&active| active == 4).count();
        assert!(all > 280, "{active:?}");
    }

    #[test]
    fn those_that_add_nothing_go() {
        let active = run(4, |workers| workers.min(2) as u64 * 1_000_000, 300);
        let two = active.iter().filter(|&&active| active == 2).count();
        assert!(two > 230, "{active:?}");
        let one = run(2, |_| 1_000_000, 300);
        assert!(
            one.iter().filter(|&&active| active == 1).count() > 240,
            "{one:?}"
        );
    }

    #[test]
    fn a_short_move_has_all_of_them() {
        assert!(run(4, |_| 1_000_000, 10).iter().all(|&active| active == 4));
    }

    #[test]
    fn one_is_never_too_many() {
        assert!(run(1, |_| 0, 100).iter().all(|&active| active == 1));
        assert!(
            run(3, |_| 0, 100)
                .iter()
                .all(|&active| (1..=3).contains(&active))
        );
    }
}
