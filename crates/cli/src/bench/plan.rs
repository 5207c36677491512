//! Which variants are measured.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use transhume_copy::registry::is_for_tests;
use transhume_copy::{Auto, SharedCopier, by_name, engines};
use transhume_region::{Neighbours, PageSize, Pins};
use transhume_sys::limits;
use transhume_sys::map::HUGE_PAGE;

use super::cell::{Cell, Group, Table, Way};
use super::exchange;
use crate::args::{Backing, Bench, What};
use crate::error::CliError;

/// All groups that the command line asks for, those of `flush` and `batch` with this copier.
pub(crate) fn make(args: &Bench, copier: &SharedCopier) -> Result<Vec<Group>, CliError> {
    let threads = args.threads.map_or_else(cpus, NonZeroUsize::get);
    let asks = |what| args.what == What::All || args.what == what;
    if *args.backing() == Backing::Hugetlb && args.page_size == Some(PageSize::Base) {
        return Err(CliError::Refused("hugetlb has pages of 2m only".to_owned()));
    }
    let sizes = match (args.page_size, args.backing()) {
        (Some(size), _) => vec![size],
        (None, Backing::Hugetlb) => vec![PageSize::Huge],
        (None, _) => vec![PageSize::Base, PageSize::Huge],
    };

    let mut groups = Vec::new();
    for &size in sizes.iter().filter(|_| asks(What::Flush)) {
        let batches: &[usize] = match size {
            PageSize::Base => &[1, 8, 32, 128, 512],
            PageSize::Huge => &[1, 4, 16],
        };
        groups.push(batches_of(
            Table::Flush,
            args,
            size,
            Pins::Declared,
            batches,
            copier,
        ));
        if *args.backing() == Backing::Anonymous && size == PageSize::Base {
            groups.push(scattered(args, copier));
        }
        if *args.backing() == Backing::Anonymous {
            let largest = &batches[batches.len() - 1..];
            groups.push(batches_of(
                Table::Flush,
                args,
                size,
                Pins::Undeclared,
                largest,
                copier,
            ));
        }
    }
    if asks(What::Copy) {
        let size = args.page_size.unwrap_or(PageSize::Huge);
        groups.extend(copies(args, size, threads)?);
    }
    for &size in sizes.iter().filter(|_| asks(What::Batch)) {
        let batches: &[usize] = match size {
            PageSize::Base => &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048],
            PageSize::Huge => &[1, 2, 4, 8, 16],
        };
        groups.push(batches_of(
            Table::Batch,
            args,
            size,
            Pins::Declared,
            batches,
            copier,
        ));
    }
    for &size in sizes.iter().filter(|_| asks(What::Exchange)) {
        let group = group(Table::Exchange, args, size, Pins::Declared);
        if group.pages < 2 {
            let what = "an exchange needs two pages at least";
            match args.what {
                What::Exchange => return Err(CliError::Refused(what.to_owned())),
                // The other tables are shown without it.
                _ => continue,
            }
        }
        groups.push(exchange::cells(group, copier, threads)?);
    }
    for group in &groups {
        check_memory(group)?;
    }
    Ok(groups)
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn pages(args: &Bench, size: PageSize) -> usize {
    let default = match (size, args.quick) {
        (PageSize::Base, false) => 16_384,
        (PageSize::Base, true) => 2048,
        (PageSize::Huge, false) => 64,
        (PageSize::Huge, true) => 16,
    };
    args.pages.map_or(default, NonZeroUsize::get)
}

fn run_time(args: &Bench) -> Duration {
    Duration::from_millis(if args.quick { 8 } else { 60 })
}

fn group(table: Table, args: &Bench, page_size: PageSize, pins: Pins) -> Group {
    Group {
        table,
        backing: args.backing().clone(),
        page_size,
        pages: pages(args, page_size),
        pins,
        cells: Vec::new(),
        run_time: run_time(args),
    }
}

/// The whole region by batches of several sizes.
fn batches_of(
    table: Table,
    args: &Bench,
    page_size: PageSize,
    pins: Pins,
    batches: &[usize],
    copier: &SharedCopier,
) -> Group {
    let mut group = group(table, args, page_size, pins);
    let pages = group.pages;
    let cell = |&batch: &usize| Cell {
        variant: if batch == 1 {
            "one at a time".to_owned()
        } else {
            format!("{batch} a batch")
        },
        way: Way::Migrate,
        batch,
        request: pages,
        stride: 1,
        neighbours: Neighbours::default(),
        copier: SharedCopier::clone(copier),
        chose: None,
        threads: 1,
    };
    group.cells = batches
        .iter()
        .filter(|&&batch| batch == 1 || batch <= pages)
        .map(cell)
        .collect();
    group
}

