//! Plans and reports as text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use indicatif::BinaryBytes;
use transhume_engine::Why;
use transhume_process::{Plan, ProcessReport, Report, Request, Stop, Target};

use crate::table::{Column, figures, fold, width};

/// What is to move of a process, mapping by mapping.
pub(crate) fn plan(request: &Request, target: &Target, plan: &Plan) -> String {
    let mut text = format!(
        "process {} ({}): {} to move from node {} to node {}\n",
        target.number(),
        target.name(),
        BinaryBytes(plan.bytes()),
        list(request.from.iter().copied()),
        request.to,
    );
    if plan.parts.is_empty() {
        text.push_str(&on_nodes(&plan.on_nodes));
        return text;
    }
    let mapping = |at: usize| plan.mapping_at(plan.parts[at].range.start);
    let column = |header: &'static str, rank, cell: &dyn Fn(usize) -> String| {
        Column::new(header, rank, (0..plan.parts.len()).map(cell))
    };
    let columns = vec![
        column("addresses", 0, &|at| {
            let range = &plan.parts[at].range;
            format!("{:x}-{:x}", range.start, range.end)
        }),
        column("to move", 1, &|at| {
            BinaryBytes(plan.parts[at].misplaced).to_string()
        }),
        column("in memory", 2, &|at| {
            mapping(at).map_or_else(String::new, |mapping| {
                BinaryBytes(mapping.resident()).to_string()
            })
        }),
        column("what", 3, &|at| {
            mapping(at).map_or_else(String::new, |mapping| short(&mapping.kind.to_string()))
        }),
        column("policy", 4, &|at| {
            mapping(at).map_or_else(String::new, |mapping| mapping.policy.clone())
        }),
    ];
    text.push_str(&figures(columns, width()));
    text.push_str(&on_nodes(&plan.on_nodes));
    text
}

/// The end of a long path says more than its beginning.
pub(crate) fn short(name: &str) -> String {
    const MOST: usize = 40;
    let count = name.chars().count();
    if count <= MOST {
        return name.to_owned();
    }
    let end = name.chars().skip(count - (MOST - 1)).collect::<String>();
    format!("…{end}")
}

fn on_nodes(bytes: &BTreeMap<u32, u64>) -> String {
    let nodes = bytes
        .iter()
        .map(|(node, &bytes)| format!("{} on node {node}", BinaryBytes(bytes)));
    let nodes = nodes.collect::<Vec<_>>().join(", ");
    if nodes.is_empty() {
        return "nothing of it is in memory\n".to_owned();
    }
    format!("{}\n", fold(&format!("now: {nodes}"), width()))
}

pub(crate) fn list(nodes: impl Iterator<Item = u32>) -> String {
    nodes
        .map(|node| node.to_string())
        .collect::<Vec<_>>()
        .join(",")
}

/// What became of a request.
pub(crate) fn report(request: &Request, report: &Report) -> String {
    let mut text = String::new();
    for process in &report.processes {
        text.push_str(&of_process(request, process, report.elapsed));
    }
    for error in &report.left_out {
        let _ = writeln!(text, "left out: {error}");
    }
    match report.stopped {
        Some(Stop::Asked) => text.push_str("stopped by Ctrl-C\n"),
        Some(Stop::Limit) => text.push_str("as much has moved as --limit allows\n"),
        Some(Stop::Closed { node, failure }) => {
            let _ = writeln!(text, "node {node} takes no more: {failure}");
        }
        None => {}
    }
    text
}

