//! What is where and what of it is to move.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use transhume_engine::Folio;
use transhume_sys::{CallError, Errno};

use crate::mapping::{Mapping, mappings};
use crate::request::Request;
use crate::scan::Scanner;
use crate::select::parts;
use crate::target::Target;

/// A part of one mapping in which pages are to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its addresses.
    pub range: Range<usize>,
    /// The size of the mapping's pages in bytes: more than a base page in a huge-page pool only.
    pub page_size: usize,
    /// How many bytes of it are on a node that memory is to leave.
    pub misplaced: u64,
}

/// What is to move of one process.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The mappings of the process.
    pub mappings: Vec<Mapping>,
    /// The parts in which pages are to move, in order. What is selected and not here has no page on
    /// a node that memory is to leave.
    pub parts: Vec<Part>,
    /// How much is on which node, of what is selected.
    pub on_nodes: BTreeMap<u32, u64>,
}

/// Why it cannot be found out what is where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The process has ended.
    #[error("process {pid} has ended")]
    Ended {
        /// Its number.
        pid: i32,
    },
    /// procfs cannot be read.
    #[error("cannot read what process {pid} has mapped: {source}")]
    Maps {
        /// Its number.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// Its pages cannot be found.
    #[error("process {pid}: {source}")]
    Pages {
        /// Its number.
        pid: i32,
        /// Why.
        source: CallError,
    },
}

impl Plan {
    /// Finds out what of a process is to move. The kernel counts what is where by mapping; where a
    /// selection cuts through one, and where the kernel does not count, page by page.
    ///
    /// # Errors
    ///
    /// [`PlanError`].
    pub fn make(request: &Request, target: &Target) -> Result<Self, PlanError> {
        let pid = target.number();
        let ended = |error: PlanError| {
            let is_without_memory = match &error {
                PlanError::Pages { source, .. } => {
                    matches!(source.errno, Errno::SRCH | Errno::INVAL)
                        && target.read("maps").is_ok_and(|maps| maps.is_empty())
                }
                _ => false,
            };
            // Its memory goes before it does.
            match target.has_ended() || is_without_memory {
                true => PlanError::Ended { pid },
                false => error,
            }
        };
        let mappings = mappings(target).map_err(|source| ended(PlanError::Maps { pid, source }))?;
        if mappings.is_empty() {
            // Its memory goes before it does.
            return Err(PlanError::Ended { pid });
        }
        // Seldom wanted, and it reads some files first.
        let mut scanner = None;
        let (mut planned, mut on_nodes) = (Vec::new(), BTreeMap::new());
        for mapping in &mappings {
            let parts = parts(&request.only, mapping);
            let whole = parts.as_slice() == std::slice::from_ref(&mapping.range);
            let counted = mapping.on_nodes.as_ref().filter(|_| whole);
            for range in parts {
                let counts = match counted {
                    Some(counts) => counts.clone(),
                    None if mapping.on_nodes.as_ref().is_some_and(BTreeMap::is_empty) => continue,
                    None => {
                        let scanner = scanner.get_or_insert_with(|| Scanner::new(target));
                        count(scanner, range.clone(), mapping.page_size)
                            .map_err(|source| ended(PlanError::Pages { pid, source }))?
                    }
                };
                let leaves = |node: &u32| request.from.contains(node);
                let misplaced = counts.iter().filter(|(node, _)| leaves(node));
                let misplaced = misplaced.map(|(_, bytes)| bytes).sum::<u64>();
                if misplaced > 0 {
                    planned.push(Part {
                        range,
                        page_size: mapping.page_size,
                        misplaced,
                    });
                }
                for (node, bytes) in counts {
                    *on_nodes.entry(node).or_insert(0) += bytes;
                }
            }
        }
        Ok(Self {
            mappings,
            parts: planned,
            on_nodes,
        })
    }

    /// The mapping that an address is in.
    #[must_use]
    pub fn mapping_at(&self, address: usize) -> Option<&Mapping> {
        let ends_before = |mapping: &Mapping| mapping.range.end <= address;
        let at = self.mappings.partition_point(ends_before);
        let mapping = self.mappings.get(at);
        mapping.filter(|mapping| mapping.range.contains(&address))
    }

    /// How many bytes are to move.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.misplaced).sum()
    }
}

/// Goes through the pages of a mapping that are in memory, in order, and says of each on which node
/// it is. Pages that the kernel does not place, such as the page of zeros, are left out.
///
/// # Errors
///
/// Whatever the page map or the query says; `ESRCH` for a process that has ended.
pub fn visit_pages(
    target: &Target,
    mapping: &Mapping,
    mut visit: impl FnMut(Folio, u32),
) -> Result<(), CallError> {
    let mut scanner = Scanner::new(target);
    for window in windows(mapping.range.clone(), WINDOW) {
        scanner.visit(window, mapping.page_size, |run| {
            run.each().for_each(|folio| visit(folio, run.node));
        })?;
    }
    Ok(())
}

/// How much of a range is on which node, page by page.
fn count(
    scanner: &mut Scanner<'_>,
    range: Range<usize>,
    page_size: usize,
) -> Result<BTreeMap<u32, u64>, CallError> {
    let mut counts = BTreeMap::new();
    for window in windows(range, WINDOW) {
        scanner.visit(window, page_size, |run| {
            *counts.entry(run.node).or_insert(0) += run.amount().bytes;
        })?;
    }
    Ok(counts)
}

/// How much of the address space is looked at, and given to a worker, at a time, at most.
pub(crate) const WINDOW: usize = 32 << 20;

/// Cuts a range into windows of `size`, a multiple of 2 MiB, where huge pages may begin: as few as
/// that allows.
pub(crate) fn windows(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    const HUGE: usize = 2 << 20;
    let base = range.start / HUGE * HUGE;
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let end = range.end.min(base + ((at - base) / size + 1) * size);
        Some(std::mem::replace(&mut at, end)..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_a_range_and_keep_huge_pages_whole() {
        let cut = |range| windows(range, 0x20_0000).collect::<Vec<_>>();
        assert_eq!(
            cut(0x10_0000..0x50_0000),
            [
                0x10_0000..0x20_0000,
                0x20_0000..0x40_0000,
                0x40_0000..0x50_0000
            ]
        );
        assert_eq!(cut(0x20_0000..0x40_0000).len(), 1);
        let large = windows(0x30_0000..0x70_0000, 0x40_0000);
        assert_eq!(
            large.collect::<Vec<_>>(),
            [0x30_0000..0x60_0000, 0x60_0000..0x70_0000]
        );
        assert_eq!(cut(5..5), []);
    }
}
