//! `move` and `map`, as far as they go on any machine.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use transhume_sys::numa::nodes_with_memory;

use crate::{refused, text, transhume};

/// A process that does nothing.
struct Idle(Child);

impl Idle {
    fn new() -> Self {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000").stdin(Stdio::null());
        // Whoever reads what the tests say is not to wait for it.
        let child = sleep.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.unwrap())
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn wrong_words_of_move() {
    let to = ["--from", "0", "--to", "1"];
    let with = |words: &[&'static str]| [&["move", "--pid", "1"], words].concat();
    refused(&["move"], "--pid <PID[,PID]>");
    refused(
        &[&["move", "--pid", "0"][..], &to].concat(),
        "the number of a process is wanted",
    );
    refused(
        &[&["move", "--pid", "1,x"][..], &to].concat(),
        "the number of a process is wanted",
    );
    refused(&with(&["--from", "0"]), "--to");
    refused(
        &with(&["--from", "0", "--to", "1,1"]),
        "node 1 is named twice",
    );
    refused(
        &with(&["--from", "0,0", "--to", "1"]),
        "node 0 is named twice",
    );
    refused(
        &with(&["--from", "x", "--to", "1"]),
        "a list of nodes such as 0 or 0,2, or all",
    );
    refused(
        &with(&["--from", "0", "--to", "1=0"]),
        "the share of node 1",
    );
    for (words, why) in [
        (["--only", "hep"], "names no memory"),
        (["--bandwidth", "0"], "bytes a second are wanted"),
        (["--bandwidth", "fast"], "bytes a second are wanted"),
        (["--max-stall", "0s"], "a time is wanted"),
        (["--max-stall", "5"], "a time is wanted"),
        (["--threads", "0"], "a whole number from 1 on"),
    ] {
        refused(&[&with(&to)[..], &words].concat(), why);
    }
}

/// On a machine with one node there is nothing to do, and one line says why. On others, node 0 is no
/// destination of itself.
pub(crate) fn where_nothing_can_move() {
    let idle = Idle::new();
    let one = nodes_with_memory().unwrap().len() == 1;
    let why = if one {
        "nothing to do: only node"
    } else {
        "node 0 is both"
    };
    refused(
        &["move", "--pid", &idle.pid(), "--from", "0", "--to", "0"],
        why,
    );
    let why = if one {
        "nothing to do: only node"
    } else {
        "there is no node 900"
    };
    refused(
        &[
            "move",
            "--pid",
            &idle.pid(),
            "--from",
            "all",
            "--to",
            "900",
            "--dry-run",
        ],
        why,
    );
}

pub(crate) fn a_process_as_a_map() {
    let idle = Idle::new();
    let output = transhume(&["map", "--pid", &idle.pid()]);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for expected in ["(sleep)", "stack", "sleep", "on node", "each character is"] {
        assert!(shown.contains(expected), "{shown}");
    }
    let output = transhume(&["map", "--json", "-", "--pid", &idle.pid()]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["schema"], 1);
    assert_eq!(document["name"], "sleep");
    let mappings = document["mappings"].as_array().unwrap();
    let stack = mappings
        .iter()
        .find(|mapping| mapping["what"] == "stack")
        .unwrap();
    let nodes = stack["bytes_on_nodes"].as_object().unwrap();
    let bytes = nodes
        .values()
        .map(|bytes| bytes.as_u64().unwrap())
        .sum::<u64>();
    assert!(bytes >= 4096 && bytes.is_multiple_of(4096), "{stack}");
    assert!(stack["start"].as_u64().unwrap() < stack["end"].as_u64().unwrap());
}

pub(crate) fn what_has_no_map() {
    refused(&["map", "--pid", "0"], "the number of a process is wanted");
    refused(&["map", "--pid", "4194305"], "there is no process 4194305");
    refused(
        &["map", "--pid", "1", "--watch", "--json", "-"],
        "cannot be used with",
    );
    let mut ended = Command::new("true").spawn().unwrap();
    let pid = ended.id().to_string();
    while !std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .unwrap()
        .contains(") Z ")
    {
        std::thread::yield_now();
    }
    refused(&["map", "--pid", &pid], "has ended and has no memory");
    ended.wait().unwrap();
}

/// It ends with the process, and that is no failure.
pub(crate) fn a_map_is_watched_to_the_end() {
    // It lives as long as its input.
    let mut cat = Command::new("cat");
    cat.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = cat.spawn().unwrap();
    let input = child.stdin.take();
    let pid = child.id().to_string();
    let mut watch = Command::new(env!("CARGO_BIN_EXE_transhume"));
    watch.args(["map", "--watch", "--pid", &pid]);
    let mut watch = watch
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut shown = BufReader::new(watch.stdout.take().unwrap()).lines();
    let is_map = |line: &std::io::Result<String>| {
        let line = line.as_ref().unwrap();
        line.contains("each character is")
    };
    let maps = shown.by_ref().filter(is_map).take(2).count();
    drop(input);
    child.wait().unwrap();
    let last = shown.last().map(Result::unwrap);
    let output = watch.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(maps, 2);
    assert_eq!(last, Some(format!("process {pid} has ended")));
}
