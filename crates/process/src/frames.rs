//! Where pages are, by their frames.
//!
//! Who has `CAP_SYS_ADMIN` reads in the page map which frame each page has, and sysfs says which frames
//! a node has. So one read says what else a scan and the question where pages are say together, for a
//! fifth of the instructions.
//!
//! It is believed only where it says the same. A page must be mapped here alone: the kernel never
//! says so of the page of zeros or of a device's memory, which cannot be asked for either. And a huge
//! page is not marked, so where frames lie as a huge page's do, the scan is to say whether it is one.
//! Where few pages are in memory the scan is cheaper.

use std::ops::Range;

use transhume_engine::{Folio, Order};
use transhume_sys::numa::NodeFrames;
use transhume_sys::pagemap::{PageEntry, Pagemap};

use crate::BASE_PAGE;
use crate::account::Amount;
use crate::scan::{bytes, page_of, size};

/// One page in so many must be in memory.
const SPARSE: usize = 16;

/// Folios of one size side by side, on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: Folio,
    pub(crate) folios: u64,
    pub(crate) node: u32,
}

impl Run {
    pub(crate) fn one(folio: Folio, node: u32) -> Self {
        Self {
            first: folio,
            folios: 1,
            node,
        }
    }

    pub(crate) fn amount(self) -> Amount {
        Amount {
            folios: self.folios,
            bytes: self.folios * size(self.first),
        }
    }

    /// The folios, in order.
    pub(crate) fn each(self) -> impl Iterator<Item = Folio> {
        let (first, order) = (self.first.page(), self.first.order());
        let pages = order.base_pages();
        // Its last is no more out of range than its first.
        (0..self.folios).filter_map(move |at| match order {
            Order::BASE => Folio::base(first + at),
            _ => Folio::new(first + at * pages, order).ok(),
        })
    }
}

/// How far frames have told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// To the end.
    All,
    /// Up to an address.
    UpTo(usize),
    /// Nothing, and they never will: this process is not told which frames pages have.
    Never,
}

/// Reads where pages are.
#[derive(Debug)]
pub(crate) struct ByFrames {
    huge: Order,
    entries: Vec<PageEntry>,
    runs: Vec<Run>,
}

impl ByFrames {
    pub(crate) fn new(huge: Order) -> Self {
        Self {
            huge,
            entries: vec![PageEntry::default(); bytes(huge) / BASE_PAGE],
            runs: Vec::new(),
        }
    }

    /// Visits the pages of a range that are in memory, as far as their frames tell.
    pub(crate) fn visit(
        &mut self,
        pagemap: &Pagemap,
        nodes: &NodeFrames,
        range: Range<usize>,
        mut visit: impl FnMut(Run),
    ) -> Told {
        let huge = bytes(self.huge);
        let mut at = range.start;
        while at < range.end {
            // Up to the next place where a huge page could begin.
            let end = range.end.min((at / huge + 1) * huge);
            let entries = &mut self.entries[..(end - at) / BASE_PAGE];
            let wanted = entries.len();
            if pagemap.entries(page_of(at), entries).ok() != Some(wanted) {
                return Told::UpTo(at);
            }
            match runs(page_of(at), entries, self.huge, nodes, &mut self.runs) {
                Block::Told => self.runs.drain(..).for_each(&mut visit),
                Block::Untold => return Told::UpTo(at),
                Block::WithoutFrames => return Told::Never,
            }
            at = end;
        }
        Told::All
    }
}

/// What the entries of one page table say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Told,
    Untold,
    WithoutFrames,
}

