//! What moves, and that nothing else does.

use crate::Case;
use crate::herd::{Herd, MIB};
use crate::program::{command, moves, moves_to};
use crate::reasons::{let_go, live};

pub(crate) const CASES: &[Case] = &[
    ("moves::there_and_back", there_and_back),
    ("moves::all_of_a_process", all_of_a_process),
    (
        "moves::huge_pages_by_their_heads",
        huge_pages_by_their_heads,
    ),
    (
        "moves::pages_that_are_there_cost_nothing",
        pages_that_are_there_cost_nothing,
    ),
    ("moves::a_part", a_part),
    ("moves::a_part_of_huge_pages", a_part_of_huge_pages),
    (
        "moves::folios_between_base_and_huge",
        folios_between_base_and_huge,
    ),
    ("moves::several_destinations", several_destinations),
    ("moves::a_pool_of_huge_pages", a_pool_of_huge_pages),
    ("moves::a_file", a_file),
    ("moves::several_processes", several_processes),
    ("moves::a_dry_run_moves_nothing", a_dry_run_moves_nothing),
    ("moves::nothing_to_move", nothing_to_move),
];

/// Tidings of a herd at work on several threads, moved by several threads.
fn there_and_back() {
    let mut herd = Herd::new(64, &["--threads", "2"]);
    let range = herd.range();
    for round in 0..4 {
        let (from, to) = (round % 2, (round + 1) % 2);
        let threads = (1 + round / 2).to_string();
        let report = moves(
            herd.pid(),
            from,
            to,
            &["--only", &range, "--threads", &threads],
        );
        assert_eq!(report.code, 0, "{report:?}");
        assert_eq!(report.moved(), 64 * MIB, "{report:?}");
        assert_eq!(report.only()["moved"]["pages"], 16384);
        assert_eq!(herd.on_node(to).0, 64 * MIB);
        herd.is_well();
    }
    herd.end();
}

/// Its program and libraries too, which this test's own processes share.
fn all_of_a_process() {
    let herd = Herd::new(16, &[]);
    let report = moves(herd.pid(), 0, 1, &["--include-shared"]);
    assert_eq!(report.code, 0, "{report:?}");
    assert!(report.moved() > 16 * MIB);
    assert_eq!(report.only()["left_bytes"], 0);
    let report = moves(herd.pid(), 1, 0, &["--include-shared"]);
    assert_eq!(report.code, 0, "{report:?}");
    herd.end();
}

fn huge_pages_by_their_heads() {
    let herd = Herd::new(64, &["--page-size", "2m"]);
    assert_eq!(herd.huge_bytes(), 64 * MIB, "no huge pages");
    let report = moves(herd.pid(), 0, 1, &["--only", &herd.range()]);
    assert_eq!(report.code, 0, "{report:?}");
    assert_eq!(report.moved(), 64 * MIB);
    assert_eq!(report.only()["moved"]["pages"], 32);
    assert_eq!(report.only()["retries"], 0);
    assert_eq!(herd.on_node(1), (64 * MIB, 64 * MIB), "they are huge still");
    herd.end();
}

/// Each would close a batch of the kernel's, and be a shootdown of its own.
fn pages_that_are_there_cost_nothing() {
    let herd = Herd::new(32, &["--second", "1"]);
    assert_eq!(herd.on_node(1).0, 16 * MIB);
    let report = moves(herd.pid(), 0, 1, &["--only", &herd.range()]);
    assert_eq!(report.code, 0, "{report:?}");
    assert_eq!(report.moved(), 16 * MIB);
    assert_eq!(report.only()["already_there"]["bytes"], 16 * MIB);
    let calls = report.only()["calls"].as_u64().unwrap();
    assert!(calls <= 32, "{report:?}");
    herd.end();
}

fn a_part() {
    let herd = Herd::new(16, &[]);
    let parts = format!("{},{}", herd.part(2, 5), herd.part(8, 9));
    let report = moves(herd.pid(), 0, 1, &["--only", &parts]);
    assert_eq!(report.code, 0, "{report:?}");
    assert_eq!(report.moved(), 4 * MIB);
    assert_eq!(report.only()["planned_bytes"], 4 * MIB);
    assert_eq!(herd.on_node(1).0, 4 * MIB);
    // Of what is mixed now, the rest.
    let report = moves(herd.pid(), 0, 1, &["--only", "anon"]);
    assert_eq!(report.code, 0, "{report:?}");
    assert_eq!(herd.on_node(1).0, 16 * MIB);
    assert_eq!(moves(herd.pid(), 1, 0, &["--only", "heap"]).code, 0);
    assert_eq!(moves(herd.pid(), 1, 0, &["--only", "stack"]).code, 0);
    assert_eq!(herd.on_node(1).0, 16 * MIB);
    herd.end();
}

