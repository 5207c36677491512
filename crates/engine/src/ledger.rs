//! Pairs whose switch waits (\[deferred-flush\]).

use alloc::vec::Vec;
use core::num::NonZeroU64;
use core::time::Duration;

use crate::defer::Settlement;
use crate::failure::Failure;
use crate::folio::Folio;
use crate::generation::Generation;
use crate::platform::Entry;
use crate::report::Outcome;

/// So many folios are remembered that stayed.
const MOST_STAYED: usize = 1 << 16;

/// A folio whose contents are at its source and at its destination. It is locked, nobody can store to
/// it, and readers use either frame.
#[derive(Debug)]
pub(crate) struct Pair<H> {
    pub(crate) entry: Entry<H>,
    pub(crate) recorded: Generation,
    since: Duration,
}

/// The pairs of a tier, or of a region, that wait for their switch.
///
/// It holds two frames for each folio, so it has a limit, which nothing exceeds: room is
/// [promised](Self::promise) before frames are reserved. It allocates when room is promised, when no
/// folio of the batch is locked yet, and not when pairs are recorded.
#[derive(Debug)]
pub struct Ledger<H> {
    /// In the order of their folios.
    pairs: Vec<Pair<H>>,
    limit: NonZeroU64,
    at_once: NonZeroU64,
    base_pages: u64,
    promised: u64,
    /// Of pairs that have been taken out and are not settled yet.
    settling: u64,
    /// When the oldest pair was recorded.
    oldest: Option<Duration>,
    stayed: Vec<(Folio, Failure)>,
    stayed_in_all: u64,
}

impl<H> Ledger<H> {
    /// One that takes pairs of `limit` base pages in all, of which `at_once` may be switched by one
    /// shootdown: readers of any of them wait for the whole switch.
    #[must_use]
    pub const fn new(limit: NonZeroU64, at_once: NonZeroU64) -> Self {
        Self {
            pairs: Vec::new(),
            limit,
            at_once,
            base_pages: 0,
            promised: 0,
            settling: 0,
            oldest: None,
            stayed: Vec::new(),
            stayed_in_all: 0,
        }
    }

    /// How many base pages one shootdown may switch.
    #[must_use]
    pub const fn at_once(&self) -> NonZeroU64 {
        self.at_once
    }

    /// Remembers which folios of a settlement stayed at their source, up to 65,536 of them.
    pub fn note(&mut self, settlement: &Settlement) {
        for &(folio, outcome) in &settlement.outcomes {
            if let Outcome::Stayed(failure) = outcome {
                self.stayed_in_all += 1;
                if self.stayed.len() < MOST_STAYED {
                    self.stayed.push((folio, failure));
                }
            }
        }
    }

    /// Takes out what was remembered: folios whose request was told that they are deferred, and which
    /// could not be switched, and why.
    pub fn take_stayed(&mut self) -> Vec<(Folio, Failure)> {
        core::mem::take(&mut self.stayed)
    }

    /// How many folios have stayed so, remembered or not.
    #[must_use]
    pub const fn stayed(&self) -> u64 {
        self.stayed_in_all
    }

