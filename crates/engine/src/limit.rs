//! How much may be cut off at a time, and for how long.

use core::num::NonZeroU64;
use core::time::Duration;

use crate::mode::Company;

/// The limits of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// At most this many base pages are cut off at a time; a folio larger than that goes alone.
    pub base_pages: NonZeroU64,
    /// The longest that an access should have to wait for a folio. Batches are made smaller until
    /// they keep it; a single folio that takes longer is migrated all the same.
    pub max_stall: Option<Duration>,
}

impl Limit {
    /// 512 base pages: the wait for a batch stays at the level of one huge page (\[batch-flush\]).
    pub const DEFAULT_BASE_PAGES: NonZeroU64 = NonZeroU64::new(512).unwrap();
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            base_pages: Self::DEFAULT_BASE_PAGES,
            max_stall: None,
        }
    }
}

/// Adapts the batch size to [`Limit::max_stall`]: starts small, shrinks in proportion when a batch
/// was cut off for too long, and grows by an eighth while batches stay well below the target.
#[derive(Clone, Debug)]
pub struct StallGovernor {
    limit: Limit,
    base_pages: u64,
}

impl StallGovernor {
    const FIRST: u64 = 16;

    /// A governor for `limit`. Without a target for the stall it always allows the whole limit.
    #[must_use]
    pub fn new(limit: Limit) -> Self {
        let base_pages = match limit.max_stall {
            Some(_) => limit.base_pages.get().min(Self::FIRST),
            None => limit.base_pages.get(),
        };
        Self { limit, base_pages }
    }

    /// How many base pages the next batch may cut off.
    #[must_use]
    pub fn base_pages(&self) -> u64 {
        self.base_pages
    }

    /// How many base pages the next batch may cut off when folios go so.
    pub(crate) fn room(&self, company: Company) -> u64 {
        match company {
            Company::Batch => self.base_pages,
            Company::Alone => 1,
        }
    }

    /// Learns from the last batch, if it cut anything off: how many base pages, and for how long.
    pub(crate) fn learn(&mut self, last_cut_off: Option<(u64, Duration)>) {
        if let Some((base_pages, cut_off)) = last_cut_off {
            self.observe(base_pages, cut_off);
        }
    }

    /// Learns from a batch in which `base_pages` were cut off for `cut_off`.
    pub fn observe(&mut self, base_pages: u64, cut_off: Duration) {
        let Some(target) = self.limit.max_stall else {
            return;
        };
        // Capped at 584 years, so that no product below overflows.
        let nanos = |time: Duration| time.as_nanos().min(u128::from(u64::MAX));
        let (cut_off, target) = (nanos(cut_off), nanos(target));
        if cut_off > target {
            // A tenth below what would just have fitted, so that the next one does.
            let fitting = u128::from(base_pages) * target * 9 / (cut_off * 10);
            self.base_pages = u64::try_from(fitting)
                .unwrap_or(u64::MAX)
                .max(1)
                .min(self.base_pages);
        } else if base_pages > self.base_pages / 2 {
            // Folios of one size fill more than half of any room. A whole batch would have taken:
            let whole =
                cut_off * u128::from(base_pages.max(self.base_pages)) / u128::from(base_pages);
            if whole * 4 < target * 3 {
                self.base_pages =
                    (self.base_pages + self.base_pages / 8 + 1).min(self.limit.base_pages.get());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn governor(max_stall: Option<Duration>) -> StallGovernor {
        StallGovernor::new(Limit {
            max_stall,
            ..Limit::default()
        })
    }

    #[test]
    fn without_a_target_the_whole_limit_is_allowed() {
        let mut governor = governor(None);
        governor.observe(512, Duration::from_secs(1));
        assert_eq!(governor.base_pages(), 512);
    }

    #[test]
    fn it_settles_below_the_target() {
        let per_page = Duration::from_micros(2);
        let fixed = Duration::from_micros(20);
        let target = Duration::from_micros(200);
        let mut governor = governor(Some(target));
        let mut over = 0;
        for _ in 0..200 {
            let pages = governor.base_pages();
            let took = fixed + per_page * u32::try_from(pages).unwrap();
            over += u32::from(took > target);
            governor.observe(pages, took);
        }
        assert_eq!(over, 0, "growth stops at three quarters of the target");
        assert!(
            governor.base_pages() > 40,
            "and uses most of it: {}",
            governor.base_pages()
        );
    }

    #[test]
    fn it_never_goes_below_one_page_nor_above_the_limit() {
        let mut governor = governor(Some(Duration::from_nanos(1)));
        governor.observe(16, Duration::from_millis(1));
        assert_eq!(governor.base_pages(), 1);
        for _ in 0..1000 {
            governor.observe(governor.base_pages(), Duration::ZERO);
        }
        assert_eq!(governor.base_pages(), 512);
    }

    #[test]
    fn it_shrinks_in_proportion_and_only_above_the_target() {
        let target = Duration::from_micros(100);
        let mut governor = governor(Some(target));
        governor.observe(16, target);
        assert_eq!(governor.base_pages(), 16);
        governor.observe(16, 2 * target);
        assert_eq!(governor.base_pages(), 7, "a tenth below 8");
        governor.observe(512, 2 * target);
        assert_eq!(
            governor.base_pages(),
            7,
            "a large folio alone teaches no growth"
        );
    }

    #[test]
    fn it_grows_from_more_than_half_a_batch_as_if_it_were_whole() {
        let target = Duration::from_micros(160);
        let mut half = governor(Some(target));
        half.observe(8, Duration::from_micros(1));
        assert_eq!(half.base_pages(), 16, "half is not enough");
        // Nine pages in 67 us are 16 in 119, just below three quarters; in 68 they are not.
        half.observe(9, Duration::from_nanos(67_500));
        assert_eq!(half.base_pages(), 16);
        half.observe(9, Duration::from_nanos(67_499));
        assert_eq!(half.base_pages(), 19);
        // A larger folio alone took that long whatever the room is.
        half.observe(512, Duration::from_micros(120));
        assert_eq!(half.base_pages(), 19);
        half.observe(512, Duration::from_micros(119));
        assert_eq!(half.base_pages(), 22);
    }

    #[test]
    fn no_time_is_too_long_for_it() {
        let mut governor = governor(Some(Duration::MAX));
        governor.observe(1 << 58, Duration::MAX);
        assert_eq!(governor.base_pages(), 16);
    }

    #[test]
    fn a_batch_that_was_not_full_teaches_no_growth() {
        let mut governor = governor(Some(Duration::from_millis(1)));
        let before = governor.base_pages();
        governor.observe(1, Duration::from_nanos(10));
        assert_eq!(governor.base_pages(), before);
    }
}