/// A huge page goes as a whole or not at all.
fn a_part_of_huge_pages() {
    let herd = Herd::new(16, &["--page-size", "2m"]);
    let report = moves(herd.pid(), 0, 1, &["--only", &herd.part(3, 4)]);
    assert_eq!(report.code, 0, "{report:?}");
    assert_eq!(herd.on_node(1), (2 * MIB, 16 * MIB));
    herd.end();
}

/// Nobody shows their size; still they do not cost a shootdown each.
fn folios_between_base_and_huge() {
    let size = |size| format!("/sys/kernel/mm/transparent_hugepage/hugepages-{size}kB/enabled");
    if !std::fs::exists(size(64)).unwrap() {
        // Before Linux 6.8 there are none in anonymous memory.
        return;
    }
    std::fs::write(size(2048), "never").unwrap();
    std::fs::write(size(64), "always").unwrap();
    let herd = Herd::new(32, &["--page-size", "2m"]);
    std::fs::write(size(2048), "inherit").unwrap();
    std::fs::write(size(64), "never").unwrap();
    assert_eq!(herd.huge_bytes(), 0);
    let report = moves(herd.pid(), 0, 1, &["--only", &herd.range()]);
    assert_eq!((report.code, report.moved()), (0, 32 * MIB), "{report:?}");
    let shootdowns = report.only()["shootdowns"].as_u64().unwrap();
    // There are 512 such folios, and 16 batches.
    assert!(shootdowns < 128, "{report:?}");
    herd.end();
}

/// By share, and the same page to the same node each time.
fn several_destinations() {
    for pages in ["4k", "2m"] {
        let herd = Herd::new(64, &["--page-size", pages]);
        let report = moves_to(herd.pid(), "0", "1=3,2=1", &["--only", &herd.range()]);
        assert_eq!((report.code, report.moved()), (0, 64 * MIB), "{report:?}");
        assert_eq!((herd.on_node(1).0, herd.on_node(2).0), (48 * MIB, 16 * MIB));
        let report = moves_to(herd.pid(), "1,2", "0", &["--only", &herd.range()]);
        assert_eq!((report.code, report.moved()), (0, 64 * MIB), "{report:?}");
        herd.end();
    }
}

/// They go whole, and take no room of the destination's pool.
fn a_pool_of_huge_pages() {
    let pool = |pages: u32| {
        let node = "/sys/devices/system/node/node0";
        let path = format!("{node}/hugepages/hugepages-2048kB/nr_hugepages");
        std::fs::write(path, pages.to_string()).unwrap();
    };
    pool(8);
    let (child, range) = live("pooled");
    let report = moves(child.id(), 0, 1, &["--only", &range]);
    assert_eq!((report.code, report.moved()), (0, 8 * MIB), "{report:?}");
    assert_eq!(report.only()["moved"]["pages"], 4);
    let_go(child);
    pool(0);
}

fn a_file() {
    let (child, range) = live("filed");
    let file = "file:/tmp/a, file";
    let report = moves(child.id(), 0, 1, &["--only", file]);
    assert_eq!((report.code, report.moved()), (0, 4 * MIB), "{report:?}");
    let report = moves(child.id(), 0, 1, &["--only", &format!("{range},{file}")]);
    assert_eq!((report.code, report.moved()), (0, 0), "{report:?}");
    let_go(child);
}

fn several_processes() {
    let herds = [Herd::new(8, &[]), Herd::new(8, &[])];
    let pids = format!("{},{}", herds[0].pid(), herds[1].pid());
    let output = command(&pids, "all", "1")
        .args(["--only", "anon", "--json", "-"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for herd in herds {
        assert_eq!(herd.on_node(1).0, 8 * MIB);
        herd.end();
    }
}

fn a_dry_run_moves_nothing() {
    let herd = Herd::new(8, &[]);
    let output = command(&herd.pid().to_string(), "0", "1")
        .args(["--dry-run", "--explain", "--only", &herd.range()])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.contains("8.00 MiB to move from node 0 to node 1"),
        "{text}"
    );
    assert!(text.contains("by their head only"), "{text}");
    assert_eq!(herd.on_node(0).0, 8 * MIB);
    herd.end();
}

fn nothing_to_move() {
    let herd = Herd::new(8, &[]);
    let report = moves(herd.pid(), 1, 0, &["--only", &herd.range()]);
    assert_eq!((report.code, report.moved()), (0, 0));
    assert_eq!(report.only()["calls"], 0);
    herd.end();
}
