//! Topologies are read from trees that are like `/sys`.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::cache::cache_bytes_in;
use super::*;

struct Tree(TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, path: &str, text: &str) -> &Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn link(&self, path: &str, to: &str) -> &Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(self.0.path().join(to), path).unwrap();
        self
    }

    fn node(&self, number: u32, total: u64, cpus: &str, distances: &str) -> &Self {
        let at = format!("devices/system/node/node{number}");
        let meminfo = format!(
            "Node {number} MemTotal:       {total} kB\nNode {number} MemFree:        {} kB\n\
             Node {number} MemUsed:        0 kB\n",
            total / 2
        );
        self.write(&format!("{at}/meminfo"), &meminfo)
            .write(&format!("{at}/cpulist"), &format!("{cpus}\n"))
            .write(&format!("{at}/distance"), &format!("{distances}\n"))
    }

    fn online(&self, list: &str) -> &Self {
        self.write("devices/system/node/online", &format!("{list}\n"))
    }

    fn tier(&self, number: u32, nodes: &str) -> &Self {
        let at = format!("devices/virtual/memory_tiering/memory_tier{number}/nodelist");
        self.write(&at, &format!("{nodes}\n"))
    }

    /// A DAX device whose own place is `path`.
    fn dax(&self, name: &str, path: &str, driver: &str, node: &str) -> &Self {
        self.write(&format!("{path}/{name}/target_node"), node)
            .link(
                &format!("{path}/{name}/driver"),
                &format!("bus/dax/drivers/{driver}"),
            )
            .link(
                &format!("bus/dax/devices/{name}"),
                &format!("{path}/{name}"),
            )
    }

    fn read(&self) -> Result<Topology, TextError> {
        Topology::read(self.0.path())
    }

    fn refused(&self) -> String {
        self.read().unwrap_err().to_string()
    }
}

/// Two nodes with CPUs, of 1 GiB and 2 GiB.
fn two() -> Tree {
    let tree = Tree::new();
    tree.online("0-1")
        .node(0, 1 << 20, "0-1,4", "10 21")
        .node(1, 2 << 20, "2-3", "21 10")
        .tier(4, "0-1")
        .write("devices/virtual/memory_tiering/uevent", "")
        .write("kernel/mm/numa/demotion_enabled", "true\n");
    tree
}

#[test]
fn two_nodes_with_all_that_there_is() {
    let tree = two();
    for (node, latency) in [(0, "81"), (1, "82")] {
        let at = format!("devices/system/node/node{node}/access0/initiators");
        tree.write(&format!("{at}/read_latency"), latency)
            .write(&format!("{at}/write_latency"), "0\n")
            .write(&format!("{at}/read_bandwidth"), "1000\n")
            .write(&format!("{at}/write_bandwidth"), "500\n")
            .link(&format!("{at}/node1"), "devices/system/node/node1")
            .link(&format!("{at}/node0"), "devices/system/node/node0");
    }
    let pool = "devices/system/node/node1/hugepages/hugepages-2048kB";
    tree.write(&format!("{pool}/nr_hugepages"), "8\n")
        .write(&format!("{pool}/free_hugepages"), "3\n");
    let topology = tree.read().unwrap();
    assert_eq!(topology.demotion, Some(true));
    let tier = MemoryTier {
        number: 4,
        nodes: vec![0, 1],
    };
    assert_eq!(topology.tiers, Some(vec![tier]));
    let node = topology.node(1).unwrap();
    assert_eq!((node.total_bytes, node.free_bytes), (2 << 30, 1 << 30));
    assert_eq!(node.kind, NodeKind::Dram);
    assert_eq!(node.tier, Some(4));
    assert_eq!(node.distances, [(0, 21), (1, 10)].into());
    assert_eq!(node.initiators, [0, 1]);
    let performance = Performance {
        read_latency_ns: Some(82),
        write_latency_ns: None,
        read_bandwidth: Some(1000 << 20),
        write_bandwidth: Some(500 << 20),
    };
    assert_eq!(node.performance, performance);
    let pool = HugePages {
        page_bytes: 2 << 20,
        total: 8,
        free: 3,
    };
    assert_eq!(node.huge_pages, [pool]);
    assert_eq!(topology.nodes[0].huge_pages, []);
    assert_eq!(nearest_cpus_in(tree.0.path(), 0).unwrap(), [0, 1, 4]);
    assert_eq!(nearest_cpus_in(tree.0.path(), 7).unwrap(), []);
}

