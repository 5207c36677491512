//! Holding stores off pages that readers go on using: write protection by the userfaultfd.
//!
//! In a region that can defer, all mappings are registered for it; one that is made anew is registered
//! anew. The kernel then maps pages that are only read without the right to store, so they are clean in
//! the page table, and taking them away needs no flush for each page table. The bit of a folio in [`Pending::held`](crate::deferral::Pending) is set before the kernel is
//! told to hold stores off, and cleared after it is told to let them go. So a folio that is locked and
//! has its bit set cannot be stored to, while one without may be protected all the same: then a
//! store to it is reported and let through.

use std::ops::Range;
use std::sync::atomic::{Ordering, fence};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use transhume_engine::{Deferral as Defers, Entry, Failure, Folio, Step, Why};
use transhume_sys::advise::{self, Advice};
use transhume_sys::uffd::{Protection, RegisterMode, Waiters};
use transhume_sys::{CallError, Errno};

use super::Mapped;
use super::session::{Held, Session};
use crate::deferral::Pending;
use crate::error::BuildError;
use crate::failure::{failed, wake, why};
use crate::index_of;
use crate::runs::RunSet;
use crate::table::{FaultSeen, FolioTable};

/// While a mapping is being moved elsewhere in the address space the kernel asks for another try.
const TRIES: u32 = 1000;
const NAP: Duration = Duration::from_micros(20);

impl Mapped {
    fn folio_bytes(&self, folios: &Range<usize>) -> Range<usize> {
        let (start, page) = (self.memory.range().start, self.page_size.bytes());
        start + folios.start * page..start + folios.end * page
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

    /// Notes that a store waits at this address.
    pub(super) fn see_store(&self, address: usize) {
        let memory = self.memory.range();
        if memory.contains(&address) {
            let folio = (address - memory.start) / self.page_size.bytes();
            self.waiting_stores().push(folio);
        }
    }

    fn waiting_stores(&self) -> MutexGuard<'_, Vec<usize>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the stores that wait; says whether some are left.
    pub(super) fn answer_stores(&self, table: &FolioTable) -> bool {
        let Some(pending) = &self.pending else {
            return false;
        };
        let mut waiting = self.waiting_stores();
        if waiting.is_empty() {
            return false;
        }
        waiting.sort_unstable();
        waiting.dedup();
        waiting.retain(|&folio| !self.answer_store(table, pending, folio));
        !waiting.is_empty()
    }

    /// Says whether the store needs no more from here.
    fn answer_store(&self, table: &FolioTable, pending: &Pending<Held>, folio: usize) -> bool {
        while table.see_fault(folio) == FaultSeen::Free {
            if table.try_lock_for_fault(folio).is_err() {
                continue;
            }
            // The thread is woken after the lock is given up, or it could find it taken.
            let let_go = self.let_stores_go(pending, folio..folio + 1, Waiters::LeaveAsleep);
            let _ = table.unlock(folio);
            wake(&self.uffd, self.folio_bytes(&(folio..folio + 1)));
            return let_go.is_ok();
        }
        // Its holder wakes the thread; if that is the ledger, the pair settles first. The mark was left
        // before this looks, and who parks a folio looks for the mark after.
        fence(Ordering::SeqCst);
        if pending.parked.is_set(folio) {
            pending.wants.store(folio);
        }
        true
    }

    /// Lets stores go to locked folios whose mapping may be protected.
    fn let_stores_go(
        &self,
        pending: &Pending<Held>,
        folios: Range<usize>,
        waiters: Waiters,
    ) -> Result<(), CallError> {
        let unprotected = self
            .uffd
            .write_protect(self.folio_bytes(&folios), Protection::Unprotect(waiters));
        match unprotected {
            Err(error) if error.errno != Errno::NOENT => return Err(error),
            // Not registered: mapped anew since, and free.
            _ => {}
        }
        folios.for_each(|folio| pending.held.clear(folio));
        Ok(())
    }

    /// Lets stores to this part of the region be held off.
    pub(super) fn register_for_stores(&self, bytes: Range<usize>) -> Result<(), CallError> {
        // SAFETY: the region's memory is only reached by atomics and raw pointers; nothing is
        // stopped but stores, which the keeper answers.
        unsafe { self.uffd.register(bytes, RegisterMode::WP) }.map(drop)
    }

    /// Holds stores off a run of folios.
    fn hold_stores_off(
        &self,
        pending: &Pending<Held>,
        folios: &Range<usize>,
    ) -> Result<(), CallError> {
        let bytes = self.folio_bytes(folios);
        self.register_for_stores(bytes.clone())?;
        folios.clone().for_each(|folio| pending.held.set(folio));
        let mut tries = 0;
        loop {
            let held = self.uffd.write_protect(bytes.clone(), Protection::Protect);
            match held {
                Err(error) if error.errno == Errno::AGAIN && tries < TRIES => {
                    tries += 1;
                    std::thread::sleep(NAP);
                }
                Err(error) => {
                    folios.clone().for_each(|folio| pending.held.clear(folio));
                    return Err(error);
                }
                Ok(()) => break,
            }
        }
        // A debugger's store that began before holds the lock of the address space until it is done.
        advise::advise(bytes, Advice::DontFork)
    }
}

impl Session<'_> {
    /// After folios have been mapped anew.
    pub(super) fn stores_are_free(&self, folios: &Range<usize>) {
        if let Some(pending) = &self.memory.pending {
            folios.clone().for_each(|folio| pending.held.clear(folio));
        }
    }

