//! Checking a case: order after order, until one violates something or there is none left.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use shuttle::{Config, FailurePersistence, Runner, thread};

use crate::actor::{Actor, Chooser, Run, STAGE, Shared, locked, titles};
use crate::bug::Bug;
use crate::case::Case;
use crate::explore::{Decisions, Exhaustive, Guide, Random, Recorded, Replay, Strategy};
use crate::oracle::judge;
use crate::seed::{Seed, Written};
use crate::setup::Setup;
use crate::timeline::Timeline;

/// Which orders of a case are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orders {
    /// All of the small scene, but for those that only exchange steps which do not touch the same
    /// things.
    Exhaustive,
    /// So many of the large scene, by chance, from this seed on.
    Random {
        /// The seed of the first; the others follow.
        seed: u64,
        /// How many.
        count: u64,
    },
}

/// Something that must not happen, and how it came about.
#[derive(Clone, Debug)]
pub struct Violation {
    /// What.
    pub what: String,
    /// The order in which it happens.
    pub seed: Seed,
    /// That order, step by step.
    pub timeline: Timeline,
}

/// What was found out.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Orders that were run to their end.
    pub orders: u64,
    /// Orders that were given up half-way because what followed had been tried.
    pub given_up: u64,
    /// Whether there was none left to try, where that was wanted.
    pub complete: bool,
    /// What was violated, if anything was.
    pub violation: Option<Violation>,
}

/// How far a check has come, for others to see, and by which they can end it.
#[derive(Debug, Default)]
pub struct Progress {
    orders: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Orders that were run to their end.
    pub fn orders(&self) -> u64 {
        self.orders.load(Ordering::Relaxed)
    }

    /// Ends the check after the order under way.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Checks a case with the machine as it should be, or with a bug in it.
pub fn check(case: &Case, bug: Option<Bug>, orders: Orders, progress: &Arc<Progress>) -> Verdict {
    match orders {
        Orders::Exhaustive => {
            let setup = (case.small)();
            let strategy = recorded(Exhaustive::default());
            let tally = explore(setup.clone(), bug, &strategy, progress);
            let strategy = locked(&strategy);
            let decisions = strategy.decisions.clone();
            let seed = Seed::Decisions(Written(decisions.clone()));
            let mut verdict = verdict(tally, decisions, &setup, bug, seed);
            verdict.complete &= !strategy.inner.diverged;
            verdict
        }
        Orders::Random { seed, count } => {
            let setup = (case.large)();
            let strategy = recorded(Random::new(seed, count, length(&setup)));
            let tally = explore(setup.clone(), bug, &strategy, progress);
            let strategy = locked(&strategy);
            let seed = Seed::Number(strategy.inner.seed());
            verdict(tally, strategy.decisions.clone(), &setup, bug, seed)
        }
    }
}

fn recorded<S: Strategy>(strategy: S) -> Arc<Mutex<Recorded<S>>> {
    Arc::new(Mutex::new(Recorded::new(strategy)))
}

/// These are the decisions of another scene, or of this one before the program was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the seed does not fit this scene: its decision {decision} of {of} cannot be made there")]
pub struct NoFit {
    /// The first that does not fit, from 1 on.
    decision: usize,
    of: usize,
}

/// Runs one order again: what is violated in it, if anything is, and its steps. Beyond what the seed decides, whoever
/// is first goes first.
///
/// # Errors
/// The seed has decisions that do not fit. A number always fits: it is of the order that chance gives from it now.
pub fn replay(
    case: &Case,
    bug: Option<Bug>,
    seed: &Seed,
) -> Result<(Option<String>, Timeline), NoFit> {
    let (setup, decisions) = match seed {
        Seed::Decisions(Written(decisions)) => ((case.small)(), decisions.clone()),
        Seed::Number(number) => {
            let setup = (case.large)();
            let strategy = recorded(Random::new(*number, 1, length(&setup)));
            explore(setup.clone(), bug, &strategy, &Arc::default());
            let decisions = locked(&strategy).decisions.clone();
            (setup, decisions)
        }
    };
    let of = decisions.len();
    let seen = watch(&setup, bug, decisions);
    match seen.misfit {
        Some(at) => Err(NoFit {
            decision: at + 1,
            of,
        }),
        None => Ok((seen.violation, seen.timeline)),
    }
}

/// How many steps the scene has, about: in the order in which whoever is first goes first.
fn length(setup: &Setup) -> u64 {
    watch(setup, None, Decisions::new()).steps
}

/// What is seen of one order.
struct Seen {
    violation: Option<String>,
    timeline: Timeline,
    /// How many there are, also those that a timeline does not tell of.
    steps: u64,
    /// The first decision that does not fit, by its index.
    misfit: Option<usize>,
}

/// Runs one order and sees what happens.
fn watch(setup: &Setup, bug: Option<Bug>, decisions: Decisions) -> Seen {
    let tally = Arc::new(Mutex::new(Tally {
        watched: true,
        ..Tally::default()
    }));
    let strategy = Arc::new(Mutex::new(Replay::new(decisions)));
    run(setup.clone(), bug, &strategy, &tally, &Arc::default());
    let tally = std::mem::take(&mut *locked(&tally));
    let events = tally.timeline.unwrap_or_default();
    Seen {
        // A violation ends a run before its end.
        misfit: locked(&strategy).misfit(tally.violation.is_none()),
        violation: tally.violation,
        steps: events.len() as u64,
        timeline: Timeline::new(&titles(&setup.all_roles()), events),
    }
}

fn verdict(
    tally: Tally,
    decisions: Decisions,
    setup: &Setup,
    bug: Option<Bug>,
    seed: Seed,
) -> Verdict {
    let violation = tally.violation.map(|what| Violation {
        what,
        seed,
        timeline: watch(setup, bug, decisions).timeline,
    });
    Verdict {
        orders: tally.orders,
        given_up: tally.given_up,
        complete: !tally.stopped && violation.is_none(),
        violation,
    }
}

/// What came of the orders so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) orders: u64,
    pub(crate) given_up: u64,
    pub(crate) violation: Option<String>,
    stopped: bool,
    watched: bool,
    timeline: Option<Vec<crate::actor::Event>>,
    /// What programs read and where everything was in the end, of each order, to test the search.
    pub(crate) ends: Option<std::collections::BTreeSet<String>>,
}

