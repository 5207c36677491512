//! The program as somebody at a terminal meets it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod checks;
mod copiers;
mod predictions;
mod processes;

use std::fs::Permissions;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use transhume_sys::numa::nodes_with_memory;
use transhume_sys::numa::topology::Topology;
use transhume_sys::uffd::{Allowed, Features, probe};

/// What a test needs of the machine; without it, it is reported as ignored, with the reason.
#[derive(Clone, Copy)]
enum Needs {
    Nothing,
    Userfaultfd,
    Nodes,
    Root,
}

impl Needs {
    fn missing(self) -> Option<String> {
        match (self, probe(Allowed::ALL_FAULTS)) {
            (Self::Nothing, _) => None,
            (Self::Root, _) => {
                (!rustix::process::geteuid().is_root()).then(|| "needs root".to_owned())
            }
            (Self::Nodes, _) => Topology::here().err().map(|error| error.to_string()),
            (Self::Userfaultfd, Err(error)) => Some(error.to_string()),
            (Self::Userfaultfd, Ok(probe)) => {
                (!probe.features.contains(Features::MOVE)).then(|| "no UFFDIO_MOVE".to_owned())
            }
        }
    }
}

fn main() {
    let cases: [(&str, Needs, fn()); 38] = [
        (
            "wrong_words_are_refused",
            Needs::Nothing,
            wrong_words_are_refused,
        ),
        (
            "what_cannot_be_is_refused",
            Needs::Nothing,
            what_cannot_be_is_refused,
        ),
        (
            "json_that_cannot_be_written_is_refused_before_anything_runs",
            Needs::Nothing,
            json_that_cannot_be_written_is_refused_before_anything_runs,
        ),
        (
            "a_refusal_leaves_the_json_file_as_it_was",
            Needs::Nothing,
            a_refusal_leaves_the_json_file_as_it_was,
        ),
        (
            "a_file_with_content_is_no_tier",
            Needs::Userfaultfd,
            a_file_with_content_is_no_tier,
        ),
        (
            "json_goes_where_a_path_leads",
            Needs::Nothing,
            json_goes_where_a_path_leads,
        ),
        (
            "orders_are_right_and_bugs_are_found",
            Needs::Nothing,
            checks::orders_are_right_and_bugs_are_found,
        ),
        (
            "an_order_is_seen_again",
            Needs::Nothing,
            checks::an_order_is_seen_again,
        ),
        (
            "all_that_is_checked_is_named",
            Needs::Nothing,
            checks::all_that_is_checked_is_named,
        ),
        (
            "what_was_finished_before_ctrl_c_is_kept",
            Needs::Nothing,
            checks::what_was_finished_before_ctrl_c_is_kept,
        ),
        (
            "what_cannot_be_checked_is_refused",
            Needs::Nothing,
            checks::what_cannot_be_checked_is_refused,
        ),
        ("engines_are_listed", Needs::Nothing, engines_are_listed),
        (
            "what_auto_chooses_is_shown_once_it_was_measured",
            Needs::Nothing,
            copiers::what_auto_chooses_is_shown_once_it_was_measured,
        ),
        ("nodes_are_shown", Needs::Nodes, nodes_are_shown),
        ("nodes_as_json", Needs::Nodes, nodes_as_json),
        ("nodes_are_measured", Needs::Nodes, nodes_are_measured),
        (
            "json_on_standard_output_is_all_there_is",
            Needs::Userfaultfd,
            json_on_standard_output_is_all_there_is,
        ),
        (
            "mapped_memory_and_copiers",
            Needs::Userfaultfd,
            mapped_memory_and_copiers,
        ),
        (
            "exchange_and_two_ways",
            Needs::Userfaultfd,
            exchange_and_two_ways,
        ),
        ("deferred_switches", Needs::Userfaultfd, deferred_switches),
        ("a_table_and_a_file", Needs::Userfaultfd, a_table_and_a_file),
        (
            "a_reader_that_goes_away_is_no_panic",
            Needs::Nothing,
            a_reader_that_goes_away_is_no_panic,
        ),
        (
            "wrong_words_of_move",
            Needs::Nothing,
            processes::wrong_words_of_move,
        ),
        (
            "where_nothing_can_move",
            Needs::Nothing,
            processes::where_nothing_can_move,
        ),
        (
            "a_process_as_a_map",
            Needs::Nothing,
            processes::a_process_as_a_map,
        ),
        (
            "what_has_no_map",
            Needs::Nothing,
            processes::what_has_no_map,
        ),
        (
            "a_map_is_watched_to_the_end",
            Needs::Nothing,
            processes::a_map_is_watched_to_the_end,
        ),
        (
            "a_running_application_changes_its_copier",
            Needs::Userfaultfd,
            copiers::a_running_application_changes_its_copier,
        ),
        (
            "what_is_shown_of_an_application",
            Needs::Nothing,
            copiers::what_is_shown_of_an_application,
        ),
        (
            "what_cannot_be_asked_is_refused",
            Needs::Nothing,
            copiers::what_cannot_be_asked_is_refused,
        ),
        (
            "another_user_is_not_served",
            Needs::Root,
            copiers::another_user_is_not_served,
        ),
        (
            "wrong_words_of_predict",
            Needs::Nothing,
            predictions::wrong_words_of_predict,
        ),
        (
            "costs_that_cannot_be_are_refused",
            Needs::Nothing,
            predictions::costs_that_cannot_be_are_refused,
        ),
        (
            "costs_go_out_and_come_in_again",
            Needs::Nothing,
            predictions::costs_go_out_and_come_in_again,
        ),
        (
            "what_others_measured_is_held_against_what_is_predicted",
            Needs::Nothing,
            predictions::what_others_measured_is_held_against_what_is_predicted,
        ),
        (
            "what_bench_measured_is_held_against_what_is_predicted",
            Needs::Nothing,
            predictions::what_bench_measured_is_held_against_what_is_predicted,
        ),
        (
            "what_nobody_has_measured_is_told",
            Needs::Nothing,
            predictions::what_nobody_has_measured_is_told,
        ),
        (
            "costs_are_measured_here",
            Needs::Userfaultfd,
            predictions::costs_are_measured_here,
        ),
    ];
    let trials = cases.map(|(name, needs, run)| match needs.missing() {
        None => Trial::test(name, move || {
            run();
            Ok(())
        }),
        Some(reason) => Trial::test(format!("{name}: {reason}"), || Ok(())).with_ignored_flag(true),
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit();
}

fn transhume(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_transhume"))
        .args(args)
        // What `auto` measures is no matter of the user's who runs the tests.
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Exit code 2, nothing on standard output, and one line that contains `expected`.
fn refused(args: &[&str], expected: &str) {
    let output = transhume(args);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {errors}");
    assert!(errors.contains(expected), "{args:?}: {errors}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.starts_with("transhume: "), "{errors}");
}

fn wrong_words_are_refused() {
    refused(
        &["bench", "--threads", "0"],
        "'--threads <N>': a whole number from 1 on is wanted",
    );
    refused(&["bench", "--pages", "0"], "--pages");
    refused(&["bench", "--app-threads", "0"], "--app-threads");
    refused(&["bench", "--runs", "4"], "4 is not in 5..=1000");
    refused(&["bench", "--page-size", "8k"], "a page size is 4k or 2m");
    refused(
        &["bench", "--backing", "tape"],
        "a backing is anonymous, memfd, hugetlb or file:PATH",
    );
    refused(&["bench", "--backing", "file:"], "a backing is");
    refused(&["bench", "everything"], "everything");
    refused(&["bench", "--pages", "-5"], "-5");
    refused(
        &["nodes", "--mesure"],
        "a similar argument exists: '--measure'",
    );
    refused(&["nodes", "0"], "unexpected argument '0'");
    refused(&["migrate"], "migrate");
    refused(
        &["bench", "--jsn", "x"],
        "a similar argument exists: '--json'",
    );
    // Who says nothing is told what there is to say.
    let nothing = transhume(&[]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(text(&nothing.stderr).contains("Usage"));
}

fn what_cannot_be_is_refused() {
    refused(
        &["bench", "exchange", "--pages", "1"],
        "an exchange needs two pages at least",
    );
    refused(
        &["bench", "defer", "--pages", "1", "--page-size", "4k"],
        "its tables take 11 pages of 4k; cure: more --pages",
    );
    refused(
        &["bench", "defer", "--backing", "file:/tmp/transhume-none"],
        "cannot hold stores off the pages of plain files; cure: ",
    );
    refused(
        &["bench", "--copier", "mempcy"],
        "no copier is named 'mempcy'; the copiers are",
    );
    refused(&["bench", "--copier", "threads:0"], "must be 1 or more");
    refused(
        &["bench", "--copier", "dsa-model"],
        "software model for tests",
    );
    refused(
        &["bench", "flush", "--pages", "999999999999"],
        "four times their size",
    );
    refused(
        &["bench", "--backing", "hugetlb", "--page-size", "4k"],
        "2m only",
    );
    let hugetlb = [
        "bench",
        "flush",
        "--backing",
        "hugetlb",
        "--pages",
        "4000",
        "--quick",
    ];
    refused(&hugetlb, "cure: sysctl vm.nr_hugepages=");
    refused(
        &["bench", "move", "--copier", "streaming"],
        "--copier is not for bench move",
    );
    refused(
        &["bench", "move", "--backing", "memfd"],
        "--backing is not for bench move",
    );
    refused(
        &["bench", "move", "--threads", "2"],
        "--threads is not for bench move",
    );
    if nodes_with_memory().is_ok_and(|nodes| nodes.len() == 1) {
        refused(
            &["bench", "move"],
            "bench move needs two nodes with memory, and only node",
        );
    } else {
        refused(&["bench", "move", "--pages", "999999999999"], "");
    }
}

fn json_that_cannot_be_written_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent/out.json");
    let folder = folder.path().to_str().unwrap();
    refused(
        &["bench", "--json", absent.to_str().unwrap()],
        "cannot write JSON to",
    );
    refused(&["bench", "--json", folder], "Is a directory");
    refused(&["engines", "--json", folder], "Is a directory");
    refused(&["nodes", "--measure", "--json", folder], "Is a directory");
}

fn a_refusal_leaves_the_json_file_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.json");
    std::fs::write(&path, "before").unwrap();
    refused(
        &["bench", "--copier", "x", "--json", path.to_str().unwrap()],
        "no copier",
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "no draft is left"
    );
}

/// A pipe is written to, a link followed; neither is replaced.
fn json_goes_where_a_path_leads() {
    let folder = tempfile::tempdir().unwrap();
    let (link, file) = (folder.path().join("link"), folder.path().join("file"));
    std::fs::write(&file, "before").unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let output = transhume(&["engines", "--json", link.to_str().unwrap()]);
    assert!(output.status.success());
    assert!(link.is_symlink());
    let document: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(document["schema"], 1);
    let mode = file.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);

    let pipe = folder.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let output = std::thread::scope(|scope| {
        let reader = scope.spawn(|| std::fs::read(&pipe).unwrap());
        let writer = transhume(&["engines", "--json", pipe.to_str().unwrap()]);
        assert!(writer.status.success());
        reader.join().unwrap()
    });
    let document: Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(document["schema"], 1);
    assert!(pipe.metadata().unwrap().file_type().is_fifo());
}

fn a_file_with_content_is_no_tier() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "precious").unwrap();
    let backing = format!("file:{}", path.display());
    let output = transhume(&[
        "bench",
        "flush",
        "--quick",
        "--page-size",
        "4k",
        "--backing",
        &backing,
    ]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("is not empty"), "{errors}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

fn engines_are_listed() {
    let output = transhume(&["engines"]);
    assert!(output.status.success());
    let listed = text(&output.stdout);
    for name in [
        "memcpy",
        "auto",
        "streaming",
        "streaming-avx512",
        "streaming-avx2",
        "streaming-sse2",
        "threads",
        "dsa",
        "software model, for tests: never DSA speed",
    ] {
        assert!(listed.contains(name), "{listed}");
    }
    let output = transhume(&["engines", "--json", "-"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["schema"], 1);
    let engines = document["engines"].as_array().unwrap();
    assert!(
        engines
            .iter()
            .any(|engine| engine["name"] == "memcpy" && engine["available"] == true)
    );
    assert!(
        engines
            .iter()
            .all(|engine| !engine["detail"].as_str().unwrap().is_empty())
    );
}

fn nodes_are_shown() {
    let output = transhume(&["nodes"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    for expected in ["node", "kind", "GiB", "CPUs"] {
        assert!(shown.contains(expected), "{shown}");
    }
    assert!(!shown.contains("measured"), "{shown}");
    let one_node = Topology::here().unwrap().nodes.len() == 1;
    assert_eq!(shown.contains("distance"), !one_node, "{shown}");
}

fn nodes_of(args: &[&str]) -> (Value, String) {
    let output = transhume(args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["schema"], 1);
    assert!(document["machine"]["kernel"].is_string());
    assert!(document["tiers"].is_array() || document["tiers"].is_null());
    (document["nodes"].clone(), text(&output.stderr))
}

fn nodes_as_json() {
    let (nodes, errors) = nodes_of(&["nodes", "--json", "-"]);
    assert!(errors.is_empty(), "{errors}");
    for (node, known) in nodes
        .as_array()
        .unwrap()
        .iter()
        .zip(Topology::here().unwrap().nodes)
    {
        assert_eq!(node["node"], known.number);
        assert_eq!(node["kind"], known.kind.to_string());
        assert_eq!(node["total_bytes"], known.total_bytes);
        assert!(node["free_bytes"].as_u64() <= node["total_bytes"].as_u64());
        assert!(!node["nearest_cpus"].as_array().unwrap().is_empty());
        assert!(node["measured"].is_null() && node["not_measured"].is_null());
        for key in [
            "read_latency_ns",
            "write_latency_ns",
            "read_bandwidth_bytes_per_s",
            "write_bandwidth_bytes_per_s",
            "tier",
        ] {
            assert!(node[key].is_u64() || node[key].is_null(), "{key}: {node}");
        }
    }
}

/// A node with too little free memory for its caches is said to be so.
fn nodes_are_measured() {
    let (nodes, errors) = nodes_of(&["nodes", "--measure", "--json", "-"]);
    for node in nodes.as_array().unwrap() {
        let measured = &node["measured"];
        if measured.is_null() {
            let why = node["not_measured"].as_str().unwrap();
            assert!(!why.is_empty() && errors.contains(why), "{errors}");
            continue;
        }
        assert!(node["not_measured"].is_null(), "{node}");
        for key in [
            "read_latency_ns",
            "read_bandwidth_bytes_per_s",
            "copy_bandwidth_bytes_per_s",
        ] {
            let figure = measured[key].as_f64().unwrap();
            assert!(figure.is_finite() && figure > 0.0, "{key}: {measured}");
        }
        let bytes = measured["bytes"].as_u64().unwrap();
        assert!(bytes > measured["cache_bytes"].as_u64().unwrap_or(0));
        assert!(measured["huge_bytes"].as_u64().unwrap() <= bytes);
        assert!(measured["repetitions"].as_u64().unwrap() >= 5);
        assert!(!measured["cpus"].as_array().unwrap().is_empty());
    }
}

fn check_row(row: &Value) {
    for key in [
        "bench",
        "variant",
        "backing",
        "page_size",
        "copier",
        "mechanism",
        "pins",
        "verified",
        "frames",
    ] {
        assert!(row[key].is_string(), "{key}: {row}");
    }
    for key in ["pages", "batch", "threads", "errors", "runs"] {
        assert!(row[key].is_u64(), "{key}: {row}");
    }
    for key in [
        "pages_per_s",
        "bytes_per_s",
        "raw_copy_bytes_per_s",
        "app_ops_per_s",
        "first_folio_us",
    ] {
        assert!(row[key].as_f64().unwrap() > 0.0, "{key}: {row}");
    }
    for key in ["shootdowns", "shootdowns_per_page", "ipis_received"] {
        assert!(row[key].is_number() || row[key].is_null(), "{key}: {row}");
    }
    assert!(
        row["shootdown_counter"].is_string() || row["shootdowns"].is_null(),
        "{row}"
    );
    for key in ["p50", "p99", "p999", "max"] {
        assert!(row["stall_us"][key].is_number(), "{key}: {row}");
    }
    assert_eq!(row["errors"], 0, "{row}");
    assert!(row["runs"].as_u64() >= Some(5));
}

fn rows(args: &[&str]) -> Vec<Value> {
    let rows = results(args);
    rows.iter().for_each(check_row);
    rows
}

fn results(args: &[&str]) -> Vec<Value> {
    let output = transhume(args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["schema"], 1);
    assert!(document["machine"]["kernel"].is_string());
    document["results"].as_array().unwrap().clone()
}

fn json_on_standard_output_is_all_there_is() {
    let rows = rows(&[
        "bench",
        "flush",
        "--quick",
        "--page-size",
        "4k",
        "--json",
        "-",
    ]);
    let batches = rows
        .iter()
        .filter(|row| row["pins"] == "declared" && row["stride"] == 1)
        .map(|row| row["batch"].as_u64().unwrap());
    assert_eq!(batches.collect::<Vec<_>>(), [1, 8, 32, 128, 512]);
    assert!(rows.iter().any(|row| row["pins"] == "undeclared"));
}

fn mapped_memory_and_copiers() {
    let memfd = [
        "bench",
        "flush",
        "--quick",
        "--page-size",
        "4k",
        "--backing",
        "memfd",
        "--json",
        "-",
    ];
    rows(&memfd);
    let copy = ["bench", "copy", "--quick", "--threads", "2", "--json", "-"];
    let rows = rows(&copy);
    assert!(
        rows.iter()
            .any(|row| row["copier"] == "threads:2:memcpy" && row["batch"] == 16)
    );
    for batch in [1, 16] {
        let chose = |row: &&Value| row["copier"] == "auto" && row["batch"] == batch;
        let chose = rows.iter().filter(chose).map(|row| &row["chose"]);
        let chose = chose.collect::<Vec<_>>();
        assert_eq!(chose.len(), 1);
        assert!(
            rows.iter().any(|row| row["copier"] == *chose[0]),
            "{chose:?}"
        );
    }
    let shown = transhume(&["bench", "copy", "--quick", "--page-size", "4k"]);
    let shown = text(&shown.stdout);
    assert!(shown.contains(" auto: ") && shown.contains("against the best single copier"));
}

fn exchange_and_two_ways() {
    for backing in ["anonymous", "memfd"] {
        let args = "bench exchange --quick --threads 2 --json - --backing";
        let args = args.split(' ').chain([backing]).collect::<Vec<_>>();
        let rows = rows(&args);
        for (size, pairs) in [("4k", 1), ("4k", 512), ("2m", 1)] {
            for (variant, by) in [("exchange", "threads:2"), ("two-way", "memcpy")] {
                let found = rows.iter().filter(|row| {
                    row["variant"] == variant
                        && row["copier"] == by
                        && row["page_size"] == size
                        && row["pages"] == pairs
                });
                assert_eq!(found.count(), 1, "{variant} {by} {size} {pairs}");
            }
        }
        // Its pages are all the frames that it needs.
        let exchanges = rows.iter().filter(|row| row["variant"] == "exchange");
        assert!(exchanges.into_iter().all(|row| row["fresh_frames"] == 0.0));
    }
    let output = transhume(&["bench", "exchange", "--quick", "--page-size", "4k"]);
    let shown = text(&output.stdout);
    assert!(shown.contains("raw swap") && shown.contains("times the bytes/s of two migrations"));
}

/// What is measured where no backing is named is not what it is elsewhere.
fn deferred_switches() {
    let rows = |named: &str| {
        let args = format!("bench defer --quick --page-size 4k --pages 1024 --json -{named}");
        results(&args.split(' ').collect::<Vec<_>>())
    };
    for (argument, backing) in [("", "memfd"), (" --backing anonymous", "anonymous")] {
        let rows = rows(argument);
        assert_eq!(rows.len(), 2);
        for (row, variant) in rows.iter().zip(["immediate", "deferred"]) {
            assert_eq!(
                (&row["variant"], &row["backing"]),
                (&variant.into(), &backing.into())
            );
            assert_eq!((&row["errors"], &row["pages"]), (&0.into(), &1024.into()));
            // Two page tables, out and in, each time that the tables move.
            let flushes = row["moves"].as_u64().unwrap() * 2 * 2;
            let known = backing == "anonymous";
            assert_eq!(row["kernel_flushes"].as_u64(), known.then_some(flushes));
        }
    }
}

fn a_table_and_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.json");
    let json = path.to_str().unwrap();
    let output = transhume(&[
        "bench",
        "flush",
        "--quick",
        "--page-size",
        "4k",
        "--json",
        json,
    ]);
    assert!(output.status.success());
    let shown = text(&output.stdout);
    for expected in [
        "one at a time",
        "512 a batch",
        "times the pages/s",
        "no errors",
    ] {
        assert!(shown.contains(expected), "{shown}");
    }
    let document: Value =
        serde_json::from_str(&std::fs::read_to_string(Path::new(json)).unwrap()).unwrap();
    assert!(!document["results"].as_array().unwrap().is_empty());
}

fn a_reader_that_goes_away_is_no_panic() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_transhume"))
        .arg("engines")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!text(&output.stderr).contains("panicked"));
}
