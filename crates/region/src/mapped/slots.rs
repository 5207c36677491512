//! The free slots of a file that serves as a tier.
//!
//! A slot is a range of the file of one folio, numbered from the file's beginning. A free slot is
//! *full* if the file has memory there, left by a page that moved away or prepared for one to come,
//! and *empty* if it is a hole.

use std::ops::Range;

use crate::free_runs::FreeRuns;

/// Free slots; those in use are in neither set.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    full: FreeRuns,
    empty: FreeRuns,
}

impl Slots {
    /// `slots` slots of a file of holes, of which the first `used` are in use.
    pub(crate) fn new(slots: usize, used: usize) -> Self {
        let mut empty = FreeRuns::default();
        empty.insert(used..slots);
        Self {
            full: FreeRuns::default(),
            empty,
        }
    }

    /// How many free slots have memory.
    pub(crate) fn full(&self) -> usize {
        self.full.len()
    }

    /// Takes up to `want` adjacent slots, at `hint` if that is free: pages that lie side by side in
    /// the region share a mapping if they do so in the file. Says which are empty.
    pub(crate) fn take(&mut self, want: usize, hint: usize) -> Option<(Range<usize>, Memory)> {
        let full = |slots| (slots, Memory::Present);
        let empty = |slots| (slots, Memory::Absent);
        self.full
            .take_at(hint, want)
            .map(full)
            .or_else(|| self.empty.take_at(hint, want).map(empty))
            .or_else(|| self.full.take(want).map(full))
            .or_else(|| self.empty.take(want).map(empty))
    }

    /// Takes up to `want` adjacent slots without memory.
    pub(crate) fn take_empty(&mut self, want: usize) -> Option<Range<usize>> {
        self.empty.take(want)
    }

    /// Frees slots.
    pub(crate) fn put(&mut self, slots: Range<usize>, memory: Memory) {
        match memory {
            Memory::Present => self.full.insert(slots),
            Memory::Absent => self.empty.insert(slots),
        }
    }

    /// Takes free slots with memory until no more than `keep` are left, the longest runs first.
    pub(crate) fn take_excess(&mut self, keep: usize) -> Option<Range<usize>> {
        self.full.take(self.full.len().saturating_sub(keep))
    }
}

/// Whether a slot has memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    Present,
    Absent,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_comes_first_then_memory_that_is_there() {
        let mut slots = Slots::new(16, 4);
        assert_eq!(slots.take(2, 8), Some((8..10, Memory::Absent)));
        slots.put(8..10, Memory::Present);
        assert_eq!(slots.take(2, 0), Some((8..10, Memory::Present)));
        slots.put(8..10, Memory::Present);
        assert_eq!(slots.take(4, 12), Some((12..16, Memory::Absent)));
        assert_eq!(slots.take(4, 12), Some((8..10, Memory::Present)));
        assert_eq!(slots.take(4, 12), Some((4..8, Memory::Absent)));
        assert_eq!(slots.take(4, 12), Some((10..12, Memory::Absent)));
        assert_eq!(slots.take(1, 0), None);
    }

    #[test]
    fn excess_is_what_is_beyond_the_bound() {
        let mut slots = Slots::new(8, 8);
        slots.put(0..6, Memory::Present);
        assert_eq!(slots.take_excess(4), Some(0..2));
        assert_eq!(slots.take_excess(4), None);
        assert_eq!(slots.full(), 4);
    }
}
