//! Migration in two halves, with one shootdown for many folios (\[deferred-flush\]).
//!
//! A folio to which nobody can store may be in two places: a stale translation then still reads right
//! data. So its contents are copied while readers go on, the two frames become a pair in a
//! [`Ledger`], and the switch of many pairs is made by one shootdown, later.
//!
//! ```text
//! Isolated -> Holding -> Duplicated -> (ledger) -> Isolated -> Unmapped -> Flushed -> Remapped
//! ```
//!
//! | step | platform |
//! |---|---|
//! | hold stores off | [`Deferral::hold`]: write-protects, and invalidates what allows stores |
//! | copy | as in any batch |
//! | park | [`Deferral::park`]: the folio stays locked, and others can tell why |
//! | settle | [`Deferral::take_up`], then unmap, one shootdown, remap as in any batch, without a copy |
//!
//! # When a pair settles
//!
//! Whoever is about to do one of these settles it first: a store to the folio, reuse of its source
//! frame, another migration or an exchange of it, unmapping its range. The engine settles when the
//! ledger has no [room](Waiting::make_room); age and memory pressure are looked at by whoever keeps the
//! ledger. A pair whose translations a shootdown for another reason has
//! [flushed](Deferral::has_flushed) needs none of its own.
//!
//! A parked folio is locked, but nobody has to wait for it: who wants it takes it out of the ledger
//! and settles it. So many of them do not break the lock rule (\[batch-deadlock\]).

use alloc::vec::Vec;
use core::marker::PhantomData;
use core::num::NonZeroU64;
use core::time::Duration;

use crate::batch::{Batch, Copied, Isolated, Work, batch_common};
use crate::copier::Copier;
use crate::failure::Step;
use crate::folio::Folio;
use crate::generation::Generation;
use crate::ledger::{Ledger, Pair, Parked};
use crate::migrate::{Request, Walk, serve};
use crate::platform::{Entry, Place, Platform, Wait};
use crate::report::{Began, Counts, Outcome, Report, Times};

/// What deferral asks of whoever owns the page tables, beyond [`Platform`].
///
/// For its folios [`Platform::putback`] also lets stores go on, and the source frame may be read
/// by programs until the folio is released at its destination.
///
/// A platform that maps a parked folio at its destination already, so that only stale translations are left to
/// flush, has two more things to see to. When such a folio is put back, translations to the destination are gone before
/// stores go on. And a shootdown that did not reach all CPUs that could have a translation, of whichever
/// address space, does not count for [`has_flushed`](Deferral::has_flushed).
pub trait Deferral: Platform {
    /// Makes sure that no CPU can store to the folios, by any translation, while readers go on; a
    /// store waits until the folio is released. One shootdown at most for all of them. A folio for
    /// which that is not possible is marked as failed.
    ///
    /// `ahead` are the folios that the request names next. The platform may hold stores off from some of
    /// them too, if that saves shootdowns; they are not locked, so it must be able to tell later
    /// whether a store has been let through.
    fn hold(&mut self, entries: &mut [Entry<Self::Held>], ahead: &[Folio]);

    /// The folios go to the ledger: locked still, but whoever wants one may have it settled. If this or
    /// what follows it unwinds before they are recorded there, [`Platform::putback`] comes for them
    /// as they are.
    fn park(&mut self, entries: &mut [Entry<Self::Held>]);

    /// The folios have come out of the ledger to be settled: a batch under way has them now. What
    /// cannot be switched is marked as failed and put back.
    fn take_up(&mut self, entries: &mut [Entry<Self::Held>]);

    /// This moment, among the shootdowns of the machine.
    fn generation(&self) -> Generation {
        Generation::default()
    }

    /// Whether a shootdown that began after that moment, for any reason, has finished on every CPU
    /// that could hold a translation to the sources. Where every switch of a page table flushes by
    /// itself, as in user space, none does.
    fn has_flushed(&self, _since: Generation) -> bool {
        false
    }
}

/// Where pairs wait, as a request sees it. A [`Ledger`] is one; a platform that shares its ledger
/// between threads makes its own.
pub trait Waiting<P: Deferral> {
    /// Promises room for pairs of so many base pages, and settles what it takes. `false` if the folios
    /// are not to be deferred now, as under memory pressure: they are migrated at once then.
    fn make_room(&mut self, platform: &mut P, base_pages: u64) -> bool;

