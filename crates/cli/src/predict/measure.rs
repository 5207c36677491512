//! The costs of the machine at hand.
//!
//! Few pages of live memory migrate one at a time and 512 a batch, while an application thread is at work and while
//! it sleeps; copies are made with nothing around them, and a thread is woken. What a step costs follows
//! from the differences.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use transhume_copy::{RawArea, SharedCopier, by_name};
use transhume_model::Costs;
use transhume_region::{BuildError, Mechanism, Options, Pins, Region, Report, TierId};

use super::costs::From;
use crate::args::Backing;
use crate::bench::{Cpus, other_tier, tiers};
use crate::context::Context;
use crate::error::CliError;
use crate::machine::Machine;
use crate::median::median;
use crate::table::micro;
use crate::workload::{self, Workload, stay_awake};

/// Pages of 4 KiB, more than caches hold, how many of them a request names, and how many a batch has.
const PAGES: usize = 16_384;
const REQUEST: usize = 2048;
const BATCH: usize = 512;
/// How often each is measured, of which the median counts, and how long each time at least.
const ROUNDS: usize = 7;
const RUN: Duration = Duration::from_millis(40);
/// Folios of 2 MiB that are copied.
const HUGE: usize = 2 << 20;
const LIST: usize = 16;
/// How often a thread is woken.
const WAKES: usize = 200;
/// How long it has slept, or had nothing to do.
const ASLEEP: Duration = Duration::from_micros(300);

/// How many steps its progress has: the copies, each round of pages, and the waking of a thread.
pub(super) const STEPS: u64 = ROUNDS as u64 + 2;

/// What was measured of pages, in nanoseconds.
struct Pages {
    /// A page of one a batch, and of 512 a batch, while the application sleeps.
    alone: f64,
    among_many: f64,
    /// What a page of 512 takes then while none of them is cut off.
    beside: f64,
    /// A page of one a batch while it is at work, and how long the first of a request takes.
    disturbed: f64,
    first: f64,
    /// Shootdowns of such a page, which are fewer than calls: a CPU that has looked nothing up since the last is not
    /// asked again.
    asked: f64,
    /// An access of the application while nothing migrates, the longest one of those, and what it loses by a page.
    access: f64,
    away: f64,
    lost: f64,
    mechanism: Mechanism,
}

pub(super) fn costs(context: &Context) -> Result<From, CliError> {
    let step = |what: &'static str| {
        context.progress.set_message(what);
        context.check()
    };
    let mut spreads = Vec::new();
    let machine = Machine::here();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    step("copies")?;
    let (copy_rate, copy_limit, thread_ns) = copies(cpus, context, &mut spreads)?;
    context.progress.inc(1);
    step("pages")?;
    let pages = pages(cpus > 1, context, &mut spreads)?;
    step("waking")?;
    let (wake_ns, waker_ns) = if cpus > 1 {
        wakes(&mut spreads)
    } else {
        (0.0, 0.0)
    };
    context.progress.inc(1);
    context.check()?;
    let many = BATCH as f64;
    let in_user_space = pages.mechanism != Mechanism::MovePages;
    let sides = if in_user_space { 2.0 } else { 1.0 };
    // A page alone is a call on each side and the page; of 512 a batch it has its share of the call.
    let call = (pages.alone - pages.among_many).max(0.0) * many / (many - 1.0);
    let named = (pages.first - pages.disturbed).max(0.0) / REQUEST as f64;
    let page = (pages.alone - call - 4096.0 * 1e9 / copy_rate).max(0.0);
    let folio = (pages.beside - named).clamp(0.0, page);
    let asked = if pages.asked > 0.0 {
        pages.asked
    } else {
        sides
    };
    let ipi = (pages.disturbed - pages.alone).max(0.0) / asked;
    let mut notices = vec![
        "the nodes of this machine are not told from each other: an interrupt to another node costs as much as \
         one within, and copies are as fast"
            .to_owned(),
    ];
    if cpus == 1 {
        let what = "one CPU: what an interrupt costs cannot be measured, and is taken for nothing";
        notices.push(what.to_owned());
    }
    if !spreads.is_empty() {
        notices.push(format!(
            "something else is at work on this machine, or its speed changes: of the middle half of the samples the \
             largest is more than twice the smallest of {}; what depends on them may be off by as much",
            spreads.join(", ")
        ));
    }
    Ok(From {
        costs: Costs {
            request_ns: 0.0,
            named_ns: named,
            call_ns: call / sides,
            folio_ns: folio,
            entry_ns: (page - folio) / 2.0,
            ipi_ns: ipi,
            far_ipi_ns: ipi,
            next_ipi_ns: 0.0,
            handler_ns: pages.lost / asked,
            wake_ns,
            waker_ns,
            access_ns: pages.access,
            away_ns: pages.away,
            copy_rate,
            copy_limit,
            complex_limit: None,
            thread_ns,
            splits_folios: true,
            channel_rate: None,
            channels_limit: copy_limit,
            channel_ns: 0.0,
            link_limit: None,
            remaps_by_call: in_user_space,
            flushes_per_table: in_user_space,
        },
        from: format!("this machine, {}", machine.describe()),
        notices,
    })
}