#[test]
fn without_hmat_and_tiers() {
    let tree = Tree::new();
    tree.online("0").node(0, 1 << 20, "0", "10");
    let topology = tree.read().unwrap();
    assert_eq!((topology.tiers, topology.demotion), (None, None));
    let node = &topology.nodes[0];
    assert_eq!(node.performance, Performance::default());
    assert_eq!((node.tier, node.initiators.len()), (None, 0));
    assert_eq!(node.kind, NodeKind::Dram);
}

#[test]
fn nodes_without_cpus_are_near_to_others() {
    let tree = Tree::new();
    tree.online("0-1,3-4")
        .node(0, 1 << 20, "0", "10 20 30 20")
        .node(1, 1 << 20, "1-2", "20 10 17 20")
        .node(3, 1 << 20, "", "30 17 10 20")
        .node(4, 1 << 20, "", "20 20 20 10");
    let topology = tree.read().unwrap();
    assert_eq!(topology.nodes[3].distances[&3], 20, "there is no node 2");
    assert_eq!(nearest_cpus_in(tree.0.path(), 3).unwrap(), [1, 2]);
    assert_eq!(
        nearest_cpus_in(tree.0.path(), 4).unwrap(),
        [0],
        "of two the lower"
    );
    assert_eq!(topology.nodes[2].kind, NodeKind::CpuLess);
}

#[test]
fn distances_may_be_missing() {
    let tree = Tree::new();
    tree.online("0-1")
        .node(0, 1 << 20, "0", "10 20")
        .node(1, 1 << 20, "", "20 10");
    fs::remove_file(tree.0.path().join("devices/system/node/node1/distance")).unwrap();
    let topology = tree.read().unwrap();
    assert!(topology.nodes[1].distances.is_empty());
    assert_eq!(nearest_cpus_in(tree.0.path(), 1).unwrap(), [0]);
}

#[test]
fn devices_say_what_memory_is() {
    let tree = Tree::new();
    let far = "20 20 20 20 20 20 20";
    tree.online("0-6").node(0, 1 << 20, "0", far).tier(4, "0-6");
    for node in 1..=6 {
        tree.node(node, 1 << 20, "", far);
    }
    let region = "devices/platform/ACPI0017:00/root0/decoder0.0/region0";
    tree.link(&format!("{region}/subsystem"), "bus/cxl")
        .dax("dax0.0", &format!("{region}/dax_region0"), "kmem", "1\n")
        .dax(
            "dax1.0",
            "devices/LNXSYSTM:00/ndbus0/region1/dax1.1",
            "kmem",
            "2\n",
        )
        .dax("dax2.0", "devices/platform/hmem.0", "kmem", "3\n")
        // Not used as memory, and on no node.
        .dax("dax3.0", "devices/platform/cxl_test", "device_dax", "4\n")
        .dax("dax4.0", "devices/platform/cxl_test", "kmem", "-1\n")
        // Two kinds on one node, and persistent memory behind CXL.
        .dax("dax5.0", "devices/platform/cxl_test", "kmem", "5\n")
        .dax("dax6.0", "devices/platform/hmem.1", "kmem", "5\n")
        .dax("dax7.0", "devices/platform/cxl_test/ndbus1", "kmem", "6\n")
        // Beside a CPU's own memory.
        .dax("dax8.0", "devices/platform/cxl_test", "kmem", "0\n");
    let topology = tree.read().unwrap();
    let kinds = topology.nodes.iter().map(|node| node.kind.to_string());
    assert_eq!(
        kinds.collect::<Vec<_>>(),
        [
            "DRAM",
            "CXL",
            "persistent",
            "CPU-less",
            "CPU-less",
            "CPU-less",
            "persistent"
        ]
    );
    let names = topology.nodes[5].devices.iter().map(|device| &*device.name);
    assert_eq!(names.collect::<Vec<_>>(), ["dax5.0", "dax6.0"]);
    assert_eq!(topology.nodes[0].devices[0].origin, Origin::Cxl);
}

#[test]
fn nodes_without_memory_are_there_too() {
    let tree = two();
    tree.node(1, 0, "2-3", "21 10").tier(4, "0");
    let topology = tree.read().unwrap();
    let node = topology.node(1).unwrap();
    assert_eq!((node.kind, node.tier), (NodeKind::Memoryless, None));
    assert_eq!(nearest_cpus_in(tree.0.path(), 1).unwrap(), [2, 3]);
}

#[test]
fn tiers_are_in_order_of_their_numbers() {
    let tree = two();
    tree.tier(22, "1").tier(4, "0").tier(101, "");
    let tiers = tree.read().unwrap().tiers.unwrap();
    let numbers = tiers.iter().map(|tier| tier.number).collect::<Vec<_>>();
    assert_eq!(numbers, [4, 22, 101]);
    assert!(tiers[2].nodes.is_empty());
}

