//! Results as JSON.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tempfile::NamedTempFile;

use crate::error::CliError;

/// The permissions of a new file, less what the umask takes.
const NEW_FILE: u32 = 0o666;

/// Where JSON goes.
#[derive(Debug)]
pub(crate) enum Sink {
    Stdout,
    /// A new file beside the one that it will replace when it is complete.
    File {
        path: PathBuf,
        draft: NamedTempFile,
    },
    /// What is no regular file, and cannot be replaced: a device, a pipe.
    Stream(File),
}

impl Sink {
    /// Opens the place that `--json` names, so that one that cannot be written is found out before
    /// the work is done. What is there stays until there is something to replace it.
    pub(crate) fn open(path: &Path) -> Result<Self, CliError> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        Self::at(path).map_err(|error| {
            CliError::Refused(format!("cannot write JSON to {}: {error}", path.display()))
        })
    }

    fn at(path: &Path) -> io::Result<Self> {
        // A link stays, and what it leads to is replaced.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut permissions = Permissions::from_mode(NEW_FILE);
        if path.exists() {
            let file = OpenOptions::new().write(true).open(&path)?;
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Ok(Self::Stream(file));
            }
            permissions = metadata.permissions();
        }
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        folder.metadata()?;
        // The name of the draft in an error would tell nobody anything.
        let draft = tempfile::Builder::new()
            .permissions(permissions)
            .tempfile_in(folder)
            .map_err(|error| io::Error::from(error.kind()))?;
        Ok(Self::File { path, draft })
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
            Self::Stream(mut file) => file.write_all(text.as_bytes()).map_err(failed),
            Self::File { path, mut draft } => {
                draft.write_all(text.as_bytes()).map_err(failed)?;
                draft.persist(path).map_err(|error| failed(error.error))?;
                Ok(())
            }
        }
    }
}
