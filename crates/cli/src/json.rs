//! Results as JSON.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tempfile::NamedTempFile;

use crate::error::CliError;

/// Where JSON goes.
#[derive(Debug)]
pub(crate) enum Sink {
    Stdout,
    /// A new file beside the one that it will replace when it is complete.
    File {
        path: PathBuf,
        draft: NamedTempFile,
    },
}

impl Sink {
    /// Opens the place that `--json` names, so that one that cannot be written is found out before
    /// the work is done. What is there stays until there is something to replace it.
    pub(crate) fn open(path: &Path) -> Result<Self, CliError> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let refused = |error: io::Error| {
            CliError::Refused(format!("cannot write JSON to {}: {error}", path.display()))
        };
        if path.is_dir() {
            return Err(refused(io::ErrorKind::IsADirectory.into()));
        }
        if path.exists() {
            std::fs::OpenOptions::new()
                .write(true)
                .open(path)
                .map_err(refused)?;
        }
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let draft = NamedTempFile::new_in(folder).map_err(refused)?;
        Ok(Self::File {
            path: path.to_owned(),
            draft,
        })
    }

    pub(crate) fn is_stdout(&self) -> bool {
        matches!(self, Self::Stdout)
    }

    /// Writes the whole document.
    pub(crate) fn write(self, document: &impl Serialize) -> Result<(), CliError> {
        let failed = |error: io::Error| CliError::Failed(format!("cannot write JSON: {error}"));
        let mut text =
            serde_json::to_string_pretty(document).map_err(|error| failed(error.into()))?;
        text.push('\n');
        match self {
            Self::Stdout => crate::print(&text),
            Self::File { path, mut draft } => {
                draft.write_all(text.as_bytes()).map_err(failed)?;
                draft.persist(path).map_err(|error| failed(error.error))?;
                Ok(())
            }
        }
    }
}
