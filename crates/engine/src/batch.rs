//! A batch: the folios that are cut off together, walking through the steps as values of different
//! types.
//!
//! # The protocol
//!
//! Holding one of these values proves something about *all* folios in it:
//!
//! | type | what holding it proves |
//! |---|---|
//! | [`Isolated`] | locked by us; a frame at the destination is reserved; still mapped at the source |
//! | [`Unmapped`] | detached by its owner, if it has one; asked to be cut off; a CPU may still reach the source by a stale translation |
//! | [`Flushed`] | no CPU can reach the source by any translation |
//! | [`Copied`] | as before, and the copier is done with every byte it was handed |
//! | [`Remapped`] | reachable at the destination, and nowhere else |
//!
//! A folio for which a step fails does not stay to spoil the proof: it is put back, released and
//! recorded before the next value is made. A value that is dropped puts back every folio in it, except
//! [`Remapped`], whose folios have arrived: dropping it is finishing it. One that is forgotten
//! (`mem::forget`) leaves its folios locked, and perhaps cut off.
//! The value borrows the platform mutably, so nothing else can be locked through it meanwhile.
//!
//! An exchange walks through the same types with [`Pairs`] in place of [`Folios`]. Then whatever
//! they prove they prove of both folios of each pair: a folio that leaves takes its partner with it.
//! The destination of each is the other's frame, so nothing is reserved, and [`Copied`] says that
//! their contents have changed places.

mod kind;
mod pairs;

use alloc::vec::Vec;
use core::time::Duration;

pub use self::kind::{Folios, Kind, Pairs};
pub use self::pairs::Side;
use crate::copier::{Copier, CopyAnswer};
use crate::failure::{Failure, Step, Why};
use crate::folio::Folio;
use crate::owner;
use crate::platform::{Alone, Entry, Place, Platform, Wait};
use crate::report::{Counts, Outcome, Times};

/// The memory that batches work in, kept from one batch to the next: while folios are locked
/// nothing is allocated (\[batch-deadlock\]).
pub struct Work<P: Platform, K: Kind<P> = Folios> {
    pub(crate) entries: Vec<Entry<P::Held>>,
    leaving: Vec<Entry<P::Held>>,
    jobs: Vec<K::Job>,
    answers: Vec<K::Answer>,
    cut_off_since: Option<(u64, Duration)>,
    pub(crate) ended: Vec<(usize, Outcome)>,
    pub(crate) counts: Counts,
    pub(crate) times: Times,
    /// What one folio of a pair met when memory ran out and its partner had arrived already.
    pub(crate) ran_out: Option<Failure>,
    /// How many base pages the last batch cut off, and for how long.
    pub(crate) last_cut_off: Option<(u64, Duration)>,
}

impl<P: Platform, K: Kind<P>> core::fmt::Debug for Work<P, K> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Work")
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl<P: Platform, K: Kind<P>> Work<P, K> {
    /// Room for batches of up to `folios` folios; larger ones make it grow before they lock anything.
    #[must_use]
    pub fn with_capacity(folios: usize) -> Self {
        Self {
            entries: Vec::with_capacity(folios),
            leaving: Vec::with_capacity(folios),
            jobs: Vec::with_capacity(folios),
            answers: Vec::with_capacity(folios),
            cut_off_since: None,
            ended: Vec::with_capacity(folios),
            counts: Counts::default(),
            times: Times::default(),
            ran_out: None,
            last_cut_off: None,
        }
    }

    /// Takes what became of each folio since the last call: the index it was given in, and the
    /// outcome.
    pub fn take_ended(&mut self) -> impl Iterator<Item = (usize, Outcome)> + '_ {
        self.ended.drain(..)
    }

    /// What was counted over all batches so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(crate) fn make_room(&mut self, folios: usize) {
        self.entries.reserve(folios);
        self.leaving.reserve(folios);
        self.jobs.reserve(folios);
        self.answers.reserve(folios);
        self.ended.reserve(folios);
    }
}

/// Gives up the lock that was taken last; nothing has been done with its folio. Like any other it stays in
/// the batch until the platform takes it, so that one that panics before leaves no lock behind.
fn release_last<P: Platform>(
    platform: &mut P,
    entries: &mut Vec<Entry<P::Held>>,
    mut taken: impl FnMut(usize),
) {
    let mut released = core::iter::from_fn(|| {
        let entry = entries.pop()?;
        taken(entry.index);
        Some((entry.folio(), entry.held))
    })
    .take(1);
    platform.release(&mut released, Place::Source);
}

/// What all types share: the folios still in the batch, and the duty to put them back.
pub(crate) struct Batch<'p, P: Platform, K: Kind<P> = Folios> {
    pub(crate) platform: &'p mut P,
    pub(crate) work: &'p mut Work<P, K>,
    pub(crate) step: Step,
    pub(crate) place: Place,
}

