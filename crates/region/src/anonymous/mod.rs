//! Anonymous backing: the pages of a region are anonymous memory, its tiers are NUMA nodes.

mod collapse;
mod exchange;
mod moves;
mod neighbours;
mod nodes;
mod pool;
mod reach;
mod seclusion;
mod session;
mod slots;
mod span;
mod spans;
mod stores;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use transhume_sys::map::Mapping;
use transhume_sys::numa::{self, PageStatus};
use transhume_sys::pagemap::{Categories, PageRegion, Pagemap, ScanArgs};
use transhume_sys::uffd::{MoveMode, RegisterMode, Uffd};
use transhume_sys::{CallError, Errno, Progress};

use self::collapse::FreesTables;
pub(crate) use self::collapse::Shape;
use self::pool::FramePool;
pub(crate) use self::pool::SourceFrames;
use self::reach::Spans;
use self::seclusion::Seclusion;
pub(crate) use self::session::{Held, Session};
use crate::deferral::{Deferral, Pending, Stores};
use crate::faults::Pages;
use crate::huge::huge_bytes;
use crate::layout::Layouts;
use crate::table::FolioTable;
use crate::tier::{PageSize, TierId};
use crate::{BASE_PAGE, TABLE_BYTES, placement};

/// What is switched at once at most: the kernel flushes for each page table.
const TABLE: NonZeroUsize = NonZeroUsize::new(TABLE_BYTES).unwrap();

/// The memory of an anonymous region and the frames that wait for it.
#[derive(Debug)]
pub(crate) struct Anonymous {
    pub(crate) uffd: Uffd,
    pub(crate) memory: Mapping,
    pub(crate) page_size: PageSize,
    /// A pool for each node that a tier names; tiers of one node share it.
    pools: Vec<FramePool>,
    pool_of_tier: Vec<usize>,
    /// Not to be had by a process that has changed its user.
    pagemap: Option<Pagemap>,
    seclusion: Seclusion,
    layouts: Layouts,
    spans: Spans,
    frees_tables: FreesTables,
    /// Requests under way.
    sessions: AtomicUsize,
    /// Pairs whose switch waits, where that is allowed.
    pub(crate) pending: Option<Pending<session::Held>>,
}

/// What an anonymous region is made of.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) page_size: PageSize,
    pub(crate) pages: usize,
    /// The node of each tier.
    pub(crate) nodes: Vec<u32>,
    pub(crate) source_frames: SourceFrames,
    /// Frames that each pool keeps.
    pub(crate) pooled: usize,
    /// How much may wait for its switch.
    pub(crate) deferral: Option<Deferral>,
}

impl Anonymous {
    /// Allocates the region's memory on the node of its first tier.
    pub(crate) fn create(uffd: Uffd, plan: &Plan) -> Result<Self, CallError> {
        let Plan {
            page_size,
            pages,
            ref nodes,
            source_frames,
            pooled,
            deferral,
        } = *plan;
        let memory = placement::allocate(page_size, pages, nodes)?;
        let mode = match deferral {
            None => RegisterMode::MISSING,
            Some(_) => RegisterMode::MISSING | RegisterMode::WP,
        };
        // SAFETY: the memory is the region's own; it hands out atomics and raw pointers only.
        unsafe { uffd.register(memory.range(), mode) }?;
        let pending = deferral.map(|deferral| {
            let at_once = deferral.at_once_bytes.min(TABLE);
            Pending::new(&deferral.at_once_bytes(at_once), pages)
        });

        let mut distinct = nodes.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let pool = |&node| FramePool::new(node, page_size, source_frames, pooled);
        let number = |node| distinct.iter().position(|other| other == node).unwrap_or(0);
        Ok(Self {
            uffd,
            pagemap: Pagemap::open_self().ok(),
            seclusion: Seclusion::new(memory.range()),
            memory,
            page_size,
            pools: distinct.iter().map(pool).collect(),
            pool_of_tier: nodes.iter().map(number).collect(),
            layouts: Layouts::default(),
            spans: Spans::new(page_size),
            frees_tables: FreesTables::default(),
            sessions: AtomicUsize::new(0),
            pending,
        })
    }

