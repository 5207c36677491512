//! Sets of numbers kept as runs: free frame slots, and the pages of requests.

use std::collections::BTreeMap;
use std::iter;
use std::ops::Range;

/// A set of numbers as maximal runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RunSet {
    /// Start of each run, and its end (exclusive). No two runs touch.
    runs: BTreeMap<usize, usize>,
    len: usize,
}

impl RunSet {
    /// The numbers below `end`.
    pub(crate) fn all(end: usize) -> Self {
        let mut set = Self::default();
        set.insert(0..end);
        set
    }

    /// How many numbers are in the set.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a range; parts that are in the set already stay.
    pub(crate) fn insert(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        if let Some((&before, &before_end)) = self.runs.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
        }
        while let Some((&next, &next_end)) = self.runs.range(start..=end).next() {
            end = end.max(next_end);
            self.len -= next_end - next;
            self.runs.remove(&next);
        }
        self.len += end - start;
        self.runs.insert(start, end);
    }

    /// Takes up to `want` adjacent numbers: from the smallest run that has them all, else the
    /// largest run there is. `None` if the set is empty or nothing is wanted.
    pub(crate) fn take(&mut self, want: usize) -> Option<Range<usize>> {
        if want == 0 {
            return None;
        }
        let length = |run: &(&usize, &usize)| run.1 - run.0;
        let best = self
            .runs
            .iter()
            .filter(|run| length(run) >= want)
            .min_by_key(length)
            .or_else(|| self.runs.iter().max_by_key(length));
        let start = *best?.0;
        self.take_at(start, want)
    }

    /// Takes `want` adjacent numbers that begin at `phase` beyond a multiple of `modulus`; if there
    /// are none such, what [`take`](Self::take) finds.
    pub(crate) fn take_in_phase(
        &mut self,
        want: usize,
        phase: usize,
        modulus: usize,
    ) -> Option<Range<usize>> {
        match self.find_in_phase(want, phase, modulus) {
            Some(start) => self.take_at(start, want),
            None => self.take(want),
        }
    }

    /// Takes `want` adjacent numbers that begin at a multiple of that, if there are such.
    pub(crate) fn take_aligned(&mut self, want: usize) -> Option<Range<usize>> {
        let start = self.find_in_phase(want, 0, want)?;
        self.take_at(start, want)
    }

    fn find_in_phase(&self, want: usize, phase: usize, modulus: usize) -> Option<usize> {
        let in_phase = |(&start, &end): (&usize, &usize)| {
            let behind = start % modulus;
            let first = start + (phase % modulus + modulus - behind) % modulus;
            (first + want <= end).then_some(first)
        };
        self.runs.iter().find_map(in_phase)
    }

    /// Takes up to `want` adjacent numbers that begin with `start`; `None` if `start` is not in the
    /// set.
    pub(crate) fn take_at(&mut self, start: usize, want: usize) -> Option<Range<usize>> {
        let (&run, &run_end) = self.runs.range(..=start).next_back()?;
        if run_end <= start || want == 0 {
            return None;
        }
        let end = run_end.min(start.saturating_add(want));
        self.runs.remove(&run);
        if run < start {
            self.runs.insert(run, start);
        }
        if end < run_end {
            self.runs.insert(end, run_end);
        }
        self.len -= end - start;
        Some(start..end)
    }

    /// Whether the number is in the set.
    pub(crate) fn contains(&self, number: usize) -> bool {
        self.first_in(&(number..number + 1)).is_some()
    }

    /// Whether all numbers of `range` are in the set.
    pub(crate) fn has_all(&self, range: &Range<usize>) -> bool {
        let run = self.runs.range(..=range.start).next_back();
        range.is_empty() || run.is_some_and(|(_, &end)| end >= range.end)
    }

    /// The first number of `range` that is in the set.
    pub(crate) fn first_in(&self, range: &Range<usize>) -> Option<usize> {
        let before = self.runs.range(..=range.start).next_back();
        if before.is_some_and(|(_, &end)| end > range.start) && !range.is_empty() {
            return Some(range.start);
        }
        self.runs
            .range(range.clone())
            .next()
            .map(|(&start, _)| start)
    }

    /// What of `range` is in the set, as runs in order.
    pub(crate) fn runs_in(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut rest = range;
        iter::from_fn(move || {
            let start = self.first_in(&rest)?;
            let (_, &run_end) = self.runs.range(..=start).next_back()?;
            rest.start = run_end.min(rest.end);
            Some(start..rest.start)
        })
    }

    /// The length of the longest run.
    pub(crate) fn longest(&self) -> usize {
        self.runs
            .iter()
            .map(|(start, end)| end - start)
            .max()
            .unwrap_or(0)
    }

    /// How many runs there are.
    pub(crate) fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// The runs, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.runs.iter().map(|(&start, &end)| start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn runs_that_touch_become_one() {
        let mut set = RunSet::default();
        set.insert(0..4);
        set.insert(8..12);
        set.insert(4..8);
        assert_eq!((set.run_count(), set.iter().next()), (1, Some(0..12)));
    }

    #[test]
    fn take_prefers_the_smallest_run_that_fits() {
        let mut set = RunSet::default();
        set.insert(0..10);
        set.insert(20..24);
        assert_eq!(set.take(4), Some(20..24));
        assert_eq!(set.take(64), Some(0..10));
        assert_eq!(set.take(1), None);
    }

    #[test]
    fn in_phase_if_possible() {
        let mut set = RunSet::default();
        set.insert(3..30);
        assert_eq!(set.take_in_phase(8, 0, 8), Some(8..16));
        assert_eq!(set.take_in_phase(4, 20, 8), Some(4..8));
        assert_eq!(set.take_in_phase(6, 0, 8), Some(16..22));
        assert_eq!(set.take_in_phase(5, 0, 8), Some(24..29));
        assert_eq!(
            set.take_in_phase(9, 0, 8),
            Some(22..24),
            "none in phase is so long"
        );
        assert_eq!(set.take_in_phase(0, 0, 8), None);
        let mut set = RunSet::default();
        set.insert(3..15);
        assert_eq!(set.take_aligned(8), None);
        set.insert(15..16);
        assert_eq!(set.take_aligned(8), Some(8..16));
    }

    proptest! {
        #[test]
        fn it_is_a_set(ops in proptest::collection::vec((0u8..4, 0usize..64, 0usize..12), 1..64)) {
            let mut set = RunSet::default();
            let mut model = BTreeSet::new();
            for (op, at, len) in ops {
                match op {
                    0 | 1 => { set.insert(at..at + len); model.extend(at..at + len); }
                    2 => if let Some(taken) = set.take(len) {
                        prop_assert!(taken.len() <= len);
                        for n in taken { prop_assert!(model.remove(&n)); }
                    } else { prop_assert!(model.is_empty() || len == 0); },
                    _ => if let Some(taken) = set.take_at(at, len) {
                        prop_assert_eq!(taken.start, at);
                        for n in taken { prop_assert!(model.remove(&n)); }
                    } else { prop_assert!(!model.contains(&at) || len == 0); },
                }
                prop_assert_eq!(set.len(), model.len());
                prop_assert_eq!(set.iter().flatten().collect::<Vec<_>>(),
                    model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.has_all(&(at..at + len)), (at..at + len).all(|n| model.contains(&n)));
                prop_assert_eq!(set.first_in(&(at..at + len)), model.range(at..at + len).next().copied());
                let runs = set.runs_in(at..at + len).collect::<Vec<_>>();
                prop_assert!(runs.windows(2).all(|two| two[0].end < two[1].start));
                prop_assert_eq!(runs.into_iter().flatten().collect::<Vec<_>>(),
                    model.range(at..at + len).copied().collect::<Vec<_>>());
            }
        }
    }
}
