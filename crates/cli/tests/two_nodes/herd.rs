//! A process that uses its memory and checks it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::program::transhume;

pub(crate) const MIB: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Herd {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    ready: Value,
}

impl Herd {
    /// Some MiB on node 0, or as `more` says.
    pub(crate) fn new(mib: u64, more: &[&str]) -> Self {
        let mut child = transhume()
            .args(["herd", "--node", "0", "--bytes", &format!("{mib}MiB")])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut herd = Self {
            child,
            input,
            output,
            ready: Value::Null,
        };
        herd.ready = herd.line();
        herd
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The addresses of its memory, as a selection.
    pub(crate) fn range(&self) -> String {
        let number = |name| self.ready[name].as_u64().unwrap();
        format!("{:#x}-{:#x}", number("start"), number("end"))
    }

    /// A part of its memory, from a MiB to another, as a selection.
    pub(crate) fn part(&self, from: u64, to: u64) -> String {
        let start = self.ready["start"].as_u64().unwrap();
        format!("{:#x}-{:#x}", start + from * MIB, start + to * MIB)
    }

    pub(crate) fn huge_bytes(&self) -> u64 {
        self.ready["huge_bytes"].as_u64().unwrap()
    }

    /// Makes sure that it has been at work and seen nothing wrong.
    pub(crate) fn is_well(&mut self) {
        self.input.as_mut().unwrap().write_all(b"\n").unwrap();
        let sight = self.line();
        assert_eq!(sight["errors"], 0, "{sight}");
        assert!(sight["operations"].as_u64().unwrap() > 0, "{sight}");
    }

    /// Ends it, and makes sure that every word is right.
    pub(crate) fn end(mut self) {
        self.is_well();
        self.input = None;
        let end = self.line();
        assert_eq!(end["errors"], 0, "{end}");
        assert!(self.child.wait().unwrap().success());
    }

    /// Waits until some of it is on a node.
    pub(crate) fn wait_for_some_on(&self, node: u32) {
        while self.on_node(node).0 == 0 {
            sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How much of it is on a node, and how much of that in huge pages, as `map` sees it.
    pub(crate) fn on_node(&self, node: u32) -> (u64, u64) {
        let output = transhume()
            .args(["map", "--json", "-", "--pid", &self.pid().to_string()])
            .output()
            .unwrap();
        let map: Value = serde_json::from_slice(&output.stdout).unwrap();
        let (start, end) = (&self.ready["start"], &self.ready["end"]);
        let ours = |row: &&Value| {
            row["start"].as_u64() <= start.as_u64() && end.as_u64() <= row["end"].as_u64()
        };
        let row = map["mappings"]
            .as_array()
            .unwrap()
            .iter()
            .find(ours)
            .unwrap();
        let bytes = row["bytes_on_nodes"][node.to_string()]
            .as_u64()
            .unwrap_or(0);
        (bytes, row["huge_bytes"].as_u64().unwrap())
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
