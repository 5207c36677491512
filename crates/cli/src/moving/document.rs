//! Plans and reports as JSON.

use std::collections::BTreeMap;

use serde::Serialize;
use transhume_process::{Amount, Plan, ProcessReport, Report, Request, Stop, Target};
use transhume_sys::numa::Shared;

use crate::machine::Machine;

#[derive(Serialize)]
struct Asked {
    from: Vec<u32>,
    to: String,
    only: Vec<String>,
    threads: usize,
    limit_bytes: Option<u64>,
    bandwidth_bytes_per_s: Option<u64>,
    max_stall_us: Option<f64>,
    include_shared: bool,
    exchange: bool,
    follow_children: bool,
}

impl Asked {
    fn of(request: &Request) -> Self {
        Self {
            from: request.from.iter().copied().collect(),
            to: request.to.to_string(),
            only: request.only.iter().map(ToString::to_string).collect(),
            threads: request.threads.get(),
            limit_bytes: request.limit.map(Into::into),
            bandwidth_bytes_per_s: request.bandwidth.map(Into::into),
            max_stall_us: request.max_stall.map(|stall| stall.as_secs_f64() * 1e6),
            include_shared: request.shared == Shared::Move,
            exchange: request.exchange,
            follow_children: request.follow_children,
        }
    }
}

#[derive(Serialize)]
struct Memory {
    pages: u64,
    bytes: u64,
}

impl From<Amount> for Memory {
    fn from(amount: Amount) -> Self {
        Self {
            pages: amount.folios,
            bytes: amount.bytes,
        }
    }
}

#[derive(Serialize)]
struct Reason {
    reason: &'static str,
    errno: Option<i32>,
    bytes: u64,
    first_address: usize,
}

#[derive(Serialize)]
struct Process {
    pid: i32,
    name: String,
    planned_bytes: u64,
    moved: Memory,
    already_there: Memory,
    stayed: Vec<Reason>,
    arrived_bytes: u64,
    left_bytes: u64,
    vanished: Memory,
    made_room: Memory,
    bytes_on_nodes_before: BTreeMap<u32, u64>,
    bytes_on_nodes_after: Option<BTreeMap<u32, u64>>,
    calls: u64,
    retries: u64,
    longest_call_us: f64,
    shootdowns: Option<u64>,
    ended: bool,
    followed: bool,
    error: Option<String>,
}

impl From<&ProcessReport> for Process {
    fn from(process: &ProcessReport) -> Self {
        let account = &process.account;
        let stayed = account.stayed.iter().map(|stayed| Reason {
            reason: stayed.failure.why.as_str(),
            errno: stayed.failure.errno.map(|errno| errno.get()),
            bytes: stayed.amount.bytes,
            first_address: stayed.example,
        });
        Self {
            pid: process.pid,
            name: process.name.clone(),
            planned_bytes: process.planned,
            moved: account.moved.into(),
            already_there: account.already_there.into(),
            stayed: stayed.collect(),
            arrived_bytes: process.arrived,
            left_bytes: process.left,
            vanished: account.vanished.into(),
            made_room: account.made_room.into(),
            bytes_on_nodes_before: process.before.clone(),
            bytes_on_nodes_after: process.after.clone(),
            calls: account.calls,
            retries: account.retries,
            longest_call_us: account.longest_call.as_secs_f64() * 1e6,
            shootdowns: process.shootdowns,
            ended: process.ended,
            followed: process.followed,
            error: process.error.as_ref().map(ToString::to_string),
        }
    }
}

#[derive(Serialize)]
struct Moved<'m> {
    schema: u32,
    machine: &'m Machine,
    request: Asked,
    elapsed_s: f64,
    bytes_per_s: f64,
    processes: Vec<Process>,
    left_out: Vec<String>,
    stopped: Option<String>,
    exit_code: u8,
}

/// A report.
pub(crate) fn report<'m>(
    request: &Request,
    report: &Report,
    machine: &'m Machine,
    exit_code: u8,
) -> impl Serialize + use<'m> {
    let seconds = report.elapsed.as_secs_f64();
    Moved {
        schema: 1,
        machine,
        request: Asked::of(request),
        elapsed_s: seconds,
        bytes_per_s: report.account().moved.bytes as f64 / seconds.max(1e-9),
        processes: report.processes.iter().map(Process::from).collect(),
        left_out: report.left_out.iter().map(ToString::to_string).collect(),
        stopped: report.stopped.map(|stop| match stop {
            Stop::Asked => "interrupted".to_owned(),
            Stop::Limit => "limit".to_owned(),
            Stop::Closed { node, failure } => format!("node {node} takes no more: {failure}"),
        }),
        exit_code,
    }
}

#[derive(Serialize)]
struct Planned {
    schema: u32,
    request: Asked,
    processes: Vec<PlannedProcess>,
}

#[derive(Serialize)]
struct PlannedProcess {
    pid: i32,
    name: String,
    planned_bytes: u64,
    bytes_on_nodes: BTreeMap<u32, u64>,
    parts: Vec<PlannedPart>,
}

#[derive(Serialize)]
struct PlannedPart {
    start: usize,
    end: usize,
    page_bytes: usize,
    planned_bytes: u64,
}

/// Plans, of which nothing was done.
pub(crate) fn plans(
    request: &Request,
    targets: &[Target],
    plans: &[Plan],
) -> impl Serialize + use<> {
    let processes = targets.iter().zip(plans).map(|(target, plan)| {
        let parts = plan.parts.iter().map(|part| PlannedPart {
            start: part.range.start,
            end: part.range.end,
            page_bytes: part.page_size,
            planned_bytes: part.misplaced,
        });
        PlannedProcess {
            pid: target.number(),
            name: target.name().to_owned(),
            planned_bytes: plan.bytes(),
            bytes_on_nodes: plan.on_nodes.clone(),
            parts: parts.collect(),
        }
    });
    Planned {
        schema: 1,
        request: Asked::of(request),
        processes: processes.collect(),
    }
}
