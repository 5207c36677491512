//! Others who want something of the same memory: a journal, an allocator, direct I/O, the end of a
//! process.

use super::{folio, settle_page};
use crate::act::Act;
use crate::actor::Actor;
use crate::bug::Bug;
use crate::machine::{FrameId, Holder, Page, Pte, SpaceId};
use crate::platform::{Migrator, flush};

pub(super) fn journals(actor: &Actor, pages: &[Page]) {
    let id = actor.id;
    for &page in pages {
        actor.step(Act::Latch { page }, |step| {
            step.machine.latches.insert(page, id);
        });
    }
    for &page in pages.iter().rev() {
        actor.step(Act::Unlatch { page }, |step| {
            step.machine.latches.remove(&page);
        });
    }
}

/// Takes a folio's lock, and has its pair settled if that is what holds it; the frame that it is in.
pub(super) fn lock(actor: &Actor, page: Page) -> Option<FrameId> {
    let id = actor.id;
    loop {
        let locked = actor.step(Act::Lock { page }, |step| {
            let machine = &mut *step.machine;
            if machine.waits(page) {
                return Err(());
            }
            let frame = machine.frame_of(page);
            if machine.objects.contains_key(&page) {
                machine.locks.insert(page, Holder::Actor(id));
            }
            Ok(frame)
        })?;
        match locked {
            Ok(frame) => return frame,
            Err(()) => settle_page(actor, page),
        }
    }
}

pub(super) fn unlock(actor: &Actor, page: Page) {
    actor.step(Act::Unlock { page }, |step| {
        step.machine.locks.remove(&page);
    });
}

pub(super) fn grabs(actor: &Actor, tier: usize, words: usize) {
    let page = Page::MAX;
    let id = actor.id;
    // Pairs may be on their way into the ledger or out of it, so it looks more than once.
    for _ in 0..3 {
        let frame = actor.step(Act::Allocate { tier, page }, |step| {
            step.machine.allocate(tier, words, page)
        });
        let Some(Some(frame)) = frame else {
            if actor.look(|machine| machine.defers) {
                Migrator::new(actor).settle_by_and_by();
            }
            continue;
        };
        let value = actor.step(Act::Scribble { frame }, |step| {
            let value = step.machine.fresh(id);
            step.machine.frames[frame].words.fill(value);
            value
        });
        actor.step(Act::ReadBack { frame }, |step| {
            let words = &step.machine.frames[frame].words;
            if value.is_some_and(|value| words.iter().any(|word| *word != value)) {
                let what = format!("frame {frame} was given away and is still written to");
                step.machine.violated(what);
            }
        });
        actor.step(Act::Free { frame }, |step| step.machine.free(frame));
        return;
    }
}

pub(super) fn pins(actor: &Actor, space: SpaceId, page: Page) {
    let pinned = actor.step(Act::Pin { space, page }, |step| {
        let pte = step.machine.spaces[space].get(&page).copied();
        let Some(Pte::Present {
            frame,
            writable: true,
        }) = pte
        else {
            step.note(|| "not now".to_owned());
            return None;
        };
        step.machine.frames[frame].references += 1;
        step.machine.frames[frame].pins += 1;
        Some(frame)
    });
    let Some(Some(frame)) = pinned else { return };
    let id = actor.id;
    actor.step(Act::StorePinned { frame, page }, |step| {
        let version = step.machine.fresh(id);
        step.machine.frames[frame].words[0] = version;
        step.machine.record_store(page, 0, version);
    });
    actor.step(Act::Unpin { frame }, |step| {
        step.machine.frames[frame].references -= 1;
        step.machine.frames[frame].pins -= 1;
    });
}

pub(super) fn replaces(actor: &Actor, page: Page) {
    let Some(folio) = folio(actor, page) else {
        return;
    };
    // What the bug does not know: that a shootdown is still owed for the page.
    let owes = actor.look(|machine| machine.has(Bug::UnmappedWhileDeferred))
        && actor.step(Act::Lock { page }, |step| step.machine.waits(page)) == Some(true);
    let old = if owes { None } else { lock(actor, page) };
    if old.is_none() && !owes {
        return;
    }
    actor.step(Act::Clear { space: 0, page }, |step| {
        step.machine.replaced.insert(page);
        step.machine.spaces[0].remove(&page);
    });
    if let Some(frame) = old {
        flush(actor, &[0]);
        actor.step(Act::Free { frame }, |step| step.machine.free(frame));
    }
    let id = actor.id;
    actor.step(Act::MapNew { space: 0, page }, |step| {
        let machine = &mut *step.machine;
        machine.replaced.remove(&page);
        let words = machine.objects[&page].stored.len();
        let frame = machine.allocate(0, words, page);
        match frame {
            Some(frame) => machine.fill(folio, frame, &[0], id),
            None => {
                machine.objects.remove(&page);
            }
        }
    });
    if !owes {
        unlock(actor, page);
    }
}

pub(super) fn exits(actor: &Actor, space: SpaceId) {
    let pages: Vec<Page> = actor.look(|machine| machine.spaces[space].keys().copied().collect());
    for page in pages {
        let Some(frame) = lock(actor, page) else {
            return;
        };
        let last = actor.step(Act::Clear { space, page }, |step| {
            let machine = &mut *step.machine;
            machine.spaces[space].remove(&page);
            let object = machine.objects.get_mut(&page)?;
            object.spaces.retain(|other| *other != space);
            Some(object.spaces.is_empty())
        });
        flush(actor, &[space]);
        if last.flatten() == Some(true) {
            actor.step(Act::Free { frame }, |step| {
                step.machine.objects.remove(&page);
                step.machine.free(frame);
            });
        }
        unlock(actor, page);
    }
}

pub(super) fn changes_copier(actor: &Actor) {
    let old = actor.step(Act::ChangeCopier, |step| {
        let old = step.machine.copier;
        step.machine.copier = 1 - old;
        old
    });
    if let Some(copier) = old {
        actor.step(Act::RetireCopier { copier }, |step| {
            step.machine.copies_by[copier] = None;
        });
    }
}
