//! A request from beginning to end: planning, rounds, children, the report.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use transhume_engine::{Failure, Folio, Step, Why};

use crate::account::{Account, Amount, Stayed};
use crate::budget::Budget;
use crate::crew::{Crew, Means};
use crate::failure::failed;
use crate::family::Family;
use crate::pace::Throttle;
use crate::plan::{Plan, PlanError};
use crate::progress::Progress;
use crate::request::Request;
use crate::scan::{Scanner, address, size};
use crate::target::{Target, TargetError};
use transhume_sys::Errno;

/// How often the memory of a process is gone through, if more of it appears where it leaves, and how
/// often children are looked for.
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
    /// the account as having stayed, or have arrived.
    pub left: u64,
    /// How many of them appeared there during the move, as memory does that the process allocates.
    pub arrived: u64,
    /// Shootdowns that the workers asked for, by `tlb:tlb_flush`; `None` where they cannot be
    /// counted, or were not to be.
    pub shootdowns: Option<u64>,
    /// Whether it ended before everything had moved.
    pub ended: bool,
    /// Whether it was moved because another one had started it.
    pub followed: bool,
    /// Why it could not be looked at, if it could not.
    pub error: Option<PlanError>,
}

impl ProcessReport {
    /// Whether nothing is left where it was to leave. Children come and go: one that has ended has
    /// left nothing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        if self.ended {
            return self.followed;
        }
        self.left == 0 && self.error.is_none() && self.account.stayed.is_empty()
    }
}

/// Why a move ended before everything had its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was asked to ([`Progress::stop`]).
    Asked,
    /// As much has moved as was allowed ([`Request::limit`]).
    Limit,
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
    ///
    /// Where one thread does it that is the caller's, which runs near the destination meanwhile.
    ///
    /// # Panics
    ///
    /// If a worker does, which is an error of this crate's; the pages are where they are then.
    pub fn run(&self, targets: Vec<Target>, progress: &Progress) -> Report {
        let began = Instant::now();
        let throttle = Throttle::new(self.bandwidth);
        let budget = Budget::new(self.limit.map_or(u64::MAX, Into::into));
        let means = Means {
            request: self,
            progress,
            throttle: &throttle,
            budget: &budget,
        };
        let mut family = Family::new(&targets);
        let mut report = Report {
            processes: Vec::new(),
            elapsed: Duration::ZERO,
            stopped: None,
            left_out: Vec::new(),
        };
        let mut closed = None;
        // Those that are there now are not lost when their parents end.
        let mut children = match self.follow_children {
            true => VecDeque::from(family.look_for_children()),
            false => VecDeque::new(),
        };
        for target in targets {
            let (process, stop) = one(means, &target, false);
            report.processes.push(process);
            closed = closed.or(stop);
        }
        let generations = if self.follow_children { ROUNDS } else { 0 };
        for _ in 0..generations {
            children.extend(family.look_for_children());
            if children.is_empty() {
                break;
            }
            // One at a time, so that no more than one is held open.
            while let Some(child) = children.pop_front() {
                match child.open() {
                    Ok(target) => {
                        let (process, stop) = one(means, &target, true);
                        report.processes.push(process);
                        closed = closed.or(stop);
                    }
                    // It has ended since.
                    Err(TargetError::NoSuch { .. } | TargetError::Zombie { .. }) => {}
                    Err(error) => report.left_out.push(error),
                }
            }
        }
        report.stopped = if progress.is_stopped() {
            Some(Stop::Asked)
        } else if budget.is_spent() && !report.is_complete() {
            Some(Stop::Limit)
        } else {
            closed
        };
        report.elapsed = began.elapsed();
        report
    }
}

