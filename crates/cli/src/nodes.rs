//! `transhume nodes`: the nodes of the machine and its memory tiers.

mod chain;
mod measure;
mod show;
mod stream;

use serde::Serialize;
use transhume_sys::numa::topology::{NumaNode, Topology};

use crate::args::Nodes;
use crate::context::Context;
use crate::error::CliError;
use crate::json::Sink;
use crate::machine::Machine;
use crate::print;
use crate::table::{fold, width};
use measure::Measured;

#[derive(Serialize)]
struct Document<'d> {
    schema: u32,
    machine: &'d Machine,
    nodes: Vec<Node<'d>>,
    tiers: Option<Vec<Tier<'d>>>,
    /// Whether the kernel moves cold pages to a lower tier.
    demotion: Option<bool>,
}

#[derive(Serialize)]
struct Node<'d> {
    node: u32,
    kind: String,
    devices: Vec<Device<'d>>,
    total_bytes: u64,
    free_bytes: u64,
    cpus: &'d [usize],
    nearest_cpus: &'d [usize],
    distances: Vec<Distance>,
    tier: Option<u32>,
    /// The nodes that the rated latencies and bandwidths hold for.
    initiators: &'d [u32],
    read_latency_ns: Option<u64>,
    write_latency_ns: Option<u64>,
    read_bandwidth_bytes_per_s: Option<u64>,
    write_bandwidth_bytes_per_s: Option<u64>,
    huge_pages: Vec<HugePages>,
    measured: Option<&'d Measured>,
    /// Why nothing was measured that was to be.
    not_measured: Option<&'d str>,
}

#[derive(Serialize)]
struct Device<'d> {
    name: &'d str,
    origin: String,
}

#[derive(Serialize)]
struct Distance {
    node: u32,
    distance: u32,
}

#[derive(Serialize)]
struct HugePages {
    page_bytes: usize,
    total: usize,
    free: usize,
}

#[derive(Serialize)]
struct Tier<'d> {
    tier: u32,
    nodes: &'d [u32],
}

/// What came of measuring a node, or why nothing did; `None` where nobody asked.
type Outcome = Option<Result<Measured, String>>;

pub(crate) fn run(args: &Nodes) -> Result<(), CliError> {
    let sink = args.json.as_deref().map(Sink::open).transpose()?;
    let quiet = sink.as_ref().is_some_and(Sink::is_stdout);
    let topology = Topology::here()
        .map_err(|error| CliError::Refused(format!("cannot tell the nodes: {error}")))?;
    let machine = Machine::here();
    let outcomes = if args.measure {
        measure_all(&topology)?
    } else {
        topology.nodes.iter().map(|_| None).collect()
    };
    if quiet {
        for (node, why) in not_measured(&topology, &outcomes) {
            eprintln!("transhume: note: node {} not measured: {why}", node.number);
        }
    } else {
        let width = width();
        let text = show::all(&topology, &outcomes, width);
        print(&format!("{}\n\n{text}", fold(&machine.describe(), width)))?;
    }
    let document = document(&machine, &topology, &outcomes);
    sink.map_or(Ok(()), |sink| sink.write(&document))
}

fn measure_all(topology: &Topology) -> Result<Vec<Outcome>, CliError> {
    let runs = topology.nodes.iter().filter(|node| node.total_bytes > 0);
    let context = Context::start(runs.count() as u64 * measure::RUNS)?;
    let mut outcomes = Vec::with_capacity(topology.nodes.len());
    for node in &topology.nodes {
        outcomes.push(Some(measure::node(node, &context)?));
    }
    context.progress.finish_and_clear();
    Ok(outcomes)
}

/// The nodes that were to be measured and were not, and why.
fn not_measured<'d>(
    topology: &'d Topology,
    outcomes: &'d [Outcome],
) -> impl Iterator<Item = (&'d NumaNode, &'d str)> {
    let nodes = topology.nodes.iter().zip(outcomes);
    nodes.filter_map(|(node, outcome)| match outcome {
        Some(Err(why)) => Some((node, why.as_str())),
        _ => None,
    })
}

fn document<'d>(
    machine: &'d Machine,
    topology: &'d Topology,
    outcomes: &'d [Outcome],
) -> Document<'d> {
    let nodes = topology.nodes.iter().zip(outcomes);
    let tiers = topology.tiers.as_ref().map(|tiers| {
        let tier = tiers.iter().map(|tier| Tier {
            tier: tier.number,
            nodes: &tier.nodes,
        });
        tier.collect()
    });
    Document {
        schema: 1,
        machine,
        nodes: nodes
            .map(|(node, outcome)| of_node(node, outcome))
            .collect(),
        tiers,
        demotion: topology.demotion,
    }
}

fn of_node<'d>(node: &'d NumaNode, outcome: &'d Outcome) -> Node<'d> {
    let devices = node.devices.iter().map(|device| Device {
        name: &device.name,
        origin: device.origin.to_string(),
    });
    let distances = node
        .distances
        .iter()
        .map(|(&node, &distance)| Distance { node, distance });
    let huge_pages = node.huge_pages.iter().map(|pool| HugePages {
        page_bytes: pool.page_bytes,
        total: pool.total,
        free: pool.free,
    });
    let rated = node.performance;
    Node {
        node: node.number,
        kind: node.kind.to_string(),
        devices: devices.collect(),
        total_bytes: node.total_bytes,
        free_bytes: node.free_bytes,
        cpus: &node.cpus,
        nearest_cpus: &node.nearest_cpus,
        distances: distances.collect(),
        tier: node.tier,
        initiators: &node.initiators,
        read_latency_ns: rated.read_latency_ns,
        write_latency_ns: rated.write_latency_ns,
        read_bandwidth_bytes_per_s: rated.read_bandwidth,
        write_bandwidth_bytes_per_s: rated.write_bandwidth,
        huge_pages: huge_pages.collect(),
        measured: outcome.as_ref().and_then(|outcome| outcome.as_ref().ok()),
        not_measured: match outcome {
            Some(Err(why)) => Some(why),
            _ => None,
        },
    }
}
