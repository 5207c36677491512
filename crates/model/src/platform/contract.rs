//! What the engine owes a platform, looked at in each call.

use transhume_engine::{Entry, Folio};

use super::Held;
use crate::actor::Actor;
use crate::machine::{ActorId, Holder, Machine, Page, Pte};

/// Every entry is alive when a call begins.
pub(super) fn expect_alive(actor: &Actor, entries: &[Entry<Held>], call: &str) {
    if let Some(entry) = entries.iter().find(|entry| !entry.is_alive()) {
        let folio = entry.folio();
        violated(actor, format!("{folio:?} has failed and comes to {call}"));
    }
}

/// What has failed is put back and let go, and comes to no other step.
pub(super) fn expect_going_on(actor: &Actor, held: &Held, what: &str) {
    if held.failed {
        violated(
            actor,
            format!("page {} has failed and is {what}", held.page),
        );
    }
}

/// When memory has run out what is cut off is finished, and no more is.
pub(super) fn expect_memory(actor: &Actor, ran_out: bool, held: &Held) {
    if ran_out {
        violated(
            actor,
            format!("page {} is unmapped when memory has run out", held.page),
        );
    }
}

/// Those that come next are named as far as there is room for them.
pub(super) fn expect_room_ahead(actor: &Actor, ahead: &[Folio]) {
    let base_pages: u64 = ahead.iter().map(|folio| folio.base_pages()).sum();
    let room = actor.look(|machine| machine.ledger.room());
    if base_pages > room {
        violated(
            actor,
            format!("{base_pages} base pages are to come next, and there is room for {room}"),
        );
    }
}

fn violated(actor: &Actor, what: String) {
    if !actor.is_over() {
        actor.change(|machine| machine.violated(what));
    }
}

impl Machine {
    /// Nothing is done with a folio but by who has its lock.
    pub(super) fn expect_lock(&mut self, actor: ActorId, page: Page, what: &str) {
        if self.locks.get(&page) != Some(&Holder::Actor(actor)) {
            self.violated(format!("page {page} is {what} by who has not its lock"));
        }
    }

    /// Who may wait holds nothing (\[batch-deadlock\]), or one folio if it is that one's latch.
    pub(super) fn expect_locks(&mut self, actor: ActorId, most: usize, page: Page) {
        let mine = |holder: &&Holder| **holder == Holder::Actor(actor);
        let held = self.locks.values().filter(mine).count();
        if held > most {
            self.violated(format!(
                "page {page} is waited for while {held} folios are locked"
            ));
        }
    }

    /// What has an owner is cut off, and switched, only when that has let go of it.
    pub(super) fn expect_detached(&mut self, actor: ActorId, page: Page) {
        if self.owned && self.latches.get(&page) != Some(&actor) {
            self.violated(format!(
                "page {page} is cut off or switched, and its owner was not asked"
            ));
        }
    }

    /// And is given back before it is unlocked.
    pub(super) fn expect_attached(&mut self, actor: ActorId, page: Page) {
        if self.owned && self.latches.get(&page) == Some(&actor) {
            self.violated(format!(
                "page {page} is unlocked, and its owner was not told"
            ));
        }
    }

    /// An owner is told of what was asked of it, when it is reachable again.
    pub(super) fn expect_reachable(&mut self, actor: ActorId, page: Page) {
        if self.latches.get(&page) != Some(&actor) {
            self.violated(format!("page {page} is given back to its owner twice"));
        }
        let cut_off = |table: &std::collections::BTreeMap<Page, Pte>| {
            matches!(table.get(&page), Some(Pte::Migrating { .. }))
        };
        if self.spaces.iter().any(cut_off) {
            self.violated(format!(
                "page {page} is given back to its owner and cut off"
            ));
        }
    }

    /// No more waits than may.
    pub(super) fn expect_room(&mut self) {
        let waits = self.pairs.base_pages();
        let limit = self.ledger.limit().get();
        if waits > limit {
            self.violated(format!("pairs of {waits} base pages wait, and {limit} may"));
        }
    }
}
