//! The nodes as text.

#[cfg(test)]
mod tests;

use std::fmt::Write;

use transhume_sys::numa::topology::{NodeKind, NumaNode, Topology};

use super::measure::Measured;
use super::{Outcome, not_measured};
use crate::table::{Column, figures, fold};

const UNKNOWN: &str = "n/a";
/// What a node without memory has of all that is about memory.
const NONE: &str = "-";

pub(super) fn all(topology: &Topology, outcomes: &[Outcome], width: usize) -> String {
    let mut text = figures(columns(topology), width);
    for line in lines(topology) {
        text.push_str(&fold(&line, width));
        text.push('\n');
    }
    if topology.nodes.len() > 1 {
        text.push('\n');
        text.push_str(&distances(topology, width));
    }
    if outcomes.iter().any(Option::is_some) {
        text.push('\n');
        text.push_str(&measured(topology, outcomes, width));
    }
    text
}

fn columns(topology: &Topology) -> Vec<Column> {
    let column = |header: &'static str, rank, cell: &dyn Fn(&NumaNode) -> String| {
        Column::new(header, rank, topology.nodes.iter().map(cell))
    };
    // What only memory has.
    let of_memory = |header, rank, cell: &dyn Fn(&NumaNode) -> Option<String>| {
        column(header, rank, &|node| {
            if node.kind == NodeKind::Memoryless {
                return NONE.to_owned();
            }
            cell(node).unwrap_or_else(|| UNKNOWN.to_owned())
        })
    };
    let gib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 30));
    let number = |number: Option<u64>| Some(number?.to_string());
    let rate = |rate: Option<u64>| Some(giga(rate? as f64));
    vec![
        column("node", 0, &|node| node.number.to_string()),
        column("kind", 0, &|node| node.kind.to_string()),
        column("size\nGiB", 1, &|node| gib(node.total_bytes)),
        column("free\nGiB", 2, &|node| gib(node.free_bytes)),
        column("CPUs", 3, &|node| ranges(&node.cpus)),
        of_memory("tier", 3, &|node| Some(node.tier?.to_string())),
        of_memory("HMAT read\nns", 4, &|node| {
            number(node.performance.read_latency_ns)
        }),
        of_memory("HMAT read\nGB/s", 5, &|node| {
            rate(node.performance.read_bandwidth)
        }),
        of_memory("HMAT write\nns", 7, &|node| {
            number(node.performance.write_latency_ns)
        }),
        of_memory("HMAT write\nGB/s", 8, &|node| {
            rate(node.performance.write_bandwidth)
        }),
        of_memory("huge pages\nfree/all", 6, &huge_pages),
    ]
}

fn giga(bytes: f64) -> String {
    format!("{:.1}", bytes / 1e9)
}

/// The pools that have pages, such as `2M 3/8`.
fn huge_pages(node: &NumaNode) -> Option<String> {
    if node.huge_pages.is_empty() {
        return None;
    }
    let pools = node.huge_pages.iter().filter(|pool| pool.total > 0);
    let pools = pools.map(|pool| {
        let size = match pool.page_bytes {
            bytes if bytes >= 1 << 30 => format!("{}G", bytes >> 30),
            bytes if bytes >= 1 << 20 => format!("{}M", bytes >> 20),
            bytes => format!("{}k", bytes >> 10),
        };
        format!("{size} {}/{}", pool.free, pool.total)
    });
    let pools = pools.collect::<Vec<_>>();
    Some(if pools.is_empty() {
        "0/0".to_owned()
    } else {
        pools.join(", ")
    })
}

