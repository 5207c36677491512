//! What the engine says of a request, against what was done.

use transhume_engine::{ExchangeReport, Folio, Outcome, PairOutcome, Place, Report};

use crate::machine::{ActorId, Machine};
use crate::platform::{Calls, Tier};

impl Machine {
    /// Compares a report with what its actor has done with each folio.
    pub(crate) fn compare(
        &mut self,
        actor: ActorId,
        named: usize,
        report: &Report<Tier>,
        calls: Calls,
    ) {
        let counted = Calls {
            rounds: report.counts.rounds,
            holds: report.counts.holds,
            putbacks: report.counts.putbacks,
        };
        let told = report.folios().count();
        self.compare_counts(named, told, counted, calls);
        for folio in report.folios() {
            let trail = self.trail(actor, folio.folio);
            let right = match folio.outcome {
                Outcome::Moved => !trail.parked && trail.released == Some(Place::Destination),
                Outcome::Deferred => trail.parked,
                Outcome::AlreadyThere => !trail.parked && trail.released == Some(Place::Source),
                Outcome::Stayed(_) => !trail.parked && trail.released != Some(Place::Destination),
            };
            if !right {
                let (folio, outcome) = (folio.folio, folio.outcome);
                self.violated(format!("{folio:?} is reported as {outcome:?}: {trail:?}"));
            }
        }
    }

    /// The same for pairs that were to trade places.
    pub(crate) fn compare_pairs(
        &mut self,
        actor: ActorId,
        named: usize,
        report: &ExchangeReport,
        calls: Calls,
    ) {
        let counted = Calls {
            rounds: report.counts.rounds,
            holds: 0,
            putbacks: report.counts.putbacks,
        };
        let told = report.pairs().count();
        self.compare_counts(named, told, counted, calls);
        self.all_exchanged &= report.exchanged() == told;
        for pair in report.pairs() {
            let ends = [pair.a, pair.b].map(|folio| self.trail(actor, folio).released);
            let arrived = ends.map(|end| end == Some(Place::Destination));
            let right = match pair.outcome {
                PairOutcome::Exchanged => arrived == [true; 2],
                _ => arrived == [false; 2],
            };
            if !right {
                self.violated(format!("{pair:?} is reported, and they are at {ends:?}"));
            }
        }
    }

    /// As many are told of as were named, and as much is counted as was called.
    fn compare_counts(&mut self, named: usize, told: usize, counted: Calls, calls: Calls) {
        if told != named {
            self.violated(format!("{named} were named and {told} are reported"));
        }
        if counted != calls {
            self.violated(format!("{counted:?} are counted, and there were {calls:?}"));
        }
    }

    fn trail(&self, actor: ActorId, folio: Folio) -> crate::machine::Trail {
        let trail = self.trails.get(&(actor, folio.page()));
        trail.copied().unwrap_or_default()
    }
}
