//! What was found, as tables and as JSON.

use std::fmt::Write;

use serde::{Serialize, Serializer};
use transhume_model::{Timeline, Violation};

use super::jobs::{Done, Finished, Task};
use crate::table::{self, Column};

/// How values are named.
pub(super) const LEGEND: &str = "`2.1` is the first store of the second who acts, `first 2` what the second word held at first.";

/// All that was found.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    schema: u32,
    /// Whether only those are here that were finished before Ctrl-C.
    interrupted: bool,
    /// How many there would be.
    #[serde(skip)]
    of: usize,
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
    pub(super) fn of(finished: Finished) -> Self {
        let mut document = Self {
            schema: 1,
            interrupted: finished.interrupted,
            of: finished.of,
            orders: 0,
            cases: Vec::new(),
            known_bugs: Vec::new(),
        };
        for Done { job, verdict, took } in finished.done {
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

    /// Whether all was tried that was to be, nothing was violated and each bug was found.
    pub(super) fn is_clean(&self) -> bool {
        let right = |row: &Row| row.violation.is_none() && row.complete;
        self.cases.iter().all(right) && self.known_bugs.iter().all(|bug| bug.found)
    }

    /// Whether Ctrl-C came before all were finished.
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    /// All of it in `width` characters, but for commands to be copied.
    pub(super) fn show(&self, width: usize) -> String {
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
                let what = table::fold(&format!("{name}: {what}"), width);
                let timeline = timeline.in_width(width);
                let _ = writeln!(text, "{what}\n\n{timeline}\n");
                let again = format!("transhume check --case {name} --seed {seed}");
                let _ = writeln!(text, "to see it again: {again}\n");
            }
        }
        if let [bug] = self.known_bugs.as_slice()
            && self.cases.is_empty()
            && let Some(seed) = &bug.seed
        {
            let again = format!("transhume check --bug {} --seed {seed}", bug.name);
            let _ = writeln!(text, "to see it step by step: {again}\n");
        }
        let seen = self.cases.iter().any(|row| row.violation.is_some());
        if seen || !self.known_bugs.is_empty() {
            let _ = writeln!(text, "{}\n", table::fold(LEGEND, width));
        }
        let _ = writeln!(text, "{}", table::fold(&self.summary(), width));
        text
    }

    fn summary(&self) -> String {
        let mut parts = Vec::new();
        if self.interrupted {
            let finished = self.cases.len() + self.known_bugs.len();
            parts.push(format!("interrupted, {finished} of {} finished", self.of));
        }
        if !self.cases.is_empty() {
            let cases = |wanted: fn(&Row) -> bool| {
                let count = self.cases.iter().filter(|row| wanted(row)).count();
                match count {
                    1 => "one case".to_owned(),
                    more => format!("{more} cases"),
                }
            };
            let violated = |row: &Row| row.violation.is_some();
            let left = |row: &Row| row.violation.is_none() && !row.complete;
            let mut part = format!("{} orders, ", self.orders);
            match self.cases.iter().any(violated) {
                false => part.push_str("nothing violated"),
                true => part.push_str(&format!("{} violated", cases(violated))),
            }
            if self.cases.iter().any(left) {
                part.push_str(&format!(", {} not tried to the end", cases(left)));
            }
            parts.push(part);
        }
        if !self.known_bugs.is_empty() {
            let found = self.known_bugs.iter().filter(|bug| bug.found).count();
            let bugs = self.known_bugs.len();
            parts.push(format!("{found} of {bugs} known bugs found"));
        }
        parts.join("; ")
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
            Column::new("what is seen", 1, rows().map(what)).of_text(24),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use transhume_model::{Bug, Case, Verdict};

    use super::super::jobs::Job;
    use super::*;

    fn done(task: Task, complete: bool) -> Done {
        Done {
            job: Job::new(&Case::ALL[0], task),
            verdict: Verdict {
                orders: 7,
                given_up: 0,
                complete,
                violation: None,
            },
            took: Duration::from_millis(5),
        }
    }

    fn document(done: Vec<Done>, interrupted: bool) -> Document {
        Document::of(Finished {
            done,
            of: 3,
            interrupted,
        })
    }

    #[test]
    fn what_was_not_tried_to_the_end_is_not_clean() {
        let whole = document(vec![done(Task::All, true)], false);
        assert!(whole.is_clean());
        assert_eq!(whole.summary(), "7 orders, nothing violated");
        let tried = vec![done(Task::All, true), done(Task::All, false)];
        let left = document(tried, false);
        assert!(!left.is_clean());
        let said = "14 orders, nothing violated, one case not tried to the end";
        assert_eq!(left.summary(), said);
        assert!(left.show(80).contains("not all tried"));
        let bug = document(vec![done(Task::Find(Bug::NoShootdown), false)], false);
        assert!(!bug.is_clean());
        assert_eq!(bug.summary(), "0 of 1 known bugs found");
    }

    #[test]
    fn what_was_finished_before_ctrl_c_is_said() {
        let some = document(vec![done(Task::All, true)], true);
        let said = "interrupted, 1 of 3 finished; 7 orders, nothing violated";
        assert_eq!(some.summary(), said);
        let none = document(Vec::new(), true);
        assert_eq!(none.show(80), "interrupted, 0 of 3 finished\n");
    }
}
