//! `transhume predict`: what a migration would take, by the engine on a simulated machine.

mod costs;
mod held_against;
mod measure;
mod published;
mod row;
mod tables;

use serde::Serialize;
use transhume_model::{Costs, NoPrediction, Plan, Prediction, TOLERANCE, predict};

use crate::args::Predict;
use crate::context::Context;
use crate::error::CliError;
use crate::json::Sink;
use crate::print;
use crate::table::{fold, width};

#[derive(Serialize)]
struct Document {
    schema: u32,
    /// What was predicted from; a file of this document can be given to `--costs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    costs: Option<Costs>,
    /// Where the costs come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    costs_from: Option<String>,
    notices: Vec<String>,
    #[serde(flatten)]
    answer: Answer,
}

/// What was asked for.
#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Tables(tables::Tables),
    Bench(held_against::Comparison),
    Published(published::Published),
}

/// Runs a plan, whose numbers come from the command line.
fn simulate(plan: &Plan, costs: &Costs) -> Result<Prediction, CliError> {
    predict(plan, costs).map_err(|why| match why {
        NoPrediction::Violated(_) => CliError::Failed(why.to_string()),
        _ => CliError::Refused(why.to_string()),
    })
}

pub(crate) fn run(args: &Predict) -> Result<(), CliError> {
    let sink = args.json.as_deref().map(Sink::open).transpose()?;
    let quiet = sink.as_ref().is_some_and(Sink::is_stdout);
    let (document, text) = if args.published {
        let (published, text) = published::reproduce(args.machine.as_deref())?;
        let document = Document {
            schema: 1,
            costs: None,
            costs_from: None,
            notices: Vec::new(),
            answer: Answer::Published(published),
        };
        (document, text)
    } else {
        // What cannot be read is refused before anything is measured.
        let measured = args.bench.as_deref().map(held_against::read).transpose()?;
        let context = Context::start(measure::STEPS)?;
        let check = || context.check();
        let mut from = costs::of(args, &context)?;
        context.progress.finish_and_clear();
        let mut text = String::new();
        let answer = match measured {
            Some(measured) => {
                let comparison = held_against::hold(measured, args, &mut from, &check)?;
                text.push_str(&comparison.describe_costs(&from));
                text.push_str(&held_against::show(&comparison));
                Answer::Bench(comparison)
            }
            None => {
                text.push_str(&format!("{}\n\n", fold(&from.describe(), width())));
                let tables = tables::make(args, &from.costs, &check)?;
                if tables.app_threads > 0 && from.costs.ipi_ns <= 0.0 {
                    let what = "by these costs interrupts take no time, since nobody has said what they take, so \
                        that shootdowns cost too little here: see ipi_ns, next_ipi_ns and handler_ns in what --json \
                        writes";
                    from.notices.push(what.to_owned());
                }
                if tables.app_threads > 1 && from.costs.next_ipi_ns <= 0.0 {
                    let what = format!(
                        "by these costs a shootdown to {} CPUs takes as long as to one, since nobody has said what each \
                         further CPU adds{}: give it as next_ipi_ns in a file that --json has written, by --costs",
                        tables.app_threads,
                        if args.costs.is_none() && args.machine.is_none() {
                            ", and it is not measured here"
                        } else {
                            ""
                        }
                    );
                    from.notices.push(what);
                }
                text.push_str(&tables::show(&tables));
                Answer::Tables(tables)
            }
        };
        for notice in &from.notices {
            eprintln!("transhume: note: {notice}");
        }
        let document = Document {
            schema: 1,
            costs: Some(from.costs),
            costs_from: Some(from.from),
            notices: from.notices,
            answer,
        };
        (document, text)
    };
    if !quiet {
        print(&text)?;
    }
    sink.map_or(Ok(()), |sink| sink.write(&document))
}

/// By how much a prediction is off, and whether that is too much.
fn off(by: f64) -> String {
    let wrong = if is_near(by) { "" } else { " *" };
    format!("{}{wrong}", percent(by))
}

/// A part of something, as so many per cent more or less than it.
fn percent(by: f64) -> String {
    format!("{:+.1} %", by * 100.0)
}

/// Whether that is not too much.
fn is_near(by: f64) -> bool {
    by.abs() <= TOLERANCE
}
