//! Anonymous memory whose pages the kernel moves itself, by `move_pages(2)`: what is left where there
//! is no userfaultfd that can move pages.
//!
//! The kernel then runs the whole pipeline. It cuts pages off, copies them and maps them again, sees
//! pins and forks, and chooses its own batches and shootdowns; no copier of ours takes part. The
//! engine still cuts the request, tries again what was busy, adapts the batches to `max_stall` and
//! reports. Its copy step does nothing here, and its remap step is the kernel's call.
//!
//! What the call says of a page is not relied upon where it says nothing, or that a page stayed: then
//! the kernel is asked where the page is.

use std::ops::Range;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use transhume_copy::CopyJob;
use transhume_engine::{Alone, Entry, Failure, Folio, FolioOwner, Place, Platform, Wait};
use transhume_process::{Check, Kernel, bring};
use transhume_sys::CallError;
use transhume_sys::map::Mapping;
use transhume_sys::numa::{self, PageStatus, Shared};

use crate::failure::{LOCK_PATIENCE, refused};
use crate::huge::huge_bytes;
use crate::placement;
use crate::table::{FolioTable, Tally};
use crate::tier::{PageSize, TierId};
use crate::{BASE_PAGE, index_of};

/// The memory of a region that the kernel moves.
#[derive(Debug)]
pub(crate) struct MovePages {
    pub(crate) memory: Mapping,
    pub(crate) page_size: PageSize,
    /// The node of each tier.
    nodes: Vec<u32>,
}

impl MovePages {
    /// Allocates the region's memory on the node of its first tier.
    pub(crate) fn create(
        page_size: PageSize,
        pages: usize,
        nodes: Vec<u32>,
    ) -> Result<Self, CallError> {
        Ok(Self {
            memory: placement::allocate(page_size, pages, &nodes)?,
            page_size,
            nodes,
        })
    }

    /// How many of the region's pages of 2 MiB really are huge pages.
    pub(crate) fn huge_pages(&self) -> Result<usize, CallError> {
        Ok(huge_bytes(self.memory.range())? / self.page_size.bytes())
    }

    fn node(&self, tier: TierId) -> u32 {
        self.nodes[tier.index()]
    }

    fn address(&self, index: usize) -> usize {
        self.memory.range().start + index * self.page_size.bytes()
    }
}

/// One request's view of such a region.
#[derive(Debug)]
pub(crate) struct Session<'r> {
    memory: &'r MovePages,
    table: &'r FolioTable,
    epoch: Instant,
    /// Folios of this batch that are in the tier asked for by the table, but not on its node.
    astray: Vec<usize>,
}

/// What is kept for a locked folio.
#[derive(Debug)]
pub(crate) struct Held {
    index: usize,
    from: TierId,
    to: TierId,
    astray: bool,
    /// Whether the kernel was asked to move it.
    asked: bool,
}

impl<'r> Session<'r> {
    pub(crate) fn new(memory: &'r MovePages, table: &'r FolioTable) -> Self {
        Self {
            memory,
            table,
            epoch: Instant::now(),
            astray: Vec::new(),
        }
    }

    fn held(&self, index: usize) -> Held {
        let from = self.table.tier(index);
        Held {
            index,
            from,
            to: from,
            astray: self.astray.binary_search(&index).is_ok(),
            asked: false,
        }
    }

    /// The base pages of a folio.
    fn pages_of(&self, index: usize) -> impl Iterator<Item = usize> + use<> {
        let folio: Range<usize> =
            self.memory.address(index)..self.memory.address(index) + self.memory.page_size.bytes();
        folio.step_by(BASE_PAGE)
    }
}

