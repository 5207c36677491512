//! The machine as the engine's platform: one step of an actor for each thing that others can see.

mod contract;
mod copiers;
mod deferral;
mod exchange;
mod owner;

use std::time::Duration;

use transhume_engine::{
    Alone, Entry, Failure, Folio, FolioOwner, Place, Platform, Step as Stage, Wait, Why,
};

use self::contract::{expect_alive, expect_going_on, expect_memory};
pub(crate) use self::copiers::{Copier, Kind, Swapper};
pub(crate) use self::deferral::SharedLedger;
use self::owner::Latches;
use crate::act::Act;
use crate::actor::{Actor, locked};
use crate::bug::Bug;
use crate::machine::{FrameId, Holder, Machine, Page, Pte, SpaceId};

/// Where folios go: the number of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tier(pub(crate) usize);

/// What is kept for a locked folio.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) page: Page,
    pub(crate) source: FrameId,
    pub(crate) destination: Option<FrameId>,
    /// The address spaces that map it.
    pub(crate) spaces: Vec<SpaceId>,
    /// Whether the destination is a partner's frame.
    exchanges: bool,
    /// Whether it has been left to the ledger, and is mapped somewhere else than at its source, as a pair may be.
    parked: bool,
    ahead: bool,
    /// Whether the bytes are there already, for the bugs that copy at the wrong time.
    early: bool,
    /// Whether a copy has been begun.
    copied: bool,
    /// Whether a call has said that it cannot go on.
    failed: bool,
}

/// The copy, or the swap, that a folio needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) from: FrameId,
    pub(crate) to: FrameId,
    pub(crate) words: usize,
    early: bool,
}

/// The pages that wait for a shootdown, by address space.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    spaces: Vec<SpaceId>,
    /// Whether there was no memory for one of the batch: nothing more is cut off then.
    ran_out: bool,
}

/// An actor that migrates.
#[derive(Debug)]
pub(crate) struct Migrator {
    pub(crate) actor: Actor,
    owner: Option<Latches>,
    /// The folios that were busy when they were tried last.
    busy: Vec<Page>,
}

impl Migrator {
    pub(crate) fn new(actor: &Actor) -> Self {
        let owned = actor.look(|machine| machine.owned);
        Self {
            actor: actor.clone(),
            owner: owned.then(|| Latches::new(actor)),
            busy: Vec::new(),
        }
    }

    /// A shootdown, until all have acknowledged it.
    pub(crate) fn flush(&self, spaces: &[SpaceId]) {
        flush(&self.actor, spaces);
    }

    /// Where whoever migrates is patient, a folio that was busy is not tried again before its lock has
    /// been given up: to try it meanwhile would only add orders in which nothing else happens. Nothing is
    /// locked.
    pub(crate) fn await_the_busy(&mut self) {
        let patient = self.actor.look(|machine| machine.patient);
        for page in self.busy.drain(..).filter(|_| patient) {
            self.actor.step(Act::AwaitLock { page }, |_| {});
        }
    }

    fn held(machine: &Machine, page: Page) -> Result<Held, Failure> {
        let object = machine.objects.get(&page).ok_or(GONE)?;
        let source = machine.frame_of(page).ok_or(GONE)?;
        Ok(Held {
            page,
            source,
            destination: None,
            spaces: object.spaces.clone(),
            exchanges: false,
            parked: false,
            ahead: false,
            early: false,
            copied: false,
            failed: false,
        })
    }

    /// Whether a folio of so many base pages is flushed as soon as it is unmapped: those after it in the batch are
    /// still mapped then.
    fn is_flushed_alone(&self, base_pages: u64) -> bool {
        base_pages >= 512 && self.actor.look(|machine| machine.flushes_per_table)
    }

