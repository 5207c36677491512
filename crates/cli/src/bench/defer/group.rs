//! The tables move, at once and deferred, by turns, under the threads that read them.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use transhume_region::{Deferral, Options, Outcome as Became, Pins, Region, RegionError};
use transhume_sys::map::HUGE_PAGE;
use transhume_sys::tlb::{Cache, MissCounter};

use super::lookups::Tables;
use super::phase::{InPhase, Phase, Phases, Seen};
use super::plan::Group;
use super::row::{PerPhase, Row};
use crate::args::Bench;
use crate::bench::counters::Counters;
use crate::bench::cpus::Cpus;
use crate::bench::group::{other_tier, tiers};
use crate::bench::row::Stalls;
use crate::context::Context;
use crate::error::CliError;
use crate::median::{median, median_of_known};

/// How the switch is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    Immediate,
    Deferred,
}

pub(super) const VARIANTS: [Variant; 2] = [Variant::Immediate, Variant::Deferred];

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Immediate => "immediate",
            Self::Deferred => "deferred",
        }
    }
}

/// What a group gave.
pub(crate) struct Outcome {
    pub(crate) rows: Vec<Row>,
    pub(crate) notices: Vec<String>,
}

struct Run {
    pages: u64,
    /// Of requests and switches.
    moving: Duration,
    seconds: f64,
    shootdowns: Option<u64>,
    ipis: Option<u64>,
    cut_off: Duration,
    stayed: u64,
    seen: Seen,
}

pub(crate) fn run(group: &Group, args: &Bench, context: &Context) -> Result<Outcome, CliError> {
    let region = region(group)?;
    let tables = Tables::over(region.words());
    tables.fill();
    let mut notices = region
        .notices()
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>();
    if let Err(error) = MissCounter::open(Cache::Data) {
        notices.push(format!(
            "misses of the translation caches are n/a: this machine does not count them ({error})"
        ));
    }
    let counters = Counters::open(&mut notices);
    let cpus = Cpus::divide();
    let threads = args.app_threads.get();
    let phases = Phases::new(threads);
    let mut runs: [Vec<Run>; 2] = [Vec::new(), Vec::new()];
    let measured = std::thread::scope(|scope| {
        for thread in 0..threads {
            let (phases, cpus) = (&phases, &cpus);
            scope.spawn(move || {
                cpus.pin_application(thread);
                tables.look_up(thread, phases);
            });
        }
        cpus.pin_migrator();
        let stop = Stop(&phases);
        let mut measure = || {
            for rehearsal in (0..=args.runs).map(|run| run == 0) {
                for (variant, runs) in VARIANTS.into_iter().zip(&mut runs) {
                    context.check()?;
                    context.progress.set_message(format!(
                        "defer {} {}",
                        group.page_size,
                        variant.name()
                    ));
                    let run = one_run(group, variant, &region, &phases, &counters)?;
                    if !rehearsal {
                        runs.push(run);
                        context.progress.inc(1);
                    }
                }
            }
            Ok(())
        };
        let measured = measure();
        drop(stop);
        cpus.unpin();
        measured
    });
    measured?;
    let stayed = runs.iter().flatten().map(|run| run.stayed).sum::<u64>();
    if stayed > 0 {
        let why = region
            .take_stayed()
            .first()
            .map(|(_, failure)| failure.to_string());
        notices.push(format!(
            "{stayed} times a page stayed where it was, of those deferred the first because: {}",
            why.unwrap_or_else(|| "none was deferred".to_owned())
        ));
    }
    let wrong = tables.sweep();
    let held = region.deferral().map_or(0, |usage| usage.most_bytes);
    let source = counters.source();
    let rows = VARIANTS.into_iter().zip(&runs).map(|(variant, runs)| {
        let mut row = row(group, variant, runs, args, held, wrong);
        row.shootdown_counter.clone_from(&source);
        row.mechanism = region.mechanism().to_string();
        row
    });
    Ok(Outcome {
        rows: rows.collect(),
        notices,
    })
}

/// Ends the threads however the measuring ends.
struct Stop<'p>(&'p Phases);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn region(group: &Group) -> Result<Region, CliError> {
    let [near, far] = tiers(&group.backing);
    let limit = NonZeroUsize::new(group.bytes()).unwrap_or(NonZeroUsize::MIN);
    Region::builder()
        .tier(near)
        .tier(far)
        .pages(group.pages)
        .page_size(group.page_size)
        .pins(Pins::Declared)
        .pool_bytes(group.bytes())
        .deferral(
            Deferral::new(limit)
                .max_age(Duration::from_secs(3600))
                .keep_free_bytes(0),
        )
        .build()
        .map_err(|refused| CliError::Refused(refused.to_string()))
}

