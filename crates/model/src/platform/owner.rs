//! Latches that an application has on its pages.

use transhume_engine::{Alone, Failure, Folio, FolioOwner, Place, Refused, Step, Why};

use crate::act::Act;
use crate::actor::Actor;
use crate::bug::Bug;
use crate::machine::Page;

/// The latches, as the engine asks for them.
#[derive(Debug)]
pub(crate) struct Latches {
    actor: Actor,
}

impl Latches {
    pub(crate) fn new(actor: &Actor) -> Self {
        Self {
            actor: actor.clone(),
        }
    }

    /// Not for ever, where calls may fail.
    fn wait_for(&self, folio: Folio) -> Result<(), Refused> {
        let page = folio.page();
        let id = self.actor.id;
        let taken = self.actor.step(Act::Latch { page }, |step| {
            let taken = !step.fails();
            if taken {
                step.machine.latches.insert(page, id);
            }
            taken
        });
        self.answer(page, taken)
    }

    fn answer(&self, page: Page, taken: Option<bool>) -> Result<(), Refused> {
        if taken != Some(false) {
            return Ok(());
        }
        let busy = Failure::new(Step::Unmap, Why::Busy);
        self.actor
            .change(|machine| machine.trail(self.actor.id, page).fail(busy));
        Err(Refused)
    }
}

impl FolioOwner for Latches {
    fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
        self.actor.may_panic();
        if self.actor.look(|machine| machine.has(Bug::SleepsOnLatch)) {
            return self.wait_for(folio);
        }
        let page = folio.page();
        let id = self.actor.id;
        let taken = self.actor.step(Act::TryLatch { page }, |step| {
            let free = !step.machine.latches.contains_key(&page) && !step.fails();
            if free {
                step.machine.latches.insert(page, id);
            } else {
                step.note(|| "refused".to_owned());
            }
            free
        });
        self.answer(page, taken)
    }

    fn detach(&self, folio: Folio, _alone: &Alone) -> Result<(), Refused> {
        let (id, page) = (self.actor.id, folio.page());
        self.actor
            .change(|machine| machine.expect_locks(id, 1, page));
        self.actor.may_panic();
        self.wait_for(folio)
    }

    fn attach(&self, folio: Folio, at: Place) {
        let page = folio.page();
        let id = self.actor.id;
        self.actor.step(Act::Unlatch { page }, |step| {
            step.machine.expect_reachable(id, page);
            step.machine.trail(id, page).attach(at);
            step.machine.latches.remove(&page);
        });
        self.actor.may_panic();
    }
}