    /// How many shootdowns it takes to flush these, which are in order.
    fn rounds(&self, entries: &[Entry<Held>]) -> usize {
        if !self.actor.look(|machine| machine.flushes_per_table) {
            return 1;
        }
        let mut tables: Vec<Page> = entries.iter().map(|entry| entry.held.page >> 9).collect();
        tables.dedup();
        tables.len()
    }

    /// The folio cannot go on.
    fn refuse(&self, page: Page, step: Stage, why: Why) -> Failure {
        let failure = Failure::new(step, why);
        self.actor.refuse(page, failure);
        failure
    }

    fn fail(&self, entry: &mut Entry<Held>, step: Stage, why: Why) {
        entry.held.failed = true;
        entry.fail(self.refuse(entry.held.page, step, why));
    }

    /// A batch of so many begins.
    fn provide(&self, count: usize) {
        let id = self.actor.id;
        self.actor.change(|machine| {
            let account = machine.account(id);
            account.calls.batches += 1;
            account.provided += count as u64;
        });
    }

    fn put_back(&self, held: &Held, writable: bool) {
        let (page, frame) = (held.page, held.source);
        for &space in &held.spaces {
            self.actor
                .step(Act::Putback { space, page, frame }, |step| {
                    step.machine.expect_lock(self.actor.id, page, "put back");
                    step.machine.pairs.remove(page);
                    let pte = Pte::Present { frame, writable };
                    step.machine.spaces[space].insert(page, pte);
                });
        }
    }

    /// The folio is not cut off any more.
    fn reachable(&self, page: Page) {
        let id = self.actor.id;
        self.actor.change(|machine| machine.reachable(id, page));
    }

    fn free(&self, frame: FrameId) {
        self.actor
            .step(Act::Free { frame }, |step| step.machine.free(frame));
    }
}

/// A shootdown, until all have acknowledged it.
pub(crate) fn flush(actor: &Actor, spaces: &[SpaceId]) {
    let sent = actor.step(Act::Send, |step| step.machine.send(spaces));
    if let Some(flush) = sent {
        if actor.id == crate::actor::STAGE {
            actor.change(Machine::interrupt_all);
        }
        actor.step(Act::AwaitFlush { flush }, |step| step.machine.finish(flush));
    }
}

/// There is no such folio any more, or nothing of what is said matters because the run is over.
const GONE: Failure = Failure::new(Stage::Lock, Why::Absent);

impl Platform for Migrator {
    type Tier = Tier;
    type Held = Held;
    type Gather = Gather;
    type Job = Job;

    // While orders are explored there is no time: what comes first is what the order says.
    fn now(&self) -> Duration {
        let run = locked(&self.actor.run);
        run.timed
            .as_ref()
            .map_or(Duration::ZERO, |world| world.now())
    }

    fn owner(&self) -> Option<&dyn FolioOwner> {
        self.owner.as_ref().map(|owner| owner as &dyn FolioOwner)
    }

    fn provision(&mut self, folios: &[Folio], _to: Tier) {
        self.provide(folios.len());
        self.actor.may_panic();
        self.await_the_busy();
        if !self
            .actor
            .look(|machine| machine.has(Bug::DestinationBecomesSource))
        {
            self.settle_all_of(folios);
        }
    }

    fn try_lock(&mut self, folio: Folio) -> Result<Held, Failure> {
        let page = folio.page();
        let id = self.actor.id;
        self.actor.may_panic();
        let tried = self.actor.step(Act::TryLock { page }, |step| {
            step.machine.trail(id, page).begin();
            if let Some(why) = step.refuses(Why::Again) {
                return Err(Failure::new(Stage::Lock, why));
            }
            let machine = &mut *step.machine;
            let holder = machine.locks.get(&page).copied();
            if machine.has(Bug::DestinationBecomesSource) && machine.waits(page) {
                machine.forget_pair(page);
            } else if holder.is_some() {
                step.note(|| "busy".to_owned());
                return Err(Failure::new(Stage::Lock, Why::Busy));
            }
            let held = Self::held(step.machine, page)?;
            step.machine.locks.insert(page, Holder::Actor(id));
            Ok(held)
        });
        let tried = tried.unwrap_or(Err(GONE));
        if let Err(failure) = &tried {
            self.refuse(page, failure.step, failure.why);
            if failure.why == Why::Busy {
                self.busy.push(page);
            }
        }
        tried
    }

