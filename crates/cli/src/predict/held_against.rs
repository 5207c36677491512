//! What a benchmark measured on this machine, with what is predicted beside it.

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use transhume_model::{CopyBy, Costs, Plan};

use super::costs::{From, describe};
use super::{is_near, off, simulate};
use crate::args::Predict;
use crate::error::CliError;
use crate::table::{Column, figures, fold, micro, short, width};

/// What `transhume bench --json` has written.
#[derive(Debug, Deserialize)]
struct File {
    machine: Machine,
    results: Vec<serde_json::Value>,
}

/// Of that what is compared, and what is not.
#[derive(Debug)]
pub(super) struct Measured {
    cpus: usize,
    rows: Vec<Row>,
    not_compared: Vec<NotCompared>,
}

/// How many rows are not compared for a reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct NotCompared {
    rows: usize,
    why: String,
}

#[derive(Debug, Deserialize)]
struct Machine {
    cpus: usize,
}

/// A row of a region's benchmark.
#[derive(Clone, Debug, Deserialize)]
struct Row {
    bench: String,
    page_size: String,
    pages: usize,
    batch: usize,
    threads: usize,
    copier: String,
    mechanism: String,
    stride: usize,
    pins: String,
    pages_per_s: f64,
    raw_copy_alone_bytes_per_s: f64,
    shootdowns_per_page: Option<f64>,
    first_folio_us: f64,
    app_alone_ops_per_s: f64,
    app_ops_per_s: f64,
}

impl Row {
    /// The row, or why the simulated machine does not do what it is about: that moves anonymous memory in one piece,
    /// copied by `memcpy` in one thread or several.
    fn read(row: &serde_json::Value) -> Result<Self, String> {
        let name = |field: &str| row[field].as_str().unwrap_or("unknown");
        let bench = name("bench");
        if !["flush", "copy", "batch"].contains(&bench) {
            return Err(format!("bench {bench}"));
        }
        if name("backing") != "anonymous" {
            return Err(format!("memory is {}", name("backing")));
        }
        let row = Self::deserialize(row)
            .map_err(|_| "this version's bench writes other rows".to_owned())?;
        let by_memcpy = row.copier == "memcpy"
            || row.copier.starts_with("threads:") && row.copier.ends_with(":memcpy");
        if !by_memcpy {
            return Err("copied by another than memcpy".to_owned());
        }
        if row.mechanism == "move_pages" {
            return Err("moved by move_pages".to_owned());
        }
        if row.stride != 1 {
            return Err("pages are not side by side".to_owned());
        }
        if row.pins != "declared" {
            return Err("pins are not declared".to_owned());
        }
        Ok(row)
    }

    fn page_ns(&self) -> f64 {
        1e9 / self.pages_per_s
    }

    /// What the application loses by a page, in nanoseconds.
    fn lost_ns(&self) -> f64 {
        self.page_ns() * (1.0 - self.app_ops_per_s / self.app_alone_ops_per_s).max(0.0)
    }
}

/// A row beside its prediction.
#[derive(Debug, Serialize)]
pub(super) struct Held {
    bench: String,
    page_size: String,
    pages: usize,
    batch: usize,
    copier: String,
    /// Whether costs are derived from it, so that it predicts nothing.
    calibrates: bool,
    pages_per_s: Figure,
    first_folio_us: Figure,
    /// None where nothing was lost.
    lost_us_per_page: Option<Figure>,
    shootdowns_per_page: Option<Figure>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Figure {
    measured: f64,
    predicted: f64,
    off_by: f64,
}

impl Figure {
    fn new(measured: f64, predicted: f64) -> Self {
        Self {
            measured,
            predicted,
            off_by: predicted / measured - 1.0,
        }
    }
}

/// Reads a file of JSON that a command of this program has written.
pub(super) fn parse<T: DeserializeOwned>(path: &Path) -> Result<T, CliError> {
    let shown = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| CliError::Refused(format!("cannot read {shown}: {error}")))?;
    serde_json::from_str(&text)
        .map_err(|error| CliError::Refused(format!("{shown} is not what is wanted: {error}")))
}

pub(super) fn read(path: &Path) -> Result<Measured, CliError> {
    let measured = Measured::of(parse(path)?);
    if measured.rows.is_empty() {
        return Err(CliError::Refused(format!(
            "{} has no results of anonymous memory by memcpy as this version's bench writes them, which is what can be \
             compared",
            path.display()
        )));
    }
    Ok(measured)
}

