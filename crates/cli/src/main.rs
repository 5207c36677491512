//! The program `transhume`.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod check;
mod context;
mod engines;
mod error;
mod herd;
mod json;
mod machine;
mod map;
mod median;
mod moving;
mod nodes;
mod predict;
mod table;
mod workload;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::{Cli, Command};
use crate::error::CliError;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) => return refuse(&refused),
    };
    let done = match cli.command {
        Command::Bench(args) => bench::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Engines(args) => engines::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Herd(args) => herd::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Map(args) => map::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Move(args) => moving::run(&args),
        Command::Nodes(args) => nodes::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Predict(args) => predict::run(&args).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        // Nobody may be left to read it.
        let _ = writeln!(io::stderr(), "transhume: {error}");
        error.exit_code()
    })
}

/// Says in one line what is wrong with the command line. Help that was asked for is shown whole.
fn refuse(refused: &clap::Error) -> ExitCode {
    let text = refused.render().to_string();
    let asked_for = !refused.use_stderr()
        || refused.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if asked_for {
        // Nobody may be left to read it.
        let _ = refused.print();
    } else {
        let lines = text
            .lines()
            .map(str::trim)
            .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
            .filter(|line| !line.is_empty());
        let line = lines.collect::<Vec<_>>().join("; ");
        let line = line.strip_prefix("error: ").unwrap_or(&line);
        let _ = writeln!(io::stderr(), "transhume: {line}");
    }
    ExitCode::from(u8::try_from(refused.exit_code()).unwrap_or(2))
}

/// Writes to standard output. A reader that has gone away is no error.
fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::Failed(format!(
            "cannot write to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}
