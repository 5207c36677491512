//! Which part of a process's memory is meant.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use crate::mapping::{Kind, Mapping};

/// A part of a process's memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Select {
    /// The heap of `brk`.
    Heap,
    /// The stack of the first thread. Those of others are anonymous memory.
    Stack,
    /// Private memory without a file, heap and stack among it.
    Anonymous,
    /// Memory that processes share, without a file that has a name.
    Shared,
    /// All files.
    Files,
    /// One file, by the path that `/proc/PID/maps` shows.
    File(PathBuf),
    /// Addresses.
    Range(Range<usize>),
}

/// A word that names no part of memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no memory: there are heap, stack, anon, shared, file, file:PATH and addresses such as 0x7f0000000000-0x7f0000200000"
)]
pub struct UnknownSelect(String);

impl FromStr for Select {
    type Err = UnknownSelect;

    fn from_str(word: &str) -> Result<Self, UnknownSelect> {
        let unknown = || UnknownSelect(word.to_owned());
        Ok(match word {
            "heap" => Self::Heap,
            "stack" => Self::Stack,
            "anon" => Self::Anonymous,
            "shared" => Self::Shared,
            "file" => Self::Files,
            _ => match word.strip_prefix("file:") {
                Some("") => return Err(unknown()),
                Some(path) => Self::File(PathBuf::from(path)),
                None => Self::Range(addresses(word).ok_or_else(unknown)?),
            },
        })
    }
}

fn addresses(word: &str) -> Option<Range<usize>> {
    let (start, end) = word.split_once('-')?;
    let address = |hex: &str| usize::from_str_radix(hex.trim_start_matches("0x"), 16).ok();
    let range = address(start)?..address(end)?;
    (range.start < range.end).then_some(range)
}

impl fmt::Display for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heap => f.write_str("heap"),
            Self::Stack => f.write_str("stack"),
            Self::Anonymous => f.write_str("anon"),
            Self::Shared => f.write_str("shared"),
            Self::Files => f.write_str("file"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Range(range) => write!(f, "{:#x}-{:#x}", range.start, range.end),
        }
    }
}

impl Select {
    /// The part of a mapping that this names, if any.
    fn part(&self, mapping: &Mapping) -> Option<Range<usize>> {
        let whole = match (self, &mapping.kind) {
            (Self::Heap, Kind::Heap)
            | (Self::Stack, Kind::Stack)
            | (Self::Anonymous, Kind::Anonymous | Kind::Heap | Kind::Stack)
            | (Self::Shared, Kind::Shared)
            | (Self::Files, Kind::File(_)) => true,
            (Self::File(wanted), Kind::File(path)) => wanted == path,
            _ => false,
        };
        if whole {
            return Some(mapping.range.clone());
        }
        let Self::Range(range) = self else {
            return None;
        };
        // A page is in or out as a whole.
        let page = mapping.page_size;
        let start = range.start.max(mapping.range.start) / page * page;
        let end = range.end.min(mapping.range.end).div_ceil(page) * page;
        (start < end && range.start < mapping.range.end).then_some(start..end)
    }
}

/// The parts of a mapping that any of the selections names, in order and without overlap; all of it
/// if there are none. Nothing of what belongs to the kernel.
pub(crate) fn parts(only: &[Select], mapping: &Mapping) -> Vec<Range<usize>> {
    if matches!(mapping.kind, Kind::Special(_)) {
        return Vec::new();
    }
    if only.is_empty() {
        return vec![mapping.range.clone()];
    }
    let mut parts = only
        .iter()
        .filter_map(|select| select.part(mapping))
        .collect::<Vec<_>>();
    parts.sort_by_key(|part| part.start);
    let mut joined: Vec<Range<usize>> = Vec::new();
    for part in parts {
        match joined.last_mut() {
            Some(last) if part.start <= last.end => last.end = last.end.max(part.end),
            _ => joined.push(part),
        }
    }
    joined
}

/// The parts of a mapping that none of the selections names.
pub(crate) fn others(only: &[Select], mapping: &Mapping) -> Vec<Range<usize>> {
    if matches!(mapping.kind, Kind::Special(_)) {
        return Vec::new();
    }
    let mut at = mapping.range.start;
    let mut others = Vec::new();
    for part in parts(only, mapping) {
        others.push(at..part.start);
        at = part.end;
    }
    others.push(at..mapping.range.end);
    others.retain(|part| !part.is_empty());
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(kind: Kind, page_size: usize) -> Mapping {
        Mapping {
            range: 0x40_0000..0x80_0000,
            kind,
            permissions: "rw-p".to_owned(),
            policy: String::new(),
            page_size,
            on_nodes: None,
        }
    }

    #[test]
    fn words() {
        for word in [
            "heap",
            "stack",
            "anon",
            "shared",
            "file",
            "file:/a b",
            "0x1000-0x2000",
        ] {
            assert_eq!(word.parse::<Select>().unwrap().to_string(), word);
        }
        assert_eq!("1000-2000".parse(), Ok(Select::Range(0x1000..0x2000)));
        for word in ["", "file:", "2000-1000", "1000-1000", "x-y", "hep"] {
            assert!(word.parse::<Select>().is_err(), "{word}");
        }
    }

    #[test]
    fn selections_name_parts() {
        let anonymous = mapping(Kind::Anonymous, 4096);
        let file = mapping(Kind::File("/data".into()), 4096);
        let all = [anonymous.range.clone()];
        assert_eq!(parts(&[], &anonymous), all);
        assert_eq!(parts(&[Select::Anonymous], &anonymous), all);
        assert_eq!(parts(&[Select::Anonymous], &mapping(Kind::Heap, 4096)), all);
        assert_eq!(parts(&[Select::Heap], &anonymous), []);
        assert_eq!(parts(&[Select::File("/data".into())], &file), all);
        assert_eq!(parts(&[Select::File("/dat".into())], &file), []);
        assert_eq!(parts(&[], &mapping(Kind::Special("vdso".into()), 4096)), []);
    }

    #[test]
    fn ranges_are_whole_pages_and_join() {
        let only = [
            Select::Range(0x50_0001..0x50_1001),
            Select::Range(0x50_1800..0x50_3000),
            Select::Range(0x10_0000..0x40_0001),
            Select::Range(0x80_0000..0x90_0000),
        ];
        let base = mapping(Kind::Anonymous, 4096);
        assert_eq!(
            parts(&only, &base),
            [0x40_0000..0x40_1000, 0x50_0000..0x50_3000]
        );
        assert_eq!(
            others(&only, &base),
            [0x40_1000..0x50_0000, 0x50_3000..0x80_0000]
        );
        let huge = mapping(Kind::Shared, 2 << 20);
        assert_eq!(parts(&only, &huge), vec![0x40_0000..0x60_0000]);
        assert_eq!(others(&[], &base), []);
    }
}
