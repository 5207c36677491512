//! Pairs whose switch waits, in a ledger that several actors share.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::time::Duration;

use transhume_engine::{
    Deferral, Entry, Failure, Folio, Generation, Ledger, Outcome, Parked, Place, Settlement,
    Step as Stage, Waiting, Why, settle,
};

use super::contract::expect_alive;
use super::{Held, Migrator};
use crate::act::Act;
use crate::actor::Actor;
use crate::machine::{Holder, Pte};

impl Deferral for Migrator {
    fn hold(&mut self, entries: &mut [Entry<Held>], _ahead: &[Folio]) {
        expect_alive(&self.actor, entries, "hold");
        self.calls.holds += 1;
        let mut spaces = Vec::new();
        for entry in &mut *entries {
            let page = entry.held.page;
            for &space in &entry.held.spaces {
                let held = self.actor.step(Act::Protect { space, page }, |step| {
                    if step.fails() {
                        return false;
                    }
                    if let Some(Pte::Present { writable, .. }) =
                        step.machine.spaces[space].get_mut(&page)
                    {
                        *writable = false;
                    }
                    true
                });
                if held == Some(false) {
                    entry.fail(Failure::new(Stage::Unmap, Why::Again));
                    break;
                }
                spaces.push(space);
            }
        }
        spaces.sort_unstable();
        spaces.dedup();
        self.flush(&spaces);
    }

    fn park(&mut self, entries: &mut [Entry<Held>]) {
        expect_alive(&self.actor, entries, "park");
        for entry in entries {
            let held = &mut entry.held;
            let (page, Some(destination)) = (held.page, held.destination) else {
                continue;
            };
            let (id, source) = (self.actor.id, held.source);
            let spaces = &held.spaces;
            let parked = self.actor.step(Act::Park { page }, |step| {
                if step.fails() {
                    return false;
                }
                let machine = &mut *step.machine;
                machine.expect_lock(id, page, "parked");
                machine.locks.insert(page, Holder::Ledger);
                machine.trails.entry((id, page)).or_default().parked = true;
                let base_pages = machine.base_pages(page);
                machine
                    .pairs
                    .insert(page, [source, destination], base_pages);
                machine.expect_room();
                true
            });
            let lazy = self.actor.look(|machine| machine.lazy);
            for &space in spaces.iter().filter(|_| lazy && parked == Some(true)) {
                let frame = destination;
                self.actor.step(Act::Remap { space, page, frame }, |step| {
                    let writable = false;
                    let pte = Pte::Present { frame, writable };
                    step.machine.spaces[space].insert(page, pte);
                });
            }
            if parked == Some(false) {
                entry.fail(Failure::new(Stage::Remap, Why::Again));
            } else {
                held.ahead = lazy;
            }
        }
    }

    fn take_up(&mut self, entries: &mut [Entry<Held>]) {
        let id = self.actor.id;
        for entry in entries {
            let page = entry.held.page;
            let taken = self.actor.step(Act::TakeUp { page }, |step| {
                step.machine.locks.insert(page, Holder::Actor(id));
                !step.fails()
            });
            if taken == Some(false) {
                entry.fail(Failure::new(Stage::Unmap, Why::Again));
            }
        }
    }

    fn generation(&self) -> Generation {
        let moment = self.actor.step(Act::Moment, |step| step.machine.moment());
        moment.unwrap_or_default()
    }

    fn has_flushed(&self, since: Generation) -> bool {
        self.actor.look(|machine| machine.lazy)
            && self
                .actor
                .step(Act::HasFlushed, |step| {
                    let flushed = step.machine.has_flushed(since);
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
            let promised = step.machine.ledger.promise(base_pages);
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
        platform.settle_those(|_| true)
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

    /// Settles the pairs of which `which` says so; says whether there was one.
    pub(crate) fn settle_those(&mut self, which: impl FnMut(Folio) -> bool) -> bool {
        self.settle_taken(|ledger| ledger.take(which))
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

    fn settle(&mut self, mut parked: Parked<Held>, at_once: NonZeroU64) -> bool {
        if parked.is_empty() {
            return false;
        }
        let named: Vec<Folio> = parked.folios().collect();
        // What a settlement cuts off is for the ledger to say, and not for the request.
        let id = self.actor.id;
        let limit = self
            .actor
            .change(|machine| machine.limits.insert(id, at_once.get()));
        self.settles = true;
        self.actor.change(|machine| {
            for folio in &named {
                machine.settled.remove(&folio.page());
            }
        });
        let settled: Settlement = settle(self, &mut parked, at_once);
        self.settles = false;
        self.actor.change(|machine| match limit {
            Some(limit) => machine.limits.insert(id, limit),
            None => machine.limits.remove(&id),
        });
        let act = Act::Ledger { what: "closes" };
        self.actor.step(act, |step| {
            let mut told: Vec<Folio> = settled.outcomes.iter().map(|(folio, _)| *folio).collect();
            told.sort_unstable();
            for (folio, outcome) in &settled.outcomes {
                let moved = *outcome == Outcome::Moved;
                let at = step.machine.settled.get(&folio.page());
                if moved != (at == Some(&Place::Destination)) {
                    let what = format!("{folio:?} is settled as {outcome:?}, and is at {at:?}");
                    step.machine.violated(what);
                }
            }
            if told != named {
                let what = format!("{named:?} were settled and {told:?} told of");
                step.machine.violated(what);
            }
            step.machine.ledger.note(&settled);
            step.machine.ledger.close(parked);
        });
        true
    }
}
