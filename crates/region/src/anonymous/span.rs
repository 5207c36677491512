//! A stretch of the region that is cut off in one piece.

use std::ops::Range;

/// What a batch does with one page of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Nothing: it is locked by somebody else, or nothing wanted is beyond it.
    Apart,
    /// It is wanted, and in the region.
    Wanted,
    /// It is wanted, and in its slot.
    WantedOut,
    /// It is a locked neighbour, in the region.
    Neighbour,
    /// It is a locked neighbour, in its slot.
    NeighbourOut,
}

/// A stretch of the region that is cut off in one piece, with a slot for each of its pages.
#[derive(Debug)]
pub(super) struct Span {
    /// Its first page, by number in the region.
    pub(super) first: usize,
    pub(super) parts: Vec<Part>,
    /// A staging slot for each part.
    pub(super) slots: Range<usize>,
    /// The pool that has the slots.
    pub(super) pool: usize,
    /// Whether its neighbours have been locked.
    pub(super) begun: bool,
    /// Whether all of it is back.
    pub(super) closed: bool,
    /// Whether something nobody needs could not be removed from a slot.
    pub(super) soiled: bool,
}

impl Span {
    pub(super) fn pages(&self) -> Range<usize> {
        self.first..self.first + self.parts.len()
    }

    /// The next run of parts that are in their slots.
    pub(super) fn next_out(&self, from: usize) -> Option<Range<usize>> {
        let out = |part: &Part| matches!(part, Part::WantedOut | Part::NeighbourOut);
        let start = from + self.parts[from..].iter().position(out)?;
        let length = self.parts[start..].iter().take_while(|part| out(part));
        Some(start..start + length.count())
    }

    /// The next run of parts that this batch has locked, from one that is wanted to one that is wanted.
    pub(super) fn next_piece(&self, from: usize) -> Option<Range<usize>> {
        let start = from
            + self.parts[from..]
                .iter()
                .position(|part| *part == Part::Wanted)?;
        let locked = self.parts[start..]
            .iter()
            .take_while(|part| **part != Part::Apart)
            .count();
        let last = self.parts[start..start + locked]
            .iter()
            .rposition(|part| *part == Part::Wanted)?;
        Some(start..start + last + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(parts: &str) -> Span {
        let part = |letter| match letter {
            'w' => Part::Wanted,
            'W' => Part::WantedOut,
            'n' => Part::Neighbour,
            'N' => Part::NeighbourOut,
            _ => Part::Apart,
        };
        Span {
            first: 100,
            parts: parts.chars().map(part).collect(),
            slots: 0..parts.len(),
            pool: 0,
            begun: true,
            closed: false,
            soiled: false,
        }
    }

    fn all(mut next: impl FnMut(usize) -> Option<Range<usize>>) -> Vec<Range<usize>> {
        let mut from = 0;
        std::iter::from_fn(|| {
            let found = next(from)?;
            from = found.end;
            Some(found)
        })
        .collect()
    }

    #[test]
    fn pieces_begin_and_end_with_what_is_wanted() {
        let pieces = |parts| all(|from| span(parts).next_piece(from));
        assert_eq!(pieces("wnnw.nwn.nn.w"), [0..4, 6..7, 12..13]);
        assert_eq!(pieces("nnn."), []);
        assert_eq!(pieces("wwnww.w"), [0..5, 6..7]);
    }

    #[test]
    fn what_is_out_is_found() {
        let out = |parts| all(|from| span(parts).next_out(from));
        assert_eq!(out("WNNW.NwW.n"), [0..4, 5..6, 7..8]);
        assert_eq!(out("wn."), []);
    }
}
