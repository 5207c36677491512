//! A region's memory on the model of the kernel, and the platform by which the engine migrates it: the
//! steps of anonymous memory in the same order, a page a call.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use transhume_engine::{
    Alone, Copier, CopyAnswer, Deferral as Defers, Entry, Failure, Folio, Place, Platform, Step,
    Wait, Why,
};
use transhume_sys::uffd::Waiters;

use crate::deferral::{Deferral, Marks, Pending, Stores, Waits};
use crate::failure::{LOCK_PATIENCE, refused, wake};
use crate::faults::{self, Pages};
use crate::filled::Filled;
use crate::keeper::{Keep, Keeper};
use crate::kept::{Core, Defer};
use crate::kernel::{Access, Machine, START, Uffd};
use crate::mutants::{self, Mutant};
use crate::runs::RunSet;
use crate::sync::{AtomicUsize, Ordering};
use crate::table::{FolioTable, Tally};
use crate::tier::{PageSize, TierId};
use crate::{BASE_PAGE, index_of};

#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) uffd: Uffd,
    pages: usize,
    /// For mapped memory, whose pages are cut off by one that is laid over them: the page behind the
    /// region's last.
    blind: Option<Filled>,
    sessions: AtomicUsize,
    pub(crate) pending: Option<Pending<Held>>,
}

impl Memory {
    pub(crate) fn new(
        machine: &Arc<Machine>,
        pages: usize,
        is_mapped: bool,
        deferral: Option<&Deferral>,
    ) -> Self {
        Self {
            uffd: Uffd(Arc::clone(machine)),
            pages,
            blind: is_mapped.then(Filled::new),
            sessions: AtomicUsize::new(0),
            pending: deferral.map(|deferral| Pending::new(deferral, pages)),
        }
    }

    fn machine(&self) -> &Machine {
        &self.uffd.0
    }
}

impl Pages for Memory {
    type Held = Held;

    fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    fn range(&self) -> Range<usize> {
        START..START + self.pages * BASE_PAGE
    }

    fn folio_bytes(&self) -> usize {
        BASE_PAGE
    }

    fn stores(&self) -> Option<Stores<'_, Held>> {
        Some(Stores {
            uffd: &self.uffd,
            memory: self.range(),
            page: BASE_PAGE,
            pending: self.pending.as_ref()?,
        })
    }

    fn has_page(&self, address: usize) -> Option<bool> {
        Some(self.machine().has_page(address))
    }

    fn fill_from_tier(&self, _table: &FolioTable, _index: usize) -> bool {
        false
    }
}

impl Keep for Core<Memory> {
    fn events(&self) -> &Uffd {
        &self.memory.uffd
    }

    fn answer(&self) -> bool {
        let memory = &self.memory;
        if let Some(filled) = &memory.blind {
            return answer_mapped(memory, &self.table, filled);
        }
        match (memory.stores(), memory.machine().mutant) {
            (
                Some(stores),
                Some(mutant @ (Mutant::TakesTornForHeld | Mutant::LetsGoAndWakesNobody)),
            ) => mutants::answers_wrongly(&stores, &self.table, mutant),
            _ => faults::answer(&self.memory, &self.table),
        }
    }

    fn can_wait(&self) -> bool {
        let is_mapped = self.memory.blind.is_some();
        !is_mapped
            && self.memory.pending.is_none()
            && self.memory.sessions.load(Ordering::Relaxed) > 0
    }

    fn refill(&self) -> bool {
        false
    }
}

/// What mapped memory does about what is reported: a fault is answered if it is on the blind itself.
fn answer_mapped(memory: &Memory, table: &FolioTable, filled: &Filled) -> bool {
    let blind = memory.range().end;
    let see = |address| {
        if address == blind {
            filled.ask();
        }
    };
    let left = faults::answer_events(&memory.uffd, memory.stores(), table, see);
    let fill = || {
        let all = blind..blind + BASE_PAGE;
        memory.machine().give_back(memory.pages);
        let filled = memory.uffd.zeropage(all.clone(), Waiters::LeaveAsleep);
        wake(&memory.uffd, all);
        filled.is_complete()
    };
    filled.answer(fill) || left
}

impl Defer for Memory {
    type Held = Held;
    type Session<'r> = Session<'r>;

    fn pending(&self) -> Option<&Pending<Held>> {
        self.pending.as_ref()
    }

    fn page_size(&self) -> PageSize {
        PageSize::Base
    }