impl<P: Platform, K: Kind<P>> Batch<'_, P, K> {
    /// Lets those leave for which this step failed: put back, released, recorded.
    pub(crate) fn part_with_failed(&mut self) {
        self.take_out_failed();
        self.put_back_leaving();
    }

    fn take_out_failed(&mut self) {
        let work = &mut *self.work;
        K::leave_together(&mut work.entries, self.step);
        work.leaving
            .extend(work.entries.extract_if(.., |entry| !entry.is_alive()));
    }

    fn put_back_leaving(&mut self) {
        let work = &mut *self.work;
        if work.leaving.is_empty() {
            return;
        }
        if self.step > Step::Lock {
            K::undo(self.platform, &mut work.leaving);
            self.platform.putback(&mut work.leaving);
            work.counts.putbacks += work.leaving.len() as u64;
        }
        owner::attach(self.platform, &mut work.leaving, Place::Source);
        // Reversed, so that popping keeps the order. What a panicking platform did not take stays.
        work.leaving.reverse();
        let (leaving, ended) = (&mut work.leaving, &mut work.ended);
        let mut released = core::iter::from_fn(|| {
            let entry = leaving.pop()?;
            ended.push((entry.index, Outcome::Stayed(entry.failure_or(self.step))));
            Some((entry.folio(), entry.held))
        });
        self.platform.release(&mut released, Place::Source);
    }

    /// Once the batch is where it goes: nobody in it stays cut off.
    fn bring_in(&mut self) {
        if self.place == Place::Destination {
            K::bring_in(self.platform, &mut self.work.entries);
        }
    }

    fn release_moved(&mut self) {
        let work = &mut *self.work;
        if work.entries.is_empty() {
            return;
        }
        owner::attach(self.platform, &mut work.entries, Place::Destination);
        work.entries.reverse();
        let (entries, ended) = (&mut work.entries, &mut work.ended);
        let mut released = core::iter::from_fn(|| {
            let entry = entries.pop()?;
            ended.push((entry.index, Outcome::Moved));
            Some((entry.folio(), entry.held))
        });
        self.platform.release(&mut released, Place::Destination);
    }

    /// What is cut off for the folios that are alive.
    fn base_pages_cut_off(&self) -> u64 {
        let mut before = None;
        let alive = self.work.entries.iter().filter(|entry| entry.is_alive());
        alive
            .map(|entry| {
                let folio = entry.folio();
                K::cut_off_with(self.platform, before.replace(folio), folio)
            })
            .fold(0, u64::saturating_add)
    }

    /// Before anything is cut off, so that no access waits while the owner is asked.
    pub(crate) fn detach(&mut self, wait: &Wait) {
        if let Some(owner) = self.platform.owner() {
            owner::detach(owner, &mut self.work.entries, wait);
            self.part_with_failed();
        }
    }

    fn end_cut_off(&mut self) {
        if let Some((base_pages, since)) = self.work.cut_off_since.take() {
            let cut_off = self.platform.now().saturating_sub(since);
            if base_pages > 0 {
                self.work.last_cut_off = Some((base_pages, cut_off));
            }
            self.work.times.longest_cut_off = self.work.times.longest_cut_off.max(cut_off);
        }
    }
}

impl<P: Platform, K: Kind<P>> Drop for Batch<'_, P, K> {
    fn drop(&mut self) {
        let work = &mut *self.work;
        work.jobs.clear();
        if self.place == Place::Source {
            K::undo(self.platform, &mut work.leaving);
            K::undo(self.platform, &mut work.entries);
            // Those that were leaving when the platform panicked are still there.
            work.leaving.append(&mut work.entries);
        }
        // Those that a panicking platform has not brought in are unlocked below like the others.
        self.bring_in();
        self.put_back_leaving();
        self.release_moved();
        self.end_cut_off();
    }
}

/// Locked folios with a frame reserved at the destination, still mapped at the source.
#[must_use = "dropping a batch puts every folio back"]
pub struct Isolated<'p, P: Platform, K: Kind<P> = Folios> {
    pub(crate) batch: Batch<'p, P, K>,
    pub(crate) wait: Wait,
}

/// Folios that were asked to be cut off; stale translations may still exist.
#[must_use = "dropping a batch puts every folio back"]
pub struct Unmapped<'p, P: Platform, K: Kind<P> = Folios> {
    batch: Batch<'p, P, K>,
    gather: P::Gather,
}

/// Folios that no CPU can reach any more.
#[must_use = "dropping a batch puts every folio back"]
pub struct Flushed<'p, P: Platform, K: Kind<P> = Folios> {
    pub(crate) batch: Batch<'p, P, K>,
}

