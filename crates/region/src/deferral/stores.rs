//! Holding stores off pages that readers go on using: write protection by the userfaultfd.
//!
//! The bit of a folio in [`Pending::held`](super::Pending) is set before the kernel is told to hold
//! stores off, and cleared after it is told to let them go. So a folio that is locked and has its bit
//! set cannot be stored to, while one without may be protected all the same: then a store to it is
//! reported and let through.
//!
//! # Pages that are given back
//!
//! Anonymous memory can be given back with `madvise` meanwhile. What is put there then, for whoever
//! wants the page, is not protected, so the folio gets a mark, and it stays at its source. A fault on a
//! folio that is locked and has its bit set can only be on such a page: who cuts a folio off clears
//! the bit first, and waits for a fill that is under way.

use std::ops::Range;
use std::time::Duration;

use transhume_engine::{Entry, Failure, Folio, Step, Why};
use transhume_sys::uffd::{Protection, Waiters};
use transhume_sys::{CallError, Errno};

use super::Pending;
use super::pending::lock;
use crate::failure::{LOCK_PATIENCE, failed, wake, why};
use crate::faults;
use crate::kernel::Uffd;
use crate::runs::RunSet;
use crate::sync::{Ordering, fence, sleep};
use crate::table::{FaultSeen, FolioTable};
use crate::tier::TierId;
use crate::{TABLE_BYTES, index_of};

/// While a mapping is being moved elsewhere in the address space the kernel asks for another try.
const TRIES: u32 = 1000;
const NAP: Duration = Duration::from_micros(20);

/// What is kept for a locked folio whose switch may wait.
pub(crate) trait Waits {
    /// Which folio it is, and where it goes.
    fn folio(&self) -> (usize, TierId);
    /// How far its deferral has come.
    fn marks(&mut self) -> &mut Marks;
}

/// How far the deferral of a folio has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    /// Stores are held off since this batch, or an earlier one of the same request.
    pub(crate) stores_held: bool,
    /// It has been in the ledger.
    pub(crate) parked: bool,
}

/// The memory of a region to which stores can be held off, whichever its backing is.
#[derive(Debug)]
pub(crate) struct Stores<'m, H> {
    pub(crate) uffd: &'m Uffd,
    pub(crate) memory: Range<usize>,
    /// Bytes of a folio.
    pub(crate) page: usize,
    pub(crate) pending: &'m Pending<H>,
}

