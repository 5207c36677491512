//! Which pages of a process are in memory, how large they are, and on which node.

use std::ops::Range;

use transhume_engine::{Folio, Order};
use transhume_sys::numa::{PageStatus, query_pages};
use transhume_sys::pagemap::{Categories, Frames, PageEntry, PageRegion, Pagemap, ScanArgs};
use transhume_sys::{CallError, Errno, limits};

use crate::BASE_PAGE;
use crate::frames::{ByFrames, Run, Told};
use crate::target::Target;

/// How the pages are found.
#[derive(Debug)]
enum Way {
    /// By runs, from Linux 6.7 on.
    Scan,
    /// One by one. Only root is told the frames, and only by them a huge page is known.
    Entries(Option<Frames>),
}

/// Finds the pages of one process.
#[derive(Debug)]
pub(crate) struct Scanner<'t> {
    target: &'t Target,
    /// Opened when it is wanted first.
    pagemap: Option<Pagemap>,
    way: Way,
    huge: Order,
    /// Where this process is told the frames.
    frames: Option<ByFrames>,
}

impl<'t> Scanner<'t> {
    pub(crate) fn new(target: &'t Target) -> Self {
        let huge = limits::thp().ok().and_then(|thp| order(thp.page_size));
        let huge = huge.unwrap_or(Order::HUGE);
        Self {
            target,
            pagemap: None,
            way: Way::Scan,
            huge,
            frames: Some(ByFrames::new(huge)),
        }
    }

    /// Visits the folios that are in memory and on a node in a range of one mapping, in order. A huge
    /// page that is partly in the range is found whole.
    ///
    /// `page_size` is the mapping's: more than a base page in a huge-page pool only.
    pub(crate) fn visit(
        &mut self,
        range: Range<usize>,
        page_size: usize,
        mut visit: impl FnMut(Run),
    ) -> Result<(), CallError> {
        let told = match page_size {
            BASE_PAGE => self.by_frames(range.clone(), &mut visit)?,
            _ => range.start,
        };
        if told >= range.end {
            return Ok(());
        }
        let folios = self.present(told..range.end, page_size)?;
        let mut status = Vec::new();
        self.locate(&folios, &mut status)?;
        for (folio, status) in folios.into_iter().zip(status) {
            // Others have gone again, or are nothing that can be moved.
            if let Some(node) = status.node() {
                visit(Run::one(folio, node));
            }
        }
        Ok(())
    }

    /// Visits what frames tell of a range, and says where that ends.
    fn by_frames(
        &mut self,
        range: Range<usize>,
        visit: impl FnMut(Run),
    ) -> Result<usize, CallError> {
        let Some((frames, nodes)) = self.frames.as_mut().zip(self.target.node_frames()) else {
            return Ok(range.start);
        };
        let pagemap = match self.pagemap.take() {
            Some(pagemap) => pagemap,
            None => self.target.pagemap()?,
        };
        let pagemap = self.pagemap.insert(pagemap);
        Ok(match frames.visit(pagemap, nodes, range.clone(), visit) {
            Told::All => range.end,
            Told::UpTo(at) => at,
            Told::Never => {
                self.frames = None;
                range.start
            }
        })
    }

    /// The folios that are in memory in a range of one mapping, in order. A huge page that is partly
    /// in the range is found whole.
    ///
    /// `page_size` is the mapping's: more than a base page in a huge-page pool only.
    fn present(&mut self, range: Range<usize>, page_size: usize) -> Result<Vec<Folio>, CallError> {
        match self.found(range.clone(), page_size) {
            // The program is another one now, with other memory.
            Err(error) if error.errno == Errno::SRCH && !self.target.has_ended() => {
                self.pagemap = None;
                self.found(range, page_size)
            }
            found => found,
        }
    }

    fn found(&mut self, range: Range<usize>, page_size: usize) -> Result<Vec<Folio>, CallError> {
        let pagemap = match self.pagemap.take() {
            Some(pagemap) => pagemap,
            None => self.target.pagemap()?,
        };
        let pagemap = self.pagemap.insert(pagemap);
        if let Way::Scan = self.way {
            match by_scan(pagemap, range.clone(), page_size, self.huge) {
                Err(error) if matches!(error.errno, Errno::NOTTY | Errno::NOSYS) => {
                    self.way = Way::Entries(Frames::open().ok());
                }
                done => return done,
            }
        }
        let frames = match &self.way {
            Way::Entries(frames) => frames.as_ref(),
            Way::Scan => None,
        };
        by_entries(pagemap, range, page_size, self.huge, frames)
    }

    /// The frame of the page at an address; zero where it has none, or this process is not told.
    pub(crate) fn frame(&self, address: usize) -> u64 {
        let mut entry = [PageEntry::default()];
        let read = self
            .pagemap
            .as_ref()
            .map(|map| map.entries(page_of(address), &mut entry));
        read.and_then(Result::ok).map_or(0, |_| entry[0].frame())
    }

