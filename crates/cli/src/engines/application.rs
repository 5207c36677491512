//! The copiers of a running application.

use std::path::Path;

use serde::Serialize;
use transhume_copy::control::{AskError, Engine, Request, ask as ask_at};
use transhume_copy::{InUse, Reasons, Tally};

use crate::args::Engines;
use crate::error::CliError;
use crate::table::{self, Column, fold, short, width};

/// The rank of a column of which nothing was counted.
const NEVER: u8 = 9;

/// What it says.
#[derive(Serialize)]
pub(super) struct Application {
    control: String,
    pid: Option<u32>,
    /// What was in use before, where that was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Chosen>,
    in_use: Chosen,
    copiers: Vec<Counted>,
}

#[derive(Serialize)]
struct Chosen {
    name: String,
    /// For which reasons it is asked.
    only: String,
}

impl From<InUse> for Chosen {
    fn from(in_use: InUse) -> Self {
        Self {
            name: in_use.name,
            only: in_use.only.to_string(),
        }
    }
}

/// What a copier did.
#[derive(Serialize)]
struct Counted {
    name: String,
    in_use: bool,
    batches: u64,
    jobs: u64,
    bytes: u64,
    copied: u64,
    declined: u64,
    failed: u64,
    timed_out: u64,
    unconfirmed: u64,
    panicked: u64,
    fell_back: u64,
    busy_s: f64,
    bytes_per_s: Option<f64>,
}

impl Counted {
    fn new(name: String, in_use: bool, tally: &Tally) -> Self {
        Self {
            name,
            in_use,
            batches: tally.batches,
            jobs: tally.jobs(),
            bytes: tally.bytes,
            copied: tally.copied,
            declined: tally.declined,
            failed: tally.failed,
            timed_out: tally.timed_out,
            unconfirmed: tally.unconfirmed,
            panicked: tally.panicked,
            fell_back: tally.fell_back(),
            busy_s: tally.busy.as_secs_f64(),
            bytes_per_s: tally.bytes_per_s(),
        }
    }
}

/// Asks the application that serves this path; has it change its copier first where that is wanted.
pub(super) fn ask(path: &Path, args: &Engines) -> Result<(Vec<Engine>, Application), CliError> {
    let request = match &args.select {
        Some(name) => Request::Use {
            name: name.clone(),
            only: args.only.unwrap_or_default(),
        },
        None => Request::Show,
    };
    let answer = ask_at(path, &request).map_err(|error| {
        let line = format!("{}: {error}", path.display());
        match error {
            AskError::NotWhole | AskError::Silent | AskError::Failed(_) => CliError::Failed(line),
            _ => CliError::Refused(line),
        }
    })?;
    let name = &answer.in_use.name;
    let counted = answer.copiers.into_iter().map(|copier| {
        let in_use = copier.name == *name;
        Counted::new(copier.name, in_use, &copier.tally)
    });
    let copiers = counted.filter(|copier| copier.in_use || copier.batches > 0);
    let application = Application {
        control: path.display().to_string(),
        pid: answer.pid,
        before: answer.before.map(Chosen::from),
        copiers: copiers.collect(),
        in_use: answer.in_use.into(),
    };
    Ok((answer.engines, application))
}

impl Application {
    /// Which process it is, what it uses, and what it used before.
    pub(super) fn headline(&self) -> String {
        let pid = self.pid.map(|pid| format!("process {pid}, "));
        let mut lines = format!("{}{}\n", pid.unwrap_or_default(), self.control);
        if let Some(before) = &self.before {
            lines.push_str(&format!("before: {}\n", before.describe()));
        }
        lines.push_str(&format!("in use: {}", self.in_use.describe()));
        format!("{}\n", fold(&lines, width()))
    }

    /// What each copier did, in as many columns as there is room for.
    pub(super) fn table(&self) -> String {
        // What never happened goes first where there is no room for everything.
        let count = |header, rank, figure: fn(&Counted) -> u64| {
            let counts = self.copiers.iter().map(figure).collect::<Vec<_>>();
            let rank = if counts.iter().all(|&count| count == 0) {
                NEVER
            } else {
                rank
            };
            Column::new(header, rank, counts.into_iter().map(short_count))
        };
        let names = self.copiers.iter().map(|copier| {
            let mark = if copier.in_use { "* " } else { "  " };
            format!("{mark}{}", copier.name)
        });
        let rates = self.copiers.iter().map(|copier| match copier.bytes_per_s {
            Some(rate) => format!("{:.1}", rate / 1e9),
            None => String::new(),
        });
        let columns = vec![
            Column::new("  copier", 0, names),
            count("batches", 4, |copier| copier.batches),
            count("jobs", 1, |copier| copier.jobs),
            count("copied", 2, |copier| copier.copied),
            Column::new("GB/s", 5, rates),
            count("fell\nback", 1, |copier| copier.fell_back),
            count("declined", 3, |copier| copier.declined),
            count("failed", 3, |copier| copier.failed),
            count("timed\nout", 3, |copier| copier.timed_out),
            count("no\nanswer", 3, |copier| copier.unconfirmed),
            count("panicked", 3, |copier| copier.panicked),
        ];
        table::figures(columns, width())
    }
}

impl Chosen {
    fn describe(&self) -> String {
        if self.only == Reasons::ALL.to_string() {
            return self.name.clone();
        }
        let only = self.only.replace(',', ", ");
        format!("{} for {only}; memcpy for other reasons", self.name)
    }
}

/// Whole where it is short.
fn short_count(count: u64) -> String {
    if count < 100_000 {
        count.to_string()
    } else {
        short(count as f64)
    }
}