/// Folios whose copies the copier has answered for.
#[must_use = "dropping a batch puts every folio back"]
pub struct Copied<'p, P: Platform, K: Kind<P> = Folios> {
    pub(crate) batch: Batch<'p, P, K>,
}

/// Folios that are reachable at their destination.
#[must_use = "the locks are held until the batch is finished or dropped"]
pub struct Remapped<'p, P: Platform, K: Kind<P> = Folios> {
    batch: Batch<'p, P, K>,
}

/// What can be asked of a batch at any step.
macro_rules! batch_common {
    ($name:ident<$($parameter:ident: $bound:path),+>) => {
        impl<$($parameter: $bound),+> core::fmt::Debug for $name<'_, $($parameter),+> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.len()).finish()
            }
        }

        impl<$($parameter: $bound),+> $name<'_, $($parameter),+> {
            /// How many folios are in the batch.
            #[must_use]
            pub fn len(&self) -> usize {
                self.batch.work.entries.len()
            }

            /// Whether every folio has left the batch.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.batch.work.entries.is_empty()
            }
        }
    };
}
pub(crate) use batch_common;

batch_common!(Isolated<P: Platform, K: Kind<P>>);
batch_common!(Unmapped<P: Platform, K: Kind<P>>);
batch_common!(Flushed<P: Platform, K: Kind<P>>);
batch_common!(Copied<P: Platform, K: Kind<P>>);
batch_common!(Remapped<P: Platform, K: Kind<P>>);

impl<'p, P: Platform> Isolated<'p, P> {
    /// Isolates many folios: try-locks each, leaves those that are busy, and reserves frames at
    /// `to`. Each comes with the index under which its outcome is recorded.
    pub fn gather(
        platform: &'p mut P,
        work: &'p mut Work<P>,
        folios: &[(usize, Folio)],
        to: P::Tier,
    ) -> Self {
        work.make_room(folios.len());
        let mut batch = Batch {
            platform,
            work,
            step: Step::Lock,
            place: Place::Source,
        };
        for &(index, folio) in folios {
            let locked = batch.platform.try_lock(folio);
            batch.admit(index, folio, locked, to);
        }
        batch.reserve(to, Wait::Never)
    }

    /// Isolates one folio, and may wait for its lock and for memory: nothing else is held.
    pub fn alone(
        platform: &'p mut P,
        work: &'p mut Work<P>,
        index: usize,
        folio: Folio,
        to: P::Tier,
    ) -> Self {
        work.make_room(1);
        let mut batch = Batch {
            platform,
            work,
            step: Step::Lock,
            place: Place::Source,
        };
        let alone = Alone(());
        let locked = batch.platform.lock(folio, &alone);
        batch.admit(index, folio, locked, to);
        batch.reserve(to, Wait::May(alone))
    }

    /// All steps from here to the end; returns how many moved.
    pub(crate) fn walk<C: Copier<P::Job> + ?Sized>(self, copier: &C) -> usize {
        self.unmap().shootdown().copy(copier).remap().finish()
    }
}

impl<'p, P: Platform, K: Kind<P>> Isolated<'p, P, K> {
    /// Asks the owner, if there is one, and cuts the folios off, into one gather.
    pub fn unmap(self) -> Unmapped<'p, P, K> {
        let Self { mut batch, wait } = self;
        batch.step = Step::Unmap;
        batch.detach(&wait);
        let since = batch.platform.now();
        let mut gather = P::Gather::default();
        let mut out_of_memory = false;
        for entry in &mut batch.work.entries {
            if out_of_memory {
                // What is cut off is finished, but nothing more is.
                entry.fail(Failure::new(Step::Unmap, Why::NotTried));
                continue;
            }
            let folio = entry.folio();
            let unmapped = batch
                .platform
                .unmap(folio, &mut entry.held, &mut gather, &wait);
            if let Err(failure) = unmapped {
                out_of_memory = failure.why == Why::NoMemory;
                entry.fail(failure);
            }
        }
        let base_pages = batch.base_pages_cut_off();
        if base_pages > 0 {
            batch.work.cut_off_since = Some((base_pages, since));
        }
        batch.part_with_failed();
        Unmapped { batch, gather }
    }
}

impl<'p, P: Platform> Batch<'p, P> {
    /// Hands every eligible folio to the copier as one list.
    pub(crate) fn copy<C: Copier<P::Job> + ?Sized>(&mut self, copier: &C) {
        self.step = Step::Copy;
        let began = self.platform.now();
        let work = &mut *self.work;
        for entry in &mut work.entries {
            let folio = entry.folio();
            // The mark says "its job is in the list" until the answers are in.
            entry.copied = self.platform.is_eligible(folio, &entry.held);
            if entry.copied {
                work.jobs.push(self.platform.job(folio, &mut entry.held));
            }
        }
        if !work.jobs.is_empty() {
            work.answers.clear();
            work.answers
                .resize(work.jobs.len(), CopyAnswer::Unconfirmed);
            copier.copy(&work.jobs, &mut work.answers);
            work.jobs.clear();
        }
        let mut answers = work.answers.drain(..);
        for entry in work.entries.iter_mut().filter(|entry| entry.copied) {
            let answer = answers.next().unwrap_or_default();
            entry.copied = answer == CopyAnswer::Copied;
            work.counts.count_answer(answer);
        }
        drop(answers);
        work.times.copy += self.platform.now().saturating_sub(began);
    }

