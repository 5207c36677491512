//! How many base pages a folio has that is mapped by base pages.
//!
//! The kernel makes folios of sizes between a base page and a huge page, for files and for anonymous
//! memory. Of the second page of each it says that it is busy, which closes its batch, and of all
//! after that that they are there. Nobody shows these sizes without privilege. So the first slice is a
//! small one; if some of its pages have gone with others, one page in so many is named from then on,
//! and what has not gone with it after.

use transhume_engine::{Folio, Order};

/// The pages of the first slice.
const PROBE: u64 = 512;
/// The largest folio that is mapped by base pages.
const MOST: u64 = 512;
/// So many folios are seen before it is believed.
const EVIDENCE: usize = 4;

/// What was learned, by one worker.
#[derive(Debug)]
pub(crate) struct Stride {
    pages: u64,
    probed: bool,
    /// How many times as much has to be seen, because it was wrong before.
    doubt: usize,
}

impl Default for Stride {
    fn default() -> Self {
        Self {
            pages: 1,
            probed: false,
            doubt: 1,
        }
    }
}

impl Stride {
    /// How many base pages the next slice may have, which begins with a folio.
    pub(crate) fn base_pages(&self, first: Folio) -> u64 {
        match self.probed || first.order() != Order::BASE {
            true => u64::MAX,
            false => PROBE,
        }
    }

    /// Whether folios are larger than a page, as far as is known.
    pub(crate) fn is_more_than_a_page(&self) -> bool {
        self.pages > 1
    }

    /// The pages to name first, and the others; both in the order given.
    pub(crate) fn split(&self, folios: &[Folio]) -> (Vec<Folio>, Vec<Folio>) {
        let mut last = None;
        folios.iter().partition(|folio| {
            // The first of a folio's pages that is there, which need not be its head.
            let number = folio.page() / self.pages;
            let other = folio.order() == Order::BASE && last.replace(number) == Some(number);
            !other
        })
    }

    /// Learns from so many pages that were named, of which some went with others: one a folio.
    pub(crate) fn learn(&mut self, named: usize, with_others: usize) {
        // A few, huge pages perhaps, say nothing.
        self.probed |= named as u64 >= PROBE;
        if with_others < EVIDENCE * self.doubt {
            return;
        }
        let each = (named / with_others) as u64 * self.pages;
        self.pages = (1 << each.max(1).ilog2()).min(MOST);
    }

    /// Learns from pages that were not named, of which some have not gone.
    pub(crate) fn unlearn(&mut self, others: usize, stayed: usize) {
        if stayed * 2 > others {
            self.pages = 1;
            self.doubt = self.doubt.saturating_mul(4);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(numbers: impl IntoIterator<Item = u64>) -> Vec<Folio> {
        numbers.into_iter().filter_map(Folio::base).collect()
    }

    #[test]
    fn base_pages_are_all_named() {
        let mut stride = Stride::default();
        let all = pages(0..100);
        let huge = Folio::new(512, Order::HUGE).unwrap();
        assert_eq!(stride.base_pages(all[0]), PROBE);
        assert_eq!(stride.base_pages(huge), u64::MAX);
        stride.learn(512, 3);
        assert_eq!(stride.base_pages(all[0]), u64::MAX);
        assert_eq!(stride.split(&all), (all.clone(), Vec::new()));
    }

    #[test]
    fn of_larger_folios_one_page_is() {
        let mut stride = Stride::default();
        stride.learn(512, 32);
        let (named, others) = stride.split(&pages(8..64));
        assert_eq!(named, pages([8, 16, 32, 48]));
        assert_eq!(others.len(), 52);
        let huge = Folio::new(512, Order::HUGE).unwrap();
        assert_eq!(
            stride.split(&[huge, huge]).0.len(),
            2,
            "huge pages are folios themselves"
        );
        stride.unlearn(52, 20);
        assert_eq!(stride.pages, 16);
        stride.unlearn(52, 40);
        assert!(!stride.is_more_than_a_page());
        stride.learn(512, 15);
        assert!(!stride.is_more_than_a_page(), "it was wrong before");
        stride.learn(8192, 16);
        assert_eq!(stride.pages, 512);
    }
}
