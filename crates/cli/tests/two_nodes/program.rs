//! Running the program under test.

use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

pub(crate) fn transhume() -> Command {
    let built = || env!("CARGO_BIN_EXE_transhume").into();
    Command::new(std::env::var_os("TRANSHUME_BIN").unwrap_or_else(built))
}

/// What `move` has said.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) code: i32,
    pub(crate) json: Value,
}

impl Report {
    fn of(output: &Output) -> Self {
        let errors = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8_lossy(&output.stdout);
        Self {
            code: output.status.code().unwrap_or_else(|| panic!("{errors}")),
            json: serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{error}: {text}{errors}")),
        }
    }

    /// What is said of the only process.
    pub(crate) fn only(&self) -> &Value {
        assert_eq!(
            self.json["processes"].as_array().unwrap().len(),
            1,
            "{self:?}"
        );
        &self.json["processes"][0]
    }

    pub(crate) fn moved(&self) -> u64 {
        self.only()["moved"]["bytes"].as_u64().unwrap()
    }

    /// How many bytes stayed for a reason.
    pub(crate) fn stayed(&self, reason: &str) -> u64 {
        let stayed = self.only()["stayed"].as_array().unwrap();
        let for_it = stayed.iter().filter(|stayed| stayed["reason"] == reason);
        for_it.map(|stayed| stayed["bytes"].as_u64().unwrap()).sum()
    }

    /// All that is left where it was to leave has a reason.
    pub(crate) fn is_explained(&self) {
        for process in self.json["processes"].as_array().unwrap() {
            let stayed = process["stayed"].as_array().unwrap().iter();
            let stayed = stayed
                .map(|stayed| stayed["bytes"].as_u64().unwrap())
                .sum::<u64>();
            let left = process["left_bytes"].as_u64().unwrap();
            let arrived = process["arrived_bytes"].as_u64().unwrap();
            assert!(left <= stayed + arrived, "{process}");
            assert_eq!(left == 0, stayed + arrived == 0, "{process}");
        }
    }
}

/// Moves memory of a process from a node to another.
pub(crate) fn moves(pid: u32, from: u32, to: u32, more: &[&str]) -> Report {
    moves_to(pid, &from.to_string(), &to.to_string(), more)
}

/// Moves memory of a process.
pub(crate) fn moves_to(pid: u32, from: &str, to: &str, more: &[&str]) -> Report {
    let report = ended(begin(pid, from, to, more));
    report.is_explained();
    report
}

/// The command to.
pub(crate) fn command(pids: &str, from: &str, to: &str) -> Command {
    let mut command = transhume();
    command.args(["move", "--pid", pids, "--from", from, "--to", to]);
    command
}

/// Begins to.
pub(crate) fn begin(pid: u32, from: &str, to: &str, more: &[&str]) -> Child {
    command(&pid.to_string(), from, to)
        .args(["--json", "-"])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for one that was begun.
pub(crate) fn ended(child: Child) -> Report {
    Report::of(&child.wait_with_output().unwrap())
}

/// The one line that a refusal says.
pub(crate) fn refused(words: &[&str]) -> String {
    let output = transhume().arg("move").args(words).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{words:?}: {errors}");
    assert!(output.stdout.is_empty());
    assert_eq!(errors.lines().count(), 1, "{errors}");
    errors
}