impl Measured {
    fn of(file: File) -> Self {
        let mut measured = Self {
            cpus: file.machine.cpus,
            rows: Vec::new(),
            not_compared: Vec::new(),
        };
        for row in &file.results {
            match Row::read(row) {
                Ok(row) => measured.rows.push(row),
                Err(why) => {
                    let mut known = measured.not_compared.iter_mut();
                    match known.find(|known| known.why == why) {
                        Some(known) => known.rows += 1,
                        None => measured.not_compared.push(NotCompared { rows: 1, why }),
                    }
                }
            }
        }
        measured
    }
}

/// The costs by which the rows of a table are predicted.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Used {
    /// The table.
    bench: String,
    costs: Costs,
    /// The rows that come out right by them, counted from zero among those compared; none where the costs are not
    /// derived from the benchmark.
    from_rows: Option<[usize; 2]>,
}

/// All that is held against the benchmark.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    bench: Vec<Held>,
    bench_costs: Vec<Used>,
    not_compared: Vec<NotCompared>,
}

/// The costs by which the rows of `table` come out right that have 1 and 512 pages of 4 KiB a batch, and what the
/// application loses by the first of them, where copies are as fast as they were by themselves in the table `copies`:
/// a machine that others use is a slower one at another time, and variants of a table take turns. What a benchmark does
/// not tell, how the time of a call is divided and what waking takes, is as it was measured here. The first of several
/// such rows counts.
fn calibrate(rows: &[Row], table: &str, copies: &str, here: &Costs) -> Option<(Costs, [usize; 2])> {
    let find = |batch| {
        let wanted = |row: &Row| {
            row.bench == table && row.page_size == "4k" && row.batch == batch && row.threads == 1
        };
        rows.iter().position(wanted)
    };
    let found = [find(1)?, find(512)?];
    let [one, many] = found.map(|n| &rows[n]);
    let raw = |several: bool| {
        let huge = |row: &&Row| row.page_size == "2m" && row.bench == copies;
        let rows = rows.iter().filter(huge);
        let rows = rows.filter(|row| (row.threads > 1) == several);
        let largest = rows.clone().map(|row| row.batch).max()?;
        let rates = rows.filter(|row| row.batch == largest);
        rates
            .map(|row| row.raw_copy_alone_bytes_per_s)
            .reduce(f64::max)
    };
    let mut costs = here.clone();
    costs.copy_rate = raw(false).unwrap_or(many.raw_copy_alone_bytes_per_s);
    costs.copy_limit = raw(true).unwrap_or(0.0).max(costs.copy_rate);
    // What the first page takes longer than the others.
    let set_up = one.first_folio_us * 1e3 - one.page_ns();
    costs.named_ns = set_up.max(0.0) / one.pages as f64;
    let batch = many.batch as f64;
    let calls = (one.page_ns() - many.page_ns()).max(0.0) * batch / (batch - 1.0);
    let copy = 4096.0 * 1e9 / costs.copy_rate;
    let page = (one.page_ns() - calls - copy).max(0.0);
    let share = here.folio_ns / (here.folio_ns + 2.0 * here.entry_ns).max(1.0);
    costs.folio_ns = page * share;
    costs.entry_ns = page * (1.0 - share) / 2.0;
    let sides = if costs.remaps_by_call { 2.0 } else { 1.0 };
    // A CPU that has looked nothing up since is not asked again, as often as those rows have counted.
    let asked = one
        .shootdowns_per_page
        .map_or(sides, |asked| asked.clamp(0.1, sides));
    let scale = calls / (sides * costs.call_ns + asked * costs.ipi_ns).max(1.0);
    costs.call_ns *= scale;
    costs.ipi_ns *= scale;
    costs.far_ipi_ns *= scale;
    costs.handler_ns = one.lost_ns() / asked;
    costs.access_ns = 1e9 / one.app_alone_ops_per_s;
    Some((costs, found))
}

/// The costs of each table, by the rows of its own, or of the first of two others that has them.
fn used(rows: &[Row], args: &Predict, here: &Costs) -> Vec<Used> {
    let mut used: Vec<Used> = Vec::new();
    for Row { bench, .. } in rows {
        if used.iter().any(|known| known.bench == *bench) {
            continue;
        }
        let tables = [bench.as_str(), "flush", "batch"];
        let mut tables = tables.iter().filter(|_| args.costs.is_none());
        let own = tables.find_map(|table| calibrate(rows, table, bench, here));
        let (costs, from_rows) = match own {
            Some((costs, rows)) => (costs, Some(rows)),
            None => (here.clone(), None),
        };
        used.push(Used {
            bench: bench.clone(),
            costs,
            from_rows,
        });
    }
    used
}