/// Notes the cost whose upper quartile is more than twice the lower one.
fn note_spread(spreads: &mut Vec<String>, what: &str, unit: &str, samples: &[f64]) {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    let last = samples.len().saturating_sub(1);
    let quartile = |n: usize| samples.get(n * last / 4).copied().unwrap_or(0.0);
    let (low, high) = (quartile(1), quartile(3));
    if high > 2.0 * low {
        spreads.push(format!("{what} ({} to {} {unit})", micro(low), micro(high)));
    }
}

/// The same of nanoseconds.
fn note_time_spread(spreads: &mut Vec<String>, what: &str, samples: &[f64]) {
    let micros: Vec<f64> = samples.iter().map(|ns| ns / 1e3).collect();
    note_spread(spreads, what, "us", &micros);
}

fn pages(
    with_application: bool,
    context: &Context,
    spreads: &mut Vec<String>,
) -> Result<Pages, CliError> {
    let [near, far] = tiers(&Backing::Anonymous);
    let built = Region::builder()
        .tier(near)
        .tier(far)
        .pages(PAGES)
        .pins(Pins::Declared)
        .pool_bytes(BATCH * 4096)
        .build();
    let region = match built {
        Ok(region) => region,
        Err(BuildError::System { what, source }) => {
            return Err(CliError::Failed(format!("cannot {what}: {source}")));
        }
        Err(refused) => {
            return Err(CliError::Refused(format!(
                "{refused}; or give costs with --costs or --machine"
            )));
        }
    };
    workload::fill(region.words());
    let cpus = Cpus::divide();
    let load = Workload::new(1);
    std::thread::scope(|scope| {
        let application = with_application.then(|| {
            let (load, words, cpus) = (&load, region.words(), &cpus);
            scope.spawn(move || {
                cpus.pin_application(0);
                load.run(words, 0)
            })
        });
        cpus.pin_migrator();
        let measured = measure(&region, with_application.then_some(&load), context, spreads);
        load.stop();
        let wrong = application.map_or(0, |thread| thread.join().unwrap_or(1));
        cpus.unpin();
        match measured {
            Ok(_) if wrong > 0 => Err(CliError::Failed(format!("{wrong} words were wrong"))),
            measured => measured,
        }
    })
}

