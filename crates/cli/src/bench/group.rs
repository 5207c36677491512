//! Variants take turns on one region, under an application.

use std::time::{Duration, Instant};

use transhume_copy::RawArea;
use transhume_region::{BuildError, Mechanism, PageSize, Region, RegionError, Tier};

use super::cell::{Cell, Group, Way};
use super::counters::Counters;
use super::cpus::Cpus;
use super::exchange;
use super::requests::Requests;
use super::row::{Row, Stalls};
use crate::args::{Backing, Bench};
use crate::context::Context;
use crate::error::CliError;
use crate::median::{median, median_of_known};
use crate::workload::{self, Seen, Workload};

/// What a group gave.
pub(crate) struct Outcome {
    pub(crate) rows: Vec<Row>,
    pub(crate) notices: Vec<String>,
    pub(crate) beside: Beside,
}

/// Memory beyond the pages themselves, after the last run.
pub(crate) struct Beside {
    pub(crate) pins: &'static str,
    pub(crate) page_size: PageSize,
    pub(crate) region: usize,
    pub(crate) overhead: usize,
    pub(crate) batch: usize,
    /// Bytes that a pool was told to keep, where it was.
    pub(crate) asked: usize,
}

/// One run of a variant.
struct Run {
    pages: u64,
    requests: u64,
    seconds: f64,
    raw: f64,
    raw_alone: f64,
    shootdowns: Option<u64>,
    ipis: Option<u64>,
    first_folio_us: f64,
    fresh: u64,
    stayed: u64,
    /// Why the first of them did.
    stayed_why: Option<String>,
    /// The application while nothing moves, and while it does.
    alone: Seen,
    seen: Seen,
}

pub(crate) fn run(group: &Group, args: &Bench, context: &Context) -> Result<Outcome, CliError> {
    let (region, pool) = region(group)?;
    let mut raw = RawArea::allocate(
        group.pages.max(2 * group.largest_batch()),
        group.page_size.bytes(),
    )
    .map_err(|error| CliError::Failed(format!("cannot allocate memory to copy: {error}")))?;
    workload::fill(region.words());
    let mut notices = region
        .notices()
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>();
    let cpus = Cpus::divide();
    let load = Workload::new(args.app_threads.get());
    let mut runs: Vec<Vec<Run>> = group.cells.iter().map(|_| Vec::new()).collect();
    let mut last_wrong = 0;
    let measured = std::thread::scope(|scope| {
        let threads = (0..args.app_threads.get()).map(|thread| {
            let (load, words, cpus) = (&load, region.words(), &cpus);
            scope.spawn(move || {
                cpus.pin_application(thread);
                load.run(words, thread)
            })
        });
        let threads = threads.collect::<Vec<_>>();
        cpus.pin_migrator();
        let measured = measure(
            group,
            args,
            context,
            &region,
            &mut raw,
            &load,
            &mut runs,
            &mut notices,
        );
        load.stop();
        for thread in threads {
            last_wrong += thread.join().unwrap_or(1);
        }
        cpus.unpin();
        measured
    });
    let counter = measured?;
    let all = || runs.iter().flatten();
    if let Some(why) = all().find_map(|run| run.stayed_why.as_ref()) {
        let stayed = all().map(|run| run.stayed).sum::<u64>();
        notices.push(format!(
            "{stayed} times a page stayed where it was, the first time because: {why}"
        ));
    }
    let swept = region.words().len();
    let wrong = last_wrong + workload::sweep(region.words());
    let rows = group.cells.iter().zip(&runs).map(|(cell, runs)| {
        let mechanism = region.mechanism();
        row(
            group,
            cell,
            runs,
            args,
            counter.as_deref(),
            mechanism,
            (swept, wrong),
        )
    });
    let rows = rows.collect();
    let beside = Beside {
        pins: group.pins(),
        page_size: group.page_size,
        region: region.len(),
        overhead: region.usage().overhead_bytes,
        batch: group.largest_batch() * group.page_size.bytes(),
        asked: pool.min(region.usage().pooled_bytes),
    };
    Ok(Outcome {
        rows,
        notices,
        beside,
    })
}

