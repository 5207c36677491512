//! Pairs whose switch waits, in a ledger that several actors share.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::time::Duration;

use transhume_engine::{
    Deferral, Entry, Folio, Generation, Ledger, Parked, Step as Stage, Waiting, Why, settle,
};

use super::contract::{expect_alive, expect_room_ahead};
use super::{Held, Migrator};
use crate::account::Account;
use crate::act::Act;
use crate::actor::Actor;
use crate::machine::{Holder, Page, Pte};

impl Deferral for Migrator {
    fn hold(&mut self, entries: &mut [Entry<Held>], ahead: &[Folio]) {
        expect_alive(&self.actor, entries, "hold");
        expect_room_ahead(&self.actor, ahead);
        self.actor.count(|calls| calls.holds += 1);
        self.actor.may_panic();
        let mut spaces = Vec::new();
        for entry in &mut *entries {
            let page = entry.held.page;
            for &space in &entry.held.spaces {
                self.actor.may_panic();
                let refused = self.actor.step(Act::Protect { space, page }, |step| {
                    let refused = step.refuses(Why::Again);
                    if refused.is_some() {
                        return refused;
                    }
                    if let Some(Pte::Present { writable, .. }) =
                        step.machine.spaces[space].get_mut(&page)
                    {
                        *writable = false;
                    }
                    None
                });
                if let Some(why) = refused.flatten() {
                    self.fail(entry, Stage::Unmap, why);
                    break;
                }
                spaces.push(space);
            }
        }
        spaces.sort_unstable();
        spaces.dedup();
        self.flush(&spaces);
        self.actor.may_panic();
    }

    fn park(&mut self, entries: &mut [Entry<Held>]) {
        expect_alive(&self.actor, entries, "park");
        for entry in entries {
            self.actor.may_panic();
            let held = &mut entry.held;
            let (page, Some(destination)) = (held.page, held.destination) else {
                continue;
            };
            let (id, source) = (self.actor.id, held.source);
            let spaces = &held.spaces;
            let parked = self.actor.step(Act::Park { page }, |step| {
                if let Some(why) = step.refuses(Why::Again) {
                    return Err(why);
                }
                let machine = &mut *step.machine;
                machine.expect_lock(id, page, "parked");
                machine.locks.insert(page, Holder::Ledger);
                machine.trail(id, page).park();
                let base_pages = machine.base_pages(page);
                machine
                    .pairs
                    .insert(page, [source, destination], base_pages);
                machine.expect_room();
                Ok(())
            });
            held.parked = parked == Some(Ok(()));
            let lazy = self.actor.look(|machine| machine.lazy);
            for &space in spaces.iter().filter(|_| lazy && held.parked) {
                let frame = destination;
                self.actor.step(Act::Remap { space, page, frame }, |step| {
                    let writable = false;
                    let pte = Pte::Present { frame, writable };
                    step.machine.spaces[space].insert(page, pte);
                });
            }
            if let Some(Err(why)) = parked {
                self.fail(entry, Stage::Remap, why);
            } else {
                held.ahead = lazy;
            }
        }
        self.actor.may_panic();
    }

    fn take_up(&mut self, entries: &mut [Entry<Held>]) {
        let id = self.actor.id;
        self.actor.count(|calls| calls.batches += 1);
        for entry in entries {
            self.actor.may_panic();
            let page = entry.held.page;
            let refused = self.actor.step(Act::TakeUp { page }, |step| {
                step.machine.locks.insert(page, Holder::Actor(id));
                step.refuses(Why::Again)
            });
            entry.held.parked = false;
            if let Some(why) = refused.flatten() {
                self.fail(entry, Stage::Unmap, why);
            }
        }
    }

    fn generation(&self) -> Generation {
        self.actor.may_panic();
        let moment = self.actor.step(Act::Moment, |step| step.machine.moment());
        moment.unwrap_or_default()
    }

    fn has_flushed(&self, since: Generation) -> bool {
        self.actor.look(|machine| machine.lazy)
            && self
                .actor
                .step(Act::HasFlushed, |step| {
                    // It need not know of a shootdown that was not its own.
                    let flushed = step.machine.has_flushed(since) && !step.fails();
                    step.note(|| if flushed { "yes" } else { "no" }.to_owned());
                    flushed
                })
                .unwrap_or(false)
    }
}

/// The machine's ledger, as a request sees it.
#[derive(Debug)]
pub(crate) struct SharedLedger {
    pub(crate) actor: Actor,
}

impl SharedLedger {
    fn room_for(&self, base_pages: u64) -> bool {
        let act = Act::Ledger { what: "room?" };
        let promised = self.actor.step(act, |step| {
            // Memory may be short.
            let promised = !step.fails() && step.machine.ledger.promise(base_pages);
            let (held, limit) = (step.machine.ledger.held(), step.machine.ledger.limit());
            if held > limit.get() {
                step.machine
                    .violated(format!("{held} base pages wait, and {limit} may"));
            }
            promised
        });
        promised.unwrap_or(false)
    }
}

