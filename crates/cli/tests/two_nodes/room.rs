//! A destination without room.

use std::fs;
use std::path::PathBuf;

use transhume_sys::numa::topology::watermark;

use crate::Case;
use crate::herd::{Herd, MIB};
use crate::program::{begin, ended, moves};

pub(crate) const CASES: &[Case] = &[
    ("room::a_full_node", a_full_node),
    (
        "room::huge_pages_for_a_full_node",
        huge_pages_for_a_full_node,
    ),
    ("room::exchange", exchange),
    ("room::memory_that_goes_offline", memory_that_goes_offline),
];

/// Takes memory of node 1 away, in huge pages, until so many MiB are free that the kernel would give.
struct Full;

impl Full {
    const POOL: &str = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";

    fn leaving(mib: u64) -> Self {
        let full = Self;
        let mib = mib + watermark(1).unwrap() / MIB;
        for _ in 0..10 {
            let spare = free().saturating_sub(mib);
            if spare < 4 {
                break;
            }
            let pool: u64 = fs::read_to_string(Self::POOL)
                .unwrap()
                .trim()
                .parse()
                .unwrap();
            fs::write(Self::POOL, (pool + spare / 2).to_string()).unwrap();
        }
        let free = free();
        assert!(
            free < mib + 16,
            "{free} MiB are free on node 1, and not {mib}"
        );
        full
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        fs::write(Self::POOL, "0").unwrap();
    }
}

/// MiB that are free on node 1.
fn free() -> u64 {
    let text = fs::read_to_string("/sys/devices/system/node/node1/meminfo").unwrap();
    let line = text.lines().find(|line| line.contains("MemFree:")).unwrap();
    line.split_whitespace()
        .rev()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        / 1024
}

/// What goes, goes, and of the rest it is said why it does not.
fn a_full_node() {
    let herd = Herd::new(96, &[]);
    let full = Full::leaving(16);
    let report = moves(herd.pid(), 0, 1, &["--only", &herd.range()]);
    assert_eq!(report.code, 3, "{report:?}");
    let without = report.stayed("no memory") + report.stayed("not tried");
    assert!(
        report.stayed("no memory") > 0 && report.moved() < 64 * MIB,
        "{report:?}"
    );
    assert_eq!(report.moved() + without, 96 * MIB, "{report:?}");
    assert!(
        report.json["stopped"]
            .as_str()
            .unwrap()
            .contains("node 1 takes no more")
    );
    drop(full);
    let report = moves(herd.pid(), 0, 1, &["--only", &herd.range()]);
    assert_eq!(report.code, 0, "{report:?}");
    herd.end();
}

/// The kernel splits those that it has no room for; each page is counted where it is.
fn huge_pages_for_a_full_node() {
    let herd = Herd::new(128, &["--page-size", "2m"]);
    let full = Full::leaving(16);
    let report = moves(herd.pid(), 0, 1, &["--only", &herd.range()]);
    assert_eq!(report.code, 3, "{report:?}");
    let (there, _) = herd.on_node(1);
    assert_eq!(report.moved(), there, "{report:?}");
    let without = report.stayed("no memory") + report.stayed("not tried");
    assert_eq!(there + without, 128 * MIB, "{report:?}");
    drop(full);
    let report = moves(herd.pid(), 0, 1, &["--only", &herd.range()]);
    assert_eq!(report.code, 0, "{report:?}");
    assert_eq!(report.moved(), without);
    herd.end();
}

/// Memory that is not wanted there goes out by turns, a slice at a time.
fn exchange() {
    let herd = Herd::new(96, &["--beside", "96MiB", "--beside-node", "1"]);
    let full = Full::leaving(16);
    let report = moves(herd.pid(), 0, 1, &["--only", &herd.range(), "--exchange"]);
    assert_eq!(report.code, 0, "{report:?}");
    assert_eq!(report.moved(), 96 * MIB, "{report:?}");
    let made_room = report.only()["made_room"]["bytes"].as_u64().unwrap();
    assert!((40 * MIB..96 * MIB).contains(&made_room), "{report:?}");
    drop(full);
    herd.end();
}

/// Parts of both nodes' memory go offline while memory moves between them, which moves it as well.
fn memory_that_goes_offline() {
    let blocks = [0, 1].map(|node| {
        let blocks = fs::read_dir(format!("/sys/devices/system/node/node{node}")).unwrap();
        let blocks = blocks.map(|entry| entry.unwrap().path().join("state"));
        blocks.filter(|state| state.exists()).collect::<Vec<_>>()
    });
    let put = |state: &str| {
        let is = |block: &&PathBuf| fs::read_to_string(block).unwrap().trim() == state;
        for block in blocks.iter().flatten().filter(|block| !is(block)) {
            // What cannot be moved away keeps its block online.
            let _ = fs::write(block, state);
        }
        blocks.iter().flatten().filter(is).count()
    };
    let all = put("online");
    let herd = Herd::new(64, &[]);
    let mover = begin(
        herd.pid(),
        "0",
        "1",
        &["--only", &herd.range(), "--bandwidth", "32MiB/s"],
    );
    assert!(put("offline") > 0);
    let report = ended(mover);
    report.is_explained();
    assert!(matches!(report.code, 0 | 3), "{report:?}");
    assert_eq!(put("online"), all);
    let report = moves(herd.pid(), 0, 1, &["--only", &herd.range()]);
    assert_eq!(report.code, 0, "{report:?}");
    assert_eq!(herd.on_node(1).0, 64 * MIB);
    herd.end();
}