#[test]
fn odd_content_is_an_error() {
    let node = "devices/system/node/node1";
    for (path, text, expected) in [
        ("devices/system/node/online", "0-x", "a list of numbers"),
        (
            &format!("{node}/cpulist"),
            "0-99999999",
            "a list of numbers",
        ),
        (
            &format!("{node}/distance"),
            "10",
            "a distance for each node",
        ),
        (
            &format!("{node}/distance"),
            "10 -3",
            "a distance for each node",
        ),
        (
            &format!("{node}/meminfo"),
            "Node 0 MemTotal: 1 kB",
            "MemTotal",
        ),
        (
            &format!("{node}/meminfo"),
            "Node 1 MemTotal: many kB",
            "MemTotal",
        ),
        (
            &format!("{node}/access0/initiators/read_latency"),
            "fast",
            "one number",
        ),
        (
            &format!("{node}/access0/initiators/read_bandwidth"),
            "18446744073709551615",
            "a number that can be",
        ),
        (
            &format!("{node}/hugepages/hugepages-2048kB/nr_hugepages"),
            "",
            "one number",
        ),
        (
            "devices/virtual/memory_tiering/memory_tier4/nodelist",
            "9999",
            "a list",
        ),
        ("kernel/mm/numa/demotion_enabled", "maybe", "true or false"),
    ] {
        let tree = two();
        tree.write(path, text);
        let line = tree.refused();
        assert!(line.contains(path) && line.contains(expected), "{line}");
    }
    let tree = two();
    tree.dax("dax0.0", "devices/x", "kmem", "none");
    assert!(
        tree.refused()
            .contains("target_node does not say one number")
    );
}

#[test]
fn what_must_be_there_and_is_not_is_an_error() {
    assert!(Tree::new().refused().contains("cannot read"));
    let tree = Tree::new();
    tree.online("0-1").node(0, 1 << 20, "0", "10 20");
    assert!(tree.refused().contains("node1/meminfo"));
}

#[test]
fn caches_are_counted_once() {
    let tree = Tree::new();
    for (cpu, shared) in [(0, "0-1"), (1, "0-1"), (2, "2")] {
        let own = cpu.to_string();
        for (index, level, kind, size, shared) in [
            (0, "1", "Data", "32K", &*own),
            (1, "1", "Instruction", "64K", &*own),
            (3, "3", "Unified", "1024K", shared),
        ] {
            let at = format!("devices/system/cpu/cpu{cpu}/cache/index{index}");
            tree.write(&format!("{at}/level"), level)
                .write(&format!("{at}/type"), kind)
                .write(&format!("{at}/size"), size)
                .write(&format!("{at}/shared_cpu_list"), shared);
        }
        tree.write(&format!("devices/system/cpu/cpu{cpu}/cache/uevent"), "");
    }
    let kib = |cpus: &[usize]| Some(cache_bytes_in(tree.0.path(), cpus).unwrap()? >> 10);
    assert_eq!(kib(&[0, 1]), Some(1024 + 64));
    assert_eq!(kib(&[0, 1, 2]), Some(2048 + 96));
    assert_eq!(kib(&[9]), None);
    tree.write("devices/system/cpu/cpu0/cache/index3/size", "many");
    let refused = cache_bytes_in(tree.0.path(), &[0]).unwrap_err().to_string();
    assert!(refused.contains("a size in K"), "{refused}");
}

#[test]
fn this_machine_can_be_read() {
    match Topology::here() {
        Ok(topology) => {
            let with_memory = topology.nodes.iter().filter(|node| node.total_bytes > 0);
            assert!(with_memory.count() > 0, "{topology:?}");
            assert!(!nearest_cpus(topology.nodes[0].number).unwrap().is_empty());
        }
        Err(error) => assert!(error.to_string().contains("node/online"), "{error}"),
    }
}

#[test]
fn watermarks_are_those_of_the_nodes_zones() {
    let zones = "Node 0, zone      DMA\n  pages free     3840\n        min      7\n        high     14\n\
        \x20 pagesets\n    cpu: 0\n              high:  99\nNode 0, zone   Normal\n        high     100\n\
        Node 1, zone   Normal\n        high     1000\n";
    assert_eq!(super::high_pages(zones, 0), Some(114));
    assert_eq!(super::high_pages(zones, 1), Some(1000));
    assert_eq!(super::high_pages(zones, 2), None);
}