    fn settling<'r>(&'r self, table: &'r FolioTable, _keeper: &'r Keeper) -> Session<'r> {
        Session::new(self, table)
    }
}

/// One request's view of the memory.
#[derive(Debug)]
pub(crate) struct Session<'r> {
    memory: &'r Memory,
    table: &'r FolioTable,
    held_ahead: RunSet,
}

/// What is kept for a locked folio.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) index: usize,
    from: TierId,
    to: TierId,
    /// The frame at the source: of anonymous memory while it is out of the region.
    source: Option<usize>,
    is_cut_off: bool,
    /// The one at the destination.
    frame: Option<usize>,
    pub(crate) marks: Marks,
}

impl Held {
    fn bytes(&self) -> Range<usize> {
        let start = START + self.index * BASE_PAGE;
        start..start + BASE_PAGE
    }
}

impl Waits for Held {
    fn folio(&self) -> (usize, TierId) {
        (self.index, self.to)
    }

    fn marks(&mut self) -> &mut Marks {
        &mut self.marks
    }
}

/// A copy, from a frame or from what is at a folio's address.
#[derive(Debug)]
pub(crate) struct Job {
    from: Result<usize, usize>,
    to: usize,
}

impl Job {
    fn make(&self, machine: &Machine) {
        let contents = match self.from {
            Ok(frame) => machine.read(frame),
            Err(folio) => machine.access(folio, Access::Load),
        };
        machine.write(self.to, contents);
    }
}

pub(crate) struct ByModel;

impl Copier<Job> for ByModel {
    fn name(&self) -> &str {
        "model"
    }

    fn copy(&self, jobs: &[Job], answers: &mut [CopyAnswer]) {
        for (job, answer) in jobs.iter().zip(answers) {
            job.make(&Machine::here());
            *answer = CopyAnswer::Copied;
        }
    }
}

impl<'r> Session<'r> {
    pub(crate) fn new(memory: &'r Memory, table: &'r FolioTable) -> Self {
        memory.sessions.fetch_add(1, Ordering::SeqCst);
        Self {
            memory,
            table,
            held_ahead: RunSet::default(),
        }
    }

    fn machine(&self) -> &'r Machine {
        self.memory.machine()
    }

    fn held(&self, index: usize) -> Held {
        let from = self.table.tier(index);
        Held {
            index,
            from,
            to: from,
            source: self
                .memory
                .blind
                .as_ref()
                .map(|_| self.machine().frame(index)),
            is_cut_off: false,
            frame: None,
            marks: Marks::default(),
        }
    }

    /// Cuts one off.
    fn cut_off(&self, held: &mut Held) {
        let machine = self.machine();
        match &self.memory.blind {
            Some(filled) => {
                let blind = self.memory.pages;
                let empty = || {
                    machine.give_back(blind);
                    Ok::<_, Infallible>(())
                };
                let Ok(()) = filled.while_empty(empty, || {
                    machine.lay(blind, held.index);
                    Ok(())
                });
            }
            None => held.source = machine.take(held.index),
        }
        held.is_cut_off = held.source.is_some();
    }

    /// Brings one back that was cut off, with a frame, and wakes who waits for it.
    fn bring_back(&self, held: &mut Held, frame: usize) {
        held.is_cut_off = false;
        let machine = self.machine();
        if self.memory.blind.is_none() {
            return machine.put(held.index, frame);
        }
        let (folio, bytes) = (held.index, held.bytes());
        if machine.mutant == Some(Mutant::WakesBeforeItMapsOver) {
            wake(&self.memory.uffd, bytes.clone());
        }
        machine.map(folio, frame);
        if let Some(stores) = self.memory.stores() {
            stores.are_free(&(folio..folio + 1));
        }
        if machine.mutant != Some(Mutant::WakesBeforeItMapsOver) {
            wake(&self.memory.uffd, bytes);
        }
    }

    fn are_to_be_cut_off(&self, entries: &[Entry<Held>]) {
        if let Some(stores) = self.memory.stores()
            && self.memory.blind.is_none()
            && self.machine().mutant != Some(Mutant::CutsOffWhatIsHeld)
        {
            stores.are_to_be_cut_off(entries.iter().map(|entry| entry.held.index));
        }
    }
}