impl Platform for Session<'_> {
    type Tier = TierId;
    type Held = Held;
    type Gather = ();
    type Job = CopyJob;

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn shootdowns(&self) -> Option<u64> {
        crate::shootdowns::of_this_thread()
    }

    fn owner(&self) -> Option<&dyn FolioOwner> {
        self.table.owner()
    }

    fn provision(&mut self, folios: &[Folio], to: TierId) {
        let indices = folios.iter().map(|&folio| index_of(folio));
        let mut there = indices
            .filter(|&index| self.table.tier(index) == to)
            .collect::<Vec<_>>();
        there.sort_unstable();
        let addresses = there
            .iter()
            .map(|&index| self.memory.address(index))
            .collect::<Vec<_>>();
        let (bytes, node) = (self.memory.page_size.bytes(), self.memory.node(to));
        // Where it cannot be told they count as there, as they are believed to be.
        let strayed = placement::strayed(&addresses, bytes, node, |_| false).unwrap_or_default();
        let astray = there
            .into_iter()
            .zip(strayed)
            .filter(|(_, strayed)| *strayed);
        self.astray = astray.map(|(index, _)| index).collect();
    }

    fn try_lock(&mut self, folio: Folio) -> Result<Held, Failure> {
        let index = index_of(folio);
        self.table.try_lock(index).map_err(refused)?;
        Ok(self.held(index))
    }

    fn lock(&mut self, folio: Folio, _alone: &Alone) -> Result<Held, Failure> {
        let index = index_of(folio);
        self.table.lock(index, LOCK_PATIENCE).map_err(refused)?;
        Ok(self.held(index))
    }

    fn is_in(&self, _folio: Folio, held: &Held, tier: TierId) -> bool {
        held.from == tier && !held.astray
    }

    fn reserve(&mut self, entries: &mut [Entry<Held>], to: TierId, _wait: &Wait) {
        for entry in entries {
            entry.held.to = to;
        }
    }

    fn unmap(
        &mut self,
        _folio: Folio,
        _held: &mut Held,
        _gather: &mut (),
        _wait: &Wait,
    ) -> Result<(), Failure> {
        Ok(())
    }

    fn shootdown(&mut self, (): (), _entries: &mut [Entry<Held>]) {}

    fn is_eligible(&mut self, _folio: Folio, _held: &Held) -> bool {
        false
    }

    fn job(&mut self, _folio: Folio, _held: &mut Held) -> CopyJob {
        let nothing = NonNull::<u8>::dangling().as_ptr();
        // SAFETY: no byte is read or written.
        unsafe { CopyJob::new(nothing, nothing, 0) }
    }

    fn copy_on_cpu(&mut self, _folio: Folio, _held: &mut Held) -> Result<(), Failure> {
        Ok(())
    }

    fn remap(&mut self, entries: &mut [Entry<Held>]) {
        let Some(first) = entries.first() else { return };
        let node = self.memory.node(first.held.to);
        // A huge page goes by its head; the kernel takes the rest of it for busy.
        let heads = entries
            .iter()
            .map(|entry| self.memory.address(entry.held.index))
            .collect::<Vec<_>>();
        let brought = bring_here(&heads, node);
        for (entry, mut brought) in entries.iter_mut().zip(brought) {
            entry.held.asked = true;
            if brought.is_ok() && self.memory.page_size == PageSize::Huge {
                brought = self.bring_rest(entry.held.index, node);
            }
            if let Err(failure) = brought {
                entry.fail(failure);
            }
        }
    }

    fn putback(&mut self, entries: &mut [Entry<Held>]) {
        // Base pages that are no huge page may have gone in part. What does not go back now is
        // found astray by the next request.
        let torn = |entry: &&mut Entry<Held>| entry.held.asked;
        for entry in entries.iter_mut().filter(torn) {
            entry.held.asked = false;
            if self.memory.page_size == PageSize::Huge {
                let pages = self.pages_of(entry.held.index).collect::<Vec<_>>();
                let node = self.memory.node(entry.held.from);
                let _ = bring_here(&pages, node);
            }
        }
    }

    fn release(&mut self, folios: &mut dyn Iterator<Item = (Folio, Held)>, at: Place) {
        let mut tally = Tally::new(self.table);
        for (_, held) in folios {
            if at == Place::Destination && held.from != held.to {
                tally.moved(held.index, held.from, held.to);
            }
            // No fault waits: the kernel answers them all.
            let _ = self.table.unlock(held.index);
        }
    }
}

impl Session<'_> {
    /// Brings what did not go with the head of a folio of 2 MiB: it is made of base pages. Says of
    /// one that stayed why it did.
    fn bring_rest(&self, index: usize, node: u32) -> Result<(), Failure> {
        let mut pages = self.pages_of(index).collect::<Vec<_>>();
        let mut status = vec![PageStatus::UNKNOWN; pages.len()];
        if numa::query_pages(None, &pages, &mut status).is_ok() {
            let mut there = status.iter().map(|status| status.node() == Some(node));
            pages.retain(|_| !there.next().unwrap_or(false));
        }
        bring_here(&pages, node).into_iter().collect()
    }
}

/// Brings pages of this process to a node. Where they are is looked at afterwards, whatever was said.
fn bring_here(pages: &[usize], node: u32) -> Vec<Result<(), Failure>> {
    bring(
        &mut Kernel::new(None, Shared::Leave),
        pages,
        node,
        Check::All,
    )
    .answers
}
