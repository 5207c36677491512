//! Deferred switches of anonymous memory.
//!
//! The region is registered for write protection from the beginning. While stores are held off a page
//! is copied from where it is to its frame; the switch moves it out to its slot, as ever, and the frame
//! in. `UFFDIO_MOVE` takes protected pages and leaves the protection behind. It flushes for each page
//! table on each way, so no more than one goes at a time: more would only wait for longer.

use std::sync::Arc;

use transhume_engine::{Deferral as Defers, Entry, Failure, Folio, Step, Why};
use transhume_sys::signals::HeldOff;
use transhume_sys::{limits, map};

use super::Anonymous;
use super::session::{Held, Session};
use super::slots::{of_frame, of_staging};
use super::span::Part;
use crate::TABLE_BYTES;
use crate::deferral::{Marks, Waits, refuse_all};
use crate::faults::Pages;
use crate::keeper::Keeper;
use crate::options::Neighbours;
use crate::table::FolioTable;
use crate::tier::{PageSize, TierId};

impl Waits for Held {
    fn folio(&self) -> (usize, TierId) {
        (self.index, self.to)
    }

    fn marks(&mut self) -> &mut Marks {
        &mut self.marks
    }
}

impl<'r> Session<'r> {
    /// A session whose switches wait, or that makes them.
    pub(crate) fn deferring(
        memory: &'r Anonymous,
        table: &'r FolioTable,
        keeper: &'r Keeper,
        batch: usize,
    ) -> Self {
        let mut session = Self::new(memory, table, keeper, batch, Neighbours::Left);
        session.defers = true;
        session
    }

    /// Before anything is locked. Handlers that have waited since the last batch run first.
    pub(super) fn hold_handlers_off(&mut self) {
        self.no_handlers = None;
        if self.memory.pending.is_some() {
            self.no_handlers = Some(HeldOff::begin());
        }
    }

    /// Whether two pages cannot be switched by one shootdown.
    pub(super) fn tables_differ(&self, a: usize, b: usize) -> bool {
        let table = |index| self.address_of(index) / TABLE_BYTES;
        let base = self.memory.page_size == PageSize::Base;
        self.defers && base && table(a) != table(b)
    }

    /// Before the folios of a batch are cut off, with the neighbours that are locked.
    pub(super) fn let_go_before_cut(&self, entries: &[Entry<Held>]) {
        let Some(stores) = self.memory.stores() else {
            return;
        };
        let neighbours = self.spans.iter().flat_map(|span| {
            let parts = span.parts.iter().zip(span.first..);
            parts.filter_map(|(part, index)| (*part == Part::Neighbour).then_some(index))
        });
        let wanted = entries.iter().map(|entry| entry.held.index);
        stores.are_to_be_cut_off(wanted.chain(neighbours));
    }

    /// Lets stores go to folios that are at their source, if they were held off.
    pub(super) fn let_stores_go(&self, run: &[Entry<Held>]) {
        let (Some(stores), Some(first)) = (self.memory.stores(), run.first()) else {
            return;
        };
        if run.iter().any(|entry| entry.held.marks.stores_held) {
            let first = first.held.index;
            stores.let_go(&(first..first + run.len()));
        }
    }

    /// Locks the slots of pairs into memory, or not, as their folios are now: the program may have
    /// changed that while they waited.
    fn mlock_as_now(&mut self, entries: &mut [Entry<Held>]) {
        let locked = limits::process_memory().is_ok_and(|memory| memory.locked > 0);
        if !locked && entries.iter().all(|entry| !entry.held.mlocked) {
            return;
        }
        if !std::mem::replace(&mut self.locks_are_known, true) {
            let (memory, page) = (self.memory.memory.range(), self.page());
            self.memory.layouts.differs(&self.layout, &memory, page);
            self.layout = self.memory.layouts.latest();
        }
        let layout = Arc::clone(&self.layout);
        let now = |held: &Held| layout.is_mlocked(held.index);
        self.mlock_slots(entries, |held| now(held) && !held.mlocked, Step::Unmap);
        // One that stays locked serves no other folio until it is emptied, which unlocks it.
        let wanted = |entry: &Entry<Held>| entry.held.mlocked && !now(&entry.held);
        self.by_runs(entries, of_staging, wanted, map::unlock, |entry, _| {
            entry.held.soiled.staging = true;
        });
        self.by_runs(entries, of_frame, wanted, map::unlock, |entry, _| {
            entry.held.soiled.frame = true;
        });
        for entry in entries {
            entry.held.mlocked = now(&entry.held);
        }
    }
}

impl Defers for Session<'_> {
    fn hold(&mut self, entries: &mut [Entry<Held>], ahead: &[Folio]) {
        let Some(stores) = self.memory.stores() else {
            return refuse_all(entries);
        };
        let wait_out = |_| self.memory.seclusion.wait_out();
        let held_ahead = &mut self.held_ahead;
        stores.hold(self.table, entries, ahead, held_ahead, |_| Ok(()), wait_out);
    }

    fn park(&mut self, entries: &mut [Entry<Held>]) {
        if let Some(stores) = self.memory.stores() {
            stores.park(self.table, entries, &mut self.held_ahead);
        }
    }

    fn take_up(&mut self, entries: &mut [Entry<Held>]) {
        self.look_at_layout();
        self.mlock_as_now(entries);
        let Some(stores) = self.memory.stores() else {
            return;
        };
        stores.take_up(entries);
        stores.are_to_be_cut_off(entries.iter().map(|entry| entry.held.index));
        for entry in entries {
            if stores.pending.was_given_back(entry.held.index) {
                entry.fail(Failure::new(Step::Unmap, Why::Absent));
            }
        }
    }
}
