//! A request from beginning to end: planning, rounds, children, the report.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use transhume_engine::{Failure, Step, Why};

use crate::account::{Account, Amount, Stayed};
use crate::crew::{Crew, Done};
use crate::pace::Throttle;
use crate::plan::{Plan, PlanError};
use crate::progress::Progress;
use crate::request::Request;
use crate::target::{Target, TargetError};

/// How often the memory of a process is gone through, if more of it appears where it leaves.
const ROUNDS: u32 = 4;

/// What became of the memory of one process.
#[derive(Debug)]
pub struct ProcessReport {
    /// Its number.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// How many bytes were to move when it was first looked at.
    pub planned: u64,
    /// What was done.
    pub account: Account,
    /// How much of what was selected was on which node before, in bytes.
    pub before: BTreeMap<u32, u64>,
    /// And afterwards; `None` if it has ended.
    pub after: Option<BTreeMap<u32, u64>>,
    /// How many bytes are still where they were to leave, by the kernel's count. All of them are in
    /// the account, as having stayed or arrived.
    pub left: u64,
    /// How many of them appeared there during the move, as memory does that the process allocates.
    pub arrived: u64,
    /// Shootdowns that the workers asked for, by `tlb:tlb_flush`; `None` where they cannot be
    /// counted, or were not to be.
    pub shootdowns: Option<u64>,
    /// Whether it ended before everything had moved.
    pub ended: bool,
    /// Why it could not be looked at, if it could not.
    pub error: Option<PlanError>,
}

impl ProcessReport {
    /// Whether nothing is left where it was to leave.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.left == 0 && !self.ended && self.error.is_none() && self.account.stayed.is_empty()
    }
}

/// Why a move ended before everything had its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was asked to ([`Progress::stop`]).
    Asked,
    /// A destination takes no more.
    Closed {
        /// The node.
        node: u32,
        /// Why.
        failure: Failure,
    },
}

/// What became of a request.
#[derive(Debug)]
pub struct Report {
    /// Each process, in the order in which they were gone through.
    pub processes: Vec<ProcessReport>,
    /// How long it took.
    pub elapsed: Duration,
    /// Why it ended early, if it did.
    pub stopped: Option<Stop>,
    /// Children that were to be moved too and cannot be looked into.
    pub left_out: Vec<TargetError>,
}

impl Report {
    /// Whether everything is where it was to go.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.left_out.is_empty() && self.processes.iter().all(ProcessReport::is_complete)
    }

    /// What was done to all processes together.
    #[must_use]
    pub fn account(&self) -> Account {
        let mut all = Account::default();
        for process in &self.processes {
            all.merge(&process.account);
        }
        all
    }
}

impl Request {
    /// Moves memory until all of it is where it belongs, or it is known of the rest why it is not.
    ///
    /// The pages keep their contents and the processes keep running: an access to a page that moves
    /// just then waits. Whatever happens, each page is at its source or its destination.
    pub fn run(&self, targets: Vec<Target>, progress: &Progress) -> Report {
        let began = Instant::now();
        let throttle = Throttle::new(self.bandwidth);
        let mut met = targets.iter().map(Target::number).collect::<BTreeSet<_>>();
        let mut left_out = Vec::new();
        let planned = |target: Target| {
            let plan = Plan::make(self, &target);
            progress.plan(plan.as_ref().map_or(0, Plan::bytes));
            (target, plan)
        };
        let mut waiting = targets.into_iter().map(planned).collect::<Vec<_>>();
        if self.follow_children {
            let roots = waiting.iter().map(|(target, _)| target);
            waiting.extend(
                children(roots, &mut met, &mut left_out)
                    .into_iter()
                    .map(planned),
            );
        }
        let (mut processes, mut stopped, mut done) = (Vec::new(), None, Vec::new());
        while !waiting.is_empty() {
            for (target, plan) in waiting.drain(..) {
                let (report, stop) = self.one(&target, plan, progress, &throttle);
                processes.push(report);
                stopped = stopped.or(stop);
                done.push(target);
            }
            if self.follow_children && !progress.is_stopped() {
                waiting = children(done.iter(), &mut met, &mut left_out)
                    .into_iter()
                    .map(planned)
                    .collect();
            }
        }
        if progress.is_stopped() {
            stopped = Some(Stop::Asked);
        }
        Report {
            processes,
            elapsed: began.elapsed(),
            stopped,
            left_out,
        }
    }

    fn one(
        &self,
        target: &Target,
        plan: Result<Plan, PlanError>,
        progress: &Progress,
        throttle: &Throttle,
    ) -> (ProcessReport, Option<Stop>) {
        let mut report = ProcessReport {
            pid: target.number(),
            name: target.name().to_owned(),
            planned: 0,
            account: Account::default(),
            before: BTreeMap::new(),
            after: None,
            left: 0,
            arrived: 0,
            shootdowns: self.count_shootdowns.then_some(0),
            ended: false,
            error: None,
        };
        let mut plan = match plan {
            Ok(plan) => plan,
            Err(error) => {
                report.ended = matches!(error, PlanError::Ended { .. });
                report.error = Some(error);
                return (report, None);
            }
        };
        report.planned = plan.bytes();
        report.before.clone_from(&plan.on_nodes);
        let (mut known, mut closed) = (Vec::new(), None);
        for _ in 0..ROUNDS {
            if progress.is_stopped() || closed.is_some() {
                break;
            }
            if plan.bytes() <= report.account.stayed_in_all().bytes {
                break;
            }
            let done = Crew::new(self, target, &plan, &known, progress, throttle).run();
            report.account.merge(&done.account);
            report.shootdowns = report.shootdowns.zip(done.shootdowns).map(|(a, b)| a + b);
            closed = closed.or(done.closed);
            known.extend_from_slice(&done.stayed);
            known.sort_unstable();
            let Done { ended, .. } = done;
            match Plan::make(self, target) {
                Ok(now) => plan = now,
                Err(error) => {
                    report.ended = ended || matches!(error, PlanError::Ended { .. });
                    report.error = (!report.ended).then_some(error);
                    return (report, None);
                }
            }
        }
        report.left = plan.bytes();
        report.after = Some(plan.on_nodes);
        let unexplained = report
            .left
            .saturating_sub(report.account.stayed_in_all().bytes);
        if unexplained > 0 && (progress.is_stopped() || closed.is_some()) {
            report.account.add_stayed(Stayed {
                failure: Failure::new(Step::Lock, Why::NotTried),
                amount: Amount {
                    folios: 0,
                    bytes: unexplained,
                },
                example: plan.parts.first().map_or(0, |part| part.range.start),
            });
        } else {
            report.arrived = unexplained;
        }
        let stop = closed.map(|(node, failure)| Stop::Closed { node, failure });
        (report, stop)
    }
}

/// What processes have started, and was not met yet.
fn children<'t>(
    parents: impl Iterator<Item = &'t Target>,
    met: &mut BTreeSet<i32>,
    left_out: &mut Vec<TargetError>,
) -> Vec<Target> {
    let mut found = Vec::new();
    for pid in parents.flat_map(Target::descendants) {
        if !met.insert(pid) {
            continue;
        }
        match Target::open(pid) {
            Ok(child) => found.push(child),
            // It has ended since.
            Err(TargetError::NoSuch { .. } | TargetError::Zombie { .. }) => {}
            Err(error) => left_out.push(error),
        }
    }
    found
}
