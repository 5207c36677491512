//! What the engine says of a request, against what was done.

use std::collections::{BTreeMap, BTreeSet};

use transhume_engine::{
    ASYNC_PASSES, Errno, ExchangeReport, Failure, Folio, Mode, Nonsense, Outcome, PairOutcome,
    Place, Report, SYNC_ALONE_PASSES, SYNC_BATCH_PASSES, Settlement, Side, Step, Why,
};

use crate::actor::Actor;
use crate::machine::{ActorId, Machine, Page};
use crate::platform::Tier;

/// What an actor has done for a request, or for pairs that it settles.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    pub(crate) trails: BTreeMap<Page, Trail>,
    pub(crate) calls: Calls,
    /// How many folios, or pairs, were provided for in all batches.
    pub(crate) provided: u64,
    /// How many calls have refused a folio.
    refusals: i32,
    /// Those of them for want of memory.
    ran_out: Vec<Failure>,
}

impl Account {
    fn trail(&self, folio: Folio) -> Trail {
        self.trails.get(&folio.page()).cloned().unwrap_or_default()
    }
}

impl Actor {
    /// Counts a call of the engine's.
    pub(crate) fn count(&self, count: impl FnOnce(&mut Calls)) {
        self.change(|machine| count(&mut machine.account(self.id).calls));
    }

    /// A call refuses a page, by an errno that no other refusal of the actor's has: what is reported is this one or
    /// another.
    pub(crate) fn refuse(&self, page: Page, step: Step, why: Why) -> Failure {
        self.change(|machine| {
            let account = machine.account(self.id);
            account.refusals += 1;
            let failure = Failure::new(step, why).with_errno(Errno::new(account.refusals));
            account.trails.entry(page).or_default().fail(failure);
            if why == Why::NoMemory {
                account.ran_out.push(failure);
            }
            failure
        })
    }
}

/// What was done with a page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trail {
    /// How often its lock was asked for.
    tries: u32,
    /// How often it was given up at its destination, and how often the page was left to the ledger.
    moves: usize,
    parks: usize,
    /// How often it was found at its destination.
    there: usize,
    /// Since the last try: where its owner was told it is, and where its lock was given up.
    attached: Option<Place>,
    pub(crate) released: Option<Place>,
    /// Why it could not go on.
    failed: Option<Failure>,
    /// Why it could not in the tries before.
    failed_before: Vec<Failure>,
}

impl Trail {
    /// The lock is asked for.
    pub(crate) fn begin(&mut self) {
        self.tries += 1;
        (self.attached, self.released) = (None, None);
        self.failed_before.extend(self.failed.take());
    }

    /// The page cannot go on.
    pub(crate) fn fail(&mut self, failure: Failure) {
        self.failed.get_or_insert(failure);
    }

    /// The page is where it is to go.
    pub(crate) fn is_there(&mut self) {
        self.there += 1;
    }

    /// The page is left to the ledger.
    pub(crate) fn park(&mut self) {
        self.parks += 1;
    }

    /// The owner is told that it is there.
    pub(crate) fn attach(&mut self, at: Place) {
        self.attached = Some(at);
    }

    /// The lock is given up; says whether the owner, if one was told, was told the same place.
    pub(crate) fn release(&mut self, at: Place) -> bool {
        self.released = Some(at);
        self.moves += usize::from(at == Place::Destination);
        self.attached.is_none_or(|told| told == at)
    }
}

/// How often the engine called, and what it was answered: what it counts too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    pub(crate) batches: u64,
    pub(crate) rounds: u64,
    pub(crate) holds: u64,
    pub(crate) putbacks: u64,
    pub(crate) copied_by_copier: u64,
    pub(crate) copied_by_cpu: u64,
    pub(crate) declined: u64,
    pub(crate) copy_failures: u64,
    pub(crate) timed_out: u64,
    pub(crate) unconfirmed: u64,
}

impl Calls {
    fn of(counts: &transhume_engine::Counts) -> Self {
        Self {
            batches: counts.batches,
            rounds: counts.rounds,
            holds: counts.holds,
            putbacks: counts.putbacks,
            copied_by_copier: counts.copied_by_copier,
            copied_by_cpu: counts.copied_by_cpu,
            declined: counts.declined,
            copy_failures: counts.copy_failures,
            timed_out: counts.timed_out,
            unconfirmed: counts.unconfirmed,
        }
    }
}

