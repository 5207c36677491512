//! Programs: loads and stores, with the faults that they meet.

use super::settle_page;
use crate::act::Act;
use crate::actor::Actor;
use crate::bug::Bug;
use crate::machine::{Access, CpuId, Machine, Page, Place, SpaceId};

/// A load or a store of a program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) page: Page,
    pub(crate) word: usize,
    pub(crate) store: bool,
}

/// Loads the first word.
pub(crate) const fn load(page: Page) -> Op {
    Op {
        page,
        word: 0,
        store: false,
    }
}

/// Stores to the first word.
pub(crate) const fn store(page: Page) -> Op {
    Op {
        page,
        word: 0,
        store: true,
    }
}

impl Op {
    /// The same with another word.
    pub(crate) const fn of_word(self, word: usize) -> Self {
        Self { word, ..self }
    }
}

/// A load or a store, with the faults that it meets.
pub(super) fn access(actor: &Actor, cpu: CpuId, space: SpaceId, op: Op) {
    let Op { page, word, store } = op;
    let place = Place {
        cpu,
        space,
        page,
        word,
    };
    let id = actor.id;
    loop {
        let accessed = actor.step(Act::Access { place, store }, |step| {
            let accessed = step.machine.access(id, place, store);
            let machine = &*step.machine;
            let text = machine.text_of(accessed, place);
            step.note(|| text);
            accessed
        });
        match accessed {
            None | Some(Access::Done) => return,
            Some(Access::Nothing) => {
                actor.change(|machine| machine.expect_absent(place));
                return;
            }
            Some(Access::Translated) => {}
            Some(Access::Waits { source }) => {
                actor.step(Act::Fault { space, page }, |_| {});
                if actor.look(|machine| machine.has(Bug::FaultTakesReference)) {
                    actor.step(Act::Unpin { frame: source }, |step| {
                        step.machine.frames[source].references -= 1;
                    });
                }
            }
            Some(Access::Held) => {
                let there = actor.step(Act::StoreFault { space, page }, |step| {
                    step.machine.waits(page)
                });
                if there == Some(true) {
                    settle_page(actor, page);
                }
            }
        }
    }
}

impl Machine {
    fn text_of(&self, accessed: Access, place: Place) -> String {
        match accessed {
            Access::Done => {
                let entry = self.translation(place, false);
                entry.map_or("done".to_owned(), |entry| {
                    let value = self.frames[entry.frame].words[place.word];
                    format!("frame {}: {}", entry.frame, crate::machine::name(value))
                })
            }
            Access::Translated => "a walk of the page table".to_owned(),
            Access::Waits { .. } => "fault, waits".to_owned(),
            Access::Held => "fault, stores are held off".to_owned(),
            Access::Nothing => "nothing there".to_owned(),
        }
    }
}
