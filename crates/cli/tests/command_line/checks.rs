//! Orders on the simulated machine: what is right, what is found, and one order again.

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::Value;
use transhume_model::{Bug, Case};

use crate::{refused, text, transhume};

pub(crate) fn orders_are_right_and_bugs_are_found() {
    let output = transhume(&["check", "--case", "pins", "--random", "300", "--seed", "5"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(
        shown.contains("300 orders, nothing violated; 1 of 1 known bugs found"),
        "{shown}"
    );
    assert!(shown.contains("reference-dropped-in-between"), "{shown}");

    let output = transhume(&["check", "--case", "device", "--exhaustive", "--json", "-"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&document["schema"], &document["interrupted"]),
        (&1.into(), &false.into())
    );
    let cases = document["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 1);
    assert_eq!(
        (&cases[0]["how"], &cases[0]["complete"]),
        (&"exhaustive".into(), &true.into())
    );
    assert!(document["orders"].as_u64().unwrap() > 1000);
    assert_eq!(document["orders"], cases[0]["orders"]);
    let bugs = document["known_bugs"].as_array().unwrap();
    let names: Vec<_> = bugs
        .iter()
        .map(|bug| bug["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["last-descriptor-only", "remainder-lost"]);
    for bug in bugs {
        assert_eq!(bug["found"], true);
        assert!(bug["orders"].as_u64().unwrap() > 0 && bug["seconds"].is_f64());
        assert!(bug["seed"].as_str().unwrap().starts_with('x'));
    }
}

pub(crate) fn an_order_is_seen_again() {
    let output = transhume(&["check", "--bug", "copy-before-shootdown", "--json", "-"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bug = &document["known_bugs"][0];
    let (seed, what) = (bug["seed"].as_str().unwrap(), bug["what"].as_str().unwrap());
    let output = transhume(&["check", "--bug", "copy-before-shootdown", "--seed", seed]);
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stdout);
    assert!(
        shown.contains(what) && shown.contains("sends a shootdown"),
        "{shown}"
    );
    assert!(
        shown.lines().all(|line| line.chars().count() <= 120),
        "{shown}"
    );
    // Without the bug there is no such order: the shootdown comes before the copy.
    refused(
        &["check", "--case", "batch", "--seed", seed],
        "the seed does not fit this scene: its decision ",
    );
    // The engine itself does right in the order in which a frame would be freed too early.
    let output = transhume(&["check", "--bug", "freed-before-flush", "--json", "-"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let seed = document["known_bugs"][0]["seed"].as_str().unwrap();
    let output = transhume(&["check", "--case", "batch", "--seed", seed]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("nothing is violated"));
}

pub(crate) fn all_that_is_checked_is_named() {
    let output = transhume(&["check", "--help"]);
    let shown = text(&output.stdout);
    for case in Case::ALL {
        let line = format!("  {:22}", case.name);
        assert!(shown.contains(&line), "{}: {shown}", case.name);
    }
    for bug in Bug::ALL {
        let line = format!("  {:30}{}", bug.name(), bug.case());
        assert!(shown.contains(&line), "{}: {shown}", bug.name());
    }
    assert!(shown.contains("and 100000]"), "{shown}");
}

/// Whether SIGINT, the second signal, is caught.
fn listens_for_ctrl_c(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:\t"));
    u64::from_str_radix(caught.unwrap(), 16).unwrap() & 0b10 != 0
}

/// What was finished is shown, and is in the document.
pub(crate) fn what_was_finished_before_ctrl_c_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.json");
    let args = ["check", "--exhaustive", "--json", path.to_str().unwrap()];
    let child = Command::new(env!("CARGO_BIN_EXE_transhume"))
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while !listens_for_ctrl_c(child.id()) {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Some are finished by then, or none; all take minutes.
    std::thread::sleep(Duration::from_secs(2));
    let pid = Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "transhume: interrupted\n");
    let shown = text(&output.stdout);
    let document: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(document["interrupted"], true);
    let cases = document["cases"].as_array().unwrap();
    let bugs = document["known_bugs"].as_array().unwrap();
    let finished = cases.len() + bugs.len();
    assert!(
        shown.contains(&format!("interrupted, {finished} of ")),
        "{shown}"
    );
    for case in cases {
        assert_eq!(case["complete"], true, "{case}");
        assert!(shown.contains(case["name"].as_str().unwrap()), "{shown}");
    }
    assert!(bugs.iter().all(|bug| bug["found"] == true));
}

pub(crate) fn what_cannot_be_checked_is_refused() {
    refused(
        &["check", "--case", "bach"],
        "there is no such case; cure: one that `transhume check --help` lists",
    );
    refused(
        &["check", "--bug", "none"],
        "there is no such bug; cure: one that `transhume check --help` lists",
    );
    refused(
        &["check", "--case", "batch", "--seed", "7b"],
        "`7b` is no seed",
    );
    refused(
        &["check", "--case", "pins", "--seed", "xzzzzzzz"],
        "the seed does not fit this scene: its decision 1 of 7 cannot be made there; cure: ",
    );
    refused(
        &["check", "--seed", "x01"],
        "cure: name its --case or --bug",
    );
    // What would be ignored is refused.
    for words in [
        "--exhaustive --random 5",
        "--exhaustive --seed 7",
        "--bug no-shootdown --exhaustive",
        "--bug no-shootdown --random 5",
        "--bug no-shootdown --case batch",
    ] {
        let words = ["check"].into_iter().chain(words.split(' '));
        refused(&words.collect::<Vec<_>>(), "cannot be used with");
    }
    refused(&["check", "--random", "0"], "'--random <N>'");
    refused(
        &["check", "--case", "batch", "--seed", "7", "--json", "-"],
        "one order is shown as text",
    );
    refused(
        &["check", "--case", "batch", "--json", "/nonexistent/x.json"],
        "cannot write JSON to",
    );
}