    fn lock(&mut self, folio: Folio, _alone: &Alone) -> Result<Held, Failure> {
        let page = folio.page();
        let id = self.actor.id;
        self.actor.may_panic();
        self.actor.change(|machine| machine.trail(id, page).begin());
        loop {
            let locked = self.actor.step(Act::Lock { page }, |step| {
                step.machine.expect_locks(id, 0, page);
                if step.machine.waits(page) {
                    return None;
                }
                if let Some(why) = step.refuses(Why::Again) {
                    return Some(Err(Failure::new(Stage::Lock, why)));
                }
                let held = Self::held(step.machine, page);
                if held.is_ok() {
                    step.machine.locks.insert(page, Holder::Actor(id));
                }
                Some(held)
            });
            match locked {
                None => return Err(GONE),
                Some(Some(locked)) => {
                    return locked.map_err(|failure| self.refuse(page, failure.step, failure.why));
                }
                // Nothing is held, so the pair can be settled here.
                Some(None) => self.settle_all_of(&[folio]),
            }
        }
    }

    fn is_in(&self, folio: Folio, held: &Held, tier: Tier) -> bool {
        self.actor.may_panic();
        let id = self.actor.id;
        self.actor.change(|machine| {
            let is_there = machine.frames[held.source].tier == tier.0;
            if is_there {
                machine.trail(id, folio.page()).is_there();
            }
            is_there
        })
    }

    fn reserve(&mut self, entries: &mut [Entry<Held>], to: Tier, _wait: &Wait) {
        expect_alive(&self.actor, entries, "reserve");
        for entry in entries {
            self.actor.may_panic();
            let page = entry.held.page;
            let source = entry.held.source;
            let act = Act::Allocate { tier: to.0, page };
            let reserved = self.actor.step(act, |step| {
                if let Some(why) = step.refuses(Why::NoMemory) {
                    return Err(why);
                }
                let words = step.machine.frames[source].words.len();
                let again = step.machine.stale_copies.remove(&page);
                let frame = again.or_else(|| step.machine.allocate(to.0, words, page));
                step.note(|| frame.map_or("none".to_owned(), |frame| format!("frame {frame}")));
                let frame = frame.map(|frame| (frame, again.is_some()));
                frame.ok_or(Why::NoMemory)
            });
            match reserved.unwrap_or(Err(Why::NoMemory)) {
                Ok((frame, copied)) => {
                    entry.held.destination = Some(frame);
                    entry.held.early = copied;
                }
                Err(why) => self.fail(entry, Stage::Reserve, why),
            }
        }
    }

    fn unmap(
        &mut self,
        folio: Folio,
        held: &mut Held,
        gather: &mut Gather,
        _wait: &Wait,
    ) -> Result<(), Failure> {
        expect_going_on(&self.actor, held, "unmapped");
        expect_memory(&self.actor, gather.ran_out, held);
        let (page, source) = (held.page, held.source);
        let id = self.actor.id;
        for (n, &space) in held.spaces.iter().enumerate() {
            self.actor.may_panic();
            let refused = self.actor.step(Act::Unmap { space, page }, |step| {
                step.machine.expect_lock(id, page, "unmapped");
                step.machine.expect_detached(id, page);
                let refused = step.refuses(Why::Again);
                if refused.is_none() {
                    step.machine.cut_off(id, page);
                    step.machine.spaces[space].insert(page, Pte::Migrating { source });
                }
                refused
            });
            if let Some(why) = refused.flatten() {
                // It must be reachable as before.
                for &space in &held.spaces[..n] {
                    let act = Act::Unmap { space, page };
                    self.actor.step(act, |step| {
                        let writable = step.machine.pairs.get(page).is_none();
                        let frame = held.source;
                        let pte = Pte::Present { frame, writable };
                        step.machine.spaces[space].insert(page, pte);
                    });
                }
                self.reachable(page);
                held.failed = true;
                gather.ran_out |= why == Why::NoMemory;
                return Err(self.refuse(page, Stage::Unmap, why));
            }
        }
        gather.spaces.extend(&held.spaces);
        if self.is_flushed_alone(folio.base_pages()) {
            self.flush(&held.spaces);
        }
        if self
            .actor
            .look(|machine| machine.has(Bug::FreedBeforeFlush))
        {
            self.free(held.source);
        }
        Ok(())
    }