/// Where pages go to and fro: between two nodes where there are two.
pub(crate) fn tiers(backing: &Backing) -> [Tier; 2] {
    ["near", "far"].map(|name| match backing {
        Backing::Anonymous => {
            let nodes = transhume_sys::numa::nodes_with_memory().unwrap_or_default();
            let far = nodes.get(1).filter(|_| name == "far");
            Tier::node(name, far.or(nodes.first()).copied().unwrap_or(0))
        }
        Backing::Memfd => Tier::memfd(name),
        Backing::Hugetlb => Tier::hugetlb(name),
        Backing::File(path) if name == "far" => Tier::file(name, path),
        Backing::File(_) => Tier::memfd(name),
    })
}

/// Where a page of such a region is not.
pub(crate) fn other_tier(region: &Region, page: usize) -> Result<&'static str, RegionError> {
    Ok(match region.tier_of(page)? {
        "near" => "far",
        _ => "near",
    })
}

/// Makes the region, and says how many bytes of frames it was told to keep.
fn region(group: &Group) -> Result<(Region, usize), CliError> {
    let page = group.page_size.bytes();
    // Requests of one batch each would otherwise begin with an empty pool every time.
    let pool = match group.backing {
        Backing::Anonymous => group.largest_batch() * page,
        // The slots that a page leaves belong to the other file, which must have its own.
        _ => group.pages * page,
    };
    let [near, far] = tiers(&group.backing);
    let built = Region::builder()
        .tier(near)
        .tier(far)
        .pages(group.pages)
        .page_size(group.page_size)
        .pins(group.pins)
        .pool_bytes(pool)
        .build();
    match built {
        Ok(region) => Ok((region, pool)),
        Err(BuildError::System { what, source }) => {
            Err(CliError::Failed(format!("cannot {what}: {source}")))
        }
        Err(refused @ BuildError::NoMechanism { .. }) if group.backing == Backing::Anonymous => {
            Err(CliError::Refused(format!(
                "{refused}; or measure mapped memory with --backing memfd"
            )))
        }
        Err(refused) => Err(CliError::Refused(refused.to_string())),
    }
}

/// Runs the variants by turns; says which counter of shootdowns was used.
#[allow(
    clippy::too_many_arguments,
    reason = "all of them are borrowed parts of one group's state"
)]
fn measure(
    group: &Group,
    args: &Bench,
    context: &Context,
    region: &Region,
    raw: &mut RawArea,
    load: &Workload,
    runs: &mut [Vec<Run>],
    notices: &mut Vec<String>,
) -> Result<Option<String>, CliError> {
    let counters = Counters::open(notices);
    // Once without counting: pools fill, and threads find their CPUs.
    for cell in &group.cells {
        context.check()?;
        one_run(group, cell, region, raw, load, &counters, true)?;
    }
    for _ in 0..args.runs {
        for (cell, runs) in group.cells.iter().zip(&mut *runs) {
            context.check()?;
            let size = group.page_size;
            context
                .progress
                .set_message(format!("{} {size} {}", group.table.name(), cell.variant));
            runs.push(one_run(group, cell, region, raw, load, &counters, false)?);
            context.progress.inc(1);
        }
    }
    Ok(counters.source())
}

fn one_run(
    group: &Group,
    cell: &Cell,
    region: &Region,
    raw: &mut RawArea,
    load: &Workload,
    counters: &Counters,
    rehearsal: bool,
) -> Result<Run, CliError> {
    let run_time = if rehearsal {
        group.run_time / 8
    } else {
        group.run_time
    };
    if group.is_of_pairs() {
        exchange::lay_out(region)?;
    }
    let mut rate = || {
        let (mut time, mut bytes) = (Duration::ZERO, 0_usize);
        while time < run_time / 4 {
            let pass = match &cell.way {
                Way::Migrate => raw.pass(&*cell.copier, cell.batch),
                Way::Exchange(swapper) | Way::ThereAndBack(swapper) => {
                    raw.swap_pass(&**swapper, cell.batch)
                }
            };
            time += pass.0;
            bytes += pass.1;
        }
        bytes as f64 / time.as_secs_f64()
    };
    let raw = rate();
    // In a migration the application waits some of the time, so the limit is between the two.
    let raw_alone = load.while_paused(rate);
    let mut requests = Requests::new(group, cell, region);
    // The first finds cold what the others find warm.
    requests.make()?;
    let alone = load.for_a_while(run_time / 4);

    let (mut pages, mut made, mut stayed) = (0, 0, 0);
    let mut stayed_why = None;
    let mut first = Vec::new();
    let fresh_before = region.usage().fresh_frames;
    let counts_before = counters.read();
    // While counters are read the application is not disturbed, which takes as long as many migrations.
    load.take();
    let began = Instant::now();
    // One at least, also where something else has had the CPU for all the time.
    while made == 0 || began.elapsed() < run_time {
        let done = requests.make()?;
        made += 1;
        pages += done.arrived;
        stayed += done.stayed;
        stayed_why = stayed_why.or(done.why);
        first.extend(done.first_folio.map(|first| first.as_secs_f64() * 1e6));
    }
    let seconds = began.elapsed().as_secs_f64();
    let seen = load.take();
    let counts = counters.since(counts_before);
    Ok(Run {
        pages,
        requests: made,
        seconds,
        raw,
        raw_alone,
        shootdowns: counts.shootdowns,
        ipis: counts.ipis,
        first_folio_us: median(first.into_iter()),
        fresh: region.usage().fresh_frames - fresh_before,
        stayed,
        stayed_why,
        alone,
        seen,
    })
}