#[cfg(test)]
impl Tally {
    /// One that keeps the ends of all orders.
    pub(crate) fn of_ends() -> Self {
        Self {
            ends: Some(std::collections::BTreeSet::new()),
            ..Self::default()
        }
    }
}

pub(crate) fn explore<S: Strategy + 'static>(
    setup: Setup,
    bug: Option<Bug>,
    strategy: &Arc<Mutex<S>>,
    progress: &Arc<Progress>,
) -> Tally {
    let tally = Arc::default();
    run(setup, bug, strategy, &tally, progress);
    std::mem::take(&mut *locked(&tally))
}

/// Ends when there is nothing left to try.
#[derive(Debug)]
struct Until<S> {
    strategy: Arc<Mutex<S>>,
    tally: Arc<Mutex<Tally>>,
    progress: Arc<Progress>,
}

impl<S: Strategy> Strategy for Until<S> {
    fn begin(&mut self) -> bool {
        let mut tally = locked(&self.tally);
        if tally.violation.is_some() {
            return false;
        }
        if self.progress.stop.load(Ordering::Relaxed) {
            tally.stopped = true;
            return false;
        }
        drop(tally);
        locked(&self.strategy).begin()
    }

    fn pick(&mut self, ready: &[crate::explore::Ready]) -> Option<usize> {
        locked(&self.strategy).pick(ready)
    }

    fn choose(&mut self, count: u32) -> u32 {
        locked(&self.strategy).choose(count)
    }
}

pub(crate) fn run<S: Strategy + 'static>(
    setup: Setup,
    bug: Option<Bug>,
    strategy: &Arc<Mutex<S>>,
    tally: &Arc<Mutex<Tally>>,
    progress: &Arc<Progress>,
) {
    let chooser: Chooser = Arc::new(Mutex::new(Until {
        strategy: Arc::clone(strategy),
        tally: Arc::clone(tally),
        progress: Arc::clone(progress),
    }));
    let stage: Arc<Mutex<Option<Shared>>> = Arc::default();
    let guide = Guide {
        chooser: Arc::clone(&chooser),
        stage: Arc::clone(&stage),
    };
    let mut config = Config::new();
    config.stack_size = 0x4_0000;
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    let tally = Arc::clone(tally);
    let progress = Arc::clone(progress);
    Runner::new(guide, config).run(move || {
        let roles = setup.all_roles();
        let serves: Vec<bool> = roles.iter().map(crate::roles::Role::serves).collect();
        let watched = locked(&tally).watched;
        let run: Shared = Arc::new(Mutex::new(Run::new(setup.machine(bug), &roles, watched)));
        *locked(&stage) = Some(Arc::clone(&run));
        let actor = |id| Actor {
            run: Arc::clone(&run),
            chooser: Arc::clone(&chooser),
            id,
        };
        let tasks: Vec<_> = (1..)
            .zip(roles)
            .map(|(id, role)| {
                let actor = actor(id);
                thread::spawn(move || role.act(&actor))
            })
            .collect();
        let (serving, working): (Vec<_>, Vec<_>) = tasks
            .into_iter()
            .zip(&serves)
            .partition(|(_, serves)| **serves);
        for (task, _) in working {
            let _ = task.join();
        }
        let of_stage = actor(STAGE);
        if !of_stage.is_over() {
            judge(&of_stage, setup.moves_all);
        }
        locked(&run).over = true;
        for (task, _) in serving {
            let _ = task.join();
        }
        let mut run = locked(&run);
        let mut tally = locked(&tally);
        tally.timeline = run.timeline.take();
        if run.pruned {
            tally.given_up += 1;
            return;
        }
        tally.orders += 1;
        progress.orders.fetch_add(1, Ordering::Relaxed);
        tally.violation = run.machine.violation.take();
        if let Some(ends) = &mut tally.ends {
            ends.insert(run.machine.end());
        }
    });
}