/// Moves the memory of one process.
fn one(means: Means<'_>, target: &Target, followed: bool) -> (ProcessReport, Option<Stop>) {
    let request = means.request;
    let mut report = ProcessReport {
        pid: target.number(),
        name: target.name().to_owned(),
        planned: 0,
        account: Account::default(),
        before: BTreeMap::new(),
        after: None,
        left: 0,
        arrived: 0,
        shootdowns: request.count_shootdowns.then_some(0),
        ended: false,
        followed,
        error: None,
    };
    // Planned when it is its turn: what several share may have moved with the one before.
    let mut plan = match Plan::make(request, target) {
        Ok(plan) => plan,
        Err(error) => {
            report.ended = matches!(error, PlanError::Ended { .. });
            report.error = Some(error);
            return (report, None);
        }
    };
    report.planned = plan.bytes();
    means.progress.plan(report.planned);
    report.before.clone_from(&plan.on_nodes);
    let (mut stayed, mut closed) = (Vec::<(Folio, Failure)>::new(), None);
    let mut unknown = false;
    let is_over = |closed: Option<(u32, Failure)>| {
        means.progress.is_stopped() || means.budget.is_spent() || closed.is_some()
    };
    for round in 0..ROUNDS {
        if is_over(closed) || plan.bytes() <= bytes_of(&stayed) {
            break;
        }
        let known = stayed.iter().map(|&(folio, _)| folio).collect::<Vec<_>>();
        let done = Crew::new(means, target, &plan, round, &known).run();
        report.account.merge(&done.account);
        report.shootdowns = report.shootdowns.zip(done.shootdowns).map(|(a, b)| a + b);
        closed = closed.or(done.closed);
        stayed.extend(done.stayed);
        stayed.sort_unstable_by_key(|&(folio, _)| folio);
        if let Some(source) = done.error {
            report.error.get_or_insert(PlanError::Pages {
                pid: target.number(),
                source,
            });
        }
        match Plan::make(request, target) {
            Ok(now) => plan = now,
            Err(error) => {
                report.ended = done.ended || matches!(error, PlanError::Ended { .. });
                report.error = (!report.ended).then_some(error);
                unknown = true;
                break;
            }
        }
        let (gone, others) = settle_absent(means, target, &plan, &done.absent);
        report.account.vanished += gone;
        stayed.extend(others);
        stayed.sort_unstable_by_key(|&(folio, _)| folio);
        drop_what_has_left(means, target, &mut stayed);
    }
    for &(folio, failure) in &stayed {
        report.account.stay(folio, failure);
    }
    if unknown {
        // What is where now is not known.
        return (report, None);
    }
    report.left = plan.bytes();
    let unexplained = report.left.saturating_sub(bytes_of(&stayed));
    if unexplained > 0 && (is_over(closed) || report.error.is_some()) {
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
    report.after = Some(plan.on_nodes);
    let stop = closed.map(|(node, failure)| Stop::Closed { node, failure });
    (report, stop)
}

fn bytes_of(stayed: &[(Folio, Failure)]) -> u64 {
    stayed.iter().map(|&(folio, _)| size(folio)).sum()
}

/// What has stayed may have been freed since, or have been taken elsewhere; then there is nothing to
/// account for.
fn drop_what_has_left(means: Means<'_>, target: &Target, stayed: &mut Vec<(Folio, Failure)>) {
    if stayed.is_empty() {
        return;
    }
    let folios = stayed.iter().map(|&(folio, _)| folio).collect::<Vec<_>>();
    let mut status = Vec::new();
    if Scanner::new(target).locate(&folios, &mut status).is_err() {
        return;
    }
    let mut status = status.into_iter();
    stayed.retain(|(_, failure)| {
        let now = status.next().unwrap_or_default();
        match now.node() {
            Some(node) => means.request.from.contains(&node),
            // That it cannot be asked for is why it stayed.
            None => failure.why == Why::Unsupported && now.errno() == Some(Errno::FAULT),
        }
    });
}

/// What was not there when it was its turn: how much of it is gone, and what is there and cannot be
/// moved. The rest is there again, and has its turn in the next round.
fn settle_absent(
    means: Means<'_>,
    target: &Target,
    plan: &Plan,
    absent: &[Folio],
) -> (Amount, Vec<(Folio, Failure)>) {
    let (mut gone, mut others, mut status) = (Amount::default(), Vec::new(), Vec::new());
    if absent.is_empty() || Scanner::new(target).locate(absent, &mut status).is_err() {
        return (gone, others);
    }
    let still_counts = |folio: Folio| {
        plan.mapping_at(address(folio)).is_some_and(|mapping| {
            let nodes = mapping.on_nodes.iter().flatten();
            nodes
                .into_iter()
                .any(|(node, _)| means.request.from.contains(node))
        })
    };
    for (&folio, status) in absent.iter().zip(status) {
        match status.errno() {
            // A file of a device, say: the kernel counts it and does not move it.
            Some(errno @ Errno::FAULT) if still_counts(folio) => {
                others.push((folio, failed(Step::Remap, Why::Unsupported, errno)));
            }
            Some(_) => gone.count(folio),
            None => {}
        }
    }
    (gone, others)
}
