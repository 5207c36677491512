//! Where the costs come from.

use std::path::Path;

use serde::Deserialize;
use transhume_model::{Costs, Published};

use super::measure;
use crate::args::Predict;
use crate::context::Context;
use crate::error::CliError;
use crate::table::{micro, short};

/// What the steps cost, and who says so.
pub(super) struct From {
    pub(super) costs: Costs,
    pub(super) from: String,
    pub(super) notices: Vec<String>,
}

/// A file that `--json` has written, or one that has as much of it.
#[derive(Deserialize)]
struct File {
    costs: Costs,
}

pub(super) fn of(args: &Predict, context: &Context) -> Result<From, CliError> {
    let given = |costs, from| From {
        costs,
        from,
        notices: Vec::new(),
    };
    match (&args.costs, &args.machine) {
        (Some(path), _) => Ok(given(read(path)?, format!("{}", path.display()))),
        (None, Some(name)) => {
            let machine = named(name)?;
            let assumed = machine.assumed.iter();
            let notices = assumed.map(|(cost, what)| format!("{cost} is assumed: {what}"));
            Ok(From {
                notices: notices.collect(),
                ..given(machine.costs, machine.about.to_owned())
            })
        }
        (None, None) => measure::costs(context),
    }
}

/// The published machine of that name.
pub(super) fn named(name: &str) -> Result<Published, CliError> {
    let all = Published::all();
    let names = all.iter().map(|machine| machine.name);
    let names = names.collect::<Vec<_>>().join(", ");
    let found = all.into_iter().find(|machine| machine.name == name);
    found.ok_or_else(|| CliError::Refused(format!("no machine {name}; there are {names}")))
}

fn read(path: &Path) -> Result<Costs, CliError> {
    let file: File = super::held_against::parse(path)?;
    let checked = file.costs.check();
    checked.map_err(|bad| CliError::Refused(format!("the costs in {}: {bad}", path.display())))?;
    Ok(file.costs)
}

impl From {
    /// In a few lines.
    pub(super) fn describe(&self) -> String {
        describe(&self.costs, &self.from)
    }
}

/// Costs in a few lines, and whose they are.
pub(super) fn describe(costs: &Costs, whose: &str) -> String {
    let us = |ns: f64| format!("{} us", micro(ns / 1e3));
    let ns = |ns: f64| format!("{} ns", micro(ns));
    let rate = |rate: f64| format!("{}B/s", short(rate));
    let mut parts = vec![
        format!("a call {}", us(costs.call_ns)),
        format!("a page table entry {}", ns(costs.entry_ns)),
        format!("a folio {}", ns(costs.folio_ns)),
        format!("a flush of a busy CPU {}", us(costs.ipi_ns)),
        format!("which it loses {} by", us(costs.handler_ns)),
        format!(
            "copies {} by one CPU and {} by all",
            rate(costs.copy_rate),
            rate(costs.copy_limit)
        ),
    ];
    if costs.away_ns > 0.0 {
        parts.push(format!(
            "something else has a CPU for {} at most",
            us(costs.away_ns)
        ));
    }
    if let Some(channel) = costs.channel_rate {
        let all = rate(costs.channels_limit);
        parts.push(format!("{} by a channel and {all} by all", rate(channel)));
    }
    if let Some(link) = costs.link_limit {
        parts.push(format!("{} between nodes", rate(link)));
    }
    format!("Costs of {whose}: {}.", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measured costs have all the digits of an `f64`, and serde_json takes the last of them from
    /// a file only where it is asked to: one digit less, and the same run is predicted otherwise.
    #[test]
    fn costs_come_in_as_they_went_out() {
        let mut costs = named("user-space").unwrap().costs;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("costs.json");
        for step in 1..=300 {
            costs.copy_rate = 4.1e9 / f64::from(step);
            costs.call_ns = 1e4 / (f64::from(step) + 0.1);
            let document = serde_json::json!({ "costs": &costs });
            std::fs::write(&path, document.to_string()).unwrap();
            let again = read(&path).unwrap();
            let rates = [costs.copy_rate, again.copy_rate];
            assert_eq!(rates[0].to_bits(), rates[1].to_bits(), "{rates:?}");
            let calls = [costs.call_ns, again.call_ns];
            assert_eq!(calls[0].to_bits(), calls[1].to_bits(), "{calls:?}");
        }
    }
}