fn of_process(request: &Request, process: &ProcessReport, elapsed: Duration) -> String {
    let (account, who) = (
        &process.account,
        format!("process {} ({})", process.pid, process.name),
    );
    let moved = account.moved;
    let mut lines = Vec::new();
    if process.planned == 0 && moved.is_none() && process.error.is_none() {
        lines.push(format!(
            "{who}: nothing to move: none of what is selected is on node {}",
            list(request.from.iter().copied())
        ));
    } else {
        let seconds = elapsed.as_secs_f64();
        lines.push(format!(
            "{who}: {} moved to node {} in {seconds:.2} s, {:.2} GB/s",
            BinaryBytes(moved.bytes),
            request.to,
            moved.bytes as f64 / 1e9 / seconds.max(1e-9),
        ));
        let shootdowns = match process.shootdowns {
            Some(count) => format!("{count} shootdowns; "),
            None if request.count_shootdowns => {
                "shootdowns n/a (tlb:tlb_flush takes root); ".to_owned()
            }
            None => String::new(),
        };
        lines.push(format!(
            "{} pages in {} calls, the longest {:.1} ms; {shootdowns}{} tried again",
            moved.folios,
            account.calls,
            account.longest_call.as_secs_f64() * 1e3,
            account.retries,
        ));
    }
    if !account.made_room.is_none() {
        lines.push(format!(
            "{} of colder memory went to node {} to make room",
            BinaryBytes(account.made_room.bytes),
            list(request.from.iter().copied())
        ));
    }
    if !account.vanished.is_none() {
        lines.push(format!(
            "{} was freed by the process before its turn",
            BinaryBytes(account.vanished.bytes)
        ));
    }
    if process.ended {
        lines.push("the process has ended, and its memory with it".to_owned());
    } else if let Some(error) = &process.error {
        lines.push(error.to_string());
    }
    if let Some(after) = &process.after {
        let nodes = process.before.keys().chain(after.keys());
        let nodes = nodes.collect::<std::collections::BTreeSet<_>>();
        let bytes =
            |side: &BTreeMap<u32, u64>, node| BinaryBytes(side.get(node).copied().unwrap_or(0));
        let each = nodes.into_iter().map(|node| {
            format!(
                "node {node}: {} before, {} now",
                bytes(&process.before, node),
                bytes(after, node)
            )
        });
        lines.push(each.collect::<Vec<_>>().join("; "));
    }
    let mut text = String::new();
    for line in lines.iter().filter(|line| !line.is_empty()) {
        let _ = writeln!(text, "{}", fold(line, width()));
    }
    text.push_str(&stayed(process));
    text
}

/// The table of what stayed and why.
fn stayed(process: &ProcessReport) -> String {
    let mut rows = process
        .account
        .stayed
        .iter()
        .map(|stayed| {
            let why = match stayed.failure.errno {
                Some(errno) => format!("{} (errno {})", stayed.failure.why, errno.get()),
                None => stayed.failure.why.to_string(),
            };
            let example = format!("{:x}", stayed.example);
            [
                why,
                BinaryBytes(stayed.amount.bytes).to_string(),
                example,
                cure(stayed.failure.why).to_owned(),
            ]
        })
        .collect::<Vec<_>>();
    if process.arrived > 0 {
        rows.push([
            "arrived meanwhile".to_owned(),
            BinaryBytes(process.arrived).to_string(),
            String::new(),
            arrival().to_owned(),
        ]);
    }
    if rows.is_empty() {
        return String::new();
    }
    let column = |header: &'static str, rank, at: usize| {
        Column::new(header, rank, rows.iter().map(|row| row[at].clone()))
    };
    let columns = vec![
        column("stayed, because", 0, 0),
        column("memory", 0, 1),
        column("first at", 2, 2),
        column("what helps", 1, 3),
    ];
    figures(columns, width())
}

/// Why memory comes to where it was to leave.
fn arrival() -> &'static str {
    let balancing = std::fs::read_to_string("/proc/sys/kernel/numa_balancing");
    if balancing.is_ok_and(|mode| mode.trim() != "0") {
        "its policy or cpuset puts new memory there, or NUMA balancing does"
    } else {
        "its policy or cpuset still puts new memory there"
    }
}

/// What can be done about a reason.
fn cure(why: Why) -> &'static str {
    match why {
        Why::Shared => "--include-shared, if the others may lose it",
        Why::Pinned | Why::Busy | Why::Again | Why::CopyFailed => {
            "in use by the kernel or a device; later again"
        }
        Why::NoMemory => "free memory there, or --exchange",
        Why::NotPermitted => "root, or a cpuset that allows the node",
        Why::NotTried | Why::Abandoned => "the same command again",
        Why::Unsupported => "nothing: the kernel cannot move it",
        Why::Absent | Why::System => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_keeps_its_end() {
        assert_eq!(short("/usr/bin/cat"), "/usr/bin/cat");
        let long = format!("/{}/libc.so.6", "x".repeat(60));
        assert!(short(&long).ends_with("libc.so.6"));
        assert_eq!(short(&long).chars().count(), 40);
    }
}
