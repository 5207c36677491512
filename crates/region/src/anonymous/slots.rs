//! The slots of a batch: taken before anything is locked, handed to folios, and given back.

use std::num::NonZeroUsize;
use std::ops::Range;

use transhume_engine::{Entry, Failure, Step, Why};
use transhume_sys::CallError;
use transhume_sys::map::{self, LockMode};

use super::pool::FramePool;
use super::session::{Held, Session, slots_adjacent};
use crate::TABLE_BYTES;
use crate::failure::failed;
use crate::free_runs::FreeRuns;
use crate::runs::by_run_or_each;
use crate::tier::TierId;

/// Slots for a run of folios.
#[derive(Debug)]
pub(super) struct Ready {
    kind: Kind,
    pool: usize,
    slots: FreeRuns,
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

    pub(super) fn ready_slots(&mut self, kind: Kind, pool: usize) -> &mut FreeRuns {
        let known = self
            .ready
            .iter()
            .position(|ready| ready.kind == kind && ready.pool == pool);
        let at = known.unwrap_or_else(|| {
            self.ready.push(Ready {
                kind,
                pool,
                slots: FreeRuns::default(),
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
            }
        }
        self.mlock_slots(run, |held| held.mlocked, Step::Reserve);
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

    /// Locks slots as their folios are locked, those that are `wanted`: the kernel moves only between
    /// such. A folio for which that is refused fails at this step.
    pub(super) fn mlock_slots(
        &self,
        entries: &mut [Entry<Held>],
        wanted: impl Fn(&Held) -> bool,
        step: Step,
    ) {
        for slot in [of_staging, of_frame] {
            self.mlock(entries, slot, &wanted, step);
        }
    }

    /// The same, of one kind of slots.
    pub(super) fn mlock(
        &self,
        entries: &mut [Entry<Held>],
        slot: SlotOf,
        wanted: impl Fn(&Held) -> bool,
        step: Step,
    ) {
        let wanted = |entry: &Entry<Held>| entry.is_alive() && wanted(&entry.held);
        let lock = |slots| map::lock(slots, LockMode::ON_FAULT);
        self.by_runs(entries, slot, wanted, lock, |entry, refused| {
            entry.fail(failed(step, Why::NotPermitted, refused.errno));
        });
    }

    /// Makes a call for slots that are `wanted`: one for those that lie side by side, and if that is
    /// refused one for each. Says for which that was refused too.
    pub(super) fn by_runs(
        &self,
        entries: &mut [Entry<Held>],
        slot: SlotOf,
        wanted: impl Fn(&Entry<Held>) -> bool,
        call: impl Fn(Range<usize>) -> Result<(), CallError>,
        mut refused: impl FnMut(&mut Entry<Held>, CallError),
    ) {
        let runs = entries.chunk_by_mut(|a, b| {
            wanted(a) && wanted(b) && slots_adjacent(slot(&a.held), slot(&b.held))
        });
        for run in runs {
            let Some(first) = run.first().filter(|first| wanted(first)) else {
                continue;
            };
            let (start, page) = (self.slot_address(slot(&first.held)), self.page());
            let call =
                |part: Range<usize>| call(start + part.start * page..start + part.end * page);
            by_run_or_each(0..run.len(), call, |part, answer| {
                if let Err(error) = answer {
                    refused(&mut run[part.start], error);
                }
            });
        }
    }
}

/// One of the slots of a folio.
pub(super) type SlotOf = fn(&Held) -> Option<NonZeroUsize>;

pub(super) fn of_staging(held: &Held) -> Option<NonZeroUsize> {
    held.staging
}

pub(super) fn of_frame(held: &Held) -> Option<NonZeroUsize> {
    held.frame
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
    run: Option<(&'p FramePool, Range<usize>, IsLocked)>,
    give: fn(&FramePool, Range<usize>),
    /// For one that stays locked into memory: it serves no other folio until it is emptied, which
    /// unlocks it.
    give_soiled: fn(&FramePool, Option<NonZeroUsize>),
}

/// Whether slots may be locked into memory.
type IsLocked = bool;

impl<'p> Returned<'p> {
    pub(super) fn staging(give: fn(&FramePool, Range<usize>)) -> Self {
        Self {
            run: None,
            give,
            give_soiled: FramePool::put_soiled_staging,
        }
    }

    pub(super) fn frames(give: fn(&FramePool, Range<usize>)) -> Self {
        Self {
            run: None,
            give,
            give_soiled: FramePool::put_soiled,
        }
    }

    pub(super) fn add(
        &mut self,
        pool: &'p FramePool,
        slot: Option<NonZeroUsize>,
        is_locked: IsLocked,
    ) {
        let Some(slot) = slot.map(NonZeroUsize::get) else {
            return;
        };
        match &mut self.run {
            Some((same, run, locked))
                if std::ptr::eq(*same, pool) && run.end == slot && *locked == is_locked =>
            {
                run.end += 1;
            }
            _ => {
                self.flush();
                self.run = Some((pool, slot..slot + 1, is_locked));
            }
        }
    }

    pub(super) fn add_soiled(&self, pool: &FramePool, slot: Option<NonZeroUsize>) {
        (self.give_soiled)(pool, slot);
    }

    fn flush(&mut self) {
        let Some((pool, run, is_locked)) = self.run.take() else {
            return;
        };
        if !is_locked {
            return (self.give)(pool, run);
        }
        let munlock = |slots| pool.munlock(&slots);
        by_run_or_each(run, munlock, |slots, unlocked| match unlocked {
            Ok(()) => (self.give)(pool, slots),
            Err(_) => (self.give_soiled)(pool, NonZeroUsize::new(slots.start)),
        });
    }
}

impl Drop for Returned<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