impl Waiting<Migrator> for SharedLedger {
    fn make_room(&mut self, platform: &mut Migrator, base_pages: u64) -> bool {
        self.room_for(base_pages) || {
            self.relieve(platform);
            self.room_for(base_pages)
        }
    }

    fn relieve(&mut self, platform: &mut Migrator) -> bool {
        platform.settle_all()
    }

    fn room(&self) -> u64 {
        self.actor.look(|machine| machine.ledger.room())
    }

    fn record(
        &mut self,
        entries: &mut dyn Iterator<Item = Entry<Held>>,
        recorded: Generation,
        since: Duration,
    ) {
        // The entries are not lost if the run is over: nobody asks for them any more.
        let act = Act::Ledger { what: "records" };
        self.actor.step(act, |step| {
            step.machine.ledger.add(entries, recorded, since);
        });
    }

    fn withdraw(&mut self, base_pages: u64) {
        if base_pages > 0 {
            let act = Act::Ledger { what: "withdraws" };
            self.actor
                .step(act, |step| step.machine.ledger.withdraw(base_pages));
        }
    }
}

impl Migrator {
    /// Settles the pairs of these folios, if they wait.
    pub(crate) fn settle_all_of(&mut self, folios: &[Folio]) {
        if !self.actor.look(|machine| machine.defers) {
            return;
        }
        self.settle_taken(|ledger| {
            let waits = |folio: &&Folio| ledger.contains(**folio);
            let these: BTreeSet<Folio> = folios.iter().filter(waits).copied().collect();
            if these.is_empty() {
                return Parked::default();
            }
            ledger.take(|folio| these.contains(&folio))
        });
    }

    /// Settles the pair of this folio, and those of its neighbours as far as one shootdown goes.
    pub(crate) fn settle_run_of(&mut self, folio: Folio) {
        self.settle_taken(|ledger| ledger.take_run(folio, ledger.at_once()));
    }

    /// Settles all pairs; says whether there was one.
    pub(crate) fn settle_all(&mut self) -> bool {
        self.settle_taken(|ledger| ledger.take(|_| true))
    }

    /// The same, and takes out no more at a time than one shootdown is for.
    pub(crate) fn settle_by_and_by(&mut self) -> bool {
        let mut any = false;
        while self.settle_taken(|ledger| ledger.take_some(|_| true, ledger.at_once())) {
            any = true;
        }
        any
    }

    fn settle_taken(&mut self, take: impl FnOnce(&mut Ledger<Held>) -> Parked<Held>) -> bool {
        let act = Act::Ledger { what: "takes out" };
        let taken = self.actor.step(act, |step| {
            let parked = take(&mut step.machine.ledger);
            step.note(|| format!("{} pairs", parked.len()));
            (parked, step.machine.ledger.at_once())
        });
        let Some((parked, at_once)) = taken else {
            return false;
        };
        self.settle(parked, at_once)
    }

    fn settle(&mut self, parked: Parked<Held>, at_once: NonZeroU64) -> bool {
        if parked.is_empty() {
            return false;
        }
        let named: Vec<Folio> = parked.folios().collect();
        let id = self.actor.id;
        // What a settlement cuts off is for the ledger to say, and not for the request.
        let limit = self.actor.change(|machine| {
            machine.settling.insert(id, Account::default());
            machine.limits.insert(id, at_once.get())
        });
        let mut closing = Closing {
            actor: self.actor.clone(),
            parked,
            limit,
        };
        let settled = settle(self, &mut closing.parked, at_once);
        if !self.actor.is_over() {
            self.actor.change(|machine| {
                machine.compare_settled(id, &named, &settled);
                machine.ledger.note(&settled);
            });
        }
        true
    }

    /// A pair that was left to the ledger and is in nobody's list is this actor's again.
    pub(super) fn take_back(&self, page: Page) {
        let id = self.actor.id;
        self.actor.step(Act::TakeUp { page }, |step| {
            step.machine.locks.insert(page, Holder::Actor(id));
        });
    }
}

/// Pairs that go back to the ledger if the platform panics.
struct Closing {
    actor: Actor,
    parked: Parked<Held>,
    limit: Option<u64>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let (id, limit) = (self.actor.id, self.limit);
        self.actor.change(|machine| {
            machine.settling.remove(&id);
            match limit {
                Some(limit) => machine.limits.insert(id, limit),
                None => machine.limits.remove(&id),
            }
        });
        let parked = std::mem::take(&mut self.parked);
        let act = Act::Ledger { what: "closes" };
        self.actor
            .step(act, |step| step.machine.ledger.close(parked));
    }
}
