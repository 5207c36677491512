//! Variants take turns on one herd.

use std::time::Duration;

use transhume_region::PageSize;
use transhume_sys::shootdown::{InterruptCounter, ShootdownCounter};

use super::cell::{Cell, Group, Table, Way};
use super::drive::{Done, Drive};
use super::keeper::Keeper;
use super::plan::Plan;
use super::row::{Row, Stalls};
use crate::args::Bench;
use crate::bench::cpus::Cpus;
use crate::context::Context;
use crate::error::CliError;
use crate::herd::{Ready, Sight};
use crate::median::{median, median_of_known};

/// What a group gave.
pub(crate) struct Outcome {
    pub(crate) rows: Vec<Row>,
    pub(crate) notices: Vec<String>,
}

/// How long the herd has for what its answer leaves it to do: memory that it gives back costs
/// shootdowns, which are not the move's.
const SETTLE: Duration = Duration::from_millis(5);

/// One run of a variant.
#[derive(Clone, Debug)]
struct Run {
    /// Bytes.
    moved: u64,
    left: u64,
    unexplained: u64,
    done: Done,
    /// The same while the herd stood still.
    alone_seconds: f64,
    ipis: Option<u64>,
    seen: Sight,
}

pub(crate) fn run(
    group: &Group,
    plan: &Plan,
    args: &Bench,
    context: &Context,
) -> Result<Outcome, CliError> {
    let cpus = Cpus::divide();
    let done = measure(group, plan, args, context, &cpus);
    cpus.unpin();
    // Ctrl-C reaches the herd too, and ends it.
    context.check()?;
    done
}

fn measure(
    group: &Group,
    plan: &Plan,
    args: &Bench,
    context: &Context,
    cpus: &Cpus,
) -> Result<Outcome, CliError> {
    let threads = args.app_threads.get();
    cpus.pin_process(threads);
    let (mut keeper, ready) = Keeper::start(group, plan, args)?;
    let mut notices = Vec::new();
    if group.page_size == PageSize::Huge && ready.huge_bytes < group.bytes() {
        return Ok(Outcome {
            rows: Vec::new(),
            notices: vec![format!(
                "the kernel put {} of {} MiB in pages of 2m, so there is nothing to measure; cure: \
                 transparent huge pages madvise or always, or fewer --pages",
                ready.huge_bytes >> 20,
                group.bytes() >> 20
            )],
        });
    }
    // Open all the while, so that no move pays for what the kernel does when the first counter is opened
    // and the last is closed.
    let counter = ShootdownCounter::open_for_this_thread();
    if let Err(none) = &counter {
        notices.push(format!("shootdowns a page are not known: {none}"));
    }
    let arrivals = InterruptCounter::open();
    if let Err(none) = &arrivals {
        notices.push(format!("IPIs received are not known: {none}"));
    }
    let arrivals = arrivals.ok();
    let mut runs: Vec<Vec<Run>> = group.cells.iter().map(|_| Vec::new()).collect();
    // Once without counting: code is fetched, and threads find their CPUs.
    for counted in std::iter::once(false).chain((0..args.runs).map(|_| true)) {
        for (cell, runs) in group.cells.iter().zip(&mut runs) {
            context.check()?;
            let (table, size) = (group.table.name(), group.page_size);
            context
                .progress
                .set_message(format!("move {table} {size} {}", cell.variant));
            cpus.pin_beside(threads, cell.way.workers());
            let run = one_run(group, cell, plan, &mut keeper, &ready, arrivals)?;
            if counted {
                runs.push(run);
                context.progress.inc(1);
            }
        }
    }
    drop(counter);
    // Words that were wrong and that no run has counted are held against all.
    let seen = runs.iter().flatten().map(|run| run.seen.errors);
    let seen = seen.sum::<u64>();
    let wrong = keeper.end()?.errors.saturating_sub(seen);
    let rows = group.cells.iter().zip(&runs);
    let rows = rows.map(|(cell, runs)| row(group, cell, args, runs, wrong));
    let rows = rows.collect();
    Ok(Outcome { rows, notices })
}

/// There, and back if that is the same way.
fn one_run(
    group: &Group,
    cell: &Cell,
    plan: &Plan,
    keeper: &mut Keeper,
    ready: &Ready,
    arrivals: Option<InterruptCounter>,
) -> Result<Run, CliError> {
    let there = Drive {
        pid: keeper.pid(),
        memory: ready.start..ready.end,
        page_size: group.page_size.bytes(),
        scope: cell.scope,
        from: plan.near,
        to: plan.far,
    };
    let back = Drive {
        from: there.to,
        to: there.from,
        ..there.clone()
    };
    let second = group.table == Table::EverySecond;
    let legs = if second {
        vec![there]
    } else {
        vec![there, back]
    };
    let begin = || {
        if second {
            legs[0].bring_every_second_back();
        }
    };
    begin();
    let mut run = leg(&legs[0], cell.way, keeper, arrivals)?;
    for back in &legs[1..] {
        run.add(&leg(back, cell.way, keeper, arrivals)?);
    }
    begin();
    keeper.while_stopped(|| {
        for drive in &legs {
            let done = drive.go(cell.way)?;
            run.alone_seconds += done.seconds;
            run.leave(drive, cell.way, &done)?;
        }
        Ok(())
    })?;
    Ok(run)
}

