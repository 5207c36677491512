//! How the kernel has cut a region's memory into mappings.
//!
//! `UFFDIO_MOVE` works within one mapping, and between memory that is locked (`mlock`) alike. The
//! region begins as one mapping; an application that locks or advises a part of it cuts it. That is
//! found out when the kernel refuses a move, and not looked for before. A mapped region looks for
//! locks only, which would be lost with the mapping.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::runs::RunSet;
use crate::smaps::{self, Vma};

/// The mappings of a region at some time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    mlocked: RunSet,
    /// Folios with which another mapping begins.
    seams: BTreeSet<usize>,
}

impl Layout {
    /// How the memory is mapped now.
    pub(crate) fn read(memory: &Range<usize>, page: usize) -> Self {
        Self::of(&smaps::read(), memory, page)
    }

    fn of(mappings: &[Vma], memory: &Range<usize>, page: usize) -> Self {
        let mut layout = Self::default();
        for Vma { range, mlocked } in mappings {
            let start = range.start.max(memory.start);
            let end = range.end.min(memory.end);
            if start >= end {
                continue;
            }
            let first = (start - memory.start) / page;
            if start > memory.start {
                layout.seams.insert(first);
            }
            if *mlocked {
                // A huge page that is locked in part counts as locked.
                layout
                    .mlocked
                    .insert(first..(end - memory.start).div_ceil(page));
            }
        }
        layout
    }

    /// Whether a folio is locked into memory.
    pub(crate) fn is_mlocked(&self, index: usize) -> bool {
        self.mlocked.first_in(&(index..index + 1)).is_some()
    }

    /// The runs of these folios that are locked into memory.
    pub(crate) fn mlocked_of(
        &self,
        folios: Range<usize>,
    ) -> impl Iterator<Item = Range<usize>> + '_ {
        self.mlocked.runs_in(folios)
    }

    /// Whether another mapping begins with this folio.
    pub(crate) fn is_seam(&self, index: usize) -> bool {
        !self.seams.is_empty() && self.seams.contains(&index)
    }
}

/// What is known of a region's mappings.
#[derive(Debug, Default)]
pub(crate) struct Layouts {
    latest: Mutex<Arc<Layout>>,
}

impl Layouts {
    /// What was found when it was last looked for.
    pub(crate) fn latest(&self) -> Arc<Layout> {
        Arc::clone(&self.latest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks again; says whether `known` is not how it is.
    pub(crate) fn differs(&self, known: &Layout, memory: &Range<usize>, page: usize) -> bool {
        let found = Layout::read(memory, page);
        let differs = found != *known;
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
        differs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seams_and_locks_are_counted_in_folios() {
        let vma = |range, mlocked| Vma { range, mlocked };
        let mappings = [
            vma(0..0x1_0000, true),
            vma(0x1_0000..0x1_4000, false),
            vma(0x1_4000..0x1_6000, true),
            vma(0x1_6000..0x9_0000, false),
        ];
        let layout = Layout::of(&mappings, &(0x1_0000..0x2_0000), 0x1000);
        let all = 0..16;
        assert_eq!(
            all.clone()
                .filter(|&n| layout.is_mlocked(n))
                .collect::<Vec<_>>(),
            [4, 5]
        );
        assert_eq!(
            all.filter(|&n| layout.is_seam(n)).collect::<Vec<_>>(),
            [4, 6]
        );
    }
}
