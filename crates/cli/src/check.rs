//! `transhume check`.

mod jobs;
mod report;

use std::num::NonZeroU64;
use std::process::ExitCode;

use transhume_model::{Bug, Case, Seed, replay};

use crate::args::Check;
use crate::error::CliError;
use crate::json::Sink;
use crate::{print, table};
use jobs::{Job, Task};
use report::{Document, LEGEND};

pub(crate) fn run(args: &Check) -> Result<ExitCode, CliError> {
    let one = args.case.is_some() || args.bug.is_some();
    if let Some(seed) = &args.seed
        && one
        && args.random.is_none()
    {
        return show_one(args, seed);
    }
    let first = match &args.seed {
        None => 1,
        Some(Seed::Number(number)) => *number,
        Some(Seed::Decisions(_)) => {
            return Err(CliError::Refused(
                "these are the decisions of one order; cure: name its --case or --bug, and no --random"
                    .to_owned(),
            ));
        }
    };
    let sink = args.json.as_deref().map(Sink::open).transpose()?;
    let jobs = jobs(args, first);
    let document = Document::of(jobs::run(jobs)?);
    if !sink.as_ref().is_some_and(Sink::is_stdout) {
        print(&document.show(table::width()))?;
    }
    if let Some(sink) = sink {
        sink.write(&document)?;
    }
    if document.is_interrupted() {
        return Err(CliError::Interrupted);
    }
    Ok(if document.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is to be tried.
fn jobs(args: &Check, first: u64) -> Vec<Job> {
    if let Some(bug) = args.bug {
        return vec![Job::find(bug)];
    }
    let cases: Vec<&'static Case> = match args.case {
        Some(case) => vec![case],
        None => Case::ALL.iter().collect(),
    };
    let mut jobs = Vec::new();
    if args.random.is_none() {
        jobs.extend(cases.iter().map(|case| Job::new(case, Task::All)));
    }
    if !args.exhaustive {
        let count = args.random.map_or(crate::args::RANDOM, NonZeroU64::get);
        let each = count.div_ceil(cases.len() as u64);
        let chance = Task::Chance { first, count: each };
        jobs.extend(cases.iter().map(|case| Job::new(case, chance)));
    }
    let here = |bug: &Bug| cases.iter().any(|case| case.name == bug.case());
    jobs.extend(Bug::ALL.into_iter().filter(here).map(Job::find));
    jobs
}

/// Shows one order step by step.
fn show_one(args: &Check, seed: &Seed) -> Result<ExitCode, CliError> {
    if args.json.is_some() {
        return Err(CliError::Refused(
            "one order is shown as text; cure: leave out --json".to_owned(),
        ));
    }
    let case = args.case.or_else(|| Case::by_name(args.bug?.case()));
    let Some(case) = case else {
        return Err(CliError::Refused("no case is named".to_owned()));
    };
    let (what, timeline) = replay(case, args.bug, seed).map_err(|no_fit| {
        let cure =
            "cure: the --case or --bug, and the version of the program, that it was printed for";
        CliError::Refused(format!("{no_fit}; {cure}"))
    })?;
    let found = what.as_deref().unwrap_or("nothing is violated");
    let width = table::width();
    let fold = |text: &str| table::fold(text, width);
    let parts = [
        fold(&format!("{}: {}", case.name, case.about)),
        timeline.in_width(width),
        fold(found),
        fold(LEGEND),
    ];
    print(&format!("{}\n", parts.join("\n\n")))?;
    Ok(match what {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    })
}