    /// Memory that the list of pairs takes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.pairs.capacity() * size_of::<Pair<H>>()
    }

    /// How many pairs wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// How many base pages the pairs have, each counted once: so many frames are held beyond those
    /// that the folios need.
    #[must_use]
    pub const fn base_pages(&self) -> u64 {
        self.base_pages
    }

    /// How many base pages more can be promised.
    #[must_use]
    pub const fn room(&self) -> u64 {
        self.limit.get().saturating_sub(self.held())
    }

    /// How many base pages of frames are held beyond those that the folios need, or may be soon: those
    /// of the pairs, of what is being settled, and of what is promised.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.base_pages + self.settling + self.promised
    }

    /// The most that it takes, in base pages.
    #[must_use]
    pub const fn limit(&self) -> NonZeroU64 {
        self.limit
    }

    /// When the oldest pair was recorded, by the platform's clock.
    #[must_use]
    pub const fn oldest(&self) -> Option<Duration> {
        self.oldest
    }

    /// Keeps room for folios that are about to be reserved; says whether there was so much.
    #[must_use]
    pub fn promise(&mut self, base_pages: u64) -> bool {
        if base_pages > self.room() {
            return false;
        }
        self.promised += base_pages;
        // Every promised base page may be a pair.
        let promised = usize::try_from(self.promised).unwrap_or(usize::MAX);
        self.pairs.reserve(promised);
        true
    }

    /// Gives back what was promised and is not needed.
    pub const fn withdraw(&mut self, base_pages: u64) {
        self.promised = self.promised.saturating_sub(base_pages);
    }

    /// Records pairs under a promise that covers them. Allocates nothing.
    pub fn add(
        &mut self,
        entries: impl Iterator<Item = Entry<H>>,
        recorded: Generation,
        since: Duration,
    ) {
        let before = self.pairs.len();
        for entry in entries {
            let folio = entry.folio();
            self.base_pages += folio.base_pages();
            self.withdraw(folio.base_pages());
            self.pairs.push(Pair {
                entry,
                recorded,
                since,
            });
        }
        if self.pairs.len() > before {
            self.oldest = Some(self.oldest.map_or(since, |oldest| oldest.min(since)));
            self.put_in_order(before);
        }
    }

    /// Moves the pairs from `new` on to their places.
    fn put_in_order(&mut self, new: usize) {
        let (old, added) = self.pairs.split_at_mut(new);
        if !added.is_sorted_by_key(|pair| pair.entry.folio()) {
            added.sort_unstable_by_key(|pair| pair.entry.folio());
        }
        let (first, last) = match added {
            [] => return,
            [first, .., last] => (first.entry.folio(), last.entry.folio()),
            [one] => (one.entry.folio(), one.entry.folio()),
        };
        let found = old.binary_search_by_key(&first, |pair| pair.entry.folio());
        let place = found.unwrap_or_else(|place| place);
        match old.get(place) {
            None => {}
            // All of them go to one place.
            Some(next) if last < next.entry.folio() => {
                let count = added.len();
                self.pairs[place..].rotate_right(count);
            }
            Some(_) => self.pairs.sort_unstable_by_key(|pair| pair.entry.folio()),
        }
    }

    /// Whether the folio is one of the pairs.
    #[must_use]
    pub fn contains(&self, folio: Folio) -> bool {
        self.pairs
            .binary_search_by_key(&folio, |pair| pair.entry.folio())
            .is_ok()
    }

    /// Takes out the pairs of which `which` says so, to be settled.
    pub fn take(&mut self, mut which: impl FnMut(Folio) -> bool) -> Parked<H> {
        let pairs = self
            .pairs
            .extract_if(.., |pair| which(pair.entry.folio()))
            .collect();
        self.taken(pairs)
    }

    /// Takes out pairs of which `which` says so, up to `most` base pages in all, or one pair: the rest can
    /// be settled after them.
    pub fn take_some(
        &mut self,
        mut which: impl FnMut(Folio) -> bool,
        most: NonZeroU64,
    ) -> Parked<H> {
        let mut taken = 0;
        self.take(|folio| {
            let base_pages = folio.base_pages();
            let fits = taken == 0 || taken + base_pages <= most.get();
            let wanted = fits && which(folio);
            taken += if wanted { base_pages } else { 0 };
            wanted
        })
    }

    /// Takes out the pair of this folio with those beside it, up to `most` base pages in all: folios
    /// that continue each other are switched together. Nothing if the folio is none of the pairs.
    pub fn take_run(&mut self, folio: Folio, most: NonZeroU64) -> Parked<H> {
        let found = self
            .pairs
            .binary_search_by_key(&folio, |pair| pair.entry.folio());
        let Ok(at) = found else {
            return Parked::default();
        };
        let continues = |left: &Pair<H>, right: &Pair<H>| {
            let left = left.entry.folio();
            left.page() + left.base_pages() == right.entry.folio().page()
        };
        let (mut start, mut end) = (at, at + 1);
        let mut room = most.get().saturating_sub(folio.base_pages());
        let mut fits = |pair: &Pair<H>| {
            let left = room.checked_sub(pair.entry.folio().base_pages());
            left.map(|left| room = left).is_some()
        };
        while end < self.pairs.len()
            && continues(&self.pairs[end - 1], &self.pairs[end])
            && fits(&self.pairs[end])
        {
            end += 1;
        }
        while start > 0
            && continues(&self.pairs[start - 1], &self.pairs[start])
            && fits(&self.pairs[start - 1])
        {
            start -= 1;
        }
        let pairs = self.pairs.drain(start..end).collect();
        self.taken(pairs)
    }

    fn taken(&mut self, pairs: Vec<Pair<H>>) -> Parked<H> {
        let base_pages = base_pages(&pairs);
        self.base_pages -= base_pages;
        self.settling += base_pages;
        if pairs.iter().any(|pair| Some(pair.since) == self.oldest) {
            self.oldest = self.pairs.iter().map(|pair| pair.since).min();
        }
        Parked {
            pairs,
            taken: base_pages,
        }
    }

    /// Ends the account of pairs that were taken out, after they have been settled: until then they
    /// count against the limit. What is left of them, because a platform panicked, is put back.
    pub fn close(&mut self, parked: Parked<H>) {
        let Parked { pairs, taken } = parked;
        self.settling = self.settling.saturating_sub(taken);
        if pairs.is_empty() {
            return;
        }
        self.base_pages += base_pages(&pairs);
        let oldest = pairs.iter().map(|pair| pair.since).min();
        self.oldest = self.oldest.into_iter().chain(oldest).min();
        let new = self.pairs.len();
        self.pairs.extend(pairs);
        self.put_in_order(new);
    }
}

