//! Folios that wait until there is enough for a call.

use transhume_engine::Folio;

use crate::frames::Run;
use crate::scan::size;

/// Folios, and how many base pages they have together, so that it need not be counted again and again.
#[derive(Debug, Default)]
pub(crate) struct List {
    folios: Vec<Folio>,
    base_pages: u64,
}

impl List {
    pub(crate) fn folios(&self) -> &[Folio] {
        &self.folios
    }

    /// How many base pages the folios from one on have.
    pub(crate) fn base_pages_from(&self, from: usize) -> u64 {
        self.base_pages - self.base_pages_before(from)
    }

    fn base_pages_before(&self, end: usize) -> u64 {
        match self.are_base_pages() {
            true => end as u64,
            false => self.folios[..end]
                .iter()
                .map(|folio| folio.base_pages())
                .sum(),
        }
    }

    fn are_base_pages(&self) -> bool {
        self.base_pages == self.folios.len() as u64
    }

    pub(crate) fn push(&mut self, folio: Folio) {
        self.base_pages += folio.base_pages();
        self.folios.push(folio);
    }

    /// Adds the folios of a run, without those that are known, which are in order.
    pub(crate) fn push_run(&mut self, run: Run, known: &[Folio]) {
        // Two selections may have a part each of a huge page.
        if self.folios.last() == Some(&run.first) {
            return;
        }
        if known.is_empty() {
            self.base_pages += run.folios * run.first.base_pages();
            self.folios.extend(run.each());
            return;
        }
        let unknown = |folio: &Folio| known.binary_search(folio).is_err();
        run.each()
            .filter(unknown)
            .for_each(|folio| self.push(folio));
    }

    /// How many folios from one on have at most so many base pages together; one at least.
    pub(crate) fn fit(&self, from: usize, base_pages: u64) -> usize {
        let rest = &self.folios[from..];
        if self.are_base_pages() {
            let most = usize::try_from(base_pages).unwrap_or(usize::MAX);
            return rest.len().min(most).max(1);
        }
        first_within(rest, base_pages, Folio::base_pages).max(1)
    }

    /// Takes so many of the first folios off.
    pub(crate) fn drop_first(&mut self, folios: usize) {
        self.base_pages = self.base_pages_from(folios);
        self.folios.drain(..folios);
    }
}

impl IntoIterator for List {
    type Item = Folio;
    type IntoIter = std::vec::IntoIter<Folio>;

    fn into_iter(self) -> Self::IntoIter {
        self.folios.into_iter()
    }
}

/// How many of the first folios have at most so many bytes together.
pub(crate) fn fit_bytes(folios: &[Folio], bytes: u64) -> usize {
    first_within(folios, bytes, size)
}

fn first_within(folios: &[Folio], most: u64, measure: impl Fn(Folio) -> u64) -> usize {
    let mut sum = 0;
    let within = folios.iter().take_while(|&&folio| {
        sum += measure(folio);
        sum <= most
    });
    within.count()
}

#[cfg(test)]
mod tests {
    use transhume_engine::Order;

    use super::*;

    fn base(page: u64) -> Folio {
        Folio::base(page).unwrap()
    }

    #[test]
    fn what_fits_is_counted_in_base_pages() {
        let mut list = List::default();
        let run = Run {
            first: base(8),
            folios: 4,
            node: 0,
        };
        list.push_run(run, &[]);
        assert_eq!(list.folios(), [base(8), base(9), base(10), base(11)]);
        assert_eq!((list.fit(0, 3), list.fit(2, 3), list.fit(0, 0)), (3, 2, 1));
        let huge = Folio::new(512, Order::HUGE).unwrap();
        list.push_run(Run::one(huge, 0), &[]);
        list.push_run(Run::one(huge, 0), &[]);
        assert_eq!((list.folios().len(), list.base_pages_from(1)), (5, 515));
        assert_eq!((list.fit(0, 515), list.fit(4, 1)), (4, 1));
        list.drop_first(4);
        assert_eq!((list.folios(), list.base_pages_from(0)), (&[huge][..], 512));
        assert_eq!(fit_bytes(&[base(1), huge, base(2)], 4096 + 8), 1);
        assert_eq!(fit_bytes(&[huge], 4096), 0);
    }

    #[test]
    fn what_is_known_is_left_out() {
        let mut list = List::default();
        let run = Run {
            first: base(8),
            folios: 4,
            node: 0,
        };
        list.push_run(run, &[base(9), base(11)]);
        assert_eq!(list.folios(), [base(8), base(10)]);
        assert_eq!(list.base_pages_from(0), 2);
    }
}