impl<H> Stores<'_, H> {
    fn bytes(&self, folios: &Range<usize>) -> Range<usize> {
        let (start, page) = (self.memory.start, self.page);
        start + folios.start * page..start + folios.end * page
    }

    /// Notes that a store waits at this address.
    pub(crate) fn see(&self, address: usize) {
        if self.memory.contains(&address) {
            let folio = (address - self.memory.start) / self.page;
            lock(&self.pending.stores).push(folio);
        }
    }

    /// Answers the stores that wait; says whether some are left.
    pub(crate) fn answer(&self, table: &FolioTable) -> bool {
        let mut waiting = lock(&self.pending.stores);
        if waiting.is_empty() {
            return false;
        }
        waiting.sort_unstable();
        waiting.dedup();
        waiting.retain(|&folio| !self.answer_one(table, folio));
        !waiting.is_empty()
    }

    /// Says whether the store needs no more from here.
    fn answer_one(&self, table: &FolioTable, folio: usize) -> bool {
        while table.see_fault(folio) == FaultSeen::Free {
            if table.try_lock_for_fault(folio).is_err() {
                continue;
            }
            // The thread is woken after the lock is given up, or it could find it taken.
            let let_go = self.try_let_go(folio..folio + 1, Waiters::LeaveAsleep);
            let _ = table.unlock(folio);
            wake(self.uffd, self.bytes(&(folio..folio + 1)));
            return let_go.is_ok();
        }
        // Its holder wakes the thread; if that is the ledger, the pair settles first. The mark was left
        // before this looks, and who parks a folio looks for the mark after.
        fence(Ordering::SeqCst);
        if self.pending.parked.is_set(folio) {
            self.pending.wants.store(folio);
        }
        true
    }

    /// For locked folios.
    fn try_let_go(&self, folios: Range<usize>, waiters: Waiters) -> Result<(), CallError> {
        let unprotected = self
            .uffd
            .write_protect(self.bytes(&folios), Protection::Unprotect(waiters));
        // After an error too, which does not say how far the call has come. The folios are locked, so
        // nobody relies on their bits before.
        self.are_free(&folios);
        match unprotected {
            Err(error) if error.errno == Errno::NOENT => {
                // One of them is not registered: mapped anew since, and free. The call has not come to
                // those behind it.
                if folios.len() <= 1 {
                    return Ok(());
                }
                let middle = folios.start + folios.len() / 2;
                self.try_let_go(folios.start..middle, waiters)?;
                self.try_let_go(middle..folios.end, waiters)
            }
            unprotected => unprotected,
        }
    }

    /// Lets stores go to locked folios that are at their source, whatever it takes, and wakes who
    /// waits.
    pub(crate) fn let_go(&self, folios: &Range<usize>) {
        // Until it works the threads that want to store wait.
        while self.try_let_go(folios.clone(), Waiters::Wake).is_err() {
            sleep(NAP);
        }
    }

    /// After folios have got translations that allow stores.
    pub(crate) fn are_free(&self, folios: &Range<usize>) {
        for folio in folios.clone() {
            self.pending.held.clear(folio);
            self.pending.gone.clear(folio);
        }
    }

    /// A thread has found no page in a folio that is locked. If stores are held off from it, the page
    /// was given back, and `fill` puts one there unless there is one again; the pair, if it is one, is
    /// of no use any more. Says whether the thread can be woken.
    pub(crate) fn fill_given_back(
        &self,
        folio: usize,
        is_there: impl FnOnce() -> bool,
        fill: impl FnOnce(),
    ) -> bool {
        let pending = self.pending;
        let _filling = lock(&pending.filling);
        if !pending.held.is_set(folio) {
            return false;
        }
        if !is_there() {
            pending.gone.set(folio);
            fill();
            if pending.parked.is_set(folio) {
                pending.wants.store(folio);
            }
        }
        true
    }

    /// Locked folios are about to be cut off: what is found missing of them from now on is their
    /// holder's affair.
    pub(crate) fn are_to_be_cut_off(&self, folios: impl Iterator<Item = usize>) {
        folios.for_each(|folio| self.pending.held.clear(folio));
        drop(lock(&self.pending.filling));
    }

    /// At the end of a request: lets stores go to what it held them off from and has not parked. A store
    /// there would wait for whoever locks the folio next, who may wait for the one that stores
    /// (\[batch-deadlock\]). Whether its bit is set does not matter: it is cleared also where it is not
    /// known how far the kernel has come.
    ///
    /// A call and its shootdown are for all folios side by side that can be locked, but for no more than
    /// a page table has: who wants one of them finds it locked for so long. One that somebody else has
    /// locked is waited for, with no other locked: he may have let stores go before they were held off,
    /// or may not do so at all, as with a neighbour that he leaves where it is.
    pub(crate) fn let_ahead_go(&self, table: &FolioTable, held_ahead: &RunSet) {
        let at_a_time = (TABLE_BYTES / self.page).max(1);
        for run in held_ahead.iter() {
            let mut next = run.start;
            while next < run.end {
                let first = next;
                next += 1;
                if table.lock_for_fault(first, LOCK_PATIENCE).is_err() {
                    continue;
                }
                let most = run.end.min(first + at_a_time);
                while next < most && table.try_lock_for_fault(next).is_ok() {
                    next += 1;
                }
                self.let_go(&(first..next));
                for folio in first..next {
                    let bytes = self.bytes(&(folio..folio + 1));
                    faults::unlock(table, self.uffd, folio, bytes);
                }
            }
        }
    }

    /// Holds stores off a run of folios.
    fn hold_run(&self, folios: &Range<usize>) -> Result<(), CallError> {
        folios
            .clone()
            .for_each(|folio| self.pending.held.set(folio));
        let mut tries = 0;
        loop {
            let held = self
                .uffd
                .write_protect(self.bytes(folios), Protection::Protect);
            match held {
                Err(error) if error.errno == Errno::AGAIN && tries < TRIES => {
                    tries += 1;
                    sleep(NAP);
                }
                held => return held,
            }
        }
    }
}