/// `check` is asked before each simulation whether to go on.
pub(super) fn hold(
    measured: Measured,
    args: &Predict,
    from: &mut From,
    check: &dyn Fn() -> Result<(), CliError>,
) -> Result<Comparison, CliError> {
    let Measured {
        cpus,
        rows,
        not_compared,
    } = measured;
    let bench_costs = used(&rows, args, &from.costs);
    let mut bench = Vec::new();
    for (n, row) in rows.iter().enumerate() {
        let order = if row.page_size == "4k" { 0 } else { 9 };
        // Requests of one batch go through a region as large as the others'.
        let of_size = rows.iter().filter(|other| other.page_size == row.page_size);
        let pages = of_size.map(|other| other.pages).max().unwrap_or(row.pages);
        let plan = Plan {
            cpus,
            programs: args.app_threads.unwrap_or(1).min(cpus.saturating_sub(1)),
            request: row.pages,
            batch: row.batch,
            copier: match row.threads {
                1 => CopyBy::Cpu,
                threads => CopyBy::Threads(threads),
            },
            ..Plan::of(pages, order)
        };
        let used = bench_costs.iter().find(|used| used.bench == row.bench);
        let costs = used.map_or(&from.costs, |used| &used.costs);
        let from_rows = used.and_then(|used| used.from_rows);
        check()?;
        let told = simulate(&plan, costs)?;
        let first = told
            .first_folio
            .map_or(0.0, |first| first.as_secs_f64() * 1e6);
        bench.push(Held {
            bench: row.bench.clone(),
            page_size: row.page_size.clone(),
            pages: row.pages,
            batch: row.batch,
            copier: row.copier.clone(),
            calibrates: from_rows.is_some_and(|rows| rows.contains(&n)),
            pages_per_s: Figure::new(row.pages_per_s, told.folios_per_s()),
            first_folio_us: Figure::new(row.first_folio_us, first),
            lost_us_per_page: (row.lost_ns() > 0.0).then(|| {
                let predicted = told.lost_s_per_folio() * 1e6;
                Figure::new(row.lost_ns() / 1e3, predicted)
            }),
            shootdowns_per_page: row
                .shootdowns_per_page
                .map(|measured| Figure::new(measured, told.shootdowns_per_folio())),
        });
    }
    let without = bench_costs.iter().any(|used| used.from_rows.is_none());
    if without && args.costs.is_none() {
        let what = "the benchmark has no rows of 4k by memcpy with 1 and 512 pages a batch, so what was measured \
            here and now is held against it";
        from.notices.push(what.to_owned());
    }
    Ok(Comparison {
        bench,
        bench_costs,
        not_compared,
    })
}

impl Comparison {
    /// The costs that are used, table by table.
    pub(super) fn describe_costs(&self, from: &From) -> String {
        let mut text = String::new();
        let derived = |used: &Used| used.from_rows.is_some();
        if !self.bench_costs.iter().all(derived) {
            text.push_str(&format!("{}\n\n", fold(&from.describe(), width())));
        }
        for used in &self.bench_costs {
            let Some(row) = used.from_rows.and_then(|[one, _]| self.bench.get(one)) else {
                continue;
            };
            let Used { bench, costs, .. } = used;
            let whose = format!(
                "the table {bench}, from the rows of {} with 1 and with 512 pages of 4k a batch",
                row.bench
            );
            text.push_str(&format!("{}\n\n", fold(&describe(costs, &whose), width())));
        }
        if self.bench_costs.iter().any(derived) {
            let line = "A benchmark does not tell how the time of a call is divided from that of a flush and the time \
                of a folio from that of an entry, what waking and a copier's threads take and for how long something \
                else has a CPU: these were measured here and now, so they differ a little the next time.";
            text.push_str(&format!("{}\n\n", fold(line, width())));
        }
        text
    }
}

