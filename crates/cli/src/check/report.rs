//! What was found, as tables and as JSON.

use std::fmt::Write;

use serde::{Serialize, Serializer};
use transhume_model::{Timeline, Violation};

use super::jobs::{Done, Task};
use crate::table::{self, Column};

/// All that was found.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    schema: u32,
    /// Orders of the engine as it is, in all cases.
    orders: u64,
    cases: Vec<Row>,
    known_bugs: Vec<Found>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    about: &'static str,
    /// `exhaustive` or `random`.
    how: &'static str,
    orders: u64,
    /// Orders that were left half-way, since what followed had been tried.
    given_up: u64,
    /// Whether all were tried that were to be.
    complete: bool,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    violation: Option<Violated>,
}

#[derive(Debug, Serialize)]
struct Violated {
    what: String,
    seed: String,
    #[serde(serialize_with = "as_text")]
    timeline: Timeline,
}

impl From<Violation> for Violated {
    fn from(violation: Violation) -> Self {
        Self {
            what: violation.what,
            seed: violation.seed.to_string(),
            timeline: violation.timeline,
        }
    }
}

fn as_text<S: Serializer>(timeline: &Timeline, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(timeline)
}

#[derive(Debug, Serialize)]
struct Found {
    name: &'static str,
    case: &'static str,
    found: bool,
    /// Until it was found.
    orders: u64,
    seconds: f64,
    seed: Option<String>,
    what: Option<String>,
}

impl Document {
    pub(super) fn of(done: Vec<Done>) -> Self {
        let mut document = Self {
            schema: 1,
            orders: 0,
            cases: Vec::new(),
            known_bugs: Vec::new(),
        };
        for Done { job, verdict, took } in done {
            let seconds = took.as_secs_f64();
            if let Task::Find(bug) = job.task {
                document.known_bugs.push(Found {
                    name: bug.name(),
                    case: job.case.name,
                    found: verdict.violation.is_some(),
                    orders: verdict.orders,
                    seconds,
                    seed: verdict
                        .violation
                        .as_ref()
                        .map(|found| found.seed.to_string()),
                    what: verdict.violation.map(|found| found.what),
                });
                continue;
            }
            document.orders += verdict.orders;
            document.cases.push(Row {
                name: job.case.name,
                about: job.case.about,
                how: match job.task {
                    Task::Chance { .. } => "random",
                    _ => "exhaustive",
                },
                orders: verdict.orders,
                given_up: verdict.given_up,
                complete: verdict.complete,
                seconds,
                violation: verdict.violation.map(Violated::from),
            });
        }
        document
    }

    /// Whether nothing was violated and each bug was found.
    pub(super) fn is_clean(&self) -> bool {
        self.cases.iter().all(|row| row.violation.is_none())
            && self.known_bugs.iter().all(|bug| bug.found)
    }

    pub(super) fn show(&self) -> String {
        let width = table::width();
        let mut text = String::new();
        if !self.cases.is_empty() {
            text.push_str(&table::figures(self.case_columns(), width));
            text.push('\n');
        }
        if !self.known_bugs.is_empty() {
            text.push_str(&table::figures(self.bug_columns(), width));
            text.push('\n');
        }
        for row in &self.cases {
            if let Some(violated) = &row.violation {
                let Violated {
                    what,
                    seed,
                    timeline,
                } = violated;
                let name = row.name;
                let timeline = timeline.in_width(width);
                let _ = writeln!(text, "{name}: {what}\n\n{timeline}\n");
                let again = format!("transhume check --case {name} --seed {seed}");
                let _ = writeln!(text, "to see it again: {again}\n");
            }
        }
        if let [bug] = self.known_bugs.as_slice()
            && self.cases.is_empty()
            && let Some(seed) = &bug.seed
        {
            let again = format!("transhume check --bug {} --seed {seed}", bug.name);
            let _ = writeln!(text, "to see it step by step: {again}");
        }
        text.push_str(&self.summary());
        text
    }

    fn summary(&self) -> String {
        let violated = self
            .cases
            .iter()
            .filter(|row| row.violation.is_some())
            .count();
        let found = self.known_bugs.iter().filter(|bug| bug.found).count();
        let mut parts = Vec::new();
        if !self.cases.is_empty() {
            parts.push(match violated {
                0 => format!("{} orders, nothing violated", self.orders),
                1 => format!("{} orders, one case violated", self.orders),
                more => format!("{} orders, {more} cases violated", self.orders),
            });
        }
        if !self.known_bugs.is_empty() {
            parts.push(format!(
                "{found} of {} known bugs found",
                self.known_bugs.len()
            ));
        }
        format!("{}\n", parts.join("; "))
    }

    fn case_columns(&self) -> Vec<Column> {
        let rows = || self.cases.iter();
        vec![
            Column::new("case", 0, rows().map(|row| row.name.to_owned())),
            Column::new("orders\ntried", 0, rows().map(|row| how(row).to_owned())),
            Column::new("how\nmany", 1, rows().map(|row| row.orders.to_string())),
            Column::new(
                "given up\nhalf-way",
                4,
                rows().map(|row| row.given_up.to_string()),
            ),
            Column::new(
                "seconds",
                3,
                rows().map(|row| format!("{:.1}", row.seconds)),
            ),
            Column::new("", 2, rows().map(|row| verdict(row).to_owned())),
        ]
    }

    fn bug_columns(&self) -> Vec<Column> {
        let rows = || self.known_bugs.iter();
        let what = |bug: &Found| bug.what.clone().unwrap_or_else(|| "NOT FOUND".to_owned());
        vec![
            Column::new("known bug", 0, rows().map(|bug| bug.name.to_owned())),
            Column::new("in case", 4, rows().map(|bug| bug.case.to_owned())),
            Column::new("after\norders", 2, rows().map(|bug| bug.orders.to_string())),
            Column::new(
                "seconds",
                3,
                rows().map(|bug| format!("{:.2}", bug.seconds)),
            ),
            Column::new("what is seen", 1, rows().map(|bug| cut(what(bug)))),
        ]
    }
}

fn how(row: &Row) -> &'static str {
    match row.how {
        "random" => "by chance",
        _ => "all",
    }
}

fn verdict(row: &Row) -> &'static str {
    match (&row.violation, row.complete) {
        (Some(_), _) => "VIOLATED",
        (None, true) => "right",
        (None, false) => "not all tried",
    }
}

/// What fits beside the other columns of an ordinary terminal.
fn cut(text: String) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
