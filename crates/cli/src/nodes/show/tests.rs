//! A machine of three nodes, drawn.

use std::collections::BTreeMap;

use transhume_sys::numa::topology::{DaxDevice, HugePages, MemoryTier, Origin, Performance};

use super::*;

fn node(number: u32, kind: NodeKind, cpus: &[usize]) -> NumaNode {
    NumaNode {
        number,
        kind,
        devices: Vec::new(),
        total_bytes: if kind == NodeKind::Memoryless {
            0
        } else {
            96 << 30
        },
        free_bytes: 1 << 30,
        cpus: cpus.to_vec(),
        nearest_cpus: cpus.to_vec(),
        distances: BTreeMap::from([(0, 10), (1, 14), (2, 21)]),
        tier: (kind != NodeKind::Memoryless).then_some(4),
        initiators: vec![0],
        performance: Performance {
            read_latency_ns: Some(93),
            ..Performance::default()
        },
        huge_pages: vec![HugePages {
            page_bytes: 2 << 20,
            total: 8,
            free: 3,
        }],
    }
}

fn three() -> Topology {
    let mut far = node(2, NodeKind::Cxl, &[]);
    far.tier = Some(22);
    far.devices.push(DaxDevice {
        name: "dax0.0".to_owned(),
        origin: Origin::Cxl,
    });
    let tier = |number, nodes: &[u32]| MemoryTier {
        number,
        nodes: nodes.to_vec(),
    };
    Topology {
        nodes: vec![
            node(0, NodeKind::Dram, &[0, 1, 2, 8]),
            node(1, NodeKind::Memoryless, &[3]),
            far,
        ],
        tiers: Some(vec![tier(4, &[0]), tier(22, &[2])]),
        demotion: Some(true),
    }
}

fn done() -> Measured {
    Measured {
        read_latency_ns: 101.5,
        read_bandwidth_bytes_per_s: 2.5e10,
        copy_bandwidth_bytes_per_s: 1.25e10,
        bytes: 256 << 20,
        huge_bytes: 192 << 20,
        elsewhere_bytes: 5 << 20,
        cache_bytes: Some(32 << 20),
        cpus: vec![0, 1, 2, 8],
        repetitions: 7,
    }
}

#[test]
fn it_fits_and_says_all() {
    let outcomes = [
        Some(Ok(done())),
        Some(Err("it has no memory".to_owned())),
        Some(Ok(done())),
    ];
    for width in [24, 40, 60, 80, 120, 200] {
        let text = all(&three(), &outcomes, width);
        let fits = |line: &str| line.chars().count() <= width;
        assert!(text.lines().all(fits), "{width}\n{text}");
    }
    let text = all(&three(), &outcomes, 200);
    for expected in [
        "0-2,8",
        "2M 3/8",
        "n/a: the firmware's HMAT does not give every latency and bandwidth\n",
        "node 2: dax0.0 serves as memory, of origin CXL",
        "memory tiers, the fastest first: 4 (node 0), 22 (node 2); demotion is on",
        "distance to       0    1    2\nfrom node 0      10   14   21",
        "75 % 2 MiB",
        "node 0: 5 of 256 MiB were on other nodes",
        "node 1 not measured: it has no memory",
        "medians of 7",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    let narrow = all(&three(), &outcomes, 24);
    assert!(narrow.contains("from node 0: 10 14 21"), "{narrow}");
}

#[test]
fn what_is_not_known_is_said_once() {
    let mut topology = three();
    topology.tiers = None;
    topology.nodes.truncate(1);
    topology.nodes[0].tier = None;
    topology.nodes[0].performance = Performance::default();
    topology.nodes[0].huge_pages.clear();
    let text = all(&topology, &[None], 300);
    assert!(text.contains(
        "n/a: no HMAT: the firmware gives no latency or bandwidth; the kernel shows no memory tiers \
         (Linux 6.1 and later do); the kernel shows no pools of huge pages\n"
    ), "{text}");
    assert!(
        !text.contains("distance") && !text.contains("measured"),
        "{text}"
    );
}