fn measure(
    region: &Region,
    load: Option<&Workload>,
    context: &Context,
    spreads: &mut Vec<String>,
) -> Result<Pages, CliError> {
    let mut mover = Mover {
        region,
        copier: copier("memcpy")?,
        next: 0,
    };
    // Pools fill, and threads find their CPUs.
    for _ in 0..PAGES / REQUEST {
        mover.request(REQUEST, BATCH)?;
    }
    let [mut alone, mut among_many, mut beside, mut disturbed] = [const { Vec::new() }; 4];
    let [mut first, mut asked, mut access, mut away, mut lost] = [const { Vec::new() }; 5];
    for _ in 0..ROUNDS {
        let mut asleep = || Ok((mover.run(1)?, mover.run(BATCH)?, mover.beside_cut_off()?));
        let (one, many, besides) = match load {
            Some(load) => load.while_paused(asleep),
            None => asleep(),
        }?;
        alone.push(one.page);
        among_many.push(many.page);
        beside.push(besides);
        if load.is_none() {
            first.push(one.first);
            disturbed.push(one.page);
        }
        if let Some(load) = load {
            let alone = load.for_a_while(RUN);
            let idle = 1e9 / alone.per_second().max(1.0);
            let one = mover.run(1)?;
            let seen = load.take();
            // It made so many accesses in place of those that it would have made.
            let share = 1.0 - seen.per_second() * idle / 1e9;
            access.push(idle);
            away.push(alone.stalls.max() as f64);
            disturbed.push(one.page);
            first.push(one.first);
            asked.push(one.shootdowns);
            lost.push(share.max(0.0) * one.page);
        }
        context.progress.inc(1);
        context.check()?;
    }
    let differences = |more: &[f64], less: &[f64]| -> Vec<f64> {
        let both = more.iter().zip(less);
        both.map(|(more, less)| (more - less).max(0.0)).collect()
    };
    note_time_spread(spreads, "a call", &differences(&alone, &among_many));
    if load.is_some() {
        let flush = differences(&disturbed, &alone);
        note_time_spread(spreads, "a flush of a busy CPU", &flush);
        note_time_spread(spreads, "what it loses by one", &lost);
        note_time_spread(spreads, "for how long something else has a CPU", &away);
    }
    Ok(Pages {
        alone: median(alone.into_iter()),
        among_many: median(among_many.into_iter()),
        beside: median(beside.into_iter()),
        disturbed: median(disturbed.into_iter()),
        first: median(first.into_iter()),
        asked: median(asked.into_iter()),
        // Nobody makes any on a machine of one CPU.
        access: if load.is_some() {
            median(access.into_iter())
        } else {
            100.0
        },
        away: median(away.into_iter()),
        lost: median(lost.into_iter()),
        mechanism: region.mechanism(),
    })
}

/// The nanoseconds of a page, those until the first of a request was there, and shootdowns of a page.
struct Moved {
    page: f64,
    first: f64,
    shootdowns: f64,
}

/// Migrates the pages of a region to and fro, by the copier whose rate is measured.
struct Mover<'a> {
    region: &'a Region,
    copier: SharedCopier,
    next: usize,
}

impl Mover<'_> {
    /// For a while.
    fn run(&mut self, batch: usize) -> Result<Moved, CliError> {
        let began = Instant::now();
        let (mut moved, mut shootdowns) = (0, 0);
        let mut first = Vec::new();
        while began.elapsed() < RUN {
            let report = self.request(REQUEST, batch)?;
            moved += report.moved();
            shootdowns += report.shootdowns.unwrap_or(0);
            let at = report.times.first_folio;
            first.extend(at.map(|at| at.as_secs_f64() * 1e9));
        }
        Ok(Moved {
            page: began.elapsed().as_secs_f64() * 1e9 / moved.max(1) as f64,
            first: median(first.into_iter()),
            shootdowns: shootdowns as f64 / moved.max(1) as f64,
        })
    }

    /// What a page of a full batch takes while none of them is cut off, in nanoseconds.
    fn beside_cut_off(&mut self) -> Result<f64, CliError> {
        let batches = (0..REQUEST / BATCH).map(|_| {
            let times = self.request(BATCH, BATCH)?.times;
            let beside = times.total.saturating_sub(times.longest_cut_off);
            Ok(beside.as_secs_f64() * 1e9 / BATCH as f64)
        });
        let batches: Vec<f64> = batches.collect::<Result<_, CliError>>()?;
        Ok(median(batches.into_iter()))
    }

    /// The next so many pages to where they are not, so many a batch.
    fn request(&mut self, pages: usize, batch: usize) -> Result<Report<TierId>, CliError> {
        let limit = NonZeroUsize::new(batch * 4096).unwrap_or(NonZeroUsize::MIN);
        let options = Options::new()
            .limit_bytes(limit)
            .copier(SharedCopier::clone(&self.copier));
        let refused = |error: transhume_region::RegionError| CliError::Failed(error.to_string());
        let at = self.next;
        self.next = (at + pages) % PAGES;
        let tier = other_tier(self.region, at).map_err(refused)?;
        let report = self.region.migrate(at..at + pages, tier, &options);
        let report = report.map_err(refused)?;
        if let Some((_, why)) = report.stayed().next() {
            return Err(CliError::Failed(format!("a page stayed: {why}")));
        }
        Ok(report)
    }
}

