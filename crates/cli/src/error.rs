//! What can go wrong, and the exit code that says so.

use std::process::ExitCode;

/// Why the program ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// What was asked for makes no sense or is not to be had; nothing was done. Exit code 2.
    #[error("{0}")]
    Refused(String),
    /// Something failed on the way. Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// The user stopped it. Exit code 130.
    #[error("interrupted")]
    Interrupted,
}

impl CliError {
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Refused(_) => 2,
            Self::Failed(_) => 1,
            Self::Interrupted => 130,
        })
    }
}
