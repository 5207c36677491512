//! Which nodes pages are on, by the kernel's own account.
//!
//! The kernel places some pages of the region by itself: the copy that a store to a page shared with
//! a child makes, a page that is swapped in. It goes by a policy of the region's memory, which
//! allows every tier's node. So where the tiers are on several nodes, what is believed of a page is
//! checked before it is relied upon: that it is where it is asked to go already, and that the frame
//! that it has left is one of its pool's node.

use std::num::NonZeroUsize;
use std::ptr;

use transhume_engine::Entry;
use transhume_sys::CallError;
use transhume_sys::uffd::MoveMode;

use super::Anonymous;
use super::session::{At, Held, Session};
use crate::faults::Pages;
use crate::placement;
use crate::table::FolioTable;

impl Anonymous {
    /// Whether a page can be on another node than its tier's.
    pub(super) fn has_several_nodes(&self) -> bool {
        self.pools.len() > 1
    }

    /// See [`placement::strayed`].
    fn strayed(&self, folios: &[usize], node: u32) -> Result<Vec<bool>, CallError> {
        placement::strayed(folios, self.page_size.bytes(), node, |folio| {
            self.is_one_page(folio)
        })
    }

    /// Whether a folio of this address is one huge page.
    fn is_one_page(&self, address: usize) -> bool {
        self.is_huge(address..address + self.page_size.bytes()) == Some(true)
    }

    /// Gives a folio that has no page zeros of its tier's node; its lock must not be held. Wakes
    /// nobody. Says whether it did: where it could not, the kernel chooses the node.
    pub(super) fn fill_on_node(&self, table: &FolioTable, index: usize) -> bool {
        let bytes = self.page_size.bytes();
        let address = self.memory.range().start + index * bytes;
        let pool = self.pool(table.tier(index));
        let Some(frame) = pool.take_frames(1, address / bytes, &self.uffd) else {
            return false;
        };
        let slot = frame.start * bytes;
        // SAFETY: the frame was taken out of the pool, so that nobody else knows its address, and
        // it is one folio long.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(slot).write_bytes(0, bytes) };
        if table.try_lock_for_fault(index).is_err() {
            pool.put_unused(frame);
            return false;
        }
        // SAFETY: the folio is locked, so nobody moves it, and the frame is ours.
        let moved = unsafe { self.move_range(address, slot, bytes, MoveMode::DONTWAKE) };
        if let Some(stores) = self.stores() {
            stores.are_free(&(index..index + 1));
        }
        // Its thread is woken when nobody finds the folio busy any more.
        let _ = table.unlock(index);
        match moved.done {
            0 => pool.put_unused(frame),
            done if done == bytes => pool.put_empty(frame),
            _ => pool.put_soiled(NonZeroUsize::new(frame.start)),
        }
        moved.done > 0
    }
}

impl Session<'_> {
    /// Which of these folios, all of a tier by the table, are elsewhere; in order.
    pub(super) fn astray(&self, indices: &[usize], node: u32) -> Vec<usize> {
        let start = self.memory.memory.range().start;
        let address = |&index: &usize| start + index * self.page();
        let folios = indices.iter().map(address).collect::<Vec<_>>();
        // Where it cannot be told they count as there, as they are believed to be.
        let strayed = self.memory.strayed(&folios, node).unwrap_or_default();
        let astray = indices.iter().zip(strayed).filter(|(_, strayed)| *strayed);
        astray.map(|(&index, _)| index).collect()
    }

    /// Looks at the frames that folios have left, if they are to serve again: those of another node
    /// than their pool's are to be released.
    pub(super) fn set_strays_aside(&self, entries: &mut [Entry<Held>]) {
        if !self.memory.has_several_nodes() {
            return;
        }
        for run in entries.chunk_by_mut(|a, b| a.held.from == b.held.from) {
            let Some(node) = self.memory.pool(run[0].held.from).reused_on() else {
                continue;
            };
            let slot = |entry: &Entry<Held>| self.slot_address(entry.held.staging);
            let slots = run.iter().map(slot).collect::<Vec<_>>();
            // What is not known to be of the node does not serve again.
            let strayed = self.memory.strayed(&slots, node);
            let strayed = strayed.unwrap_or_else(|_| vec![true; slots.len()]);
            for (entry, strayed) in run.iter_mut().zip(strayed) {
                // The sources of a span have been released.
                let serves_again = entry.held.at == At::Destination && entry.held.span.is_none();
                entry.held.soiled.staging |= strayed && serves_again;
            }
        }
    }
}
