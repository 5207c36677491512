//! Latches that an application has on its pages.

use transhume_engine::{Alone, Folio, FolioOwner, Place, Refused};

use crate::act::Act;
use crate::actor::Actor;
use crate::bug::Bug;

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

    fn wait_for(&self, folio: Folio) {
        let page = folio.page();
        let id = self.actor.id;
        self.actor.step(Act::Latch { page }, |step| {
            step.machine.latches.insert(page, id);
        });
    }
}

impl FolioOwner for Latches {
    fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
        if self.actor.look(|machine| machine.has(Bug::SleepsOnLatch)) {
            self.wait_for(folio);
            return Ok(());
        }
        let page = folio.page();
        let id = self.actor.id;
        let taken = self.actor.step(Act::TryLatch { page }, |step| {
            let free = !step.machine.latches.contains_key(&page);
            if free {
                step.machine.latches.insert(page, id);
            } else {
                step.note(|| "refused".to_owned());
            }
            free
        });
        if taken == Some(false) {
            return Err(Refused);
        }
        Ok(())
    }

    fn detach(&self, folio: Folio, _alone: &Alone) -> Result<(), Refused> {
        let (id, page) = (self.actor.id, folio.page());
        self.actor
            .change(|machine| machine.expect_locks(id, 1, page));
        self.wait_for(folio);
        Ok(())
    }

    fn attach(&self, folio: Folio, _at: Place) {
        let page = folio.page();
        let id = self.actor.id;
        self.actor.step(Act::Unlatch { page }, |step| {
            step.machine.expect_reachable(id, page);
            step.machine.latches.remove(&page);
        });
    }
}