    /// Settles all that waits, because there was no memory for more; says whether anything did.
    fn relieve(&mut self, platform: &mut P) -> bool;

    /// How many base pages could be promised now.
    fn room(&self) -> u64;

    /// Takes over pairs, under a promise. Must not allocate, as the folios are locked.
    fn record(
        &mut self,
        entries: &mut dyn Iterator<Item = Entry<P::Held>>,
        recorded: Generation,
        since: Duration,
    );

    /// Gives back what was promised and not recorded.
    fn withdraw(&mut self, base_pages: u64);
}

/// Serves a request as [`migrate`](crate::migrate) does, but leaves its folios in `pairs`: their
/// outcome is [`Outcome::Deferred`], and they may have settled by the time the report is there. Batches
/// that are not to wait are migrated at once. It never waits for a folio, whatever the request's mode.
pub fn defer<P, C>(
    platform: &mut P,
    copier: &C,
    request: Request<P::Tier>,
    pairs: &mut impl Waiting<P>,
) -> Report<P::Tier>
where
    P: Deferral,
    C: Copier<P::Job> + ?Sized,
{
    let request = Request {
        mode: crate::Mode::Async,
        ..request
    };
    let later = Later {
        pairs,
        promised: 0,
        platform: PhantomData,
    };
    serve(platform, copier, request, later)
}

/// A batch whose switch waits.
struct Later<'l, P: Deferral, L: Waiting<P>> {
    pairs: &'l mut L,
    /// Base pages for this batch; none if it is not to wait.
    promised: u64,
    platform: PhantomData<fn(P)>,
}

impl<P: Deferral, C: Copier<P::Job> + ?Sized, L: Waiting<P>> Walk<P, C> for Later<'_, P, L> {
    fn begin(&mut self, platform: &mut P, folios: &[Folio]) {
        let base_pages = folios.iter().map(|folio| folio.base_pages()).sum();
        let promised = self.pairs.make_room(platform, base_pages);
        self.promised = if promised { base_pages } else { 0 };
    }

    fn relieve(&mut self, platform: &mut P) -> bool {
        self.pairs.relieve(platform)
    }

    fn walk(&mut self, isolated: Isolated<'_, P>, ahead: &[Folio], copier: &C) -> usize {
        if self.promised == 0 {
            return isolated.walk(copier);
        }
        let mut room = self.pairs.room();
        let fit = ahead.iter().take_while(|folio| {
            let left = room.checked_sub(folio.base_pages());
            left.map(|left| room = left).is_some()
        });
        let ahead = &ahead[..fit.count()];
        let duplicated = isolated.hold(ahead).copy(copier);
        let Self {
            pairs, promised, ..
        } = self;
        duplicated.park(|entries, recorded, since| {
            let mut counted = entries.inspect(|entry| {
                *promised = promised.saturating_sub(entry.folio().base_pages());
            });
            pairs.record(&mut counted, recorded, since);
        });
        self.withdraw();
        0
    }
}

impl<P: Deferral, L: Waiting<P>> Later<'_, P, L> {
    fn withdraw(&mut self) {
        self.pairs.withdraw(core::mem::take(&mut self.promised));
    }
}

impl<P: Deferral, L: Waiting<P>> Drop for Later<'_, P, L> {
    fn drop(&mut self) {
        // Only a platform that panicked leaves something.
        self.withdraw();
    }
}

/// Folios to which no CPU can store, and which readers go on reading at their source.
#[must_use = "dropping a batch puts every folio back"]
pub struct Holding<'p, P: Deferral> {
    batch: Batch<'p, P>,
}

/// Folios whose copies the copier has answered for, and which nobody can have changed since.
#[must_use = "dropping a batch puts every folio back"]
pub struct Duplicated<'p, P: Deferral> {
    batch: Batch<'p, P>,
}
batch_common!(Holding<P: Deferral>);
batch_common!(Duplicated<P: Deferral>);

impl<'p, P: Deferral> Isolated<'p, P> {
    /// Holds stores off. `ahead` are the folios that the caller will come to next.
    pub fn hold(self, ahead: &[Folio]) -> Holding<'p, P> {
        let Self { mut batch, .. } = self;
        batch.step = Step::Unmap;
        if !batch.work.entries.is_empty() {
            batch.work.counts.holds += 1;
            batch.platform.hold(&mut batch.work.entries, ahead);
            batch.part_with_failed();
        }
        Holding { batch }
    }
}

