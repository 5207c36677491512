//! What is predicted, and from what.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::{refused, text, transhume};

fn json(args: &[&str]) -> Value {
    let output = transhume(args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        text(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn write(path: &Path, document: &Value) -> String {
    fs::write(path, document.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A prediction by the costs of a machine on which others have measured.
fn predicted(args: &[&str]) -> Value {
    let machine = ["predict", "--machine", "user-space", "--json", "-"];
    json(&[&machine[..], args].concat())
}

pub(crate) fn wrong_words_of_predict() {
    refused(
        &["predict", "--machine", "none"],
        "no machine none; there are user-space, offload, fast-copy, batch-flush",
    );
    let by_machine = |args: &[&str], expected: &str| {
        refused(
            &[&["predict", "--machine", "user-space"], args].concat(),
            expected,
        );
    };
    by_machine(
        &["--cpus", "257"],
        "257 CPUs, and from 1 to 256 can be simulated",
    );
    by_machine(&["--cpus", "0"], "a whole number from 1 on is wanted");
    by_machine(&["--cpus", "2", "--nodes", "3"], "3 nodes");
    by_machine(
        &["--cpus", "4", "--app-threads", "4"],
        "4 programs, and 3 CPUs are left",
    );
    by_machine(&["--pages", "9999999"], "9999999 pages of 4 KiB");
    by_machine(
        &["--pages", "513", "--page-size", "2m"],
        "513 pages of 2048 KiB",
    );
    by_machine(
        &["--cpus", "2", "--threads", "3"],
        "3 threads, and there are 2 CPUs",
    );
    by_machine(
        &["--waiting", "8"],
        "8 pages may wait for their switch, and a batch has 512",
    );
    by_machine(&["--channels", "4"], "of a machine with a copying device");
    by_machine(&["--batch", "8,0"], "a whole number from 1 on is wanted");
    by_machine(&["--page-size", "1g"], "a page size is 4k or 2m");
    by_machine(&["--costs", "x"], "cannot be used with");
    refused(
        &["predict", "--published", "--cpus", "4"],
        "cannot be used with",
    );
    refused(&["predict", "--json", "/nowhere/x"], "cannot write JSON");
}

pub(crate) fn costs_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("costs.json");
    let refuses = |document: &Value, expected: &str| {
        let path = write(&path, document);
        refused(&["predict", "--costs", &path], expected);
    };
    let good = predicted(&["--pages", "8"]);
    let with = |field: &str, value: Value| {
        let mut bad = good.clone();
        bad["costs"][field] = value;
        bad
    };
    refuses(&with("ipi_ns", json!(-1.0)), "`ipi_ns` is -1");
    refuses(&with("access_ns", json!(0.0)), "`access_ns` is 0");
    refuses(&with("copy_rate", json!(0.0)), "`copy_rate` is 0");
    refuses(&with("copy_rate", json!("fast")), "is not what is wanted");
    refuses(&with("ipi_us", json!(1.0)), "unknown field `ipi_us`");
    refuses(&json!({}), "missing field `costs`");
    refused(&["predict", "--costs", "/nowhere"], "cannot read /nowhere");
    refused(&["predict", "--bench", "/nowhere"], "cannot read /nowhere");
    let path = write(&path, &json!({ "machine": { "cpus": 2 }, "results": [] }));
    refused(
        &["predict", "--bench", &path],
        "no results of anonymous memory",
    );
}

pub(crate) fn costs_go_out_and_come_in_again() {
    let plan = [
        "--cpus",
        "4",
        "--nodes",
        "2",
        "--pages",
        "512",
        "--batch",
        "1,64",
        "--threads",
        "2,4",
    ];
    let document = predicted(&plan);
    assert_eq!(document["schema"], 1);
    assert_eq!(
        (&document["cpus"], &document["app_threads"]),
        (&json!(4), &json!(3))
    );
    let rows = |table: &str| document[table].as_array().unwrap().clone();
    let variants = |table: &str| -> Vec<String> {
        let rows = rows(table);
        let name = |row: &Value| row["variant"].as_str().unwrap().to_owned();
        rows.iter().map(name).collect()
    };
    assert_eq!(variants("batches"), ["1", "64"]);
    assert_eq!(variants("copiers"), ["CPU", "threads:2", "threads:4"]);
    assert_eq!(variants("deferral"), ["at once", "up to 64", "up to 512"]);
    let figure = |table: &str, n: usize, field: &str| rows(table)[n][field].as_f64().unwrap();
    assert!(figure("batches", 1, "pages_per_s") > 10.0 * figure("batches", 0, "pages_per_s"));
    assert!(figure("batches", 0, "first_folio_us") < figure("batches", 1, "first_folio_us"));
    // Two shootdowns a page, each to three CPUs at most.
    assert_eq!(rows("batches")[0]["shootdowns"], 1024);
    assert!(figure("batches", 0, "ipis") <= 3.0 * 1024.0);
    // The same costs from a file give the same answer.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("costs.json");
    let path = path.to_str().unwrap();
    let args = ["predict", "--machine", "user-space", "--json", path];
    assert!(transhume(&[&args[..], &plan].concat()).status.success());
    let args = ["predict", "--costs", path, "--json", "-"];
    let again = json(&[&args[..], &plan].concat());
    assert_eq!(again["costs"], document["costs"]);
    assert_eq!(again["batches"], document["batches"]);
    assert_eq!(again["deferral"], document["deferral"]);
    // As a table, with everything in it.
    let args = ["predict", "--costs", path];
    let shown = text(&transhume(&[&args[..], &plan].concat()).stdout);
    for what in [
        "first page",
        "stall us",
        "shootdowns",
        "IPIs",
        "app loses",
        "threads:4",
        "up to 512",
        "Deferral is held against no measurement",
    ] {
        assert!(shown.contains(what), "{what}: {shown}");
    }
}

pub(crate) fn what_nobody_has_measured_is_told() {
    let notices = |args: &[&str]| {
        let document = predicted(&[&["--pages", "8"], args].concat());
        document["notices"].to_string()
    };
    let further = "as long as to one";
    assert!(!notices(&["--cpus", "2"]).contains(further));
    let many = notices(&["--cpus", "8", "--app-threads", "5"]);
    assert!(
        many.contains("a shootdown to 5 CPUs takes as long as to one"),
        "{many}"
    );
    // Somebody who says what it takes is believed.
    let folder = tempfile::tempdir().unwrap();
    let mut document = predicted(&["--pages", "8"]);
    document["costs"]["next_ipi_ns"] = json!(50.0);
    let path = write(&folder.path().join("costs.json"), &document);
    let many = ["predict", "--costs", &path, "--pages", "8", "--cpus", "8"];
    let told = json(&[&many[..], &["--json", "-"]].concat());
    assert!(!told["notices"].to_string().contains(further), "{told}");
    for machine in ["offload", "fast-copy", "batch-flush"] {
        let args = [
            "predict",
            "--machine",
            machine,
            "--pages",
            "8",
            "--cpus",
            "2",
        ];
        let output = transhume(&args);
        let said = text(&output.stderr);
        assert!(said.contains("access_ns is assumed: 100 ns"), "{said}");
    }
}

pub(crate) fn what_others_measured_is_held_against_what_is_predicted() {
    let document = json(&["predict", "--published", "--json", "-"]);
    let machines = document["machines"].as_array().unwrap();
    let names = machines
        .iter()
        .map(|machine| machine["name"].as_str().unwrap());
    assert_eq!(
        names.collect::<Vec<_>>(),
        ["user-space", "offload", "fast-copy", "batch-flush"]
    );
    let cells = || {
        let all = machines
            .iter()
            .map(|machine| machine["cells"].as_array().unwrap());
        all.flatten()
    };
    for machine in machines {
        let cells = machine["cells"].as_array().unwrap();
        let predicted = cells.iter().filter(|cell| cell["calibrates"].is_null());
        assert_eq!(machine["predicted"], predicted.clone().count());
        let near = predicted.filter(|cell| cell["within_a_quarter"] == true);
        assert_eq!(machine["within_a_quarter"], near.count());
        let shapes = machine["shapes"].as_array().unwrap();
        assert!(shapes.iter().all(|shape| shape["holds"] == true));
        // One whose every rate gives costs could not be otherwise.
        assert!(
            shapes
                .iter()
                .all(|shape| shape["predicted"].as_u64() > Some(0))
        );
    }
    for cell in cells() {
        let figure = |name: &str| cell[name].as_f64().unwrap();
        let published = figure("published");
        let rounded_by = figure("rounded_by");
        let off = figure("predicted") / published - 1.0;
        assert!((off - figure("off_by")).abs() < 1e-9, "{cell}");
        let nearest = figure("predicted").clamp(published - rounded_by, published + rounded_by);
        let near = (figure("predicted") / nearest - 1.0).abs() <= 0.25;
        assert_eq!(cell["within_a_quarter"], near, "{cell}");
        assert_eq!(cell["only_by_rounding"], near && off.abs() > 0.25, "{cell}");
    }
    // Rates are what the model is for: none of them is far off.
    for cell in cells().filter(|cell| ["GB/s", "pages/s"].contains(&cell["unit"].as_str().unwrap()))
    {
        assert_eq!(cell["within_a_quarter"], true, "{cell}");
    }
    let shown = text(&transhume(&["predict", "--published"]).stdout);
    for what in [
        "off by",
        "gives handler_ns",
        "within 25 %",
        "Not reproduced",
        "what was published is coarse",
        " *\n",
    ] {
        assert!(shown.contains(what), "{what}: {shown}");
    }
    let one = text(&transhume(&["predict", "--published", "--machine", "offload"]).stdout);
    assert!(
        one.contains("16 channels") && !one.contains("UFFDIO_MOVE"),
        "{one}"
    );
}

pub(crate) fn what_bench_measured_is_held_against_what_is_predicted() {
    let folder = tempfile::tempdir().unwrap();
    let row = |batch: usize, copier: &str, stride: usize| {
        json!({
            "bench": "flush", "backing": "anonymous", "page_size": "4k", "pages": 1024, "batch": batch,
            "threads": 1, "copier": copier, "mechanism": "uffd", "stride": stride, "pins": "declared",
            "pages_per_s": 1e5, "raw_copy_alone_bytes_per_s": 1e10,
            "shootdowns_per_page": 2.0 / batch as f64, "first_folio_us": 25.0,
            "app_alone_ops_per_s": 4e6, "app_ops_per_s": 2e6,
        })
    };
    let results = [
        row(1, "memcpy", 1),
        row(8, "memcpy", 1),
        row(8, "streaming", 1),
        row(8, "memcpy", 8),
    ];
    let document = json!({ "machine": { "cpus": 2 }, "results": results });
    let bench = write(&folder.path().join("bench.json"), &document);
    let costs = write(
        &folder.path().join("costs.json"),
        &predicted(&["--pages", "8"]),
    );
    let args = ["predict", "--costs", &costs, "--bench", &bench];
    let document = json(&[&args[..], &["--json", "-"]].concat());
    let held = document["bench"].as_array().unwrap();
    let batches = held.iter().map(|row| row["batch"].as_u64().unwrap());
    assert_eq!(batches.collect::<Vec<_>>(), [1, 8]);
    for row in held {
        // From a file, costs are nobody's measurement here.
        assert_eq!(row["calibrates"], false);
        let figure = &row["pages_per_s"];
        let off = figure["predicted"].as_f64().unwrap() / 1e5 - 1.0;
        assert!((figure["off_by"].as_f64().unwrap() - off).abs() < 1e-9);
        assert!(row["shootdowns_per_page"]["off_by"].as_f64().unwrap().abs() < 1e-9);
    }
    // The costs of the file are those that were used, and every row is accounted for.
    assert_eq!(document["bench_costs"][0]["costs"], document["costs"]);
    assert_eq!(document["bench_costs"][0]["from_rows"], Value::Null);
    let left_out = document["not_compared"].as_array().unwrap().iter();
    let left_out = left_out.map(|why| why["rows"].as_u64().unwrap());
    assert_eq!(left_out.collect::<Vec<_>>(), [1, 1]);
    let shown = text(&transhume(&args).stdout);
    assert!(
        shown.contains("Of 2 rows from which no cost is derived"),
        "{shown}"
    );
}

pub(crate) fn costs_are_measured_here() {
    let folder = tempfile::tempdir().unwrap();
    let costs = folder.path().join("costs.json");
    let costs = costs.to_str().unwrap();
    let args = [
        "predict", "--pages", "64", "--batch", "1,64", "--json", costs,
    ];
    let output = transhume(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let document: Value = serde_json::from_slice(&fs::read(costs).unwrap()).unwrap();
    let cost = |name: &str| document["costs"][name].as_f64().unwrap();
    assert!(cost("copy_rate") > 0.0 && cost("copy_limit") >= cost("copy_rate"));
    assert!(
        document["costs_from"]
            .as_str()
            .unwrap()
            .starts_with("this machine")
    );
    assert_eq!(document["batches"].as_array().unwrap().len(), 2);
    // What was measured can be given again.
    let again = json(&[
        "predict", "--costs", costs, "--pages", "64", "--batch", "1,64", "--json", "-",
    ]);
    assert_eq!(again["batches"], document["batches"]);
}
