//! What the copier `auto` would choose.

use comfy_table::{Cell, Table};
use serde::Serialize;
use transhume_copy::Auto;
use transhume_copy::auto::{Entry, NodePair};

use crate::table;

/// Lists of one shape.
#[derive(Serialize)]
pub(super) struct Choice {
    /// The nodes that were measured, where the choice is for them alone.
    from_node: Option<u32>,
    to_node: Option<u32>,
    job_bytes: usize,
    jobs: usize,
    copier: String,
}

impl From<Entry> for Choice {
    fn from(entry: Entry) -> Self {
        Self {
            from_node: entry.nodes.map(|NodePair { from, .. }| from),
            to_node: entry.nodes.map(|NodePair { to, .. }| to),
            job_bytes: entry.shape.job_bytes,
            jobs: entry.shape.jobs,
            copier: entry.copier,
        }
    }
}

/// All of them, where the copiers were measured.
pub(super) fn known() -> Option<Vec<Choice>> {
    Some(Auto::known()?.into_iter().map(Choice::from).collect())
}

/// Whether pairs of nodes were measured.
pub(super) fn have_nodes(choices: &[Choice]) -> bool {
    choices.iter().any(|choice| choice.from_node.is_some())
}

/// A row for each pair of nodes and size of jobs that were measured.
pub(super) fn table(choices: &[Choice]) -> Table {
    let mut table = table::new(["auto: nodes", "jobs of", "number of jobs: copier"]);
    let key = |choice: &Choice| (choice.from_node, choice.to_node, choice.job_bytes);
    for same in choices.chunk_by(|a, b| key(a) == key(b)) {
        let Some(first) = same.first() else {
            continue;
        };
        let nodes = match (first.from_node, first.to_node) {
            (Some(from), Some(to)) => format!("{from} to {to}"),
            _ => "any".to_owned(),
        };
        let of_copier = same.chunk_by(|a, b| a.copier == b.copier).map(|same| {
            let counts = same.iter().map(|choice| choice.jobs.to_string());
            let counts = counts.collect::<Vec<_>>().join(", ");
            format!(
                "{counts}: {}",
                same.first().map_or("", |one| one.copier.as_str())
            )
        });
        let size = format!("{} KiB", first.job_bytes >> 10);
        let copiers = of_copier.collect::<Vec<_>>().join("; ");
        table.add_row([nodes, size, copiers].map(Cell::new));
    }
    table
}
