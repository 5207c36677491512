//! Sets of numbers kept as runs: the pages of requests, and slots.

use std::collections::BTreeMap;
use std::iter;
use std::ops::Range;

/// Makes a call for a run, and if that is refused one for each of it; tells of every answer that counts.
pub(crate) fn by_run_or_each<E>(
    run: Range<usize>,
    call: impl Fn(Range<usize>) -> Result<(), E>,
    mut answered: impl FnMut(Range<usize>, Result<(), E>),
) {
    match call(run.clone()) {
        Err(_) if run.len() > 1 => run.for_each(|one| answered(one..one + 1, call(one..one + 1))),
        answer => answered(run, answer),
    }
}

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
        self.join(range, |_| {});
    }

    /// The same; tells of each run that there was and that touches the range, and gives the one run
    /// that is there in their place. `None` if the range is empty.
    pub(crate) fn join(
        &mut self,
        range: Range<usize>,
        mut absorbed: impl FnMut(Range<usize>),
    ) -> Option<Range<usize>> {
        if range.is_empty() {
            return None;
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
            absorbed(next..next_end);
        }
        self.len += end - start;
        self.runs.insert(start, end);
        Some(start..end)
    }

    /// Takes up to `want` adjacent numbers that begin with `start`; `None` if `start` is not in the
    /// set.
    pub(crate) fn take_at(&mut self, start: usize, want: usize) -> Option<Range<usize>> {
        let run = self.run_of(start)?;
        if want == 0 {
            return None;
        }
        let end = run.end.min(start.saturating_add(want));
        self.runs.remove(&run.start);
        if run.start < start {
            self.runs.insert(run.start, start);
        }
        if end < run.end {
            self.runs.insert(end, run.end);
        }
        self.len -= end - start;
        Some(start..end)
    }

    /// The run that has the number.
    pub(crate) fn run_of(&self, number: usize) -> Option<Range<usize>> {
        let (&start, &end) = self.runs.range(..=number).next_back()?;
        (number < end).then_some(start..end)
    }

    /// Whether the number is in the set.
    pub(crate) fn contains(&self, number: usize) -> bool {
        self.run_of(number).is_some()
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
            rest.start = self.run_of(start)?.end.min(rest.end);
            Some(start..rest.start)
        })
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
    fn what_is_refused_for_a_run_is_asked_for_each() {
        let asked = |run, refused: usize| {
            let mut answers = Vec::new();
            let call = |part: Range<usize>| match part.contains(&refused) {
                true => Err(part.len()),
                false => Ok(()),
            };
            by_run_or_each(run, call, |part, answer| answers.push((part, answer)));
            answers
        };
        assert_eq!(asked(2..5, 9), [(2..5, Ok(()))]);
        assert_eq!(asked(2..3, 2), [(2..3, Err(1))]);
        assert_eq!(
            asked(2..5, 3),
            [(2..3, Ok(())), (3..4, Err(1)), (4..5, Ok(()))]
        );
    }

    proptest! {
        #[test]
        fn it_is_a_set(ops in proptest::collection::vec((any::<bool>(), 0usize..64, 0usize..12), 1..64)) {
            let mut set = RunSet::default();
            let mut model = BTreeSet::new();
            for (is_insert, at, len) in ops {
                if is_insert {
                    set.insert(at..at + len);
                    model.extend(at..at + len);
                } else if let Some(taken) = set.take_at(at, len) {
                    prop_assert_eq!(taken.start, at);
                    prop_assert!(taken.len() <= len);
                    for n in taken { prop_assert!(model.remove(&n)); }
                } else {
                    prop_assert!(!model.contains(&at) || len == 0);
                }
                prop_assert_eq!(set.len(), model.len());
                prop_assert_eq!(set.iter().flatten().collect::<Vec<_>>(),
                    model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.contains(at), model.contains(&at));
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
