//! Starts a herd and talks to it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Signal, WaitOptions, kill_process, waitpid};
use serde::de::DeserializeOwned;
use transhume_sys::Pid;

use super::cell::{Group, Table};
use super::plan::Plan;
use crate::args::Bench;
use crate::error::CliError;
use crate::herd::{End, Ready, Sight};

/// A process with memory that it uses and checks all the while. It ends with this.
pub(crate) struct Keeper {
    child: Child,
    pid: Pid,
    /// `None` when it has been told to end.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Keeper {
    /// Starts the herd of a group, on the near node.
    pub(crate) fn start(
        group: &Group,
        plan: &Plan,
        args: &Bench,
    ) -> Result<(Self, Ready), CliError> {
        let failed = |error: std::io::Error| {
            CliError::Failed(format!("cannot start a process to be moved: {error}"))
        };
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg("herd");
        for (word, figure) in [
            ("--bytes", group.bytes().to_string()),
            ("--page-size", group.page_size.to_string()),
            ("--node", plan.near.to_string()),
            ("--threads", args.app_threads.to_string()),
        ] {
            command.args([word, &figure]);
        }
        if group.table == Table::EverySecond {
            command.args(["--second", &plan.far.to_string()]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let number = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let (Some(pid), input @ Some(_), Some(output)) =
            (number, child.stdin.take(), child.stdout.take())
        else {
            return Err(CliError::Failed("a process has no pipes".to_owned()));
        };
        let mut keeper = Self {
            child,
            pid,
            input,
            output: BufReader::new(output),
        };
        let ready = keeper.hear()?;
        Ok((keeper, ready))
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// What its threads have seen since this was asked last.
    pub(crate) fn ask(&mut self) -> Result<Sight, CliError> {
        let asked = match &mut self.input {
            Some(input) => input.write_all(b"\n"),
            None => Ok(()),
        };
        asked.map_err(|_| Self::gone())?;
        self.hear()
    }

    /// Does something while all of its threads are stopped.
    pub(crate) fn while_stopped<T>(
        &mut self,
        work: impl FnOnce() -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        // They have stopped when the kernel says so.
        kill_process(self.pid, Signal::STOP)
            .and_then(|()| waitpid(Some(self.pid), WaitOptions::UNTRACED))
            .map_err(|_| Self::gone())?;
        let done = work();
        kill_process(self.pid, Signal::CONT).map_err(|_| Self::gone())?;
        done
    }

    /// Lets it end, and look at every word before.
    pub(crate) fn end(mut self) -> Result<End, CliError> {
        drop(self.input.take());
        self.hear()
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Result<T, CliError> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line);
        read.ok()
            .and_then(|_| serde_json::from_str(&line).ok())
            .ok_or_else(Self::gone)
    }

    fn gone() -> CliError {
        CliError::Failed("the process whose memory is moved has ended early".to_owned())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // One that has been told to end has said all that it has to say.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
