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
        (0..self.folios).filter_map(move |at| Folio::new(first + at * pages, order).ok())
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

/// The runs of the pages from a number on, none of them from another huge page's place.
fn runs(
    first: u64,
    entries: &[PageEntry],
    huge: Order,
    nodes: &NodeFrames,
    runs: &mut Vec<Run>,
) -> Block {
    runs.clear();
    let (mut span, mut node) = (0..0, 0);
    let (mut present, mut as_the_first) = (0, 0);
    let offset = |page: u64, entry: PageEntry| entry.frame().wrapping_sub(page);
    let first_offset = entries.first().map_or(0, |&entry| offset(first, entry));
    let mut begun: Option<u64> = None;
    for (page, &entry) in (first..).zip(entries) {
        if !entry.is_exclusive() {
            if entry.is_present() {
                return Block::Untold;
            }
            end_run(runs, begun.take(), page, node);
            continue;
        }
        let frame = entry.frame();
        if !span.contains(&frame) {
            end_run(runs, begun.take(), page, node);
            match nodes.around(frame) {
                _ if frame == 0 => return Block::WithoutFrames,
                Some(around) => (span, node) = around,
                None => return Block::Untold,
            }
        }
        begun.get_or_insert(page);
        present += 1;
        as_the_first += usize::from(offset(page, entry) == first_offset);
    }
    end_run(runs, begun, first + entries.len() as u64, node);
    let like_huge = as_the_first == entries.len() && first_offset.is_multiple_of(huge.base_pages());
    match like_huge || present * SPARSE < entries.len() {
        true => Block::Untold,
        false => Block::Told,
    }
}

fn end_run(runs: &mut Vec<Run>, begun: Option<u64>, end: u64, node: u32) {
    if let Some(begun) = begun
        && let Some(first) = Folio::base(begun)
    {
        runs.push(Run {
            first,
            folios: end - begun,
            node,
        });
    }
}