impl<H: Waits> Stores<'_, H> {
    /// Holds stores off the folios of a batch, and off those of `ahead` that continue its last run: a
    /// run is one call and one shootdown however long it is. The latter are added to `held_ahead`, for
    /// [`let_ahead_go`](Self::let_ahead_go).
    ///
    /// `prepare` is called before for the addresses of each run. `wait_out` returns when accesses
    /// through other processes' eyes that began before have ended; it is called once, if anything was
    /// to be done, with an address of the region's.
    pub(crate) fn hold(
        &self,
        table: &FolioTable,
        entries: &mut [Entry<H>],
        ahead: &[Folio],
        held_ahead: &mut RunSet,
        prepare: impl Fn(Range<usize>) -> Result<(), CallError>,
        wait_out: impl FnOnce(Range<usize>) -> Result<(), CallError>,
    ) {
        let held = &self.pending.held;
        let mut wanted = RunSet::default();
        for entry in entries.iter_mut() {
            let (index, _) = entry.held.folio();
            entry.held.marks().stores_held = true;
            if !held.is_set(index) {
                wanted.insert(index..index + 1);
            }
        }
        let Some(first) = wanted.iter().next() else {
            return;
        };
        let last = entries.last().map(|entry| entry.held.folio());
        let mut next = last.map(|(index, to)| (index + 1, to));
        for folio in ahead.iter().copied().map(index_of) {
            let Some((index, to)) = next.filter(|&(index, _)| index == folio) else {
                break;
            };
            next = Some((index + 1, to));
            if table.tier(index) != to && !held.is_set(index) {
                wanted.insert(index..index + 1);
                held_ahead.insert(index..index + 1);
            }
        }
        for run in wanted.iter() {
            let prepared = prepare(self.bytes(&run));
            if let Err(error) = prepared.and_then(|()| self.hold_run(&run)) {
                self.is_not_held(entries, &run, &error);
            }
        }
        if let Err(error) = wait_out(self.bytes(&(first.start..first.start + 1))) {
            for run in wanted.iter() {
                self.is_not_held(entries, &run, &error);
            }
        }
    }

    fn is_not_held(&self, entries: &mut [Entry<H>], run: &Range<usize>, error: &CallError) {
        self.are_free(run);
        for entry in entries {
            if run.contains(&entry.held.folio().0) {
                entry.fail(failed(Step::Unmap, why(error.errno), error.errno));
            }
        }
    }

    /// The folios are about to go to the ledger, and are not held ahead any more.
    pub(crate) fn park(
        &self,
        table: &FolioTable,
        entries: &mut [Entry<H>],
        held_ahead: &mut RunSet,
    ) {
        for entry in entries {
            let (index, _) = entry.held.folio();
            held_ahead.take_at(index, 1);
            if self.pending.gone.is_set(index) {
                entry.fail(Failure::new(Step::Copy, Why::Again));
                continue;
            }
            self.pending.parked.set(index);
            fence(Ordering::SeqCst);
            if table.fault_waits(index) {
                self.pending.wants.store(index);
            }
            entry.held.marks().parked = true;
        }
    }

    /// The folios have come out of the ledger.
    pub(crate) fn take_up(&self, entries: &[Entry<H>]) {
        for entry in entries {
            self.pending.parked.clear(entry.held.folio().0);
        }
    }
}

impl<H> Stores<'_, H> {
    /// A pair has been put back: gives up the room in `to` that its request left taken.
    pub(crate) fn has_stayed(&self, table: &FolioTable, folio: usize, to: TierId) {
        self.pending.stayed.set(folio);
        table.free_room(to, 1);
    }
}

/// Fails all folios of a batch in a region in which nothing can wait.
pub(crate) fn refuse_all<H>(entries: &mut [Entry<H>]) {
    for entry in entries {
        entry.fail(Failure::new(Step::Unmap, Why::Unsupported));
    }
}
