//! What became of each pair.

use alloc::vec::Vec;

use crate::batch::Side;
use crate::failure::Failure;
use crate::folio::Folio;
use crate::migrate::Reason;
use crate::report::{Counts, Times};

/// What became of one pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PairOutcome {
    /// Each is where the other was.
    Exchanged,
    /// Both are in the same tier: there was nothing to do.
    SameTier,
    /// Both are where they were, because of this failure of this one.
    Stayed(Failure, Side),
    /// It was not tried: the request makes no sense for it.
    Refused(Nonsense),
}

/// Why no exchange of a pair can be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Nonsense {
    /// A folio was to trade places with itself.
    WithItself,
    /// The two have different sizes.
    UnequalOrders,
    /// One of them, or a part of it, is in a pair before this one.
    NamedTwice,
}

impl core::fmt::Display for Nonsense {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::WithItself => "a folio cannot trade places with itself",
            Self::UnequalOrders => "folios of different sizes cannot trade places",
            Self::NamedTwice => "a folio is named in a pair before",
        })
    }
}

impl core::fmt::Display for PairOutcome {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Exchanged => f.write_str("exchanged"),
            Self::SameTier => f.write_str("both are in the same tier"),
            Self::Stayed(failure, Side::A) => write!(f, "the first: {failure}"),
            Self::Stayed(failure, Side::B) => write!(f, "the second: {failure}"),
            Self::Refused(nonsense) => nonsense.fmt(f),
        }
    }
}

/// One pair of an [`ExchangeReport`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairReport {
    /// The folio of the first list.
    pub a: Folio,
    /// The folio of the second.
    pub b: Folio,
    /// What became of them.
    pub outcome: PairOutcome,
}

/// What was counted while an exchange was served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExchangeCounts {
    /// Batches that were opened.
    pub batches: u64,
    /// Shootdowns that the engine asked the platform for: at most one a batch. What the machine
    /// really did is [`ExchangeReport::shootdowns`].
    pub rounds: u64,
    /// Pairs tried again in a later pass.
    pub retries: u64,
    /// Folios put back after a step failed for them or for their partners.
    pub putbacks: u64,
    /// Pairs that the swapper swapped.
    pub swapped_by_swapper: u64,
    /// Pairs that the CPU swapped in the remap step.
    pub swapped_by_cpu: u64,
    /// Jobs that the swapper left untouched.
    pub untouched: u64,
}

impl ExchangeCounts {
    pub(super) const fn of(counts: &Counts) -> Self {
        Self {
            batches: counts.batches,
            rounds: counts.rounds,
            retries: counts.retries,
            putbacks: counts.putbacks,
            swapped_by_swapper: counts.copied_by_copier,
            swapped_by_cpu: counts.copied_by_cpu,
            untouched: counts.unconfirmed,
        }
    }
}

/// What became of an exchange: one outcome a pair.
#[derive(Clone, Debug)]
pub struct ExchangeReport {
    /// Why it was made.
    pub reason: Reason,
    /// What was counted.
    pub counts: ExchangeCounts,
    /// Shootdowns by the machine's own counter, or `None` where the platform has none.
    pub shootdowns: Option<u64>,
    /// How long it took; `copy` is the swapping, `first_folio` the first batch.
    pub times: Times,
    /// Why the request ended before every pair had been tried, if it did.
    pub stopped: Option<Failure>,
    pub(super) pairs: Vec<(Folio, Folio)>,
    pub(super) outcomes: Vec<PairOutcome>,
}

impl ExchangeReport {
    /// What became of each pair, in the order of the request.
    pub fn pairs(&self) -> impl ExactSizeIterator<Item = PairReport> + '_ {
        let pairs = self.pairs.iter().zip(&self.outcomes);
        pairs.map(|(&(a, b), &outcome)| PairReport { a, b, outcome })
    }

    /// How many pairs have traded places.
    #[must_use]
    pub fn exchanged(&self) -> usize {
        let exchanged = |&&outcome: &&PairOutcome| outcome == PairOutcome::Exchanged;
        self.outcomes.iter().filter(exchanged).count()
    }

    /// The pairs that were to trade places and did not: those that stayed and those that were
    /// refused.
    pub fn stayed(&self) -> impl Iterator<Item = PairReport> + '_ {
        self.pairs().filter(|pair| {
            matches!(
                pair.outcome,
                PairOutcome::Stayed(..) | PairOutcome::Refused(_)
            )
        })
    }

    /// Whether every pair has traded places or had nothing to gain.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.stayed().next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::failure::{Step, Why};

    #[test]
    fn outcomes_say_what_became_of_a_pair() {
        let failure = Failure::new(Step::Unmap, Why::Pinned);
        let said = [
            (PairOutcome::Exchanged, "exchanged"),
            (PairOutcome::SameTier, "both are in the same tier"),
            (
                PairOutcome::Stayed(failure, Side::A),
                "the first: pinned at Unmap",
            ),
            (
                PairOutcome::Stayed(failure, Side::B),
                "the second: pinned at Unmap",
            ),
            (
                PairOutcome::Refused(Nonsense::WithItself),
                "a folio cannot trade places with itself",
            ),
            (
                PairOutcome::Refused(Nonsense::UnequalOrders),
                "folios of different sizes cannot trade places",
            ),
            (
                PairOutcome::Refused(Nonsense::NamedTwice),
                "a folio is named in a pair before",
            ),
        ];
        for (outcome, expected) in said {
            assert_eq!(outcome.to_string(), expected);
        }
    }
}