fn leg(
    drive: &Drive,
    way: Way,
    keeper: &mut Keeper,
    arrivals: Option<InterruptCounter>,
) -> Result<Run, CliError> {
    let to_move = drive.to_move()?;
    let received = || arrivals.and_then(|counter| counter.read().ok());
    let errors = keeper.ask()?.errors;
    std::thread::sleep(SETTLE);
    let before = received();
    let done = drive.go(way)?;
    let after = received();
    let mut seen = keeper.ask()?;
    seen.errors += errors;
    let mut run = Run {
        moved: to_move,
        left: 0,
        unexplained: 0,
        done,
        alone_seconds: 0.0,
        ipis: after
            .zip(before)
            .map(|(after, before)| after.saturating_sub(before)),
        seen,
    };
    run.leave(drive, way, &done)?;
    run.moved = run.moved.saturating_sub(run.left);
    Ok(run)
}

impl Run {
    /// Counts what a move has left behind.
    fn leave(&mut self, drive: &Drive, way: Way, done: &Done) -> Result<(), CliError> {
        let left = drive.to_move()?;
        self.left += left;
        // The other ways do not say why pages stay.
        if let Way::Planned { .. } = way {
            self.unexplained += left.saturating_sub(done.explained);
        }
        Ok(())
    }

    /// Adds the way back.
    fn add(&mut self, back: &Self) {
        self.moved += back.moved;
        self.left += back.left;
        self.unexplained += back.unexplained;
        self.done.seconds += back.done.seconds;
        self.done.calls += back.done.calls;
        let both = |a: Option<u64>, b| a.zip(b).map(|(a, b)| a + b);
        self.done.shootdowns = both(self.done.shootdowns, back.done.shootdowns);
        self.ipis = both(self.ipis, back.ipis);
        let (seen, back) = (&mut self.seen, &back.seen);
        seen.operations += back.operations;
        seen.errors += back.errors;
        seen.seconds += back.seconds;
        // Percentiles do not add up; those of the way that was worse stand for both.
        seen.stall_p50_us = seen.stall_p50_us.max(back.stall_p50_us);
        seen.stall_p99_us = seen.stall_p99_us.max(back.stall_p99_us);
        seen.stall_max_us = seen.stall_max_us.max(back.stall_max_us);
    }
}

fn row(group: &Group, cell: &Cell, args: &Bench, runs: &[Run], wrong: u64) -> Row {
    let page = group.page_size.bytes() as f64;
    let each = |figure: &dyn Fn(&Run) -> f64| median(runs.iter().map(figure));
    let maybe = |figure: &dyn Fn(&Run) -> Option<f64>| median_of_known(runs.iter().map(figure));
    let sum = |count: &dyn Fn(&Run) -> u64| runs.iter().map(count).sum::<u64>();
    let pages = |bytes: u64| bytes.div_ceil(group.page_size.bytes() as u64);
    let bytes_per_s = each(&|run| run.moved as f64 / run.done.seconds);
    let longest = runs.iter().map(|run| run.seen.stall_max_us);
    Row {
        bench: "move",
        table: group.table.name(),
        variant: cell.variant.to_owned(),
        page_size: group.page_size.to_string(),
        pages: each(&|run| run.moved as f64 / page),
        workers: cell.way.workers(),
        app_threads: args.app_threads.get(),
        runs: args.runs,
        seconds: each(&|run| run.done.seconds),
        pages_per_s: bytes_per_s / page,
        bytes_per_s,
        alone_seconds: each(&|run| run.alone_seconds),
        calls: each(&|run| run.done.calls as f64),
        shootdowns: maybe(&|run| Some(run.done.shootdowns? as f64)),
        shootdowns_per_page: maybe(&|run| {
            Some(run.done.shootdowns? as f64 * page / run.moved.max(1) as f64)
        }),
        ipis_received: maybe(&|run| Some(run.ipis? as f64)),
        app_ops_per_s: each(&|run| run.seen.operations as f64 / run.seen.seconds),
        stall_us: Stalls {
            p50: each(&|run| run.seen.stall_p50_us),
            p99: each(&|run| run.seen.stall_p99_us),
            max: longest.fold(0.0, f64::max),
            max_median: each(&|run| run.seen.stall_max_us),
        },
        left_behind_pages: sum(&|run| pages(run.left)),
        errors: sum(&|run| run.seen.errors + pages(run.unexplained)) + wrong,
    }
}