    /// The folios in memory that [`visit`](Self::visit) finds, and on which node each is.
    pub(crate) fn located(
        &mut self,
        range: Range<usize>,
        page_size: usize,
    ) -> Result<Vec<(Folio, u32)>, CallError> {
        let mut found = Vec::new();
        self.visit(range, page_size, |run| {
            found.extend(run.each().map(|folio| (folio, run.node)));
        })?;
        Ok(found)
    }

    /// What the kernel says of where folios are.
    pub(crate) fn locate(
        &self,
        folios: &[Folio],
        status: &mut Vec<PageStatus>,
    ) -> Result<(), CallError> {
        let pages = addresses(folios);
        status.clear();
        status.resize(pages.len(), PageStatus::UNKNOWN);
        query_pages(Some(self.target.pid()), &pages, status)
    }
}

fn by_scan(
    pagemap: &Pagemap,
    range: Range<usize>,
    page_size: usize,
    huge: Order,
) -> Result<Vec<Folio>, CallError> {
    // In memory, and not the page of zeros that nobody can move.
    let args = ScanArgs {
        all_of: Categories::PRESENT | Categories::PFNZERO,
        inverted: Categories::PFNZERO,
        report: Categories::HUGE,
        ..ScanArgs::default()
    };
    let mut found = [PageRegion::default(); 512];
    let mut folios = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let scan = pagemap.scan(at..range.end, &args, &mut found)?;
        for region in &found[..scan.regions] {
            let order = if page_size > BASE_PAGE {
                order(page_size).unwrap_or(Order::BASE)
            } else if region.categories().contains(Categories::HUGE) {
                huge
            } else {
                Order::BASE
            };
            push(&mut folios, region.range(), order);
        }
        if scan.walk_end <= at {
            break;
        }
        at = scan.walk_end;
    }
    Ok(folios)
}

fn by_entries(
    pagemap: &Pagemap,
    range: Range<usize>,
    page_size: usize,
    huge: Order,
    frames: Option<&Frames>,
) -> Result<Vec<Folio>, CallError> {
    let huge_bytes = bytes(huge);
    let pool = order(page_size).filter(|_| page_size > BASE_PAGE);
    let mut folios = Vec::new();
    let mut entries = vec![PageEntry::default(); huge_bytes / BASE_PAGE];
    let mut at = range.start;
    while at < range.end {
        // Up to the next place where a huge page could begin.
        let end = range.end.min((at / huge_bytes + 1) * huge_bytes);
        let wanted = (end - at) / BASE_PAGE;
        let read = pagemap.entries(page_of(at), &mut entries[..wanted])?;
        let entries = &entries[..read];
        let run = at..at + read * BASE_PAGE;
        match pool {
            Some(order) => {
                if entries.iter().any(|entry| entry.is_present()) {
                    push(&mut folios, run, order);
                }
            }
            None if frames.is_some_and(|frames| is_huge(entries, huge, frames)) => {
                push(&mut folios, run, huge);
            }
            None => {
                for (page, _) in run
                    .step_by(BASE_PAGE)
                    .zip(entries)
                    .filter(|(_, entry)| entry.is_present())
                {
                    push(&mut folios, page..page + BASE_PAGE, Order::BASE);
                }
            }
        }
        if read < wanted {
            break;
        }
        at = end;
    }
    Ok(folios)
}

/// Whether these are all pages of one huge page.
fn is_huge(entries: &[PageEntry], huge: Order, frames: &Frames) -> bool {
    let pages = huge.base_pages();
    let first = entries.first().map_or(0, |entry| entry.frame());
    let whole = entries.len() as u64 == pages && first != 0 && first.is_multiple_of(pages);
    whole
        && (first..)
            .zip(entries)
            .all(|(frame, entry)| entry.frame() == frame)
        && frames.flags(first).is_some_and(|flags| flags.is_huge())
}

/// Adds the folios of an order that a run lies in.
fn push(folios: &mut Vec<Folio>, run: Range<usize>, order: Order) {
    let pages = order.base_pages();
    let first = page_of(run.start) / pages;
    let end = page_of(run.end).div_ceil(pages);
    let new = (first..end).filter_map(|at| Folio::new(at * pages, order).ok());
    // The run before may have had a part of the same.
    let last = folios.last().copied();
    folios.extend(new.skip_while(|&folio| Some(folio) == last));
}

/// The order of a size in bytes.
fn order(bytes: usize) -> Option<Order> {
    let pages = bytes / BASE_PAGE;
    if !pages.is_power_of_two() {
        return None;
    }
    u8::try_from(pages.trailing_zeros())
        .ok()
        .and_then(Order::new)
}

pub(crate) fn bytes(order: Order) -> usize {
    usize::try_from(order.base_pages()).unwrap_or(usize::MAX / BASE_PAGE) * BASE_PAGE
}

/// Where a folio begins.
pub(crate) fn address(folio: Folio) -> usize {
    // It was an address before.
    usize::try_from(folio.page()).unwrap_or(usize::MAX / BASE_PAGE) * BASE_PAGE
}

/// How large a folio is.
pub(crate) fn size(folio: Folio) -> u64 {
    folio.base_pages() * BASE_PAGE as u64
}

