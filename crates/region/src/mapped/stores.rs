//! Deferred switches of mapped memory.
//!
//! In a region that can defer, all mappings are registered for write protection; one that is made anew
//! is registered anew. The kernel then maps pages that are only read without the right to store, so
//! they are clean in the page table, and taking them away needs no flush for each page table.

use std::ops::Range;

use transhume_engine::{Deferral as Defers, Entry, Failure, Folio, Step, Why};
use transhume_sys::CallError;
use transhume_sys::advise::{self, Advice};
use transhume_sys::uffd::RegisterMode;

use super::Mapped;
use super::session::{Held, Session};
use crate::deferral::{Marks, Stores, Waits, refuse_all};
use crate::error::BuildError;
use crate::tier::TierId;

impl Waits for Held {
    fn folio(&self) -> (usize, TierId) {
        (self.index, self.to)
    }

    fn marks(&mut self) -> &mut Marks {
        &mut self.marks
    }
}

impl Mapped {
    /// The region's memory, if stores can be held off.
    pub(super) fn stores(&self) -> Option<Stores<'_, Held>> {
        Some(Stores {
            uffd: &self.uffd,
            memory: self.memory.range(),
            page: self.page_size.bytes(),
            pending: self.pending.as_ref()?,
        })
    }

    /// Whether the kernel can hold stores off these pages.
    pub(crate) fn check_deferral(&self) -> Result<(), BuildError> {
        let can = self.tiers.iter().all(super::FileTier::is_shared_memory);
        let registered = self.register_for_stores(self.memory.range());
        let refused = |what: String| BuildError::CannotDefer {
            reason: what,
            cure: "tiers of memfd or hugetlb, or no Builder::deferral",
        };
        if !can {
            return Err(refused(
                "the kernel cannot hold stores off pages of plain files and of DAX devices"
                    .to_owned(),
            ));
        }
        registered.map_err(|error| refused(format!("cannot hold stores off: {error}")))
    }

    /// Lets stores to this part of the region be held off.
    pub(super) fn register_for_stores(&self, bytes: Range<usize>) -> Result<(), CallError> {
        // SAFETY: the region's memory is only reached by atomics and raw pointers; nothing is
        // stopped but stores, which the keeper answers.
        unsafe { self.uffd.register(bytes, RegisterMode::WP) }.map(drop)
    }
}

impl Defers for Session<'_> {
    fn hold(&mut self, entries: &mut [Entry<Held>], ahead: &[Folio]) {
        let memory = self.memory;
        let Some(stores) = memory.stores() else {
            return refuse_all(entries);
        };
        // A debugger's store that began before holds the lock of the address space until it is done.
        let wait_out = |bytes| advise::advise(bytes, Advice::DontFork);
        let prepare = |bytes| memory.register_for_stores(bytes);
        let held_ahead = &mut self.held_ahead;
        stores.hold(self.table, entries, ahead, held_ahead, prepare, wait_out);
    }

    fn park(&mut self, entries: &mut [Entry<Held>]) {
        if let Some(stores) = self.memory.stores() {
            stores.park(self.table, entries, &mut self.held_ahead);
        }
    }

    fn take_up(&mut self, entries: &mut [Entry<Held>]) {
        if let Some(stores) = self.memory.stores() {
            stores.take_up(entries);
        }
        // Those of the batch before are counted as they are.
        self.charge.set(0);
        for run in entries.chunk_by_mut(|a, b| {
            let (a, b) = (&a.held, &b.held);
            a.index + 1 == b.index && a.to == b.to && a.frame.map(|slot| slot + 1) == b.frame
        }) {
            // As where slots are made ready: the run can cut a mapping in two places.
            if !self.charge.add(2, self.memory.allowed) {
                for entry in run {
                    entry.fail(Failure::new(Step::Unmap, Why::NoMemory));
                }
            }
        }
    }
}
