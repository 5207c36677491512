//! How many base pages a folio has that is mapped by base pages.
//!
//! The kernel makes folios of sizes between a base page and a huge page, for files and for anonymous
//! memory, and says of their pages but one that they are busy, each of which closes its batch. Nobody
//! shows these sizes without privilege. So the first slice is a small one; if many of its pages have
//! gone with others, one page in so many is named from then on, and what has not gone with it after.

use transhume_engine::{Folio, Order};

/// The pages of the first slice.
const PROBE: u64 = 512;
/// The largest folio that is mapped by base pages.
const MOST: u64 = 512;

/// What was learned, by one worker.
#[derive(Debug)]
pub(crate) struct Stride {
    pages: u64,
    probed: bool,
}

impl Default for Stride {
    fn default() -> Self {
        Self {
            pages: 1,
            probed: false,
        }
    }
}

impl Stride {
    /// How many base pages the next slice may have.
    pub(crate) fn base_pages(&self) -> u64 {
        if self.probed { u64::MAX } else { PROBE }
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

    /// Learns from so many pages that were named, of which some have gone with others.
    pub(crate) fn learn(&mut self, named: usize, with_others: usize) {
        self.probed = true;
        if with_others * 4 < named {
            return;
        }
        let each = named / (named - with_others).max(1);
        self.pages = (self.pages * (each as u64).next_power_of_two()).min(MOST);
    }

    /// Learns from pages that were not named, of which some have not gone.
    pub(crate) fn unlearn(&mut self, others: usize, stayed: usize) {
        if stayed * 2 > others {
            self.pages = (self.pages / 2).max(1);
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
        assert_eq!(stride.base_pages(), PROBE);
        stride.learn(512, 3);
        assert_eq!(stride.base_pages(), u64::MAX);
        let all = pages(0..100);
        assert_eq!(stride.split(&all), (all.clone(), Vec::new()));
    }

    #[test]
    fn of_larger_folios_one_page_is() {
        let mut stride = Stride::default();
        stride.learn(512, 480);
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
        for _ in 0..9 {
            stride.unlearn(52, 52);
        }
        assert_eq!(stride.pages, 1);
        stride.learn(512, 512);
        assert_eq!(stride.pages, 512);
    }
}
