//! Limits, and stopping.

use rustix::process::{Pid, Signal, kill_process};

use crate::Case;
use crate::herd::{Herd, MIB};
use crate::program::{begin, ended, moves};

pub(crate) const CASES: &[Case] = &[
    ("limits::max_stall", max_stall),
    ("limits::bandwidth", bandwidth),
    ("limits::so_many_bytes", so_many_bytes),
    ("limits::interrupted", interrupted),
];

/// A call moves one batch at most.
fn max_stall() {
    let herd = Herd::new(16, &[]);
    let report = moves(
        herd.pid(),
        0,
        1,
        &["--only", &herd.range(), "--max-stall", "20ms"],
    );
    assert_eq!(report.code, 0, "{report:?}");
    assert_eq!(report.moved(), 16 * MIB);
    assert!(report.only()["calls"].as_u64().unwrap() >= 8, "{report:?}");
    herd.end();
}

/// Slower than it is allowed it may always be.
fn bandwidth() {
    let herd = Herd::new(16, &[]);
    let report = moves(
        herd.pid(),
        0,
        1,
        &["--only", &herd.range(), "--bandwidth", "8MiB/s"],
    );
    assert_eq!(report.code, 0, "{report:?}");
    let rate = report.json["bytes_per_s"].as_f64().unwrap();
    // The first slice goes at once.
    assert!(rate < 9.0 * MIB as f64, "{rate}");
    herd.end();
}

fn so_many_bytes() {
    let herd = Herd::new(16, &[]);
    let report = moves(
        herd.pid(),
        0,
        1,
        &["--only", &herd.range(), "--limit", "5MiB"],
    );
    assert_eq!(report.code, 3, "{report:?}");
    assert_eq!(report.json["stopped"], "limit");
    assert_eq!((report.moved(), herd.on_node(1).0), (5 * MIB, 5 * MIB));
    assert_eq!(report.stayed("not tried"), 11 * MIB);
    let report = moves(
        herd.pid(),
        0,
        1,
        &["--only", &herd.range(), "--limit", "11MiB"],
    );
    assert_eq!((report.code, report.moved()), (0, 11 * MIB), "{report:?}");
    herd.end();
}

/// What was moved by then is there, the rest is where it was, and both are said.
fn interrupted() {
    let herd = Herd::new(32, &[]);
    // So slowly that it is interrupted long before all has gone, also on a slow machine.
    let mover = begin(
        herd.pid(),
        "0",
        "1",
        &["--only", &herd.range(), "--bandwidth", "1MiB/s"],
    );
    herd.wait_for_some_on(1);
    let pid = Pid::from_raw(i32::try_from(mover.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let report = ended(mover);
    report.is_explained();
    assert_eq!(report.code, 3, "{report:?}");
    assert_eq!(report.json["stopped"], "interrupted");
    let moved = report.moved();
    assert!(0 < moved && moved < 32 * MIB, "{report:?}");
    assert_eq!(report.stayed("not tried"), 32 * MIB - moved, "{report:?}");
    assert_eq!(herd.on_node(1).0, moved);
    herd.end();
}
