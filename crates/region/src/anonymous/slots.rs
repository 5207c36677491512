//! The slots of a batch: taken before anything is locked, handed to folios, and given back.

use std::num::NonZeroUsize;
use std::ops::Range;

use transhume_engine::{Entry, Failure, Step, Why};
use transhume_sys::CallError;
use transhume_sys::map::{self, LockMode};

use super::pool::FramePool;
use super::session::{Held, Session};
use crate::TABLE_BYTES;
use crate::failure::failed;
use crate::runs::RunSet;
use crate::tier::TierId;

/// Slots for a run of folios.
#[derive(Debug)]
pub(super) struct Ready {
    kind: Kind,
    pool: usize,
    slots: RunSet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Staging,
    Frame,
}

impl Session<'_> {
    /// Takes slots for a run of `folios` from `index` on, as many side by side as there are. What
    /// cannot be had is missing when it is to be reserved.
    pub(super) fn make_ready(&mut self, index: usize, folios: usize, kind: Kind, pool: usize) {
        // The number of the run's first page in the address space.
        let first = self.memory.memory.range().start / self.page() + index;
        let (from, uffd) = (&self.memory.pools[pool], &self.memory.uffd);
        let mut done = 0;
        while done < folios {
            let (want, beside) = (folios - done, first + done);
            let taken = match kind {
                Kind::Staging => from.take_staging(want, beside, uffd),
                Kind::Frame => from.take_frames(want, beside, uffd),
            };
            let Some(slots) = taken else { return };
            done += slots.len();
            self.ready_slots(kind, pool).insert(slots);
        }
    }

    pub(super) fn ready_slots(&mut self, kind: Kind, pool: usize) -> &mut RunSet {
        let known = self
            .ready
            .iter()
            .position(|ready| ready.kind == kind && ready.pool == pool);
        let at = known.unwrap_or_else(|| {
            self.ready.push(Ready {
                kind,
                pool,
                slots: RunSet::default(),
            });
            self.ready.len() - 1
        });
        &mut self.ready[at].slots
    }

    /// Puts slots back that were taken and not reserved.
    pub(super) fn drop_ready(&mut self) {
        self.drop_collapses();
        for Ready { kind, pool, slots } in self.ready.drain(..) {
            let pool = &self.memory.pools[pool];
            for run in slots.iter() {
                match kind {
                    Kind::Staging => pool.put_staging(run),
                    Kind::Frame => pool.put_unused(run),
                }
            }
        }
    }

    /// Reserves slots for a run of folios that lie side by side in the region.
    pub(super) fn reserve_run(&mut self, run: &mut [Entry<Held>], to: TierId) {
        let Some(first) = run.first() else { return };
        let beside = self.address(&first.held) / self.page();
        let modulus = (TABLE_BYTES / self.page()).max(1);
        let target = self.memory.pool_number(to);
        let (in_span, collapses) = (first.held.span.is_some(), first.held.collapse.is_some());
        if !in_span {
            self.reserve_staging(run);
        }
        if !collapses {
            let frames = self.ready_slots(Kind::Frame, target);
            give_slots(
                run,
                |want, at| frames.take_in_phase(want, beside + at, modulus),
                |held, slot| held.frame = slot,
            );
        }
        for entry in run.iter_mut() {
            entry.held.to = to;
            if entry.held.staging.is_none() || entry.held.frame.is_none() {
                entry.fail(Failure::new(Step::Reserve, Why::NoMemory));
            } else if entry.held.mlocked
                && let Err(refused) = self.mlock_slots(&entry.held)
            {
                entry.fail(failed(Step::Reserve, Why::NotPermitted, refused.errno));
            }
        }
    }

    /// Reserves staging slots for a run of folios that lie side by side in the region and are in one
    /// tier.
    pub(super) fn reserve_staging(&mut self, run: &mut [Entry<Held>]) {
        let Some(first) = run.first() else { return };
        let beside = self.address(&first.held) / self.page();
        let modulus = (TABLE_BYTES / self.page()).max(1);
        let source = self.memory.pool_number(first.held.from);
        let staging = self.ready_slots(Kind::Staging, source);
        give_slots(
            run,
            |want, at| staging.take_in_phase(want, beside + at, modulus),
            |held, slot| held.staging = slot,
        );
    }

    /// Locks a folio's slots as the folio is locked: the kernel moves only between such.
    pub(super) fn mlock_slots(&self, held: &Held) -> Result<(), CallError> {
        map::lock(self.slot_bytes(held.staging), LockMode::ON_FAULT)?;
        map::lock(self.slot_bytes(held.frame), LockMode::ON_FAULT)
    }

    /// One that stays locked serves no other folio until it is emptied, which unlocks it.
    pub(super) fn munlock_slots(&self, held: &mut Held) {
        let stays_locked = |slot: Option<NonZeroUsize>| {
            slot.is_some() && map::unlock(self.slot_bytes(slot)).is_err()
        };
        held.soiled.staging |= stays_locked(held.staging);
        held.soiled.frame |= stays_locked(held.frame);
    }
}

/// Hands out slots to a run of folios, as many side by side as `take` finds at a time for what is
/// left of the run from some place on.
fn give_slots(
    run: &mut [Entry<Held>],
    mut take: impl FnMut(usize, usize) -> Option<Range<usize>>,
    mut give: impl FnMut(&mut Held, Option<NonZeroUsize>),
) {
    let mut rest = run;
    let mut at = 0;
    while let Some(slots) = take(rest.len(), at) {
        at += slots.len();
        let (now, later) = rest.split_at_mut(slots.len());
        for (entry, slot) in now.iter_mut().zip(slots) {
            give(&mut entry.held, NonZeroUsize::new(slot));
        }
        rest = later;
    }
}

/// Slots on their way back to a pool, gathered while they lie side by side.
pub(super) struct Returned<'p> {
    run: Option<(&'p FramePool, Range<usize>)>,
    give: fn(&FramePool, Range<usize>),
}

impl<'p> Returned<'p> {
    pub(super) fn new(give: fn(&FramePool, Range<usize>)) -> Self {
        Self { run: None, give }
    }

    pub(super) fn add(&mut self, pool: &'p FramePool, slot: Option<NonZeroUsize>) {
        let Some(slot) = slot.map(NonZeroUsize::get) else {
            return;
        };
        match &mut self.run {
            Some((same, run)) if std::ptr::eq(*same, pool) && run.end == slot => run.end += 1,
            _ => {
                self.flush();
                self.run = Some((pool, slot..slot + 1));
            }
        }
    }

    fn flush(&mut self) {
        if let Some((pool, run)) = self.run.take() {
            (self.give)(pool, run);
        }
    }
}

impl Drop for Returned<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