/// The tries that a folio has in one request.
fn passes(mode: Mode) -> u32 {
    match mode {
        Mode::Async => ASYNC_PASSES,
        Mode::Sync => SYNC_BATCH_PASSES + SYNC_ALONE_PASSES,
    }
}

fn is_worth_another_try(why: Why, mode: Mode) -> bool {
    match mode {
        Mode::Async => why.is_transient(),
        Mode::Sync => why.is_curable_by_waiting(),
    }
}

impl Machine {
    /// The account of what the actor is about: pairs to be settled, or its request.
    pub(crate) fn account(&mut self, actor: ActorId) -> &mut Account {
        match self.settling.get_mut(&actor) {
            Some(account) => account,
            None => self.accounts.entry(actor).or_default(),
        }
    }

    /// What it has done with this page.
    pub(crate) fn trail(&mut self, actor: ActorId, page: Page) -> &mut Trail {
        self.account(actor).trails.entry(page).or_default()
    }

    /// Compares a report with what its actor has done with each folio.
    pub(crate) fn compare(
        &mut self,
        actor: ActorId,
        named: usize,
        mode: Mode,
        report: &Report<Tier>,
    ) {
        let account = self.accounts.remove(&actor).unwrap_or_default();
        let (told, stopped) = (report.folios().count(), report.stopped.is_some());
        // What was given up for it may have been enough.
        if let Some(failure) = report.stopped {
            self.expect_it_ran_out(failure, &account);
        }
        self.compare_counts(named, told, Calls::of(&report.counts), account.calls);
        self.compare_retries(named, report.counts.retries, &account, stopped);
        let mut outcomes: BTreeMap<Folio, Vec<Outcome>> = BTreeMap::new();
        for folio in report.folios() {
            outcomes.entry(folio.folio).or_default().push(folio.outcome);
        }
        for (folio, outcomes) in outcomes {
            let trail = account.trail(folio);
            let count = |what| outcomes.iter().filter(|outcome| **outcome == what).count();
            let deferred = count(Outcome::Deferred);
            let right = trail.moves == count(Outcome::Moved)
                && match outcomes.as_slice() {
                    [outcome] => trail.parks == deferred && trail.fits(*outcome, mode, stopped),
                    // What arrives under one of its names has not stayed under another, and need not
                    // have been locked for it.
                    several => {
                        let stayed = |outcome: &Outcome| matches!(outcome, Outcome::Stayed(_));
                        let there = count(Outcome::AlreadyThere) > 0;
                        trail.parks <= deferred
                            && (trail.parks > 0) == (deferred > 0)
                            && (!there || trail.there + trail.moves > 0)
                            && (several.iter().all(stayed) || !several.iter().any(stayed))
                    }
                };
            if !right {
                self.violated(format!("{folio:?} is reported as {outcomes:?}: {trail:?}"));
            }
        }
    }

    /// The same for pairs that were to trade places.
    pub(crate) fn compare_pairs(&mut self, actor: ActorId, named: usize, report: &ExchangeReport) {
        let account = self.accounts.remove(&actor).unwrap_or_default();
        let counts = report.counts;
        let counted = Calls {
            batches: counts.batches,
            rounds: counts.rounds,
            putbacks: counts.putbacks,
            copied_by_copier: counts.swapped_by_swapper,
            copied_by_cpu: counts.swapped_by_cpu,
            unconfirmed: counts.untouched,
            ..Calls::default()
        };
        let told = report.pairs().count();
        self.compare_counts(named, told, counted, account.calls);
        match report.stopped {
            Some(failure) => self.expect_it_ran_out(failure, &account),
            None if account.ran_out.is_empty() => {}
            None => self.violated("memory ran out, and the exchange goes on".to_owned()),
        }
        self.all_exchanged &= report.exchanged() == told;
        let mut before: BTreeSet<Page> = BTreeSet::new();
        let mut sensible = 0;
        for pair in report.pairs() {
            let both = [pair.a, pair.b];
            let pages = both.map(|folio| folio.page()..folio.page() + folio.base_pages());
            let nonsense = if pair.a == pair.b {
                Some(Nonsense::WithItself)
            } else if pair.a.order() != pair.b.order() {
                Some(Nonsense::UnequalOrders)
            } else if pages
                .iter()
                .cloned()
                .flatten()
                .any(|page| before.contains(&page))
            {
                Some(Nonsense::NamedTwice)
            } else {
                before.extend(pages.into_iter().flatten());
                sensible += 1;
                None
            };
            let trails = both.map(|folio| account.trail(folio));
            let arrived = trails.each_ref().map(|trail| trail.moves == 1);
            let right = match (pair.outcome, nonsense) {
                (PairOutcome::Refused(refused), Some(nonsense)) => refused == nonsense,
                (PairOutcome::Refused(_), None) | (_, Some(_)) => false,
                (PairOutcome::Exchanged, None) => arrived == [true; 2],
                (PairOutcome::SameTier, None) => arrived == [false; 2],
                (PairOutcome::Stayed(failure, side), None) => {
                    let failed = trails.each_ref().map(|trail| trail.failed == Some(failure));
                    let told = match (failure.why, failure.step) {
                        (Why::NotTried, _) => report.stopped.is_some(),
                        _ => failed[usize::from(side == Side::B)],
                    };
                    arrived == [false; 2] && told
                }
            };
            if !right {
                self.violated(format!("{pair:?} is reported: {trails:?}"));
            }
        }
        self.compare_retries(sensible, counts.retries, &account, report.stopped.is_some());
    }