fn row(
    group: &Group,
    cell: &Cell,
    runs: &[Run],
    args: &Bench,
    counter: Option<&str>,
    mechanism: Mechanism,
    (swept, wrong): (usize, u64),
) -> Row {
    let each = |figure: &dyn Fn(&Run) -> f64| median(runs.iter().map(figure));
    let maybe = |figure: &dyn Fn(&Run) -> Option<f64>| median_of_known(runs.iter().map(figure));
    let stall =
        |quantile: f64| each(&|run| run.seen.stalls.value_at_quantile(quantile) as f64 / 1e3);
    let longest = runs
        .iter()
        .map(|run| run.seen.stalls.max())
        .max()
        .unwrap_or(0);
    let pages_per_s = each(&|run| run.pages as f64 / run.seconds);
    let sum = |count: &dyn Fn(&Run) -> u64| runs.iter().map(count).sum::<u64>();
    let fresh_frames = each(&|run| run.fresh as f64 / run.pages.max(1) as f64);
    let (loads, stores) = (sum(&|run| run.seen.loads), sum(&|run| run.seen.stores));
    Row {
        bench: group.table.name(),
        variant: cell.variant.clone(),
        backing: group.backing.name(),
        page_size: group.page_size.to_string(),
        pages: cell.request,
        batch: cell.batch,
        threads: cell.threads,
        // Where the kernel moves pages no copier of ours has a part in it.
        copier: match (mechanism, &cell.way) {
            (Mechanism::MovePages, _) => "kernel".to_owned(),
            (_, Way::Exchange(swapper)) => swapper.name().to_owned(),
            _ => cell.copier.name().to_owned(),
        },
        chose: match mechanism {
            Mechanism::MovePages => None,
            _ => cell.chose.clone(),
        },
        mechanism: mechanism.to_string(),
        stride: cell.stride,
        pins: group.pins(),
        frames: match fresh_frames {
            ..0.05 => "pooled",
            0.95.. => "fresh",
            _ => "mixed",
        },
        fresh_frames,
        runs: args.runs,
        pages_per_s,
        bytes_per_s: pages_per_s * group.page_size.bytes() as f64,
        raw_copy_bytes_per_s: each(&|run| run.raw),
        raw_copy_alone_bytes_per_s: each(&|run| run.raw_alone),
        shootdowns: maybe(&|run| Some(run.shootdowns? as f64)),
        shootdowns_per_page: maybe(&|run| Some(run.shootdowns? as f64 / run.pages as f64)),
        shootdown_counter: counter.map(str::to_owned),
        ipis_received: maybe(&|run| Some(run.ipis? as f64)),
        app_alone_ops_per_s: each(&|run| run.alone.per_second()),
        app_ops_per_s: each(&|run| run.seen.per_second()),
        stall_us: Stalls {
            p50: stall(0.5),
            p99: stall(0.99),
            p999: stall(0.999),
            max: longest as f64 / 1e3,
        },
        first_folio_us: each(&|run| run.first_folio_us),
        request_us: each(&|run| run.seconds * 1e6 / run.requests as f64),
        verified: format!(
            "{loads} loads and {stores} stores checked by {} application threads, {swept} words swept",
            args.app_threads
        ),
        // A wrong word at the end may be any variant's doing, so it counts against all of them.
        errors: sum(&|run| run.seen.errors) + sum(&|run| run.stayed) + wrong,
    }
}