fn one_run(
    group: &Group,
    variant: Variant,
    region: &Region,
    phases: &Phases,
    counters: &Counters,
) -> Result<Run, CliError> {
    let options = Options::new().copier(group.copier.clone());
    let options = match variant {
        Variant::Immediate => options,
        Variant::Deferred => options.deferred(),
    };
    // One move that is not counted, so that mappings are as this variant leaves them.
    migrate_once(region, &options)?;
    phases.take();
    let counts_before = counters.read();
    let (mut pages, mut stayed) = (0, 0);
    let (mut moving, mut cut_off) = (Duration::ZERO, Duration::ZERO);
    let began = Instant::now();
    for _ in 0..group.moves {
        let to = other_tier(region, 0).map_err(refused)?;
        let mut phase = |phase, work: &mut dyn FnMut() -> Result<(), CliError>| {
            phases.enter(phase);
            let began = Instant::now();
            work()?;
            moving += began.elapsed();
            Ok::<_, CliError>(())
        };
        phase(Phase::Request, &mut || {
            let report = region.migrate(.., to, &options).map_err(refused)?;
            pages += report.moved() as u64;
            stayed += report.stayed().count() as u64;
            cut_off = cut_off.max(report.times.longest_cut_off);
            Ok(())
        })?;
        let deferred = variant == Variant::Deferred;
        phases.enter(if deferred {
            Phase::Pending
        } else {
            Phase::Rest
        });
        std::thread::sleep(group.rest);
        if deferred {
            phase(Phase::Switch, &mut || {
                let settled = region.settle(..).map_err(refused)?;
                let moved = |one: &&(_, Became)| one.1 == Became::Moved;
                let there = settled.outcomes.iter().filter(moved).count();
                pages += there as u64;
                stayed += (settled.outcomes.len() - there) as u64;
                cut_off = cut_off.max(settled.times.longest_cut_off);
                Ok(())
            })?;
        }
        phases.enter(Phase::Rest);
        std::thread::sleep(group.rest);
    }
    let seconds = began.elapsed().as_secs_f64();
    let counts = counters.since(counts_before);
    Ok(Run {
        pages,
        moving,
        seconds,
        shootdowns: counts.shootdowns,
        ipis: counts.ipis,
        cut_off,
        stayed,
        seen: phases.take(),
    })
}

fn refused(error: RegionError) -> CliError {
    CliError::Failed(error.to_string())
}

fn migrate_once(region: &Region, options: &Options) -> Result<(), CliError> {
    let to = other_tier(region, 0).map_err(refused)?;
    region.migrate(.., to, options).map_err(refused)?;
    region.settle(..).map_err(refused)?;
    Ok(())
}

fn row(
    group: &Group,
    variant: Variant,
    runs: &[Run],
    args: &Bench,
    held: usize,
    wrong: u64,
) -> Row {
    let each = |figure: &dyn Fn(&Run) -> f64| median(runs.iter().map(figure));
    let maybe = |figure: &dyn Fn(&Run) -> Option<f64>| median_of_known(runs.iter().map(figure));
    let stall =
        |quantile: f64| each(&|run| run.seen.parts.value_at_quantile(quantile) as f64 / 1e3);
    let longest = runs.iter().map(|run| run.seen.parts.max()).max();
    let sum = |count: &dyn Fn(&Run) -> u64| runs.iter().map(count).sum::<u64>();
    let phase = |phase: Phase| {
        let seen = runs.iter().map(|run| run.seen.phases[phase as usize]);
        per_phase(seen)
    };
    let deferred = variant == Variant::Deferred;
    let millions = |run: &Run| run.seen.lookups.max(1) as f64 / 1e6;
    let misses = |which: usize| maybe(&|run| Some(run.seen.misses[which]? as f64 / millions(run)));
    let pages_per_s = each(&|run| run.pages as f64 / run.moving.as_secs_f64());
    let cut_off = runs.iter().map(|run| run.cut_off).max().unwrap_or_default();
    Row {
        bench: "defer",
        variant: variant.name(),
        backing: group.backing.name(),
        page_size: group.page_size.to_string(),
        pages: group.pages,
        // At most 512 base pages at a time.
        batch: group
            .pages
            .min((HUGE_PAGE / group.page_size.bytes()).max(1)),
        copier: group.copier.name().to_owned(),
        mechanism: String::new(),
        app_threads: args.app_threads.get(),
        runs: args.runs,
        moves: group.moves,
        pages_per_s,
        bytes_per_s: pages_per_s * group.page_size.bytes() as f64,
        shootdowns: maybe(&|run| Some(run.shootdowns? as f64)),
        shootdowns_per_page: maybe(&|run| Some(run.shootdowns? as f64 / run.pages.max(1) as f64)),
        kernel_flushes: group.kernel_flushes(),
        shootdown_counter: None,
        ipis_received: maybe(&|run| Some(run.ipis? as f64)),
        app_ops_per_s: each(&|run| run.seen.lookups as f64 / run.seconds),
        seconds_per_million_lookups: each(&|run| {
            run.seconds * args.app_threads.get() as f64 / millions(run)
        }),
        stall_us: Stalls {
            p50: stall(0.5),
            p99: stall(0.99),
            p999: stall(0.999),
            max: longest.unwrap_or(0) as f64 / 1e3,
        },
        long_rest: phase(Phase::Rest),
        long_request: phase(Phase::Request),
        long_pending: deferred.then(|| phase(Phase::Pending)),
        long_switch: deferred.then(|| phase(Phase::Switch)),
        longest_cut_off_us: cut_off.as_secs_f64() * 1e6,
        held_bytes: if deferred { held } else { 0 },
        limit_bytes: if deferred { group.bytes() } else { 0 },
        dtlb_misses: misses(0),
        itlb_misses: misses(1),
        verified: format!(
            "{} loads checked by {} application threads, all tables swept",
            sum(&|run| run.seen.loads),
            args.app_threads
        ),
        // What is wrong at the end may be either variant's doing.
        errors: sum(&|run| run.seen.errors) + sum(&|run| run.stayed) + wrong,
    }
}

fn per_phase(seen: impl Iterator<Item = InPhase>) -> PerPhase {
    let mut sum = PerPhase::default();
    let mut long = 0;
    for phase in seen {
        sum.parts += phase.parts;
        sum.faults += phase.faults;
        sum.longest_us = sum.longest_us.max(phase.longest as f64 / 1e3);
        long += phase.long;
    }
    sum.over_10us_per_million = long as f64 * 1e6 / sum.parts.max(1) as f64;
    sum
}