    /// How many of the region's pages of 2 MiB really are huge pages.
    pub(crate) fn huge_pages(&self) -> Result<usize, CallError> {
        Ok(huge_bytes(self.memory.range())? / self.page_size.bytes())
    }

    fn pool_number(&self, tier: TierId) -> usize {
        self.pool_of_tier[tier.index()]
    }

    fn pool(&self, tier: TierId) -> &FramePool {
        &self.pools[self.pool_number(tier)]
    }

    /// Whether the frames of pages may be stored to when the pages have left them.
    pub(crate) fn reuses_frames(&self) -> bool {
        self.pools.iter().all(|pool| pool.reused_on().is_some())
    }

    /// How many frames wait in the pools.
    pub(crate) fn pooled_frames(&self) -> usize {
        self.pools.iter().map(FramePool::frames).sum()
    }

    /// How many destination frames the kernel had to allocate while a request waited.
    pub(crate) fn fresh_frames(&self) -> u64 {
        let taken = self.pools.iter().map(FramePool::fresh).sum::<u64>();
        taken + self.spans.replaced()
    }

    /// Fills the pools by a little; says whether there is more to do.
    pub(crate) fn refill(&self) -> bool {
        let more = self.pools.iter().map(|pool| pool.refill(&self.uffd));
        more.fold(false, std::ops::BitOr::bitor)
    }

    /// Whether requests are under way, whose faults need no answer. Stores that are held off need one,
    /// and so does a copier that finds a page given back.
    pub(crate) fn needs_no_answers(&self) -> bool {
        self.pending.is_none() && self.sessions.load(Ordering::Relaxed) > 0
    }

    /// Whether there is no page at this address any more.
    fn is_gone(&self, address: usize) -> bool {
        match self.has_page(address) {
            Some(has_page) => !has_page,
            // Without a page map a page that is swapped out cannot be told from none.
            None => {
                let mut status = [PageStatus::UNKNOWN; 1];
                numa::query_pages(None, &[address], &mut status).is_ok()
                    && status[0].errno() == Some(Errno::NOENT)
            }
        }
    }

    /// Moves `bytes` bytes of pages from `from` to `to`, and says what the kernel did where it has
    /// miscounted: Linux 6.18 can move pages and then stop with `EEXIST` at the first of them, as if
    /// it had not. A page that is gone from its source has been moved, since nobody else takes pages
    /// away from a locked folio or from a slot.
    ///
    /// # Safety
    ///
    /// The pages are of folios that the caller has locked, or of slots that it has taken, and what is
    /// at `to` is empty and the caller's alike. Nobody views either as `&` or `&mut`.
    unsafe fn move_range(&self, to: usize, from: usize, bytes: usize, mode: MoveMode) -> Progress {
        // SAFETY: by this function's contract.
        let progress = unsafe { self.uffd.move_range(to, from, bytes, mode) };
        let page = from + progress.done;
        if progress.stopped == Some(Errno::EXIST) && self.is_gone(page) {
            Progress::partial(progress.done + BASE_PAGE, Errno::AGAIN)
        } else {
            progress
        }
    }
}

impl Pages for Anonymous {
    type Held = session::Held;

    fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    fn range(&self) -> Range<usize> {
        self.memory.range()
    }

    fn folio_bytes(&self) -> usize {
        self.page_size.bytes()
    }

    fn stores(&self) -> Option<Stores<'_, session::Held>> {
        Some(Stores {
            uffd: &self.uffd,
            memory: self.memory.range(),
            page: self.page_size.bytes(),
            pending: self.pending.as_ref()?,
        })
    }

    fn has_page(&self, address: usize) -> Option<bool> {
        let args = ScanArgs {
            any_of: Categories::PRESENT | Categories::SWAPPED,
            report: Categories::PRESENT,
            ..ScanArgs::default()
        };
        let mut found = [PageRegion::default(); 1];
        let page = address..address + BASE_PAGE;
        let scan = self.pagemap.as_ref()?.scan(page, &args, &mut found).ok()?;
        Some(scan.regions > 0)
    }

    fn fill_from_tier(&self, table: &FolioTable, index: usize) -> bool {
        self.has_several_nodes() && self.fill_on_node(table, index)
    }
}
