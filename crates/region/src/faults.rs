//! The answers to what a userfaultfd reports, and to those who were left to whoever held a folio. Why
//! they are right: see the [keeper](crate::keeper).

use std::ops::Range;

use transhume_sys::uffd::{Event, FaultFlags, Waiters};

use crate::BASE_PAGE;
use crate::deferral::Stores;
use crate::failure::wake;
use crate::kernel::Uffd;
use crate::table::{FaultSeen, FolioTable, Unlocked};

/// Memory of which pages can be given back, so that a fault may need one put there.
pub(crate) trait Pages {
    /// What is kept for a folio that waits.
    type Held;

    /// What reports its faults.
    fn uffd(&self) -> &Uffd;
    /// The region's addresses.
    fn range(&self) -> Range<usize>;
    /// Bytes of a folio.
    fn folio_bytes(&self) -> usize;
    /// The same memory, if stores can be held off.
    fn stores(&self) -> Option<Stores<'_, Self::Held>>;
    /// Whether there is a page at this address, in memory or swapped out; `None` if it cannot be told.
    fn has_page(&self, address: usize) -> Option<bool>;
    /// Where it matters from which tier they are: gives a folio zeros that is not locked and has no page.
    /// Says whether it did; wakes nobody.
    fn fill_from_tier(&self, table: &FolioTable, index: usize) -> bool;
}

/// Reads and answers all that is reported: stores that are held off, and by `missing` faults at addresses
/// without a page. Says whether a store cannot be answered yet.
pub(crate) fn answer_events<H>(
    uffd: &Uffd,
    stores: Option<Stores<'_, H>>,
    table: &FolioTable,
    mut missing: impl FnMut(usize),
) -> bool {
    let mut events = Vec::with_capacity(64);
    // An error of read is one of this moment: the descriptor stays readable.
    while uffd.read_events(&mut events).is_ok_and(|count| count > 0) {
        for event in events.drain(..) {
            let Event::Pagefault { addr, flags, .. } = event else {
                continue;
            };
            match &stores {
                Some(stores) if flags.contains(FaultFlags::WP) => stores.see(addr),
                _ => missing(addr),
            }
        }
    }
    stores.is_some_and(|stores| stores.answer(table))
}

/// The same for memory of which pages can be given back.
pub(crate) fn answer<P: Pages>(pages: &P, table: &FolioTable) -> bool {
    answer_events(pages.uffd(), pages.stores(), table, |address| {
        answer_one(pages, table, address / BASE_PAGE * BASE_PAGE);
    })
}

fn answer_one<P: Pages>(pages: &P, table: &FolioTable, address: usize) {
    let memory = pages.range();
    let page = address..address + BASE_PAGE;
    if !memory.contains(&address) {
        // An empty staging slot, which only a stray pointer can have met.
        fill_with_zeros(pages, page.clone());
        wake(pages.uffd(), page);
        return;
    }
    let index = (address - memory.start) / pages.folio_bytes();
    while table.see_fault(index) == FaultSeen::Free {
        // Most faults that are read late were answered when their page came back. Where it cannot
        // be told the kernel is asked for zeros, which it refuses where there is a page.
        if pages.has_page(address) == Some(true) {
            break;
        }
        if pages.fill_from_tier(table, index) {
            break;
        }
        // If somebody was faster, the next look tells.
        if table.try_lock_for_fault(index).is_ok() {
            fill_with_zeros(pages, page.clone());
            if let Some(stores) = pages.stores() {
                // This page is not held from stores.
                stores.are_free(&(index..index + 1));
            }
            // The thread is woken below, when nobody finds the folio busy any more.
            let _ = table.unlock(index);
            break;
        }
    }
    if table.see_fault(index) == FaultSeen::Free || fill_given_back(pages, index, &page) {
        wake(pages.uffd(), page);
    }
}

/// See [`Stores::fill_given_back`].
fn fill_given_back<P: Pages>(pages: &P, index: usize, page: &Range<usize>) -> bool {
    let is_there = || pages.has_page(page.start) == Some(true);
    let fill = || fill_with_zeros(pages, page.clone());
    pages
        .stores()
        .is_some_and(|stores| stores.fill_given_back(index, is_there, fill))
}

/// Asks for zeros and wakes nobody. Where there is a page, where memory is short or where the
/// address space is changing the kernel refuses; the thread faults again when it is woken.
fn fill_with_zeros<P: Pages>(pages: &P, page: Range<usize>) {
    let _ = pages.uffd().zeropage(page, Waiters::LeaveAsleep);
}

/// Gives up the lock of the folio at `bytes`, and wakes who was left to its holder.
pub(crate) fn unlock(table: &FolioTable, uffd: &Uffd, folio: usize, bytes: Range<usize>) {
    if table.unlock(folio) == Unlocked::FaultWaits {
        wake(uffd, bytes);
    }
}