    fn shootdown(&mut self, gather: Gather, entries: &mut [Entry<Held>]) {
        expect_alive(&self.actor, entries, "shootdown");
        self.actor.count(|calls| calls.rounds += 1);
        self.actor.may_panic();
        let mut spaces = gather.spaces;
        spaces.sort_unstable();
        spaces.dedup();
        if self.actor.look(|machine| machine.has(Bug::NoShootdown)) {
            return;
        }
        if self
            .actor
            .look(|machine| machine.has(Bug::CopyBeforeShootdown))
        {
            for entry in &mut *entries {
                let job = self.job_of(&mut entry.held);
                copiers::copy_words(&self.actor, &job);
                entry.held.early = true;
            }
        }
        let alone = |entry: &Entry<Held>| self.is_flushed_alone(entry.folio().base_pages());
        if !entries.iter().all(alone) {
            for _ in 0..self.rounds(entries) {
                self.flush(&spaces);
            }
        }
        for entry in entries {
            self.actor.may_panic();
            let frame = entry.held.source;
            // The call answers for each folio; one may have failed.
            let act = Act::References { frame };
            let refused = self.actor.step(act, |step| step.refuses(Why::Again));
            if let Some(why) = refused.flatten() {
                self.fail(entry, Stage::Shootdown, why);
            }
        }
    }

    fn is_eligible(&mut self, _folio: Folio, held: &Held) -> bool {
        self.actor.may_panic();
        expect_going_on(&self.actor, held, "to be copied");
        if self
            .actor
            .look(|machine| machine.has(Bug::ReferenceDroppedInBetween))
        {
            return true;
        }
        let frame = held.source;
        let alone = self.actor.step(Act::References { frame }, |step| {
            // Somebody may refer to it for a moment.
            step.machine.frames[frame].references == 0 && !step.fails()
        });
        alone.unwrap_or(true)
    }

    fn job(&mut self, _folio: Folio, held: &mut Held) -> Job {
        self.actor.may_panic();
        self.job_of(held)
    }

    fn copy_on_cpu(&mut self, _folio: Folio, held: &mut Held) -> Result<(), Failure> {
        self.actor.may_panic();
        expect_going_on(&self.actor, held, "copied");
        self.check_references(held, Stage::Copy)?;
        let job = self.job_of(held);
        copiers::copy_words(&self.actor, &job);
        self.actor.count(|calls| calls.copied_by_cpu += 1);
        self.actor.may_panic();
        Ok(())
    }

