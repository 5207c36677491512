//! Free slots, of which adjacent ones are taken by the lengths of their runs.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::runs::RunSet;

/// A set of slots that finds a run by its length without a look at all of them: free slots can lie
/// as scattered as the pages that left them.
#[derive(Debug, Default)]
pub(crate) struct FreeRuns {
    runs: RunSet,
    /// Length and start of each run.
    by_length: BTreeSet<(usize, usize)>,
}

impl FreeRuns {
    /// How many slots are in the set.
    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }

    /// Adds slots; those that are in the set already stay.
    pub(crate) fn insert(&mut self, slots: Range<usize>) {
        let by_length = &mut self.by_length;
        let joined = self.runs.join(slots, |absorbed| {
            by_length.remove(&key(&absorbed));
        });
        by_length.extend(joined.as_ref().map(key));
    }

    /// Takes up to `want` adjacent slots: from the smallest run that has them all, else the largest
    /// run there is. `None` if the set is empty or nothing is wanted.
    pub(crate) fn take(&mut self, want: usize) -> Option<Range<usize>> {
        let fitting = self.by_length.range((want, 0)..).next();
        let &(_, start) = fitting.or_else(|| self.by_length.last())?;
        self.take_at(start, want)
    }

    /// Takes `want` adjacent slots that begin at `phase` beyond a multiple of `modulus`; if there are
    /// none such, what [`take`](Self::take) finds.
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

    /// Takes `want` adjacent slots that begin at a multiple of that, if there are such.
    pub(crate) fn take_aligned(&mut self, want: usize) -> Option<Range<usize>> {
        let start = self.find_in_phase(want, 0, want)?;
        self.take_at(start, want)
    }

    fn find_in_phase(&self, want: usize, phase: usize, modulus: usize) -> Option<usize> {
        if self.longest() < want {
            return None;
        }
        let in_phase = |run: Range<usize>| {
            let behind = run.start % modulus;
            let first = run.start + (phase % modulus + modulus - behind) % modulus;
            (first + want <= run.end).then_some(first)
        };
        self.runs.iter().find_map(in_phase)
    }

    /// Takes up to `want` adjacent slots that begin with `start`; `None` if `start` is not in the
    /// set.
    pub(crate) fn take_at(&mut self, start: usize, want: usize) -> Option<Range<usize>> {
        let run = self.runs.run_of(start)?;
        let taken = self.runs.take_at(start, want)?;
        self.by_length.remove(&key(&run));
        let left = [run.start..taken.start, taken.end..run.end];
        let left = left.iter().filter(|left| !left.is_empty());
        self.by_length.extend(left.map(key));
        Some(taken)
    }

    /// The length of the longest run.
    pub(crate) fn longest(&self) -> usize {
        self.by_length.last().map_or(0, |&(length, _)| length)
    }

    /// The runs, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.runs.iter()
    }
}

fn key(run: &Range<usize>) -> (usize, usize) {
    (run.len(), run.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn take_prefers_the_smallest_run_that_fits() {
        let mut free = FreeRuns::default();
        free.insert(0..10);
        free.insert(20..24);
        assert_eq!(free.take(4), Some(20..24));
        assert_eq!(free.take(64), Some(0..10));
        assert_eq!(free.take(1), None);
    }

    #[test]
    fn in_phase_if_possible() {
        let mut free = FreeRuns::default();
        free.insert(3..30);
        assert_eq!(free.take_in_phase(8, 0, 8), Some(8..16));
        assert_eq!(free.take_in_phase(4, 20, 8), Some(4..8));
        assert_eq!(free.take_in_phase(6, 0, 8), Some(16..22));
        assert_eq!(free.take_in_phase(5, 0, 8), Some(24..29));
        assert_eq!(
            free.take_in_phase(9, 0, 8),
            Some(22..24),
            "none in phase is so long"
        );
        assert_eq!(free.take_in_phase(0, 0, 8), None);
        let mut free = FreeRuns::default();
        free.insert(3..15);
        assert_eq!(free.take_aligned(8), None);
        free.insert(15..16);
        assert_eq!(free.take_aligned(8), Some(8..16));
    }

    /// Where [`FreeRuns::take`] is to take, by a look at every run. Of runs of one length that fit it
    /// is the first, of those that are too short the last.
    fn place(set: &RunSet, want: usize) -> Option<usize> {
        let fitting = set.iter().filter(|run| run.len() >= want);
        let best = fitting.min_by_key(Range::len);
        let best = best.or_else(|| set.iter().max_by_key(Range::len));
        best.map(|run| run.start)
    }

    /// The first of `want` slots in phase, by a look at every slot.
    fn place_in_phase(set: &RunSet, want: usize, phase: usize, modulus: usize) -> Option<usize> {
        let in_phase = |slot: &usize| slot % modulus == phase % modulus;
        let fits = |slot: &usize| set.has_all(&(*slot..slot + want));
        set.iter().flatten().filter(in_phase).find(fits)
    }

    proptest! {
        #[test]
        fn it_takes_what_a_look_at_all_finds(
            ops in proptest::collection::vec((0u8..6, 0usize..64, 0usize..12), 1..96),
        ) {
            let mut free = FreeRuns::default();
            let mut model = RunSet::default();
            for (op, at, len) in ops {
                let (taken, start) = match op {
                    0 | 1 => {
                        free.insert(at..at + len);
                        model.insert(at..at + len);
                        (None, None)
                    }
                    2 => (free.take(len), place(&model, len)),
                    3 => (
                        free.take_in_phase(len, at, 8),
                        place_in_phase(&model, len, at, 8).or_else(|| place(&model, len)),
                    ),
                    4 => {
                        let len = len + 1;
                        let start = place_in_phase(&model, len, 0, len);
                        let expected = start.and_then(|start| model.take_at(start, len));
                        prop_assert_eq!(free.take_aligned(len), expected);
                        (None, None)
                    }
                    _ => (free.take_at(at, len), Some(at)),
                };
                let expected = start.and_then(|start| model.take_at(start, len));
                prop_assert_eq!(taken, expected);
                prop_assert_eq!(&free.runs, &model);
                prop_assert_eq!(&free.by_length, &model.iter().map(|run| key(&run)).collect());
                prop_assert_eq!(free.len(), model.len());
                prop_assert_eq!(free.longest(), model.iter().map(|run| run.len()).max().unwrap_or(0));
            }
        }
    }
}
