//! Locking what lies between scattered pages, and letting go of it.
//!
//! A neighbour is nobody's wish, so whoever has it keeps it: one that is locked, or that its owner
//! will not let go of, is not cut off.

use transhume_engine::{Entry, Folio, FolioOwner, Place};

use super::Anonymous;
use super::session::{Held, Session};
use super::span::Part;
use crate::BASE_PAGE;
use crate::faults;
use crate::table::FolioTable;

/// A neighbour that is locked. Dropping this unlocks it, also when its owner panics.
struct Neighbour<'r> {
    memory: &'r Anonymous,
    table: &'r FolioTable,
    index: usize,
}

impl<'r> Neighbour<'r> {
    /// Locks it if it is free.
    fn try_lock(memory: &'r Anonymous, table: &'r FolioTable, index: usize) -> Option<Self> {
        table.try_lock(index).ok()?;
        Some(Self {
            memory,
            table,
            index,
        })
    }

    /// Who must let go of it, if there is anybody.
    fn owner(&self) -> Option<(&'r dyn FolioOwner, Folio)> {
        // Only base pages have neighbours.
        self.table.owner().zip(Folio::base(self.index as u64))
    }
}

impl Drop for Neighbour<'_> {
    fn drop(&mut self) {
        let start = self.memory.memory.range().start + self.index * BASE_PAGE;
        let bytes = start..start + BASE_PAGE;
        faults::unlock(self.table, &self.memory.uffd, self.index, bytes);
    }
}

impl Session<'_> {
    /// Locks what lies between the wanted pages, as far as it is free and its owner lets go of it.
    /// Nothing is cut off yet.
    pub(super) fn lock_neighbours(&mut self, entries: &[Entry<Held>]) {
        for entry in entries {
            if let Some(span) = entry.held.span {
                let span = &mut self.spans[span];
                span.parts[entry.held.index - span.first] = Part::Wanted;
            }
        }
        for span in &mut self.spans {
            span.begun = true;
            let wanted = |part: &Part| *part == Part::Wanted;
            let (Some(begin), Some(end)) = (
                span.parts.iter().position(wanted),
                span.parts.iter().rposition(wanted),
            ) else {
                continue;
            };
            for (part, index) in span.parts[begin..end].iter_mut().zip(span.first + begin..) {
                if *part != Part::Apart {
                    continue;
                }
                let Some(neighbour) = Neighbour::try_lock(self.memory, self.table, index) else {
                    continue;
                };
                let detached = neighbour
                    .owner()
                    .map_or(Ok(()), |(owner, folio)| owner.try_detach(folio));
                if detached.is_ok() {
                    *part = Part::Neighbour;
                    std::mem::forget(neighbour);
                }
            }
        }
    }

    /// Tells their owner that the neighbours of closed spans are back, and unlocks them. May be
    /// called twice.
    pub(super) fn let_go_of_neighbours(&mut self) {
        for span in self.spans.iter_mut().filter(|span| span.closed) {
            for (part, index) in span.parts.iter_mut().zip(span.first..) {
                if *part != Part::Neighbour {
                    continue;
                }
                *part = Part::Apart;
                let neighbour = Neighbour {
                    memory: self.memory,
                    table: self.table,
                    index,
                };
                if let Some((owner, folio)) = neighbour.owner() {
                    owner.attach(folio, Place::Source);
                }
            }
        }
    }
}
