//! Two folios get each other's frames.

use transhume_engine::{Entry, Exchange, Failure, Side, Step as Stage, Why};

use super::contract::expect_going_on;
use super::copiers::{SwapJob, swap_words};
use super::{Held, Migrator};
use crate::act::Act;
use crate::machine::Pte;

impl Exchange for Migrator {
    type SwapJob = SwapJob;

    fn provision_pairs(&mut self, pairs: &[(transhume_engine::Folio, transhume_engine::Folio)]) {
        self.provide(pairs.len());
        self.actor.may_panic();
        self.await_the_busy();
        let folios: Vec<_> = pairs.iter().flat_map(|&(a, b)| [a, b]).collect();
        self.settle_all_of(&folios);
    }

    fn are_alike(&self, a: &Held, b: &Held) -> bool {
        self.actor.may_panic();
        self.actor
            .look(|machine| machine.frames[a.source].tier == machine.frames[b.source].tier)
    }

    fn pair(&mut self, a: &mut [Entry<Held>], b: &mut [Entry<Held>]) {
        for (a, b) in a.iter_mut().zip(b) {
            self.actor.may_panic();
            if self.actor.look(|machine| machine.failures > 0) {
                for one in [&mut *a, &mut *b] {
                    let frame = one.held.source;
                    let act = Act::Answer { frame };
                    let refused = self.actor.step(act, |step| step.refuses(Why::Again));
                    if let Some(why) = refused.flatten() {
                        self.fail(one, Stage::Reserve, why);
                    }
                }
            }
            (a.held.destination, b.held.destination) = (Some(b.held.source), Some(a.held.source));
            (a.held.exchanges, b.held.exchanges) = (true, true);
        }
    }

    fn swap_job(&mut self, a: &mut Held, b: &mut Held) -> SwapJob {
        self.actor.may_panic();
        let words = self
            .actor
            .look(|machine| machine.frames[a.source].words.len());
        SwapJob {
            a: a.source,
            b: b.source,
            words,
        }
    }

    fn swap_on_cpu(&mut self, a: &mut Held, b: &mut Held) -> Result<(), (Side, Failure)> {
        self.actor.may_panic();
        expect_going_on(&self.actor, a, "swapped");
        expect_going_on(&self.actor, b, "swapped");
        for (side, held) in [(Side::A, &*a), (Side::B, &*b)] {
            self.check_references(held, Stage::Copy)
                .map_err(|failure| (side, failure))?;
        }
        swap_words(&self.actor, a, b);
        self.actor.count(|calls| calls.copied_by_cpu += 1);
        Ok(())
    }

    fn swap_back(&mut self, a: &mut Held, b: &mut Held) {
        self.actor.may_panic();
        swap_words(&self.actor, a, b);
    }

    fn follow(&mut self, held: &mut Held) {
        let (page, Some(frame)) = (held.page, held.destination) else {
            return;
        };
        for &space in &held.spaces {
            self.actor.step(Act::Remap { space, page, frame }, |step| {
                let pte = Pte::Present {
                    frame,
                    writable: true,
                };
                step.machine.spaces[space].insert(page, pte);
            });
        }
        self.reachable(page);
        self.actor.may_panic();
    }
}
