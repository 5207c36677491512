//! Orders on the simulated machine: what is right, what is found, and one order again.

use serde_json::Value;

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
    assert_eq!(document["schema"], 1);
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
    // The engine itself does right in the same order.
    let output = transhume(&["check", "--case", "batch", "--seed", seed]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("nothing is violated"));
}

pub(crate) fn what_cannot_be_checked_is_refused() {
    refused(&["check", "--case", "bach"], "the cases are batch, sync, ");
    refused(
        &["check", "--bug", "none"],
        "the known bugs are no-shootdown, ",
    );
    refused(
        &["check", "--case", "batch", "--seed", "7b"],
        "`7b` is no seed",
    );
    refused(
        &["check", "--seed", "x01"],
        "cure: name its --case or --bug",
    );
    refused(
        &["check", "--exhaustive", "--random", "5"],
        "cannot be used with",
    );
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