    fn remap(&mut self, entries: &mut [Entry<Held>]) {
        expect_alive(&self.actor, entries, "remap");
        let id = self.actor.id;
        // Not after the first is reachable: programs may have stored to it.
        self.actor.may_panic();
        if self.actor.look(|machine| machine.remap_flushes) {
            for _ in 0..self.rounds(entries) {
                // Only the first address space is of pages that need this.
                self.flush(&[0]);
            }
        }
        for entry in entries {
            let held = &entry.held;
            let (page, Some(frame)) = (held.page, held.destination) else {
                continue;
            };
            if self
                .actor
                .look(|machine| machine.has(Bug::ReferenceDroppedInBetween))
                && let Err(failure) = self.check_references(held, Stage::Remap)
            {
                entry.fail(failure);
                continue;
            }
            let mut refused = None;
            for (n, &space) in held.spaces.iter().enumerate() {
                let act = Act::Remap { space, page, frame };
                let made = self.actor.step(act, |step| {
                    step.machine.expect_lock(id, page, "mapped");
                    step.machine.expect_detached(id, page);
                    if n == 0
                        && let Some(why) = step.refuses(Why::Again)
                    {
                        return Err(why);
                    }
                    let pte = Pte::Present {
                        frame,
                        writable: true,
                    };
                    step.machine.pairs.remove(page);
                    step.machine.spaces[space].insert(page, pte);
                    Ok(())
                });
                if let Some(Err(why)) = made {
                    refused = Some(why);
                    break;
                }
            }
            match refused {
                Some(why) => self.fail(entry, Stage::Remap, why),
                None => self.reachable(page),
            }
        }
    }

    fn putback(&mut self, entries: &mut [Entry<Held>]) {
        let count = entries.len() as u64;
        self.actor.count(|calls| calls.putbacks += count);
        for entry in entries {
            self.actor.may_panic();
            let held = &mut entry.held;
            let page = held.page;
            if std::mem::take(&mut held.parked) {
                // Whoever has it parked has not come to record it.
                self.take_back(page);
            }
            if std::mem::take(&mut held.ahead) {
                // Programs may have translations to the destination, which must be gone before
                // anybody stores to the source.
                self.put_back(held, false);
                self.flush(&held.spaces);
            }
            self.put_back(held, true);
            self.reachable(page);
            let exchanges = held.exchanges;
            let Some(destination) = held.destination.take().filter(|_| !exchanges) else {
                continue;
            };
            if held.copied && self.actor.look(|machine| machine.has(Bug::CopyUsedAgain)) {
                self.actor
                    .change(|machine| machine.stale_copies.insert(page, destination));
            } else {
                self.free(destination);
            }
        }
    }

    fn release(&mut self, folios: &mut dyn Iterator<Item = (Folio, Held)>, at: Place) {
        self.actor.may_panic();
        for (_, held) in folios {
            let page = held.page;
            let freed_already = self
                .actor
                .look(|machine| machine.has(Bug::FreedBeforeFlush));
            if at == Place::Destination && !held.exchanges && !freed_already {
                self.free(held.source);
            }
            let id = self.actor.id;
            self.actor.step(Act::Unlock { page }, |step| {
                step.machine.expect_lock(id, page, "unlocked");
                step.machine.expect_attached(id, page);
                step.machine.locks.remove(&page);
                step.machine.trail(id, page).release(at);
            });
            self.actor.may_panic();
        }
    }
}

impl Migrator {
    fn job_of(&self, held: &mut Held) -> Job {
        held.copied = true;
        let words = self
            .actor
            .look(|machine| machine.frames[held.source].words.len());
        Job {
            from: held.source,
            to: held.destination.unwrap_or(held.source),
            words,
            early: held.early,
        }
    }

    /// Whether it may be copied: not if somebody else refers to the frame.
    fn check_references(&self, held: &Held, stage: Stage) -> Result<(), Failure> {
        let frame = held.source;
        let refused = self.actor.step(Act::References { frame }, |step| {
            let state = &step.machine.frames[frame];
            let (references, pins) = (state.references, state.pins);
            if references > 0 && pins == 0 {
                step.machine.violated(format!(
                    "page {} stays as pinned, though only a fault that waits for it refers to frame {frame}",
                    held.page
                ));
            }
            if references > 0 {
                return Some(Why::Pinned);
            }
            // The copy of a mistake is made already.
            if stage == Stage::Copy { step.refuses(Why::CopyFailed) } else { None }
        });
        match refused.flatten() {
            Some(why) => Err(self.refuse(held.page, stage, why)),
            None => Ok(()),
        }
    }
}
