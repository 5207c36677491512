//! `transhume move`: the memory of running processes goes to other nodes.

mod document;
mod explain;
mod show;

pub(crate) use show::short;

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use indicatif::{BinaryBytes, HumanDuration, ProgressBar, ProgressStyle};
use transhume_process::{Nodes, Plan, Progress, Report, Request, Target};
use transhume_sys::numa::Shared;

use crate::args::{From, Move};
use crate::context::on_ctrl_c;
use crate::error::CliError;
use crate::json::Sink;
use crate::machine::Machine;
use crate::print;

/// The exit status when a process could not be looked at.
const FAILED: u8 = 1;
/// The exit status when some memory stayed where it was.
const PARTLY: u8 = 3;
/// The most threads unless it is said otherwise: a process that is to go on needs CPUs too.
const MOST_THREADS: usize = 4;

pub(crate) fn run(args: &Move) -> Result<ExitCode, CliError> {
    let sink = args.json.as_deref().map(Sink::open).transpose()?;
    let quiet = sink.as_ref().is_some_and(Sink::is_stdout);
    let request = request(args)?;
    let targets = targets(args, &request)?;
    if args.explain && !quiet {
        print(&explain::request(&request))?;
    }
    if args.dry_run {
        let plans = targets
            .iter()
            .map(|target| plan(&request, target))
            .collect::<Result<Vec<_>, _>>()?;
        if !quiet {
            for (target, plan) in targets.iter().zip(&plans) {
                print(&show::plan(&request, target, plan))?;
            }
        }
        if let Some(sink) = sink {
            sink.write(&document::plans(&request, &targets, &plans))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let report = watched(&request, targets)?;
    if !quiet {
        print(&show::report(&request, &report))?;
    }
    // One that has ended has not failed.
    let lived = report.processes.iter().filter(|process| !process.ended);
    let failure = lived.filter_map(|process| process.error.as_ref()).next();
    let code = match failure {
        Some(_) => FAILED,
        None if report.is_complete() => 0,
        None => PARTLY,
    };
    if let Some(sink) = sink {
        sink.write(&document::report(&request, &report, &Machine::here(), code))?;
    }
    match failure {
        Some(error) => Err(CliError::Failed(error.to_string())),
        None => Ok(ExitCode::from(code)),
    }
}

/// What the command line asks for, if the machine has it.
fn request(args: &Move) -> Result<Request, CliError> {
    let refused = |error: transhume_process::RequestError| CliError::Refused(error.to_string());
    let nodes = Nodes::here().map_err(|error| refused(error.into()))?;
    let from = match &args.from {
        From::All => None,
        From::Nodes(nodes) => Some(nodes),
    };
    let from = nodes.check(from, &args.to).map_err(refused)?;
    let half = thread::available_parallelism().map_or(1, NonZeroUsize::get) / 2;
    let threads = NonZeroUsize::new(half.min(MOST_THREADS)).unwrap_or(NonZeroUsize::MIN);
    let mut request = Request::new(from, args.to.clone());
    request.only = args.only.iter().flat_map(|only| only.0.clone()).collect();
    request.limit = args.limit;
    request.threads = args.threads.unwrap_or(threads);
    request.bandwidth = args.bandwidth;
    request.max_stall = args.max_stall;
    request.exchange = args.exchange;
    request.follow_children = args.follow_children;
    // Whoever wants to know more has time for it.
    request.count_shootdowns = args.explain || args.json.is_some();
    if args.include_shared {
        request.shared = Shared::Move;
    }
    Ok(request)
}

fn targets(args: &Move, request: &Request) -> Result<Vec<Target>, CliError> {
    let mut targets: Vec<Target> = Vec::new();
    for &pid in &args.pid {
        if targets.iter().any(|target| target.number() == pid) {
            return Err(CliError::Refused(format!("process {pid} is named twice")));
        }
        let target = Target::open(pid).map_err(|error| CliError::Refused(error.to_string()))?;
        request
            .check(&target)
            .map_err(|error| CliError::Refused(error.to_string()))?;
        targets.push(target);
    }
    Ok(targets)
}

fn plan(request: &Request, target: &Target) -> Result<Plan, CliError> {
    Plan::make(request, target).map_err(|error| CliError::Failed(error.to_string()))
}

/// Moves, and shows how far it is where somebody watches.
fn watched(request: &Request, targets: Vec<Target>) -> Result<Report, CliError> {
    let progress = Arc::new(Progress::new());
    let stop = Arc::clone(&progress);
    on_ctrl_c(move || {
        if stop.is_stopped() {
            // Asked twice: what is under way in the kernel ends by itself.
            std::process::exit(130);
        }
        stop.stop();
    })?;
    // It shows itself only where standard error is a terminal; what does not fit there is cut off.
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{bar:16} {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let report = thread::scope(|scope| {
        let mover = scope.spawn(|| request.run(targets, &progress));
        while !bar.is_hidden() && !mover.is_finished() {
            let planned = progress.planned_bytes();
            if planned > 0 {
                bar.set_length(planned);
                bar.set_position(progress.handled_bytes().min(planned));
                bar.set_message(so_far(&progress, &bar));
            }
            thread::sleep(Duration::from_millis(50));
        }
        mover.join()
    });
    bar.finish_and_clear();
    report.map_err(|_| {
        CliError::Failed(
            "a worker panicked; the memory is where it was or where it was to go".to_owned(),
        )
    })
}

/// How far it is, the most important first.
fn so_far(progress: &Progress, bar: &ProgressBar) -> String {
    let left = if progress.is_stopped() {
        "stopping".to_owned()
    } else {
        format!("{} left", HumanDuration(bar.eta()))
    };
    format!(
        "{} of {}, {:.2} GB/s, {left}, {} pages, {} at work",
        BinaryBytes(progress.handled_bytes()),
        BinaryBytes(progress.planned_bytes()),
        bar.per_sec() / 1e9,
        progress.moved_folios(),
        progress.workers(),
    )
}
