//! Who migrates, and what it keeps of a folio meanwhile.

use transhume_engine::{Entry, Failure, Step as Stage, Why};

use super::owner::Latches;
use crate::act::Act;
use crate::actor::Actor;
use crate::machine::{FrameId, Machine, Page, Pte, SpaceId};

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
    pub(super) exchanges: bool,
    /// Whether it has been left to the ledger, and is mapped somewhere else than at its source, as a pair may be.
    pub(super) parked: bool,
    pub(super) ahead: bool,
    /// Whether the bytes are there already, for the bugs that copy at the wrong time.
    pub(super) early: bool,
    /// Whether a copy has been begun.
    pub(super) copied: bool,
    /// Whether a call has said that it cannot go on.
    pub(super) failed: bool,
}

/// The copy, or the swap, that a folio needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) from: FrameId,
    pub(crate) to: FrameId,
    pub(crate) words: usize,
    pub(super) early: bool,
}

/// The pages that wait for a shootdown, by address space.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    pub(super) spaces: Vec<SpaceId>,
    /// Whether there was no memory for one of the batch: nothing more is cut off then.
    pub(super) ran_out: bool,
}

/// An actor that migrates.
#[derive(Debug)]
pub(crate) struct Migrator {
    pub(crate) actor: Actor,
    pub(super) owner: Option<Latches>,
    /// The folios that were busy when they were tried last.
    pub(super) busy: Vec<Page>,
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

    pub(super) fn held(machine: &Machine, page: Page) -> Result<Held, Failure> {
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
    pub(super) fn is_flushed_alone(&self, base_pages: u64) -> bool {
        base_pages >= 512 && self.actor.look(|machine| machine.flushes_per_table)
    }

    /// How many shootdowns it takes to flush these, which are in order.
    pub(super) fn rounds(&self, entries: &[Entry<Held>]) -> usize {
        if !self.actor.look(|machine| machine.flushes_per_table) {
            return 1;
        }
        let mut tables: Vec<Page> = entries.iter().map(|entry| entry.held.page >> 9).collect();
        tables.dedup();
        tables.len()
    }

    pub(super) fn fail(&self, entry: &mut Entry<Held>, step: Stage, why: Why) {
        entry.held.failed = true;
        entry.fail(self.actor.refuse(entry.held.page, step, why));
    }

    /// A batch of so many begins.
    pub(super) fn provide(&self, count: usize) {
        let id = self.actor.id;
        self.actor.change(|machine| {
            let account = machine.account(id);
            account.calls.batches += 1;
            account.provided += count as u64;
        });
    }

    pub(super) fn put_back(&self, held: &Held, writable: bool) {
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
    pub(super) fn reachable(&self, page: Page) {
        let id = self.actor.id;
        self.actor.change(|machine| machine.reachable(id, page));
    }

    pub(super) fn free(&self, frame: FrameId) {
        self.actor
            .step(Act::Free { frame }, |step| step.machine.free(frame));
    }

    pub(super) fn job_of(&self, held: &mut Held) -> Job {
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
    pub(super) fn check_references(&self, held: &Held, stage: Stage) -> Result<(), Failure> {
        let frame = held.source;
        let refused = self.actor.step(Act::References { frame }, |step| {
            let state = &step.machine.frames[frame];
            let (references, pins) = (state.references, state.pins);
            step.note(|| somebody(references > 0));
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
            Some(why) => Err(self.actor.refuse(held.page, stage, why)),
            None => Ok(()),
        }
    }
}

/// What is answered to who asks who refers to a frame.
pub(super) fn somebody(does: bool) -> String {
    if does { "somebody" } else { "nobody" }.to_owned()
}

/// A shootdown, until all have acknowledged it.
pub(crate) fn flush(actor: &Actor, spaces: &[SpaceId]) {
    let sent = actor.step(Act::Send, |step| {
        let number = step.machine.send(spaces);
        step.note(|| format!("number {number}"));
        number
    });
    if let Some(flush) = sent {
        if actor.id == crate::actor::STAGE {
            actor.change(Machine::interrupt_all);
        }
        actor.step(Act::AwaitFlush { flush }, |step| step.machine.finish(flush));
    }
}

/// There is no such folio any more, or nothing of what is said matters because the run is over.
pub(super) const GONE: Failure = Failure::new(Stage::Lock, Why::Absent);
