//! What batch size, copiers and deferral would give.

use std::num::NonZeroUsize;

use serde::Serialize;
use transhume_model::{CopyBy, Costs, Plan};
use transhume_region::PageSize;

use super::row::{Row, columns};
use super::simulate;
use crate::args::Predict;
use crate::error::CliError;
use crate::table::{figures, fold, width};

/// All that is predicted of one machine.
#[derive(Debug, Serialize)]
pub(super) struct Tables {
    cpus: usize,
    nodes: usize,
    pub(super) app_threads: usize,
    page_size: String,
    pages: usize,
    batches: Vec<Row>,
    copiers: Vec<Row>,
    deferral: Vec<Row>,
    deferral_assumes: &'static str,
}

/// What a prediction of deferral leaves out.
const DEFERRAL_ASSUMES: &str = "Deferral is held against no measurement. Shootdowns are counted here when they are \
    asked for, and a machine counts those for which a CPU was found at work: a settlement makes threads wait, whose CPUs \
    are asked no more, so bench defer has seen fewer shootdowns deferred of anonymous memory where more may be predicted. \
    Pages go one way, once, and wait for the limit or the end; there they go to and fro, rest in between and settle at \
    once. Where it matters, believe bench defer.";

/// `first`, twice that, and so on up to `most`.
fn doubling(first: usize, most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(first), |n| n.checked_mul(2)).take_while(move |n| *n <= most)
}

fn given_or(given: &[NonZeroUsize], default: impl Iterator<Item = usize>) -> Vec<usize> {
    if given.is_empty() {
        default.collect()
    } else {
        given.iter().map(|n| n.get()).collect()
    }
}

/// `check` is asked before each simulation whether to go on.
pub(super) fn make(
    args: &Predict,
    costs: &Costs,
    check: &dyn Fn() -> Result<(), CliError>,
) -> Result<Tables, CliError> {
    let here = std::thread::available_parallelism().map_or(1, usize::from);
    let cpus = args.cpus.map_or(here, NonZeroUsize::get);
    let app_threads = args.app_threads.unwrap_or(cpus.saturating_sub(1));
    let (order, pages, most, usual) = match args.page_size {
        PageSize::Base => (0, 4096, 2048, 512),
        PageSize::Huge => (9, 64, 16, 16),
    };
    let pages = args.pages.map_or(pages, NonZeroUsize::get);
    let plan = |batch, copier, deferred| Plan {
        cpus,
        nodes: args.nodes.get(),
        programs: app_threads,
        batch,
        copier,
        deferred,
        ..Plan::of(pages, order)
    };
    let row = |variant: String, plan: &Plan| -> Result<Row, CliError> {
        check()?;
        Ok(Row::new(variant, plan, &simulate(plan, costs)?))
    };

    let sizes = given_or(&args.batch, doubling(1, most.min(pages)));
    let mut batches = Vec::new();
    for &batch in &sizes {
        batches.push(row(batch.to_string(), &plan(batch, CopyBy::Cpu, None))?);
    }

    // The other tables have the batch size that the engine takes by itself, or the largest given.
    let batch = match sizes.iter().max() {
        Some(&largest) if !args.batch.is_empty() => largest,
        _ => usual.min(pages),
    };
    let threads = given_or(&args.threads, doubling(2, cpus));
    let device = usize::from(costs.channel_rate.is_some()) * 16;
    let channels = given_or(&args.channels, doubling(1, device));
    let by_threads = threads
        .iter()
        .map(|&n| (CopyBy::Threads(n), format!("threads:{n}")));
    let by_channels = channels
        .iter()
        .map(|&n| (CopyBy::Channels(n), format!("channels:{n}")));
    let mut copiers = vec![row("CPU".to_owned(), &plan(batch, CopyBy::Cpu, None))?];
    for (copier, name) in by_threads.chain(by_channels) {
        copiers.push(row(name, &plan(batch, copier, None))?);
    }

    let mut waiting = given_or(
        &args.waiting,
        [batch, batch.saturating_mul(8), pages].into_iter(),
    );
    waiting
        .iter_mut()
        .for_each(|waiting| *waiting = (*waiting).min(pages));
    waiting.dedup();
    let mut deferral = vec![row("at once".to_owned(), &plan(batch, CopyBy::Cpu, None))?];
    for waiting in waiting {
        let plan = plan(batch, CopyBy::Cpu, Some(waiting));
        deferral.push(row(format!("up to {waiting}"), &plan)?);
    }
    Ok(Tables {
        cpus,
        nodes: args.nodes.get(),
        app_threads,
        page_size: args.page_size.to_string(),
        pages,
        batches,
        copiers,
        deferral,
        deferral_assumes: DEFERRAL_ASSUMES,
    })
}

pub(super) fn show(tables: &Tables) -> String {
    let machine = format!(
        "{} pages of {}, {} CPUs, {}, {} application threads",
        tables.pages,
        tables.page_size,
        tables.cpus,
        match tables.nodes {
            1 => "one node".to_owned(),
            nodes => format!("{nodes} nodes"),
        },
        tables.app_threads
    );
    let batch = tables.copiers.first().map_or(0, |row| row.batch);
    let table = |title: String, first: &'static str, rows: &[Row]| {
        let title = fold(&format!("{title}; {machine}"), width());
        format!("{title}\n{}\n", figures(columns(first, rows), width()))
    };
    let mut text = table(
        "batch: what a batch's size costs and gains".to_owned(),
        "a batch",
        &tables.batches,
    );
    text.push_str(&table(
        format!("copy: who copies, {batch} a batch"),
        "copier",
        &tables.copiers,
    ));
    text.push_str(&table(
        format!("defer: switched at once or later, {batch} a batch, and application threads that only read"),
        "switched",
        &tables.deferral,
    ));
    text.push_str(&fold(tables.deferral_assumes, width()));
    text.push('\n');
    text
}
