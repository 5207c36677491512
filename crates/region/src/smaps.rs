//! What `/proc/self/smaps` says of this process's mappings.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;

use transhume_sys::map::range_of_line;

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vma {
    pub(crate) range: Range<usize>,
    /// Whether it is locked into memory (`mlock`).
    pub(crate) mlocked: bool,
}

/// The mappings of this process. None if the file cannot be read.
pub(crate) fn read() -> Vec<Vma> {
    File::open("/proc/self/smaps")
        .map(|file| parse(BufReader::new(file).lines().map_while(Result::ok)))
        .unwrap_or_default()
}

fn parse(lines: impl Iterator<Item = String>) -> Vec<Vma> {
    let mut found: Vec<Vma> = Vec::new();
    for line in lines {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(last) = found.last_mut() {
                last.mlocked = flags.split_whitespace().any(|flag| flag == "lo");
            }
        } else if let Some(range) = range_of_line(&line) {
            found.push(Vma {
                range,
                mlocked: false,
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_and_their_locks_are_found() {
        let text = "1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nVmFlags: rd wr mr lo ac \n\
                    3000-4000 r--p 00000000 00:00 0 [heap]\nVmFlags: rd mr \n\
                    8000-9000 rw-s 00000000 00:01 5 /memfd:a-b (deleted)\nVmFlags: rd lo\n";
        let vma = |range, mlocked| Vma { range, mlocked };
        let expected = [
            vma(0x1000..0x3000, true),
            vma(0x3000..0x4000, false),
            vma(0x8000..0x9000, true),
        ];
        assert_eq!(parse(text.lines().map(str::to_owned)), expected);
    }

    #[test]
    fn this_process_can_be_read() {
        let here = "here".as_ptr().addr();
        assert!(read().iter().any(|vma| vma.range.contains(&here)));
    }
}