/// Numbers in order, as the kernel writes them: `0-2,5`.
fn ranges(numbers: &[usize]) -> String {
    if numbers.is_empty() {
        return "none".to_owned();
    }
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |&(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

/// What stands below the table: why something is not known, what devices serve, and the tiers.
fn lines(topology: &Topology) -> Vec<String> {
    let with_memory = || topology.nodes.iter().filter(|node| node.total_bytes > 0);
    let mut why = Vec::new();
    let rates = |node: &NumaNode| {
        let rated = node.performance;
        [
            rated.read_latency_ns,
            rated.write_latency_ns,
            rated.read_bandwidth,
            rated.write_bandwidth,
        ]
    };
    let mut rated = with_memory().flat_map(rates);
    if with_memory().flat_map(rates).all(|rate| rate.is_none()) {
        why.push("no HMAT: the firmware gives no latency or bandwidth");
    } else if rated.any(|rate| rate.is_none()) {
        why.push("the firmware's HMAT does not give every latency and bandwidth");
    }
    if topology.tiers.is_none() {
        why.push("the kernel shows no memory tiers (Linux 6.1 and later do)");
    } else if with_memory().any(|node| node.tier.is_none()) {
        why.push("the kernel has put a node in no tier");
    }
    if with_memory().any(|node| node.huge_pages.is_empty()) {
        why.push("the kernel shows no pools of huge pages");
    }
    let mut lines = Vec::new();
    if !why.is_empty() {
        lines.push(format!("{UNKNOWN}: {}", why.join("; ")));
    }
    for node in &topology.nodes {
        for device in &node.devices {
            lines.push(format!(
                "node {}: {} serves as memory, of origin {}",
                node.number, device.name, device.origin
            ));
        }
    }
    lines.extend(tiers(topology));
    lines
}

fn tiers(topology: &Topology) -> Option<String> {
    let mut line = "memory tiers, the fastest first: ".to_owned();
    let tier = topology.tiers.as_ref()?.iter().map(|tier| {
        let nodes = tier.nodes.iter().map(u32::to_string).collect::<Vec<_>>();
        let plural = if nodes.len() == 1 { "" } else { "s" };
        format!("{} (node{plural} {})", tier.number, nodes.join(", "))
    });
    line.push_str(&tier.collect::<Vec<_>>().join(", "));
    line.push_str(match topology.demotion {
        Some(true) => "; demotion is on",
        Some(false) => "; demotion is off",
        None => "; the kernel does not say whether it demotes",
    });
    Some(line)
}

/// How far each node is from each: a matrix, or a line a node where there is no room for one.
fn distances(topology: &Topology, width: usize) -> String {
    let numbers = || topology.nodes.iter().map(|node| node.number);
    let cell = |from: &NumaNode, to: u32| {
        let distance = from.distances.get(&to);
        distance.map_or_else(|| UNKNOWN.to_owned(), u32::to_string)
    };
    let mut text = format!("{:<14}", "distance to");
    for to in numbers() {
        let _ = write!(text, "{to:>5}");
    }
    text.push('\n');
    if text.chars().count() > width {
        text = fold("distances to the nodes in order, itself included", width);
        text.push('\n');
        for from in &topology.nodes {
            let cells = numbers().map(|to| cell(from, to)).collect::<Vec<_>>();
            let line = format!("from node {}: {}", from.number, cells.join(" "));
            text.push_str(&fold(&line, width));
            text.push('\n');
        }
        return text;
    }
    for from in &topology.nodes {
        let _ = write!(text, "{:<14}", format!("from node {}", from.number));
        for to in numbers() {
            let _ = write!(text, "{:>5}", cell(from, to));
        }
        text.push('\n');
    }
    text
}

fn measured(topology: &Topology, outcomes: &[Outcome], width: usize) -> String {
    let nodes = topology.nodes.iter().zip(outcomes);
    let done = nodes.filter_map(|(node, outcome)| match outcome {
        Some(Ok(measured)) => Some((node, measured)),
        _ => None,
    });
    let done = done.collect::<Vec<_>>();
    let mut text = String::new();
    if let Some((_, first)) = done.first() {
        let title = format!(
            "measured from the nearest CPUs, medians of {}: latency of loads that depend on each other, in \
             random order, by one thread; bandwidth of all threads, a copied byte counted once",
            first.repetitions
        );
        text = format!(
            "{}\n{}",
            fold(&title, width),
            figures(figures_of(&done), width)
        );
    }
    let mut line = |line: String| {
        text.push_str(&fold(&line, width));
        text.push('\n');
    };
    for (node, measured) in &done {
        if measured.elsewhere_bytes > 0 {
            line(format!(
                "node {}: {} of {} MiB were on other nodes, so the figures are not its own",
                node.number,
                measured.elsewhere_bytes.div_ceil(1 << 20),
                measured.bytes >> 20
            ));
        }
    }
    for (node, why) in not_measured(topology, outcomes) {
        line(format!("node {} not measured: {why}", node.number));
    }
    text
}

fn figures_of(done: &[(&NumaNode, &Measured)]) -> Vec<Column> {
    let column = |header: &'static str, rank, cell: &dyn Fn(&Measured) -> String| {
        Column::new(
            header,
            rank,
            done.iter().map(|(_, measured)| cell(measured)),
        )
    };
    let mut columns = vec![
        column("latency\nns", 1, &|of| format!("{:.1}", of.read_latency_ns)),
        column("read\nGB/s", 1, &|of| giga(of.read_bandwidth_bytes_per_s)),
        column("copy\nGB/s", 1, &|of| giga(of.copy_bandwidth_bytes_per_s)),
        column("memory\nMiB", 2, &|of| (of.bytes >> 20).to_string()),
        column("pages", 3, &pages),
        column("threads", 3, &|of| of.cpus.len().to_string()),
        column("caches\nMiB", 4, &|of| {
            let caches = of.cache_bytes.map(|bytes| (bytes >> 20).to_string());
            caches.unwrap_or_else(|| UNKNOWN.to_owned())
        }),
        column("CPUs", 5, &|of| ranges(&of.cpus)),
    ];
    let nodes = Column::new(
        "node",
        0,
        done.iter().map(|(node, _)| node.number.to_string()),
    );
    columns.insert(0, nodes);
    columns
}

/// What size of pages the memory was made of.
fn pages(of: &Measured) -> String {
    match of.huge_bytes {
        0 => "base".to_owned(),
        huge if huge >= of.bytes => "2 MiB".to_owned(),
        huge => format!("{} % 2 MiB", huge * 100 / of.bytes),
    }
}