fn base_pages<H>(pairs: &[Pair<H>]) -> u64 {
    let folios = pairs.iter().map(|pair| pair.entry.folio());
    folios.map(Folio::base_pages).sum()
}

/// Pairs that have been taken out of their ledger to be [settled](crate::settle), in the order of
/// their folios, and then given to [`Ledger::close`]. They are locked, and stay so if this is dropped.
#[must_use = "the folios stay locked until they are settled"]
#[derive(Debug)]
pub struct Parked<H> {
    pub(crate) pairs: Vec<Pair<H>>,
    /// Base pages of all that were taken out.
    taken: u64,
}

impl<H> Default for Parked<H> {
    /// None.
    fn default() -> Self {
        Self {
            pairs: Vec::new(),
            taken: 0,
        }
    }
}

impl<H> Parked<H> {
    /// How many pairs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Their folios.
    pub fn folios(&self) -> impl ExactSizeIterator<Item = Folio> + '_ {
        self.pairs.iter().map(|pair| pair.entry.folio())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Step, Why};
    use crate::folio::Order;

    fn ledger(limit: u64) -> Ledger<()> {
        let limit = NonZeroU64::new(limit).unwrap();
        Ledger::new(limit, limit)
    }

    fn record(ledger: &mut Ledger<()>, pages: &[u64], since: u64) {
        assert!(ledger.promise(pages.len() as u64));
        let entries = pages
            .iter()
            .map(|&page| Entry::new(0, Folio::base(page).unwrap(), ()));
        ledger.add(entries, Generation::default(), Duration::from_secs(since));
    }

    fn pages(parked: &Parked<()>) -> Vec<u64> {
        parked.folios().map(Folio::page).collect()
    }

    #[test]
    fn it_never_takes_more_than_its_limit() {
        let mut ledger = ledger(4);
        record(&mut ledger, &[1, 2], 0);
        assert!(ledger.promise(2));
        assert!(!ledger.promise(1), "what is promised counts");
        ledger.withdraw(1);
        assert!(ledger.promise(1) && ledger.room() == 0);
        ledger.withdraw(2);
        let one = ledger.take(|folio| folio.page() == 1);
        assert_eq!(
            (ledger.base_pages(), ledger.room()),
            (1, 2),
            "it is being settled"
        );
        ledger.close(one);
        assert_eq!((ledger.base_pages(), ledger.room()), (2, 2), "and was not");
        let mut one = ledger.take(|folio| folio.page() == 1);
        one.pairs.clear();
        ledger.close(one);
        assert_eq!(
            (ledger.base_pages(), ledger.room(), ledger.held()),
            (1, 3, 1)
        );
    }

    #[test]
    fn pairs_are_found_by_folio_age_and_run() {
        let mut ledger = ledger(100);
        record(&mut ledger, &[7, 8, 20], 2);
        record(&mut ledger, &[5, 6, 9, 10], 1);
        assert_eq!(ledger.oldest(), Some(Duration::from_secs(1)));
        assert!(ledger.contains(Folio::base(9).unwrap()));
        assert!(!ledger.contains(Folio::base(11).unwrap()));
        let most = |base_pages| NonZeroU64::new(base_pages).unwrap();
        assert!(
            ledger
                .take_run(Folio::base(11).unwrap(), most(9))
                .is_empty()
        );
        let run = ledger.take_run(Folio::base(7).unwrap(), most(5));
        assert_eq!(pages(&run), [6, 7, 8, 9, 10], "after it first, then before");
        assert_eq!((run.len(), ledger.len()), (5, 2));
        assert_eq!(ledger.oldest(), Some(Duration::from_secs(1)));
        assert_eq!(pages(&ledger.take_some(|_| true, most(1))), [5]);
        assert_eq!(ledger.oldest(), Some(Duration::from_secs(2)));
        assert_eq!(pages(&ledger.take(|_| true)), [20]);
        assert!(ledger.is_empty() && ledger.base_pages() == 0 && ledger.oldest().is_none());
    }

    #[test]
    fn pairs_are_in_order_however_they_come() {
        let mut ledger = ledger(100);
        for added in [&[9, 7, 8][..], &[20, 10], &[6], &[15, 11], &[]] {
            record(&mut ledger, added, 0);
        }
        let expected = [6, 7, 8, 9, 10, 11, 15, 20];
        assert!(expected.iter().all(|&page| {
            let folio = Folio::base(page).unwrap();
            ledger.contains(folio)
        }));
        assert_eq!(pages(&ledger.take(|_| true)), expected);
    }

    #[test]
    fn nothing_recorded_has_no_age() {
        let mut ledger = ledger(4);
        record(&mut ledger, &[], 1);
        assert_eq!(ledger.oldest(), None);
    }

    #[test]
    fn so_much_is_taken_or_one_pair() {
        let mut ledger = ledger(1024);
        let most = |base_pages| NonZeroU64::new(base_pages).unwrap();
        record(&mut ledger, &[1, 2, 3, 4, 5, 6], 0);
        let odd = |folio: Folio| !folio.page().is_multiple_of(2);
        assert_eq!(pages(&ledger.take_some(odd, most(2))), [1, 3]);
        assert_eq!(pages(&ledger.take_some(|_| true, most(3))), [2, 4, 5]);
        let huge = Folio::new(0, Order::HUGE).unwrap();
        assert!(ledger.promise(512));
        let entry = core::iter::once(Entry::new(0, huge, ()));
        ledger.add(entry, Generation::default(), Duration::ZERO);
        let one = ledger.take_some(|_| true, most(3));
        assert_eq!(one.folios().collect::<Vec<_>>(), [huge]);
        assert_eq!(pages(&ledger.take_some(|_| true, most(3))), [6]);
    }

    #[test]
    fn its_list_takes_memory_from_the_promise_on() {
        let mut ledger = ledger(2000);
        assert_eq!((ledger.bytes(), ledger.limit().get()), (0, 2000));
        assert!(ledger.promise(1000));
        let bytes = ledger.bytes();
        assert!(bytes >= 1000 * size_of::<Pair<()>>(), "{bytes}");
    }

    #[test]
    fn of_what_stayed_it_remembers_so_many_and_counts_the_rest() {
        let mut ledger = ledger(1);
        let failure = Failure::new(Step::Remap, Why::System);
        let outcomes = |pages: core::ops::Range<u64>, outcome| Settlement {
            outcomes: pages
                .filter_map(Folio::base)
                .map(|folio| (folio, outcome))
                .collect(),
            ..Settlement::default()
        };
        ledger.note(&outcomes(0..5, Outcome::Moved));
        ledger.note(&outcomes(5..7, Outcome::Stayed(failure)));
        let two = [5, 6].map(|page| (Folio::base(page).unwrap(), failure));
        assert_eq!(ledger.take_stayed(), two);
        assert_eq!(ledger.take_stayed(), []);
        ledger.note(&outcomes(0..65_537, Outcome::Stayed(failure)));
        assert_eq!(ledger.take_stayed().len(), 65_536);
        assert_eq!(ledger.stayed(), 2 + 65_537);
    }

    #[test]
    fn a_run_counts_base_pages() {
        let mut ledger = ledger(2048);
        let huge = |n: u64| Folio::new(n * 512, Order::HUGE).unwrap();
        assert!(ledger.promise(1536));
        let entries = (0..3).map(|n| Entry::new(0, huge(n), ()));
        ledger.add(entries, Generation::default(), Duration::ZERO);
        let one = NonZeroU64::new(512).unwrap();
        assert_eq!(
            ledger.take_run(huge(1), one).folios().collect::<Vec<_>>(),
            [huge(1)]
        );
        assert_eq!(ledger.base_pages(), 1024);
        record(&mut ledger, &[512, 513], 0);
        let most = NonZeroU64::new(3).unwrap();
        let run = ledger.take_run(Folio::base(512).unwrap(), most);
        assert_eq!(pages(&run), [512, 513], "the one before is too large");
    }
}