/// Every eighth page, one at a time, run by run, and with the seven between.
fn scattered(args: &Bench, copier: &SharedCopier) -> Group {
    const STRIDE: usize = 8;
    const BATCH: usize = 512;
    let mut group = group(Table::Scattered, args, PageSize::Base, Pins::Declared);
    let request = (group.pages / STRIDE).max(1);
    for (way, batch, neighbours) in [
        ("one at a time", 1, Neighbours::Left),
        ("run by run", BATCH, Neighbours::Left),
        ("with neighbours", BATCH, Neighbours::Taken),
    ] {
        group.cells.push(Cell {
            variant: format!("every {STRIDE}th, {way}"),
            way: Way::Migrate,
            batch,
            request,
            stride: STRIDE,
            neighbours,
            copier: SharedCopier::clone(copier),
            chose: None,
            threads: 1,
        });
    }
    group
}

/// One page and sixteen, by each copier (\[fast-copy\]).
fn copies(args: &Bench, page_size: PageSize, threads: usize) -> Result<Vec<Group>, CliError> {
    let mut copiers: Vec<(SharedCopier, usize)> = Vec::new();
    let named = |name: &str| {
        by_name(name, None).map_err(|error| CliError::Failed(format!("copier {name}: {error}")))
    };
    for engine in engines() {
        let timed = engine.available.is_ok() && !is_for_tests(engine.name);
        let several = ["threads", "streaming", Auto::NAME].contains(&engine.name);
        if timed && !several {
            copiers.push((named(engine.name)?, 1));
        }
    }
    for count in 2..=threads {
        for inner in ["memcpy", "streaming"] {
            if let Ok(copier) = by_name(&format!("threads:{count}:{inner}"), None) {
                copiers.push((copier, count));
            }
        }
    }
    let mut group = group(Table::Copy, args, page_size, Pins::Declared);
    // What is refused is refused before anything is measured.
    check_memory(&group)?;
    let auto = Auto::new().map(Arc::new);
    let auto = auto.map_err(|why| CliError::Failed(format!("copier {}: {why}", Auto::NAME)))?;
    let counts = match page_size {
        PageSize::Base => [1, 512],
        PageSize::Huge => [1, 16],
    };
    let counts = counts.into_iter().filter(|&batch| batch <= group.pages);
    let choices = counts.map(|batch| (batch, auto.choice(batch, batch * page_size.bytes())));
    let choices = choices.collect::<Vec<_>>();
    for &(_, choice) in &choices {
        // With more threads than were asked for.
        if !copiers.iter().any(|(copier, _)| copier.name() == choice) {
            copiers.push((named(choice)?, threads_of(choice)));
        }
    }
    for (batch, choice) in choices {
        let mut cell = |copier: SharedCopier, threads, chose| {
            group.cells.push(Cell {
                variant: format!("{batch} {}", if batch == 1 { "page" } else { "pages" }),
                way: Way::Migrate,
                batch,
                request: batch,
                stride: 1,
                neighbours: Neighbours::default(),
                copier,
                chose,
                threads,
            });
        };
        for (copier, threads) in &copiers {
            cell(SharedCopier::clone(copier), *threads, None);
        }
        let chose = Some(choice.to_owned());
        cell(Arc::clone(&auto) as SharedCopier, threads_of(choice), chose);
    }
    Ok(vec![group])
}

/// How many threads a copier of this name has.
fn threads_of(name: &str) -> usize {
    let count = name
        .strip_prefix("threads:")
        .and_then(|name| name.split(':').next());
    count.and_then(|count| count.parse().ok()).unwrap_or(1)
}

/// Refuses what would not fit: the region, its frames, and the areas for the raw rate.
fn check_memory(group: &Group) -> Result<(), CliError> {
    if group.backing == Backing::Hugetlb {
        let pool = limits::hugetlb_pool(HUGE_PAGE).unwrap_or_default();
        // Each page needs a place to go to.
        let needed = group.pages.saturating_mul(2);
        if pool.free < needed {
            let cure = (pool.total - pool.free).saturating_add(needed);
            return Err(CliError::Refused(format!(
                "{} pages of hugetlb need {needed} free huge pages of 2 MiB, there are {}; cure: \
                 sysctl vm.nr_hugepages={cure}, or fewer --pages",
                group.pages, pool.free
            )));
        }
    }
    let needed = group
        .pages
        .checked_mul(group.page_size.bytes())
        .and_then(|bytes| bytes.checked_mul(4));
    let available = limits::memory_available().unwrap_or(u64::MAX);
    match needed.map(u64::try_from) {
        Some(Ok(needed)) if needed <= available => Ok(()),
        _ => Err(CliError::Refused(format!(
            "{} pages of {} need four times their size for a benchmark, more than the {} MiB that are free",
            group.pages,
            group.page_size,
            available >> 20
        ))),
    }
}
