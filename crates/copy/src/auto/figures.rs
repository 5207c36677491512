//! What was measured, and what follows from it.

use super::candidate::Candidate;
use super::shape::{COUNT, SHAPES};

/// Whatever is this little slower than the best is as good, in thousandths: a change of the machine's
/// mood is more, and so is what threads cost an application that is not there while they are measured.
const LEAST_TIE: u64 = 30;
/// What is slower than this is worse, however uncertain the figures are.
const MOST_TIE: u64 = 45;

/// How long one list takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Figure {
    /// The lower quartile, in nanoseconds: whatever else the machine does only adds to a time, and of
    /// lists of milliseconds it can disturb more than half.
    pub(super) nanos: u64,
    /// How far off that may be, in nanoseconds.
    pub(super) doubt: u64,
}

impl Figure {
    /// Of times in nanoseconds, in any order. `None` of none.
    pub(super) fn of(times: &mut [u64]) -> Option<Self> {
        times.sort_unstable();
        let at = |share: usize| times.get(times.len() * share / 4).copied();
        let between = at(2)?.saturating_sub(at(0)?);
        // The error of a quartile is near the distance of its neighbours by the root of the number.
        let root = u64::try_from(times.len().isqrt().max(1)).unwrap_or(u64::MAX);
        Some(Self {
            nanos: at(1)?,
            doubt: between / root,
        })
    }
}

/// From which node to which. Copies whose nodes nobody knows have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodePair {
    /// Of the sources.
    pub from: u32,
    /// Of the destinations.
    pub to: u32,
}

/// The figures of one pair of nodes: for each shape one for each candidate that copies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OfPair {
    pub(super) pair: Option<NodePair>,
    pub(super) figures: [Vec<Option<Figure>>; COUNT],
}

impl OfPair {
    pub(super) fn empty(pair: Option<NodePair>, candidates: usize) -> Self {
        Self {
            pair,
            figures: std::array::from_fn(|_| vec![None; candidates]),
        }
    }

    /// Whether each shape can be copied by somebody.
    pub(super) fn is_whole(&self) -> bool {
        let by_somebody = |figures: &Vec<Option<Figure>>| figures.iter().any(Option::is_some);
        self.figures.iter().all(by_somebody)
    }
}

/// All figures of this machine. The first pair is that of nobody knows which nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) candidates: Vec<Candidate>,
    pub(super) pairs: Vec<OfPair>,
}

impl Figures {
    /// Which candidate copies each shape for each pair, among those that `can` be had. `None` where
    /// nobody can copy a shape.
    pub(super) fn choose(&self, can: impl Fn(usize) -> bool) -> Option<Vec<[usize; COUNT]>> {
        let of_pair = |pair: &OfPair| {
            let mut chosen = [0; COUNT];
            for (place, figures) in chosen.iter_mut().zip(&pair.figures) {
                *place = preferred(figures, &can)?;
            }
            Some(chosen)
        };
        self.pairs.iter().map(of_pair).collect()
    }

    /// Each choice as one entry.
    pub(super) fn entries(&self, chosen: &[[usize; COUNT]]) -> Vec<super::Entry> {
        let pairs = self.pairs.iter().zip(chosen);
        let of_pair = |(of_pair, chosen): (&OfPair, &[usize; COUNT])| {
            let shapes = SHAPES.iter().zip(chosen);
            let entry = |(&shape, &candidate): (_, &usize)| {
                let candidate = self.candidates.get(candidate);
                super::Entry {
                    nodes: of_pair.pair,
                    shape,
                    copier: candidate.map_or_else(String::new, |one| one.name.clone()),
                }
            };
            shapes.map(entry).collect::<Vec<_>>()
        };
        pairs.flat_map(of_pair).collect()
    }
}

/// The simplest that is not slower than the fastest, as far as the figures tell.
fn preferred(figures: &[Option<Figure>], can: impl Fn(usize) -> bool) -> Option<usize> {
    let known = || {
        let known = figures.iter().enumerate();
        known.filter_map(|(index, figure)| Some((index, (*figure)?)).filter(|_| can(index)))
    };
    let (_, best) = known().min_by_key(|(_, figure)| figure.nanos)?;
    let thousandths =
        |share: u64| (best.nanos / 1000).saturating_mul(share) + best.nanos % 1000 * share / 1000;
    let tie = best
        .doubt
        .clamp(thousandths(LEAST_TIE), thousandths(MOST_TIE));
    let limit = best.nanos.saturating_add(tie);
    known()
        .find(|(_, figure)| figure.nanos <= limit)
        .map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn figure(nanos: u64, doubt: u64) -> Option<Figure> {
        Some(Figure { nanos, doubt })
    }

    #[test]
    fn figures_are_lower_quartiles() {
        assert_eq!(Figure::of(&mut []), None);
        assert_eq!(Figure::of(&mut [7]), figure(7, 0));
        let mut times = [9, 1, 5, 1000, 3, 7, 11, 2, 4];
        assert_eq!(Figure::of(&mut times), figure(3, (5 - 1) / 3));
    }

    #[test]
    fn ties_go_to_the_simpler() {
        let any = |_| true;
        let tie = [figure(1025, 0), figure(1000, 0), figure(1012, 0)];
        assert_eq!(preferred(&tie, any), Some(0));
        let apart = [figure(1040, 0), figure(1000, 0)];
        assert_eq!(preferred(&apart, any), Some(1), "they are certain");
        let doubtful = [figure(1040, 0), figure(1000, 500)];
        assert_eq!(preferred(&doubtful, any), Some(0));
        let far = [figure(1050, 900), figure(1000, 900)];
        assert_eq!(preferred(&far, any), Some(1), "doubt has its limit");
        let none = [None, figure(1000, 0), figure(900, 0)];
        assert_eq!(preferred(&none, |one| one != 2), Some(1));
        assert_eq!(preferred(&none, |one| one == 0), None);
    }

    proptest! {
        #[test]
        fn what_is_chosen_is_near_the_best_and_the_simplest_that_is(
            figures in proptest::collection::vec(
                proptest::option::weighted(0.8, (1..u64::MAX / 2, any::<u64>())),
                0..12,
            ),
            near in proptest::collection::vec((950..1100_u64, 0..100_u64), 0..12),
        ) {
            let figures = figures
                .into_iter()
                .map(|it| it.map(|(nanos, doubt)| Figure { nanos, doubt }))
                .chain(near.into_iter().map(|(nanos, doubt)| figure(nanos, doubt)))
                .collect::<Vec<_>>();
            let known = figures.iter().flatten();
            let best = known.map(|figure| figure.nanos).min();
            let chosen = preferred(&figures, |_| true);
            prop_assert_eq!(chosen.is_some(), best.is_some());
            if let (Some(chosen), Some(best)) = (chosen, best) {
                let nanos = u128::from(figures[chosen].unwrap().nanos);
                prop_assert!(nanos * 100 <= u128::from(best) * 105);
                for simpler in figures[..chosen].iter().flatten() {
                    prop_assert!(u128::from(simpler.nanos) * 1000 > u128::from(best) * 1030 - 1000);
                    prop_assert!(simpler.nanos > best);
                }
            }
        }
    }
}