impl Platform for Session<'_> {
    type Tier = TierId;
    type Held = Held;
    type Gather = ();
    type Job = Job;

    fn now(&self) -> Duration {
        Duration::ZERO
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
        held.from == tier
    }

    fn reserve(&mut self, entries: &mut [Entry<Held>], to: TierId, _wait: &Wait) {
        for entry in entries {
            entry.held.to = to;
            entry.held.frame = Some(self.machine().allocate());
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

    fn shootdown(&mut self, (): (), entries: &mut [Entry<Held>]) {
        self.are_to_be_cut_off(entries);
        for entry in entries {
            self.cut_off(&mut entry.held);
            if !entry.held.is_cut_off {
                entry.fail(Failure::new(Step::Shootdown, Why::Absent));
            }
        }
    }

    fn job(&mut self, _folio: Folio, held: &mut Held) -> Job {
        Job {
            from: held.source.ok_or(held.index),
            to: held.frame.unwrap(),
        }
    }

    fn copy_on_cpu(&mut self, folio: Folio, held: &mut Held) -> Result<(), Failure> {
        self.job(folio, held).make(self.machine());
        Ok(())
    }

    fn remap(&mut self, entries: &mut [Entry<Held>]) {
        if self.machine().mutant == Some(Mutant::WakesBeforeItMaps) {
            return;
        }
        for entry in entries {
            let frame = entry.held.frame.unwrap();
            self.bring_back(&mut entry.held, frame);
        }
    }

    fn putback(&mut self, entries: &mut [Entry<Held>]) {
        for entry in entries {
            if entry.held.is_cut_off {
                let source = entry.held.source.unwrap();
                self.bring_back(&mut entry.held, source);
            }
            if let Some(stores) = self.memory.stores()
                && entry.held.marks.stores_held
            {
                stores.let_go(&(entry.held.index..entry.held.index + 1));
            }
        }
    }

    fn release(&mut self, folios: &mut dyn Iterator<Item = (Folio, Held)>, at: Place) {
        let moved = at == Place::Destination;
        let mut tally = Tally::new(self.table);
        for (_, held) in folios {
            if held.from != held.to {
                if moved {
                    tally.moved(held.index, held.from, held.to);
                } else if let Some(stores) = self.memory.stores().filter(|_| held.marks.parked) {
                    stores.has_stayed(self.table, held.index, held.to);
                }
            }
            if let Some(frame) = if moved { held.source } else { held.frame } {
                self.machine().free(frame);
            }
            let bytes = held.bytes();
            if self.machine().mutant == Some(Mutant::WakesBeforeItMaps) {
                let map = || self.machine().put(held.index, held.frame.unwrap());
                mutants::wakes_before_it_maps(
                    self.table,
                    &self.memory.uffd,
                    held.index,
                    bytes,
                    map,
                );
                continue;
            }
            faults::unlock(self.table, &self.memory.uffd, held.index, bytes);
        }
    }
}

impl Defers for Session<'_> {
    fn hold(&mut self, entries: &mut [Entry<Held>], ahead: &[Folio]) {
        let memory = self.memory;
        let stores = memory.stores().unwrap();
        let prepare = |bytes| {
            if memory.blind.is_some() {
                memory.machine().register(&bytes);
            }
            Ok(())
        };
        let held_ahead = &mut self.held_ahead;
        stores.hold(self.table, entries, ahead, held_ahead, prepare, |_| Ok(()));
    }

    fn park(&mut self, entries: &mut [Entry<Held>]) {
        let stores = self.memory.stores().unwrap();
        if self.machine().mutant == Some(Mutant::ParksBlindly) {
            return mutants::parks_blindly(&stores, entries);
        }
        stores.park(self.table, entries, &mut self.held_ahead);
    }

    fn take_up(&mut self, entries: &mut [Entry<Held>]) {
        let stores = self.memory.stores().unwrap();
        stores.take_up(entries);
        self.are_to_be_cut_off(entries);
        for entry in entries {
            if stores.pending.was_given_back(entry.held.index) {
                entry.fail(Failure::new(Step::Unmap, Why::Absent));
            }
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(stores) = self.memory.stores() {
            match self.machine().mutant {
                Some(
                    mutant @ (Mutant::LetsGoWhatOthersHaveLocked
                    | Mutant::LeavesWhatOthersHaveLocked
                    | Mutant::TakesOneMappedAnewForAll),
                ) => mutants::lets_ahead_go_wrongly(&stores, self.table, &self.held_ahead, mutant),
                _ => stores.let_ahead_go(self.table, &self.held_ahead),
            }
        }
        self.memory.sessions.fetch_sub(1, Ordering::SeqCst);
    }
}
