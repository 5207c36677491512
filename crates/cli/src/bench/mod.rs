//! `transhume bench`: live memory migrates in several ways, side by side.

mod cell;
mod group;
mod plan;
mod row;
mod show;
mod summary;

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
    results: &'d [Row],
}

pub(crate) fn run(args: &Bench) -> Result<ExitCode, CliError> {
    let sink = args.json.as_deref().map(Sink::open).transpose()?;
    let quiet = sink.as_ref().is_some_and(Sink::is_stdout);
    let plan = plan::make(args)?;
    let machine = Machine::here();
    let context = Context::start(plan.iter().map(|group| group.runs(args.runs)).sum())?;

    let mut rows = Vec::new();
    let mut notices: Vec<String> = Vec::new();
    let mut beside = Vec::new();
    for group in &plan {
        let result = group::run(group, args, &context)?;
        for notice in result.notices {
            if !notices.contains(&notice) {
                context
                    .progress
                    .suspend(|| eprintln!("transhume: note: {notice}"));
                notices.push(notice);
            }
        }
        if !quiet {
            let mut text = show::group(group, &result.rows);
            if beside.is_empty() {
                // Not before something has been measured: a refusal prints its one line only.
                text.insert_str(0, &format!("{}\n\n", fold(&machine.describe(), width())));
            }
            context.progress.suspend(|| print(&text))?;
        }
        beside.push(result.beside);
        rows.extend(result.rows);
    }
    context.progress.finish_and_clear();
    if !quiet {
        print(&format!(
            "{}\n",
            fold(&summary::lines(&rows, &beside), width())
        ))?;
    }
    let errors = rows.iter().map(|row| row.errors).sum::<u64>();
    if let Some(sink) = sink {
        let document = Document {
            schema: 1,
            machine: &machine,
            notices: &notices,
            results: &rows,
        };
        sink.write(&document)?;
    }
    if errors == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    Err(CliError::Failed(format!(
        "{errors} errors: memory was wrong, or pages did not arrive"
    )))
}
