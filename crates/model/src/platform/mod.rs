//! The machine as the engine's platform: one step of an actor for each thing that others can see.

mod contract;
mod copiers;
mod deferral;
mod exchange;
mod migrator;
mod owner;

use std::time::Duration;

use transhume_engine::{
    Alone, Entry, Failure, Folio, FolioOwner, Place, Platform, Step as Stage, Wait, Why,
};

use self::contract::{expect_alive, expect_going_on, expect_memory};
pub(crate) use self::copiers::{Copier, Kind, Swapper};
pub(crate) use self::deferral::SharedLedger;
use self::migrator::{GONE, Gather};
pub(crate) use self::migrator::{Held, Job, Migrator, Tier, flush};
use crate::act::Act;
use crate::actor::locked;
use crate::bug::Bug;
use crate::machine::{Holder, Pte};

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
        let failure = match tried.unwrap_or(Err(GONE)) {
            Ok(held) => return Ok(held),
            Err(failure) => failure,
        };
        if failure.why == Why::Busy {
            self.busy.push(page);
        }
        Err(self.actor.refuse(page, failure.step, failure.why))
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
                    return locked
                        .map_err(|failure| self.actor.refuse(page, failure.step, failure.why));
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
                return Err(self.actor.refuse(page, Stage::Unmap, why));
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
            let act = Act::Answer { frame };
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
            let alone = step.machine.frames[frame].references == 0 && !step.fails();
            step.note(|| migrator::somebody(!alone));
            alone
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
                if !step.machine.trail(id, page).release(at) {
                    step.machine
                        .violated(format!("the owner of page {page} was told another place"));
                }
            });
            self.actor.may_panic();
        }
    }
}