pub(super) fn show(comparison: &Comparison) -> String {
    let held = &comparison.bench;
    let column = |header: &'static str, rank, cell: &dyn Fn(&Held) -> String| {
        Column::new(header, rank, held.iter().map(cell))
    };
    let told = |row: &Held, figure: Figure| match row.calibrates {
        true => "gives costs".to_owned(),
        false => off(figure.off_by),
    };
    let columns = vec![
        column("bench", 0, &|row| {
            format!("{} {}", row.bench, row.page_size)
        }),
        column("a batch", 0, &|row| row.batch.to_string()),
        column("copier", 0, &|row| row.copier.clone()),
        column("pages/s\nmeasured", 1, &|row| {
            short(row.pages_per_s.measured)
        }),
        column("pages/s\npredicted", 1, &|row| {
            short(row.pages_per_s.predicted)
        }),
        column("pages/s\noff by", 1, &|row| told(row, row.pages_per_s)),
        column("first page\nus", 2, &|row| {
            micro(row.first_folio_us.measured)
        }),
        column("first page\npredicted", 2, &|row| {
            micro(row.first_folio_us.predicted)
        }),
        column("first page\noff by", 2, &|row| {
            told(row, row.first_folio_us)
        }),
        column("app loses\nus a page", 2, &|row| {
            let figure = row.lost_us_per_page;
            figure.map_or("0".to_owned(), |figure| micro(figure.measured))
        }),
        column("app loses\npredicted", 2, &|row| {
            let figure = row.lost_us_per_page;
            figure.map_or("n/a".to_owned(), |figure| micro(figure.predicted))
        }),
        column("app loses\noff by", 2, &|row| {
            let figure = row.lost_us_per_page;
            figure.map_or("n/a".to_owned(), |figure| told(row, figure))
        }),
        column("shootdowns\na page", 3, &|row| {
            let figure = row.shootdowns_per_page;
            figure.map_or("n/a".to_owned(), |figure| format!("{:.4}", figure.measured))
        }),
        column("shootdowns\npredicted", 3, &|row| {
            let figure = row.shootdowns_per_page;
            figure.map_or("n/a".to_owned(), |figure| {
                format!("{:.4}", figure.predicted)
            })
        }),
    ];
    let predicted = held.iter().filter(|row| !row.calibrates);
    let near = |figure: fn(&Held) -> Option<Figure>| {
        let figures = predicted.clone().filter_map(figure);
        figures.filter(|figure| is_near(figure.off_by)).count()
    };
    let line = format!(
        "Of {} rows from which no cost is derived, pages/s of {}, the first page of {} and what the application loses \
         in {} are within 25 %; * is off by more.",
        predicted.clone().count(),
        near(|row| Some(row.pages_per_s)),
        near(|row| Some(row.first_folio_us)),
        near(|row| row.lost_us_per_page),
    );
    let left_out = &comparison.not_compared;
    let not_compared: usize = left_out.iter().map(|left_out| left_out.rows).sum();
    let mut compared = format!(
        "Only anonymous memory by memcpy is compared, which are {} of {} rows.",
        held.len(),
        held.len() + not_compared
    );
    let reasons = left_out
        .iter()
        .map(|NotCompared { rows, why }| format!("{rows} ({why})"));
    let reasons: Vec<String> = reasons.collect();
    if !reasons.is_empty() {
        compared.push_str(&format!(" Not compared: {}.", reasons.join(", ")));
    }
    format!(
        "bench: what was measured, and what is predicted\n{}{}\n{}\n",
        figures(columns, width()),
        fold(&line, width()),
        fold(&compared, width())
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

    use clap::Parser;
    use serde_json::json;
    use transhume_model::Published;

    use super::*;
    use crate::args::{Cli, Command};

    fn row(page_size: &str, batch: usize, threads: usize, pages_per_s: f64) -> serde_json::Value {
        let copier = match threads {
            1 => "memcpy".to_owned(),
            threads => format!("threads:{threads}:memcpy"),
        };
        json!({
            "bench": "flush", "backing": "anonymous", "page_size": page_size, "pages": 2048, "batch": batch,
            "threads": threads, "copier": copier, "mechanism": "uffd", "stride": 1, "pins": "declared",
            "pages_per_s": pages_per_s, "raw_copy_alone_bytes_per_s": threads as f64 * 1e10,
            "shootdowns_per_page": null, "first_folio_us": 1.0, "app_alone_ops_per_s": 4e6, "app_ops_per_s": 2e6,
        })
    }

    fn measured(results: &[serde_json::Value]) -> Measured {
        let file = json!({ "machine": { "cpus": 2 }, "results": results });
        Measured::of(serde_json::from_value(file).unwrap())
    }

    fn from() -> From {
        From {
            costs: Published::all().remove(0).costs,
            from: "a test".to_owned(),
            notices: Vec::new(),
        }
    }

    fn args() -> Predict {
        match Cli::parse_from(["transhume", "predict"]).command {
            Command::Predict(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_costs_are_derived_from_comes_out_again_and_is_marked() {
        let measured = measured(&[
            row("4k", 1, 1, 30e3),
            row("4k", 8, 1, 200e3),
            row("4k", 512, 1, 1e6),
            // Measured again, so it tells how well a cell is met that was.
            row("4k", 512, 1, 1.1e6),
        ]);
        let mut from = from();
        let told = hold(measured, &args(), &mut from, &|| Ok(())).unwrap();
        assert!(from.notices.is_empty());
        // The costs that are used are told, and they are not those of the machine at hand.
        let [used] = &told.bench_costs[..] else {
            panic!("{told:?}");
        };
        assert_eq!(
            (used.bench.as_str(), used.from_rows),
            ("flush", Some([0, 2]))
        );
        assert!(used.costs != from.costs);
        let shown = told.describe_costs(&from);
        assert!(
            shown.starts_with("Costs of the table flush") && !shown.contains("Costs of a test"),
            "{shown}"
        );
        let held = told.bench;
        let marked = held.iter().map(|row| row.calibrates);
        assert_eq!(marked.collect::<Vec<_>>(), [true, false, true, false]);
        for row in held.iter().filter(|row| row.calibrates) {
            assert!(row.pages_per_s.off_by.abs() < 0.06, "{row:?}");
        }
    }

    #[test]
    fn copies_are_as_fast_as_they_were_on_huge_pages() {
        let mut huge = row("2m", 16, 1, 5e3);
        huge["raw_copy_alone_bytes_per_s"] = json!(7e9);
        let both = [
            row("4k", 1, 1, 30e3),
            row("4k", 512, 1, 1e6),
            huge,
            row("2m", 16, 2, 8e3),
            row("2m", 1, 2, 8e3),
        ];
        let rows = measured(&both).rows;
        let (own, _) = calibrate(&rows, "flush", "flush", &from().costs).unwrap();
        assert!((own.copy_rate - 7e9).abs() < 1.0);
        assert!((own.copy_limit - 2e10).abs() < 1.0);
        assert!(calibrate(&rows, "batch", "batch", &from().costs).is_none());
    }

    #[test]
    fn without_the_rows_for_it_costs_stay_and_it_says_so() {
        let measured = measured(&[row("4k", 8, 1, 2e5)]);
        let mut from = from();
        let told = hold(measured, &args(), &mut from, &|| Ok(())).unwrap();
        assert!(!told.bench[0].calibrates);
        assert_eq!(from.notices.len(), 1);
        // Then the costs that were measured are the ones that are used.
        assert!(told.bench_costs[0].from_rows.is_none());
        assert!(told.describe_costs(&from).starts_with("Costs of a test"));
    }

    #[test]
    fn what_is_not_compared_is_counted_by_its_reason() {
        let with = |field: &str, value: serde_json::Value| {
            let mut row = row("4k", 8, 1, 2e5);
            row[field] = value;
            row
        };
        let measured = measured(&[
            row("4k", 8, 1, 2e5),
            with("copier", json!("streaming")),
            with("copier", json!("threads:2:streaming")),
            with("stride", json!(8)),
            with("backing", json!("memfd")),
            with("bench", json!("defer")),
            with("pages_per_s", json!(null)),
        ]);
        assert_eq!(measured.rows.len(), 1);
        let left_out = measured.not_compared.iter();
        let left_out: Vec<_> = left_out.map(|why| (why.rows, why.why.as_str())).collect();
        assert_eq!(
            left_out,
            [
                (2, "copied by another than memcpy"),
                (1, "pages are not side by side"),
                (1, "memory is memfd"),
                (1, "bench defer"),
                (1, "this version's bench writes other rows"),
            ]
        );
        let told = hold(measured, &args(), &mut from(), &|| Ok(())).unwrap();
        let shown = show(&told);
        for what in ["1 of 7 rows", "2 (copied by another than memcpy)"] {
            assert!(shown.contains(what), "{what}: {shown}");
        }
    }
}
