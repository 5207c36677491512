//! Exchange in place against two one-way migrations (\[fast-copy\]).

use transhume_copy::swap::{SharedSwapper, swapper_by_name};
use transhume_copy::{SharedCopier, by_name};
use transhume_region::{Mode, Neighbours, Options, PageSize, Region};

use super::cell::{Cell, Group, Way};
use super::requests::Done;
use super::row::Row;
use crate::error::CliError;

/// Few pairs and many: in place by each swapper, and the long way by the copier asked for and by the
/// others, of which the best one counts.
pub(super) fn cells(
    mut group: Group,
    copier: &SharedCopier,
    threads: usize,
) -> Result<Group, CliError> {
    let counts = match group.page_size {
        PageSize::Base => [1, 512],
        PageSize::Huge => [1, 16],
    };
    let shared = threads > 1;
    let swapper = |name: &str| {
        swapper_by_name(name, None)
            .map_err(|error| CliError::Failed(format!("swapper {name}: {error}")))
    };
    let one = swapper("registers").or_else(|_| swapper("buffered"))?;
    let mut swappers = vec![(SharedSwapper::clone(&one), 1)];
    if shared {
        swappers.push((swapper(&format!("threads:{threads}"))?, threads));
    }
    let mut copiers = vec![(SharedCopier::clone(copier), 1)];
    copiers.extend(by_name("streaming", None).map(|copier| (copier, 1)));
    if shared {
        copiers
            .extend(by_name(&format!("threads:{threads}"), None).map(|copier| (copier, threads)));
    }
    for pairs in counts.into_iter().filter(|&pairs| 2 * pairs <= group.pages) {
        let cell = |way: Way, copier: &SharedCopier, threads| Cell {
            variant: match way {
                Way::Exchange(_) => "exchange",
                Way::Migrate | Way::ThereAndBack(_) => "two-way",
            }
            .to_owned(),
            way,
            batch: pairs,
            request: pairs,
            stride: 1,
            neighbours: Neighbours::Left,
            copier: SharedCopier::clone(copier),
            chose: None,
            threads,
        };
        for (swapper, threads) in &swappers {
            let way = Way::Exchange(SharedSwapper::clone(swapper));
            group.cells.push(cell(way, copier, *threads));
        }
        for (copier, threads) in &copiers {
            let way = Way::ThereAndBack(SharedSwapper::clone(&one));
            group.cells.push(cell(way, copier, *threads));
        }
    }
    Ok(group)
}

/// Brings one half of a region to either tier, as each run finds it.
pub(super) fn lay_out(region: &Region) -> Result<(), CliError> {
    let half = region.pages() / 2;
    let options = Options::new().mode(Mode::Sync);
    let halves = [(0..half, "near"), (half..region.pages(), "far")];
    for (pages, tier) in halves {
        let report = region
            .migrate(pages, tier, &options)
            .map_err(|refused| CliError::Failed(refused.to_string()))?;
        if let Some((folio, failure)) = report.stayed().next() {
            return Err(CliError::Failed(format!("{folio:?} stayed: {failure}")));
        }
    }
    Ok(())
}

/// Lets `pairs` pages from `at` on trade places with those half a region further.
pub(super) fn trade(
    region: &Region,
    way: &Way,
    at: usize,
    pairs: usize,
    options: &Options,
) -> Result<Done, transhume_region::RegionError> {
    let half = region.pages() / 2;
    let (a, b) = (at..at + pairs, half + at..half + at + pairs);
    if let Way::Exchange(swapper) = way {
        let options = options.clone().swapper(SharedSwapper::clone(swapper));
        let report = region.exchange(a, b, &options)?;
        return Ok(Done {
            arrived: 2 * report.exchanged() as u64,
            stayed: 2 * (pairs - report.exchanged()) as u64,
            why: report.stayed().next().map(|pair| pair.outcome.to_string()),
            first_folio: report.times.first_folio,
        });
    }
    let (tier_of_a, tier_of_b) = (region.tier_of(a.start)?, region.tier_of(b.start)?);
    let there = region.migrate(a, tier_of_b, options)?;
    let back = region.migrate(b, tier_of_a, options)?;
    let reports = [there, back];
    let stayed = || reports.iter().flat_map(|report| report.stayed());
    Ok(Done {
        arrived: reports.iter().map(|report| report.moved() as u64).sum(),
        stayed: stayed().count() as u64,
        why: stayed().next().map(|(_, failure)| failure.to_string()),
        first_folio: reports[0].times.first_folio,
    })
}

/// A line for each size: exchange against two-way, and against the raw swap.
pub(super) fn lines(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for (size, pairs) in [("2m", 16), ("2m", 1), ("4k", 512), ("4k", 1)] {
        let of = |variant: &'static str| {
            rows.iter().filter(move |row| {
                row.bench == "exchange"
                    && row.variant == variant
                    && row.page_size == size
                    && row.pages == pairs
            })
        };
        let best = |variant| of(variant).max_by(|a, b| a.bytes_per_s.total_cmp(&b.bytes_per_s));
        let (Some(exchange), Some(two_way)) = (best("exchange"), best("two-way")) else {
            continue;
        };
        let mut line = format!(
            "{size}, exchange of {pairs} {}, {}: {:.2} times the bytes/s of two migrations by their best \
             copier, {}",
            if pairs == 1 { "pair" } else { "pairs" },
            exchange.copier,
            exchange.bytes_per_s / two_way.bytes_per_s,
            two_way.copier,
        );
        if let Some(memcpy) = of("two-way").find(|row| row.copier == "memcpy")
            && two_way.copier != "memcpy"
        {
            let ratio = exchange.bytes_per_s / memcpy.bytes_per_s;
            line.push_str(&format!(", {ratio:.2} by memcpy"));
        }
        line.push_str(&format!(
            "; {:.2} of the raw swap rate under the same application, {:.2} of the rate that it has alone",
            exchange.bytes_per_s / exchange.raw_copy_bytes_per_s,
            exchange.bytes_per_s / exchange.raw_copy_alone_bytes_per_s,
        ));
        lines.push(line);
    }
    lines
}
