//! `transhume bench`: live memory migrates in several ways, side by side.

mod cell;
mod copier;
mod counters;
mod cpus;
mod defer;
mod exchange;
mod group;
mod moving;
mod plan;
mod requests;
mod row;
mod show;
mod summary;

pub(crate) use cpus::Cpus;
pub(crate) use group::{other_tier, tiers};

use std::process::ExitCode;

use serde::Serialize;

use crate::args::Bench;
use crate::context::Context;
use crate::error::CliError;
use crate::json::Sink;
use crate::machine::Machine;
use crate::print;
use crate::table::{fold, width};
use row::Row;

#[derive(Serialize)]
struct Document<'d> {
    schema: u32,
    machine: &'d Machine,
    notices: &'d [String],
    results: Vec<Figures<'d>>,
}

/// The rows of all benchmarks, by their own names.
#[derive(Serialize)]
#[serde(untagged)]
enum Figures<'r> {
    Region(&'r Row),
    Move(&'r moving::Row),
    Defer(&'r defer::Row),
}

pub(crate) fn run(args: &Bench) -> Result<ExitCode, CliError> {
    let sink = args.json.as_deref().map(Sink::open).transpose()?;
    let copier = copier::Chosen::make(args)?;
    let plan = plan::make(args, &copier.copier)?;
    let moves = moving::make(args)?;
    let of_moves = moves.iter().flat_map(|moves| &moves.groups);
    let runs = of_moves.map(|group| group.runs(args.runs));
    let runs = runs.chain(plan.iter().map(|group| group.runs(args.runs)));
    let (deferred, left_out) = defer::make(args, &copier.copier)?;
    let runs = runs.chain(deferred.iter().map(|group| group.runs(args.runs)));
    let machine = Machine::here();
    let context = Context::start(runs.sum())?;
    let mut shown = Shown {
        quiet: sink.as_ref().is_some_and(Sink::is_stdout),
        context: &context,
        machine: &machine,
        begun: false,
        notices: Vec::new(),
    };

    let (mut rows, mut beside) = (Vec::new(), Vec::new());
    for group in &plan {
        let result = group::run(group, args, &context)?;
        shown.note(result.notices);
        shown.print(&show::group(group, &result.rows))?;
        beside.push(result.beside);
        rows.extend(result.rows);
    }
    shown.note(left_out);
    let mut later = Vec::new();
    for group in &deferred {
        let result = defer::run(group, args, &context)?;
        shown.note(result.notices);
        shown.print(&defer::table(group, &result.rows))?;
        later.extend(result.rows);
    }
    let mut moved = Vec::new();
    for (moves, group) in moves
        .iter()
        .flat_map(|moves| moves.groups.iter().map(move |group| (moves, group)))
    {
        let result = moving::run(group, moves, args, &context)?;
        shown.note(result.notices);
        if !result.rows.is_empty() {
            shown.print(&moving::table(group, moves, &result.rows))?;
        }
        moved.extend(result.rows);
    }
    context.progress.finish_and_clear();
    let mut summary = Vec::new();
    if !rows.is_empty() {
        summary.push(summary::lines(&rows, &beside));
    }
    if !later.is_empty() {
        summary.push(defer::lines(&later));
    }
    if !moved.is_empty() {
        summary.push(moving::lines(&moved));
    }
    if summary.is_empty() {
        // A notice has said why.
        return Err(CliError::Refused("nothing could be measured".to_owned()));
    }
    shown.print(&format!("{}\n", fold(&summary.join("\n\n"), width())))?;
    if let Some(sink) = sink {
        let region = rows.iter().map(Figures::Region);
        let document = Document {
            schema: 1,
            machine: &machine,
            notices: &shown.notices,
            results: region
                .chain(later.iter().map(Figures::Defer))
                .chain(moved.iter().map(Figures::Move))
                .collect(),
        };
        sink.write(&document)?;
    }
    let errors = rows.iter().map(|row| row.errors);
    let errors = errors.chain(later.iter().map(|row| row.errors));
    let errors = errors.chain(moved.iter().map(|row| row.errors));
    match errors.sum::<u64>() {
        0 => Ok(ExitCode::SUCCESS),
        errors => Err(CliError::Failed(format!(
            "{errors} errors: memory was wrong, or pages did not arrive"
        ))),
    }
}

/// What is shown while the benchmark runs.
struct Shown<'s> {
    quiet: bool,
    context: &'s Context,
    machine: &'s Machine,
    begun: bool,
    notices: Vec<String>,
}

impl Shown<'_> {
    /// Says each thing once.
    fn note(&mut self, notices: Vec<String>) {
        for notice in notices {
            if !self.notices.contains(&notice) {
                self.context
                    .progress
                    .suspend(|| eprintln!("transhume: note: {notice}"));
                self.notices.push(notice);
            }
        }
    }

    /// Prints, and before the first text which machine this is: not before something has been
    /// measured, since a refusal prints its one line only.
    fn print(&mut self, text: &str) -> Result<(), CliError> {
        if self.quiet {
            return Ok(());
        }
        let mut all = String::new();
        if !self.begun {
            self.begun = true;
            all = format!("{}\n\n", fold(&self.machine.describe(), width()));
        }
        all.push_str(text);
        self.context.progress.suspend(|| print(&all))
    }
}
