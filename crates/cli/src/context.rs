//! What a command that takes long has: its progress, and an ear for Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::CliError;

/// Has something done on Ctrl-C. There can be one such thing in a process.
pub(crate) fn on_ctrl_c(what: impl FnMut() + Send + 'static) -> Result<(), CliError> {
    ctrlc::set_handler(what)
        .map_err(|error| CliError::Failed(format!("cannot watch for Ctrl-C: {error}")))
}

pub(crate) struct Context {
    pub(crate) progress: ProgressBar,
    interrupted: Arc<AtomicBool>,
}

impl Context {
    /// Begins to watch for Ctrl-C, with so many runs to go. There can be one in a process.
    pub(crate) fn start(runs: u64) -> Result<Self, CliError> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&interrupted);
        on_ctrl_c(move || flag.store(true, Ordering::Relaxed))?;

        // It shows itself only where standard error is a terminal.
        let style =
            ProgressStyle::with_template("{bar:30} {pos}/{len} runs, {eta} left: {wide_msg}");
        let progress = ProgressBar::new(runs);
        progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Ok(Self {
            progress,
            interrupted,
        })
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self) -> Result<(), CliError> {
        if self.is_interrupted() {
            Err(CliError::Interrupted)
        } else {
            Ok(())
        }
    }
}