fn copier(name: &str) -> Result<SharedCopier, CliError> {
    by_name(name, None).map_err(|error| CliError::Failed(format!("copier {name}: {error}")))
}

/// Bytes a second of one CPU and of all at most, and how long threads take to begin.
fn copies(
    cpus: usize,
    context: &Context,
    spreads: &mut Vec<String>,
) -> Result<(f64, f64, f64), CliError> {
    let failed = |error: std::io::Error| {
        CliError::Failed(format!("cannot allocate memory to copy: {error}"))
    };
    let mut area = RawArea::allocate(4 * LIST, HUGE).map_err(failed)?;
    let mut rate = |copier: &SharedCopier, count, rested| {
        let rounds = if rested { WAKES } else { ROUNDS };
        let rates = (0..rounds).map(|_| {
            context.check()?;
            if rested {
                stay_awake(ASLEEP);
            }
            let (time, bytes) = area.pass(&**copier, count);
            Ok(bytes as f64 / time.as_secs_f64().max(1e-9))
        });
        let rates = rates.collect::<Result<Vec<f64>, CliError>>()?;
        if !rested {
            let gigabytes: Vec<f64> = rates.iter().map(|rate| rate / 1e9).collect();
            note_spread(
                spreads,
                &format!("copies by {}", copier.name()),
                "GB/s",
                &gigabytes,
            );
        }
        Ok::<f64, CliError>(median(rates.into_iter()))
    };
    let one = copier("memcpy")?;
    rate(&one, LIST, false)?;
    let one = rate(&one, LIST, false)?;
    let (mut most, mut begin) = (one, 0.0);
    let mut threads = 2;
    while threads <= cpus {
        let by_all = copier(&format!("threads:{threads}:memcpy"))?;
        let many = rate(&by_all, LIST, false)?;
        most = many.max(most);
        // Between two batches they have gone to sleep.
        let single = HUGE as f64 * 1e9 / rate(&by_all, 1, true)?;
        begin = (single - HUGE as f64 * 1e9 / most).max(0.0);
        threads *= 2;
    }
    Ok((one, most, begin))
}

/// How long it takes until a thread on another CPU runs that was asleep, and how much of that waking it takes.
fn wakes(spreads: &mut Vec<String>) -> (f64, f64) {
    let cpus = Cpus::divide();
    let origin = Instant::now();
    let nanos = move || u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let woken_at = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sleeper = {
            let (woken_at, done, cpus) = (Arc::clone(&woken_at), Arc::clone(&done), &cpus);
            scope.spawn(move || {
                cpus.pin_application(0);
                while !done.load(Ordering::Acquire) {
                    std::thread::park();
                    woken_at.store(nanos(), Ordering::Release);
                }
            })
        };
        cpus.pin_migrator();
        let (mut wake, mut waker) = (Vec::new(), Vec::new());
        for _ in 0..WAKES {
            // Long enough for it to have gone to sleep.
            stay_awake(ASLEEP);
            woken_at.store(0, Ordering::Release);
            let began = nanos();
            sleeper.thread().unpark();
            waker.push((nanos() - began) as f64);
            let woken = loop {
                match woken_at.load(Ordering::Acquire) {
                    0 => std::hint::spin_loop(),
                    at => break at,
                }
            };
            wake.push(woken.saturating_sub(began) as f64);
        }
        done.store(true, Ordering::Release);
        sleeper.thread().unpark();
        cpus.unpin();
        note_time_spread(spreads, "the waking of a thread", &wake);
        (median(wake.into_iter()), median(waker.into_iter()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_whose_samples_lie_far_apart_are_told() {
        let mut spreads = Vec::new();
        // One that is far off may happen anywhere; half of them is another matter.
        note_time_spread(&mut spreads, "a call", &[5e3, 6e3, 5e3, 7e3, 90e3]);
        assert!(spreads.is_empty(), "{spreads:?}");
        note_time_spread(&mut spreads, "a flush", &[1e3, 51e3, 96e3, 2e3, 317e3]);
        assert_eq!(spreads, ["a flush (2.0 to 96.0 us)"]);
    }
}