    /// The same for pairs that were settled.
    pub(crate) fn compare_settled(
        &mut self,
        actor: ActorId,
        named: &[Folio],
        settled: &Settlement,
    ) {
        let account = self.settling.get(&actor).cloned().unwrap_or_default();
        let mut told: Vec<Folio> = settled.outcomes.iter().map(|(folio, _)| *folio).collect();
        told.sort_unstable();
        if told != named {
            self.violated(format!("{named:?} were settled and {told:?} told of"));
        }
        let counted = Calls::of(&settled.counts);
        self.compare_counts(named.len(), told.len(), counted, account.calls);
        let out_of_memory = settled.outcomes.iter().any(|(_, outcome)| {
            matches!(outcome, Outcome::Stayed(failure) if failure.why == Why::NoMemory)
        });
        for (folio, outcome) in &settled.outcomes {
            let trail = account.trail(*folio);
            let right = match outcome {
                Outcome::Moved => trail.released == Some(Place::Destination),
                Outcome::Stayed(failure) => {
                    let told = match failure.why {
                        Why::NotTried => out_of_memory,
                        _ => trail.failed == Some(*failure),
                    };
                    trail.released == Some(Place::Source) && told
                }
                Outcome::AlreadyThere | Outcome::Deferred => false,
            };
            if !right {
                self.violated(format!("{folio:?} is settled as {outcome:?}: {trail:?}"));
            }
        }
    }

    /// A request has stopped because a call said that there is no memory.
    fn expect_it_ran_out(&mut self, stopped: Failure, account: &Account) {
        if !account.ran_out.contains(&stopped) {
            self.violated(format!("stopped by {stopped}, which no call has said"));
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

    /// What is provided for beyond the first time is tried again.
    fn compare_retries(&mut self, named: usize, retries: u64, account: &Account, stopped: bool) {
        let again = account.provided.checked_sub(named as u64);
        if !stopped && again != Some(retries) {
            let provided = account.provided;
            self.violated(format!(
                "{retries} are tried again, and {provided} of {named} were provided for"
            ));
        }
    }
}

impl Trail {
    /// Whether that can be said of a folio that was named once.
    fn fits(&self, outcome: Outcome, mode: Mode, stopped: bool) -> bool {
        let out_of_memory = |why| matches!(why, Why::NoMemory | Why::NotTried);
        let tried_again = self
            .failed_before
            .iter()
            .all(|failure| is_worth_another_try(failure.why, mode) || out_of_memory(failure.why));
        if !tried_again || self.tries > passes(mode) {
            return false;
        }
        match outcome {
            Outcome::Moved => self.released == Some(Place::Destination),
            Outcome::Deferred => true,
            Outcome::AlreadyThere => self.released == Some(Place::Source) && self.there == 1,
            Outcome::Stayed(failure) if failure.why == Why::NotTried => {
                // Or memory ran out for another, and then passes did.
                stopped || self.tries == passes(mode)
            }
            Outcome::Stayed(failure) => {
                // Where memory ran out either the request ends, or what could be given up for it was.
                let given_up =
                    !is_worth_another_try(failure.why, mode) && failure.why != Why::NoMemory;
                self.failed == Some(failure) && (given_up || stopped || self.tries == passes(mode))
            }
        }
    }
}