/// The runs of the pages from a number on, which one page table has.
fn runs(
    first: u64,
    entries: &[PageEntry],
    huge: Order,
    nodes: &NodeFrames,
    runs: &mut Vec<Run>,
) -> Block {
    runs.clear();
    let (mut at, mut present) = (0, 0);
    while let Some(entry) = entries.get(at) {
        if !entry.is_present() {
            at += 1;
            continue;
        }
        // Exclusive or not, a page in memory has a frame, unless it is not told.
        let frame = entry.frame();
        if frame == 0 {
            return Block::WithoutFrames;
        }
        let Some((span, node)) = nodes.around(frame) else {
            return Block::Untold;
        };
        let alike = |entry: &&PageEntry| entry.is_exclusive() && span.contains(&entry.frame());
        let pages = entries[at..].iter().take_while(alike).count();
        let Some(first) = Folio::base(first + at as u64).filter(|_| pages > 0) else {
            return Block::Untold;
        };
        let folios = pages as u64;
        runs.push(Run {
            first,
            folios,
            node,
        });
        at += pages;
        present += pages;
    }
    let may_be_huge = present == entries.len() && lie_like_huge(first, entries, huge);
    match may_be_huge || present * SPARSE < entries.len() {
        true => Block::Untold,
        false => Block::Told,
    }
}

/// Whether the frames of pages that are all in memory, from a number on, are side by side, and aligned
/// as these are.
fn lie_like_huge(first: u64, entries: &[PageEntry], huge: Order) -> bool {
    let offset = |(page, entry): (u64, &PageEntry)| entry.frame().wrapping_sub(page);
    let mut offsets = (first..).zip(entries).map(offset);
    let begin = offsets.next().unwrap_or(0);
    begin.is_multiple_of(huge.base_pages()) && offsets.all(|offset| offset == begin)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUGE: u64 = 512;

    /// An entry of a page in memory; a frame of zero is one that is not told.
    fn page(frame: u64, exclusive: bool) -> PageEntry {
        PageEntry::from((1 << 63) | (u64::from(exclusive) << 56) | frame)
    }

    fn block(entries: &[PageEntry], first: u64) -> (Block, Vec<(u64, u64, u32)>) {
        // Frames below 10,000 are on node 0, the next 10,000 on node 1.
        let nodes = NodeFrames::from_iter([(0..10_000, 0), (10_000..20_000, 1)]);
        let mut found = Vec::new();
        let told = runs(first, entries, Order::HUGE, &nodes, &mut found);
        let found = found.iter();
        let found = found.map(|run| (run.first.page(), run.folios, run.node));
        (told, found.collect())
    }

    #[test]
    fn runs_end_where_the_node_changes_and_at_holes() {
        let entries = [
            page(5, true),
            page(9000, true),
            PageEntry::default(),
            page(7, true),
            page(15_000, true),
        ];
        let runs = vec![(100, 2, 0), (103, 1, 0), (104, 1, 1)];
        assert_eq!(block(&entries, 100), (Block::Told, runs));
        let none = [PageEntry::default(); 16];
        assert_eq!(block(&none, 100).0, Block::Untold, "a scan is cheaper");
    }

    #[test]
    fn what_frames_do_not_tell_is_left_to_the_scan() {
        let good = page(5, true);
        assert_eq!(block(&[good, page(9, false)], 0).0, Block::Untold);
        assert_eq!(block(&[page(9, false), good], 0).0, Block::Untold);
        assert_eq!(block(&[good, page(20_000, true)], 0).0, Block::Untold);
        assert_eq!(block(&[page(0, true)], 0).0, Block::WithoutFrames);
    }

    #[test]
    fn what_may_be_a_huge_page_is_left_to_the_scan() {
        let huge = (0..HUGE).map(|at| page(2 * HUGE + at, true));
        let mut huge = huge.collect::<Vec<_>>();
        assert_eq!(block(&huge, 3 * HUGE).0, Block::Untold);
        assert_eq!(block(&huge[8..16], 3 * HUGE + 8).0, Block::Untold, "a part");
        let runs = vec![(3 * HUGE + 1, HUGE, 0)];
        assert_eq!(block(&huge, 3 * HUGE + 1), (Block::Told, runs));
        huge.swap(7, 8);
        assert_eq!(block(&huge, 3 * HUGE).0, Block::Told);
    }
}