    /// Copies on the CPU what the copier has not confirmed.
    pub(crate) fn copy_the_rest(&mut self) {
        self.step = Step::Copy;
        let began = self.platform.now();
        let work = &mut *self.work;
        let mut by_cpu = 0;
        for entry in &mut work.entries {
            if entry.copied {
                continue;
            }
            let folio = entry.folio();
            match self.platform.copy_on_cpu(folio, &mut entry.held) {
                Ok(()) => {
                    entry.copied = true;
                    by_cpu += 1;
                }
                Err(failure) => entry.fail(failure),
            }
        }
        work.counts.copied_by_cpu += by_cpu;
        work.times.copy += self.platform.now().saturating_sub(began);
        self.part_with_failed();
    }

    fn admit(&mut self, index: usize, folio: Folio, locked: Result<P::Held, Failure>, to: P::Tier) {
        match locked {
            Err(failure) => self.work.ended.push((index, Outcome::Stayed(failure))),
            Ok(held) => {
                // In the batch at once, so that a platform that panics leaves no lock behind.
                self.work.entries.push(Entry::new(index, folio, held));
                self.part_with_last_if_at(to);
            }
        }
    }

    fn part_with_last_if_at(&mut self, to: P::Tier) {
        if let Some(last) = self.work.entries.last()
            && self.platform.is_in(last.folio(), &last.held, to)
        {
            let (entries, ended) = (&mut self.work.entries, &mut self.work.ended);
            release_last(self.platform, entries, |index| {
                ended.push((index, Outcome::AlreadyThere));
            });
        }
    }

    fn reserve(mut self, to: P::Tier, wait: Wait) -> Isolated<'p, P> {
        self.step = Step::Reserve;
        if !self.work.entries.is_empty() {
            self.platform.reserve(&mut self.work.entries, to, &wait);
            self.part_with_failed();
        }
        Isolated { batch: self, wait }
    }
}

impl<'p, P: Platform, K: Kind<P>> Unmapped<'p, P, K> {
    /// One shootdown for the whole gather (\[batch-flush\]).
    pub fn shootdown(self) -> Flushed<'p, P, K> {
        let Self { mut batch, gather } = self;
        batch.step = Step::Shootdown;
        if !batch.work.entries.is_empty() {
            batch.work.counts.rounds += 1;
            batch.platform.shootdown(gather, &mut batch.work.entries);
            batch.part_with_failed();
            // Where unmap only gathers, those that failed here never were cut off.
            let base_pages = batch.base_pages_cut_off();
            if let Some((cut_off, _)) = &mut batch.work.cut_off_since {
                *cut_off = base_pages;
            }
        }
        Flushed { batch }
    }
}

impl<'p, P: Platform> Flushed<'p, P> {
    /// Hands every eligible folio to the copier as one list (\[offload\]). What the copier does not
    /// confirm stays in the batch and is copied by the CPU in the next step.
    pub fn copy<C: Copier<P::Job> + ?Sized>(self, copier: &C) -> Copied<'p, P> {
        let Self { mut batch } = self;
        batch.copy(copier);
        Copied { batch }
    }
}

impl<'p, P: Platform> Copied<'p, P> {
    /// Copies on the CPU what is not confirmed, then makes every folio reachable at its
    /// destination. A copied mark is used once: it does not outlive this step.
    pub fn remap(self) -> Remapped<'p, P> {
        let Self { mut batch } = self;
        batch.copy_the_rest();
        // The mark is used once.
        batch
            .work
            .entries
            .iter_mut()
            .for_each(|entry| entry.copied = false);
        batch.step = Step::Remap;
        if !batch.work.entries.is_empty() {
            batch.platform.remap(&mut batch.work.entries);
        }
        batch.take_out_failed();
        // From here on those in the batch have arrived, even if putting back the others panics.
        batch.place = Place::Destination;
        batch.put_back_leaving();
        batch.end_cut_off();
        Remapped { batch }
    }
}

impl<P: Platform, K: Kind<P>> Remapped<'_, P, K> {
    /// Records the folios as moved and gives up their locks; returns how many moved.
    pub fn finish(self) -> usize {
        let mut batch = self.batch;
        let moved = batch.work.entries.len();
        batch.release_moved();
        moved
    }
}