impl<'p, P: Deferral> Holding<'p, P> {
    /// Hands every eligible folio to the copier as one list, while readers go on.
    pub fn copy<C: Copier<P::Job> + ?Sized>(self, copier: &C) -> Duplicated<'p, P> {
        let Self { mut batch } = self;
        batch.copy(copier);
        Duplicated { batch }
    }
}

impl<P: Deferral> Duplicated<'_, P> {
    /// Copies on the CPU what is not confirmed, and hands the pairs over to a ledger by `record`, with
    /// the moment by the machine's shootdowns and by the platform's clock.
    pub fn park(
        self,
        record: impl FnOnce(&mut dyn Iterator<Item = Entry<P::Held>>, Generation, Duration),
    ) {
        let Self { mut batch } = self;
        batch.copy_the_rest();
        batch.step = Step::Remap;
        if batch.work.entries.is_empty() {
            return;
        }
        batch.platform.park(&mut batch.work.entries);
        batch.part_with_failed();
        let (recorded, since) = (batch.platform.generation(), batch.platform.now());
        let work = &mut *batch.work;
        let ended = &mut work.ended;
        let mut pairs = work.entries.drain(..).inspect(|entry| {
            ended.push((entry.index, Outcome::Deferred));
        });
        record(&mut pairs, recorded, since);
    }
}

/// What became of pairs that were settled.
#[derive(Clone, Debug, Default)]
pub struct Settlement {
    /// Each folio, and whether it is at its destination now or has stayed, and why.
    pub outcomes: Vec<(Folio, Outcome)>,
    /// What was counted.
    pub counts: Counts,
    /// Shootdowns by the machine's own counter, or `None` where the platform has none.
    pub shootdowns: Option<u64>,
    /// How long it took.
    pub times: Times,
}

impl Settlement {
    /// Adds what another settlement did after this one.
    pub fn add(&mut self, after: Self) {
        self.outcomes.extend(after.outcomes);
        self.counts.add(&after.counts);
        self.shootdowns = match (self.shootdowns, after.shootdowns) {
            (Some(before), Some(more)) => Some(before + more),
            (before, more) => before.or(more),
        };
        self.times.total += after.times.total;
        self.times.copy += after.times.copy;
        self.times.longest_cut_off = self.times.longest_cut_off.max(after.times.longest_cut_off);
    }
}

/// Switches pairs to their destinations: up to `at_once` base pages by one shootdown, and those
/// whose translations have been flushed since by none. Readers wait no longer than for the switch.
///
/// Pairs are taken out of `parked` batch by batch; if the platform panics the rest are still there.
pub fn settle<P: Deferral>(
    platform: &mut P,
    parked: &mut Parked<P::Held>,
    at_once: NonZeroU64,
) -> Settlement {
    let began = Began::now(platform);
    let mut settlement = Settlement::default();
    settlement.outcomes.reserve(parked.len());
    let mut work = Work::with_capacity(0);
    let mut folios = Vec::new();
    // From the end, so that those that are left stay in order.
    while let Some(last) = parked.pairs.last() {
        let flushed = platform.has_flushed(last.recorded);
        let alike =
            |platform: &P, pair: &Pair<P::Held>| platform.has_flushed(pair.recorded) == flushed;
        let mut room = at_once.get();
        let mut after = None;
        let mut take = 0;
        for pair in parked.pairs.iter().rev() {
            let folio = pair.entry.folio();
            let with_it = platform.cut_off_with(after.replace(folio), folio);
            if take > 0 && (with_it > room || !alike(platform, pair)) {
                break;
            }
            room = room.saturating_sub(with_it);
            take += 1;
        }
        work.make_room(take);
        folios.clear();
        folios.reserve(take);
        let batch = parked.pairs.drain(parked.pairs.len() - take..);
        for (index, Pair { mut entry, .. }) in batch.enumerate() {
            folios.push(entry.folio());
            entry.index = index;
            work.entries.push(entry);
        }
        work.counts.batches += 1;
        Isolated::resume(platform, &mut work).switch(flushed);
        let ended = work.ended.drain(..);
        settlement
            .outcomes
            .extend(ended.map(|(index, outcome)| (folios[index], outcome)));
    }
    settlement.counts = work.counts;
    settlement.times = work.times;
    settlement.shootdowns = began.measure(platform, &mut settlement.times, None);
    settlement
}

