//! Reading the text files of procfs and sysfs.

use std::io;
use std::path::{Path, PathBuf};

/// A file of procfs or sysfs does not say what it should.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It can be read but not understood.
    #[error("{} does not say {expected}", path.display())]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
    },
}

impl TextError {
    pub(crate) fn unexpected(path: impl AsRef<Path>, expected: &'static str) -> Self {
        Self::Unexpected {
            path: path.as_ref().to_owned(),
            expected,
        }
    }
}

pub(crate) fn read(path: impl AsRef<Path>) -> Result<String, TextError> {
    let path = path.as_ref();
    std::fs::read_to_string(path).map_err(|source| TextError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Reads a file that holds one number.
pub(crate) fn read_number(path: impl AsRef<Path>) -> Result<u64, TextError> {
    let path = path.as_ref();
    read(path)?
        .trim()
        .parse()
        .map_err(|_| TextError::unexpected(path, "one number"))
}

/// Reads a file that holds a list of numbers below a limit, such as `0-2,5`.
pub(crate) fn read_list(path: impl AsRef<Path>, limit: u32) -> Result<Vec<u32>, TextError> {
    let path = path.as_ref();
    parse_list(read(path)?.trim(), limit)
        .ok_or_else(|| TextError::unexpected(path, "a list of numbers"))
}

/// Nothing, where what was read is a file that is not there.
pub(crate) fn if_there<T>(read: Result<T, TextError>) -> Result<Option<T>, TextError> {
    match read {
        Err(TextError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// The entries of a folder, by their names; none where it is not there.
pub(crate) fn entries(path: impl AsRef<Path>) -> Result<Vec<String>, TextError> {
    let path = path.as_ref();
    let failed = |source| TextError::Read {
        path: path.to_owned(),
        source,
    };
    let Some(folder) = if_there(std::fs::read_dir(path).map_err(failed))? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in folder {
        // The kernel's names are ASCII; any other is none of those that are looked for.
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

fn parse_list(list: &str, limit: u32) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last >= limit {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

/// The value in bytes of a line such as `VmRSS:  12 kB`.
pub(crate) fn kib_field(text: &str, name: &str) -> Option<u64> {
    let value = field(text, name)?.strip_suffix("kB")?;
    value.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What follows `name:` in the first line that begins so.
pub(crate) fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines()
        .find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(parse_list("0", 1024), Some(vec![0]));
        assert_eq!(parse_list("0-2,5", 1024), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_list("", 1024), Some(vec![]));
        assert_eq!(parse_list("0-x", 1024), None);
        assert_eq!(parse_list("0-4294967295", 1024), None);
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "VmRSSX:\t 1 kB\nVmRSS:\t  12 kB\nThreads:\t3\n";
        assert_eq!(kib_field(text, "VmRSS"), Some(12 * 1024));
        assert_eq!(field(text, "Threads"), Some("3"));
        assert_eq!(kib_field(text, "Threads"), None);
        assert_eq!(field(text, "Vm"), None);
    }
}