    /// Lets stores go to folios that are at their source, whatever it takes, and wakes who waits.
    pub(super) fn let_stores_go(&self, folios: &Range<usize>) {
        let Some(pending) = &self.memory.pending else {
            return;
        };
        if !folios.clone().any(|folio| pending.held.is_set(folio)) {
            return;
        }
        // Until it works the threads that want to store wait.
        while self
            .memory
            .let_stores_go(pending, folios.clone(), Waiters::Wake)
            .is_err()
        {
            std::thread::sleep(NAP);
        }
    }
}

impl Defers for Session<'_> {
    fn hold(&mut self, entries: &mut [Entry<Held>], ahead: &[Folio]) {
        let memory = self.memory;
        let Some(pending) = &memory.pending else {
            for entry in entries {
                entry.fail(Failure::new(Step::Unmap, Why::Unsupported));
            }
            return;
        };
        let mut wanted = RunSet::default();
        for entry in entries.iter_mut() {
            let index = entry.held.index;
            entry.held.stores_held = true;
            if !pending.held.is_set(index) {
                wanted.insert(index..index + 1);
            }
        }
        if wanted.len() == 0 {
            return;
        }
        // A run is one call and one shootdown however long it is, so what continues it goes with it.
        let mut next = entries
            .last()
            .map(|entry| (entry.held.index + 1, entry.held.to));
        for folio in ahead.iter().copied().map(index_of) {
            let Some((index, to)) = next.filter(|&(index, _)| index == folio) else {
                break;
            };
            next = Some((index + 1, to));
            if self.table.tier(index) != to && !pending.held.is_set(index) {
                wanted.insert(index..index + 1);
            }
        }
        for run in wanted.iter() {
            let Err(error) = memory.hold_stores_off(pending, &run) else {
                continue;
            };
            let errno = error.errno;
            for entry in entries
                .iter_mut()
                .filter(|entry| run.contains(&entry.held.index))
            {
                entry.fail(failed(Step::Unmap, why(errno), errno));
            }
        }
    }

    fn park(&mut self, entries: &mut [Entry<Held>]) {
        let Some(pending) = &self.memory.pending else {
            return;
        };
        for entry in entries {
            let index = entry.held.index;
            pending.parked.set(index);
            fence(Ordering::SeqCst);
            if self.table.fault_waits(index) {
                pending.wants.store(index);
            }
            entry.held.parked = true;
        }
    }

    fn take_up(&mut self, entries: &mut [Entry<Held>]) {
        let Some(pending) = &self.memory.pending else {
            return;
        };
        for entry in entries.iter() {
            pending.parked.clear(entry.held.index);
        }
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