impl<'p, P: Deferral> Isolated<'p, P> {
    /// A batch of pairs that have been put into `work`, with their copies made.
    fn resume(platform: &'p mut P, work: &'p mut Work<P>) -> Self {
        let mut batch = Batch {
            platform,
            work,
            step: Step::Unmap,
            place: Place::Source,
        };
        batch.platform.take_up(&mut batch.work.entries);
        batch.part_with_failed();
        Self {
            batch,
            wait: Wait::Never,
        }
    }

    /// The other half of the pipeline: all but the copy.
    fn switch(self, flushed: bool) -> usize {
        let batch = if flushed {
            let Self { mut batch, wait } = self;
            batch.detach(&wait);
            batch
        } else {
            self.unmap().shootdown().batch
        };
        Copied { batch }.remap().finish()
    }
}

/// Pairs that go back to their ledger if the platform panics.
struct Closing<'l, H> {
    ledger: &'l mut Ledger<H>,
    parked: Parked<H>,
}

impl<H> Drop for Closing<'_, H> {
    fn drop(&mut self) {
        self.ledger.close(core::mem::take(&mut self.parked));
    }
}

impl<P: Deferral> Waiting<P> for Ledger<P::Held> {
    fn make_room(&mut self, platform: &mut P, base_pages: u64) -> bool {
        if self.promise(base_pages) {
            return true;
        }
        Waiting::<P>::relieve(self, platform);
        self.promise(base_pages)
    }

    fn relieve(&mut self, platform: &mut P) -> bool {
        let waited = !self.is_empty();
        let at_once = self.at_once();
        let mut all = Closing {
            parked: self.take(|_| true),
            ledger: self,
        };
        let settled = settle(platform, &mut all.parked, at_once);
        all.ledger.note(&settled);
        drop(all);
        waited
    }

    fn room(&self) -> u64 {
        Self::room(self)
    }

    fn record(
        &mut self,
        entries: &mut dyn Iterator<Item = Entry<P::Held>>,
        recorded: Generation,
        since: Duration,
    ) {
        self.add(entries, recorded, since);
    }

    fn withdraw(&mut self, base_pages: u64) {
        Self::withdraw(self, base_pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settlement(n: u64) -> Settlement {
        let took = |times| Duration::from_micros(times * n);
        Settlement {
            outcomes: Folio::base(n)
                .map(|folio| (folio, Outcome::Moved))
                .into_iter()
                .collect(),
            counts: Counts {
                batches: n,
                rounds: 2 * n,
                holds: 3 * n,
                retries: 4 * n,
                putbacks: 5 * n,
                copied_by_copier: 6 * n,
                copied_by_cpu: 7 * n,
                declined: 8 * n,
                copy_failures: 9 * n,
                timed_out: 10 * n,
                unconfirmed: 11 * n,
            },
            shootdowns: Some(12 * n),
            times: Times {
                total: took(1),
                first_folio: None,
                longest_cut_off: took(2),
                copy: took(3),
            },
        }
    }

    #[test]
    fn settlements_add_up() {
        for (first, second) in [(2, 3), (3, 2)] {
            let mut sum = settlement(first);
            sum.add(settlement(second));
            let folios: Vec<_> = sum.outcomes.iter().map(|(folio, _)| folio.page()).collect();
            assert_eq!(folios, [first, second]);
            let five = settlement(5);
            assert_eq!(sum.counts, five.counts);
            assert_eq!(sum.shootdowns, five.shootdowns);
            let longest_cut_off = settlement(3).times.longest_cut_off;
            let times = Times {
                longest_cut_off,
                ..five.times
            };
            assert_eq!(sum.times, times);
        }
    }

    #[test]
    fn what_was_not_counted_adds_nothing() {
        let uncounted = Settlement::default;
        let mut after = settlement(2);
        after.add(uncounted());
        let mut before = uncounted();
        before.add(settlement(2));
        let counted = Some(24);
        assert_eq!((after.shootdowns, before.shootdowns), (counted, counted));
        let mut neither = uncounted();
        neither.add(uncounted());
        assert_eq!(neither.shootdowns, None);
    }
}