/// How large folios are together.
pub(crate) fn size_of_all(folios: &[Folio]) -> u64 {
    folios.iter().map(|&folio| size(folio)).sum()
}

/// Where folios begin.
pub(crate) fn addresses(folios: &[Folio]) -> Vec<usize> {
    folios.iter().map(|&folio| address(folio)).collect()
}

pub(crate) fn page_of(address: usize) -> u64 {
    (address / BASE_PAGE) as u64
}

#[cfg(test)]
mod tests {
    use transhume_sys::numa::{NodeMemory, NodePages, nodes_with_memory};

    use super::*;

    /// A place in the middle of memory that is in use.
    fn this() -> (Target, Vec<u8>) {
        let pid = i32::try_from(std::process::id()).unwrap();
        (Target::open(pid).unwrap(), vec![1; 64 * BASE_PAGE])
    }

    #[test]
    fn both_ways_find_the_same() {
        let (target, memory) = this();
        let start = memory.as_ptr().addr().next_multiple_of(BASE_PAGE);
        let range = start..start + 60 * BASE_PAGE;
        let mut scanner = Scanner::new(&target);
        let found = scanner.present(range.clone(), BASE_PAGE).unwrap();
        let pages = found.iter().map(|folio| folio.base_pages()).sum::<u64>();
        assert!(pages >= 60, "{found:?}");
        scanner.way = Way::Entries(Frames::open().ok());
        let entries = scanner.present(range, BASE_PAGE).unwrap();
        if found.iter().all(|folio| folio.order() == Order::BASE) {
            assert_eq!(found, entries);
        }
        let (_, node) = scanner
            .located(start..start + BASE_PAGE, BASE_PAGE)
            .unwrap()[0];
        assert!(nodes_with_memory().unwrap().contains(&node), "{node}");
        drop(memory);
    }

    /// What is there by frames and by the scan and the question, where this process is told frames;
    /// else both are the latter.
    fn both(range: Range<usize>) -> [Vec<(Folio, u32)>; 2] {
        let (target, _) = this();
        let mut scanner = Scanner::new(&target);
        let by_frames = scanner.located(range.clone(), BASE_PAGE).unwrap();
        scanner.frames = None;
        [by_frames, scanner.located(range, BASE_PAGE).unwrap()]
    }

    #[test]
    fn frames_tell_what_the_scan_and_the_question_do() {
        let node = nodes_with_memory().unwrap()[0];
        let page = BASE_PAGE / 8;
        let mut memory = NodeMemory::reserve(node, 8 << 20, NodePages::Base).unwrap();
        let range = memory.range();
        let words = memory.words_mut();
        // Every page; every second; few; the page of zeros; none.
        words[..512 * page].fill(7);
        (0..256).for_each(|at| words[(512 + 2 * at) * page] = 7);
        (0..4).for_each(|at| words[(1024 + 100 * at) * page] = 7);
        let zeros = (1536..1600).map(|at| words[at * page]).sum::<u64>();
        words[1600 * page] = 7 + zeros;
        let [by_frames, asked] = both(range.clone());
        assert_eq!(by_frames.len(), 512 + 256 + 4 + 1);
        assert_eq!(by_frames, asked);
        let part = range.start + 3 * BASE_PAGE..range.start + 700 * BASE_PAGE;
        let [by_frames, asked] = both(part);
        assert_eq!(by_frames.len(), 509 + 94);
        assert_eq!(by_frames, asked);
    }

    #[test]
    fn frames_leave_huge_pages_to_the_scan() {
        let node = nodes_with_memory().unwrap()[0];
        let mut memory = NodeMemory::reserve(node, 8 << 20, NodePages::Huge).unwrap();
        memory.words_mut().fill(7);
        let range = memory.range();
        let [by_frames, asked] = both(range.clone());
        assert_eq!(by_frames, asked);
        let pages = |found: &[(Folio, u32)]| -> u64 {
            found.iter().map(|(folio, _)| folio.base_pages()).sum()
        };
        assert_eq!(pages(&by_frames), 2048);
        // A page of a huge page is the huge page.
        let [by_frames, asked] = both(range.start + BASE_PAGE..range.start + 2 * BASE_PAGE);
        assert_eq!(by_frames, asked);
        assert_eq!(by_frames.len(), 1);
    }

    #[test]
    fn a_huge_page_is_found_whole() {
        let mut folios = Vec::new();
        push(&mut folios, 0x20_1000..0x40_1000, Order::HUGE);
        assert_eq!(addresses(&folios), [0x20_0000, 0x40_0000]);
        // One that is found piece by piece is one.
        let large = order(1 << 30).unwrap();
        folios.clear();
        push(&mut folios, 0x4000_0000..0x4020_0000, large);
        push(&mut folios, 0x4020_0000..0x4040_0000, large);
        assert_eq!(folios.len(), 1);
        assert_eq!(order(2 << 20), Some(Order::HUGE));
        assert_eq!(order(12288), None);
        assert_eq!(bytes(Order::HUGE), 2 << 20);
    }
}
