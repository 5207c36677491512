//! What became of each folio, and what it took.

use alloc::vec::Vec;
use core::time::Duration;

use crate::copier::CopyAnswer;
use crate::failure::Failure;
use crate::folio::Folio;
use crate::migrate::Reason;
use crate::platform::Platform;

/// What became of one folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is at the destination now.
    Moved,
    /// It was at the destination before.
    AlreadyThere,
    /// Its contents are at the destination too, and readers go on at the source until its pair
    /// [settles](crate::settle).
    Deferred,
    /// It is where it was, for this reason.
    Stayed(Failure),
}

/// One folio of a [`Report`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolioReport<T> {
    /// Which folio.
    pub folio: Folio,
    /// Where it was asked to go; it is there unless it stayed.
    pub to: T,
    /// What became of it.
    pub outcome: Outcome,
}

/// What was counted while a request was served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Batches that were opened.
    pub batches: u64,
    /// Shootdowns that the engine asked the platform for: at most one a batch. What the machine
    /// really did is [`Report::shootdowns`].
    pub rounds: u64,
    /// Shootdowns that the engine asked for to hold stores off, one a batch of pairs at most.
    pub holds: u64,
    /// Folios tried again in a later pass.
    pub retries: u64,
    /// Folios put back after a step failed.
    pub putbacks: u64,
    /// Folios whose copy the copier confirmed.
    pub copied_by_copier: u64,
    /// Folios that the CPU copied in the remap step, because nothing had confirmed their copy.
    pub copied_by_cpu: u64,
    /// Jobs that the copier declined.
    pub declined: u64,
    /// Jobs that the copier tried and failed.
    pub copy_failures: u64,
    /// Jobs that were not done by the copier's deadline.
    pub timed_out: u64,
    /// Jobs that the copier left without an answer.
    pub unconfirmed: u64,
}

/// Huge pages that came into being or ended on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reshaped {
    /// Huge pages that arrived where base pages had left.
    pub collapsed: u64,
    /// Huge pages that left and arrived as base pages.
    pub split: u64,
}

impl Counts {
    pub(crate) const fn add(&mut self, more: &Self) {
        self.batches += more.batches;
        self.rounds += more.rounds;
        self.holds += more.holds;
        self.retries += more.retries;
        self.putbacks += more.putbacks;
        self.copied_by_copier += more.copied_by_copier;
        self.copied_by_cpu += more.copied_by_cpu;
        self.declined += more.declined;
        self.copy_failures += more.copy_failures;
        self.timed_out += more.timed_out;
        self.unconfirmed += more.unconfirmed;
    }

    pub(crate) fn count_answer(&mut self, answer: CopyAnswer) {
        match answer {
            CopyAnswer::Copied => self.copied_by_copier += 1,
            CopyAnswer::Declined => self.declined += 1,
            CopyAnswer::Failed => self.copy_failures += 1,
            CopyAnswer::TimedOut => self.timed_out += 1,
            CopyAnswer::Unconfirmed => self.unconfirmed += 1,
        }
    }
}

/// How long things took, by the platform's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// The whole request.
    pub total: Duration,
    /// From the beginning until the first batch was reachable at its destination, if one was.
    pub first_folio: Option<Duration>,
    /// The longest time that a batch was cut off: no access had to wait longer for its folio, save
    /// for the time until its thread was scheduled again.
    pub longest_cut_off: Duration,
    /// All copying together.
    pub copy: Duration,
}

/// When something began, by the platform's clock and by the machine's shootdowns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began {
    at: Duration,
    shootdowns: Option<u64>,
}

impl Began {
    pub(crate) fn now(platform: &impl Platform) -> Self {
        Self {
            at: platform.now(),
            shootdowns: platform.shootdowns(),
        }
    }

    /// Fills in how long it took until now, and until its first folio; says how many shootdowns there
    /// were meanwhile.
    pub(crate) fn measure(
        self,
        platform: &impl Platform,
        times: &mut Times,
        first_folio: Option<Duration>,
    ) -> Option<u64> {
        times.total = platform.now().saturating_sub(self.at);
        times.first_folio = first_folio.map(|at| at.saturating_sub(self.at));
        let (before, after) = (self.shootdowns?, platform.shootdowns()?);
        Some(after.saturating_sub(before))
    }
}

/// What became of a request: one outcome a folio, never more, never fewer.
#[derive(Clone, Debug)]
pub struct Report<T> {
    /// Where the folios were to go.
    pub to: T,
    /// Why they were.
    pub reason: Reason,
    /// What was counted.
    pub counts: Counts,
    /// Huge pages made and split on the way.
    pub reshaped: Reshaped,
    /// Shootdowns by the machine's own counter, or `None` where the platform has none.
    pub shootdowns: Option<u64>,
    /// How long it took.
    pub times: Times,
    /// Why the request ended before every folio had been tried, if it did.
    pub stopped: Option<Failure>,
    pub(crate) folios: Vec<Folio>,
    pub(crate) outcomes: Vec<Outcome>,
}

impl<T: Copy> Report<T> {
    /// What became of each folio, in the order of the request.
    pub fn folios(&self) -> impl ExactSizeIterator<Item = FolioReport<T>> + '_ {
        self.folios
            .iter()
            .zip(&self.outcomes)
            .map(|(&folio, &outcome)| FolioReport {
                folio,
                to: self.to,
                outcome,
            })
    }

    /// How many folios moved.
    #[must_use]
    pub fn moved(&self) -> usize {
        self.count(Outcome::Moved)
    }

    /// How many folios were there already.
    #[must_use]
    pub fn already_there(&self) -> usize {
        self.count(Outcome::AlreadyThere)
    }

    /// How many folios wait for their switch.
    #[must_use]
    pub fn deferred(&self) -> usize {
        self.count(Outcome::Deferred)
    }

    fn count(&self, outcome: Outcome) -> usize {
        let alike = |other: &&Outcome| **other == outcome;
        self.outcomes.iter().filter(alike).count()
    }

    /// The folios that stayed, and why.
    pub fn stayed(&self) -> impl Iterator<Item = (Folio, Failure)> + '_ {
        self.folios
            .iter()
            .zip(&self.outcomes)
            .filter_map(|(&folio, &outcome)| match outcome {
                Outcome::Stayed(failure) => Some((folio, failure)),
                Outcome::Moved | Outcome::AlreadyThere | Outcome::Deferred => None,
            })
    }

    /// Whether no folio stayed: each is at the destination now, or is to be there when it settles.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.stayed().next().is_none()
    }
}
