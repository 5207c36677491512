//! The steps of an exchange that are its own: isolating both of a pair, swapping their contents, and
//! making each reachable in the other's frame (\[fast-copy\]).

use super::kind::partners;
use super::{Batch, Copied, Entry, Flushed, Isolated, Pairs, Remapped, Work, release_last};
use crate::exchange::{Exchange, SwapAnswer, Swapper};
use crate::failure::{Failure, Step, Why};
use crate::folio::Folio;
use crate::platform::{Alone, Place, Wait};
use crate::report::Outcome;

/// How often both folios of a pair alone are waited for by turns, before the pass gives it up.
const TURNS: u32 = 4;

/// Which folio of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one of the first list.
    A,
    /// The one of the second.
    B,
}

impl Side {
    const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The index under which the outcome of this folio of pair `pair` is recorded.
    pub(crate) const fn index(self, pair: usize) -> usize {
        2 * pair + self as usize
    }

    /// Which folio of which pair an outcome is recorded for.
    pub(crate) const fn of_index(index: usize) -> (usize, Self) {
        let side = if index.is_multiple_of(2) {
            Self::A
        } else {
            Self::B
        };
        (index / 2, side)
    }

    const fn of<T: Copy>(self, (a, b): (T, T)) -> T {
        match self {
            Self::A => a,
            Self::B => b,
        }
    }
}

impl<'p, P: Exchange> Isolated<'p, P, Pairs> {
    /// Isolates many pairs: try-locks both of each, leaves those of which one is busy and those that
    /// have nothing to gain, and tells each folio that it goes to the other's frame. The outcomes of
    /// pair `n` are recorded under `2n` and `2n + 1`; no pair is given twice.
    pub fn pairs(
        platform: &'p mut P,
        work: &'p mut Work<P, Pairs>,
        pairs: &[(usize, (Folio, Folio))],
    ) -> Self {
        let mut batch = Batch::of_pairs(platform, work, pairs.len());
        for &(pair, folios) in pairs {
            if batch.try_lock(pair, folios, Side::A).is_ok() {
                if batch.try_lock(pair, folios, Side::B).is_ok() {
                    batch.part_with_last_if_alike();
                } else {
                    batch.release_last(Side::A, None);
                }
            }
        }
        batch.pair()
    }

    /// Isolates one pair, and may wait for its locks, though only for one while it holds none
    /// (\[batch-deadlock\]): when the other is not free then, both are left, and the other is waited
    /// for first.
    pub fn pair_alone(
        platform: &'p mut P,
        work: &'p mut Work<P, Pairs>,
        pair: usize,
        folios: (Folio, Folio),
    ) -> Self {
        let mut batch = Batch::of_pairs(platform, work, 1);
        let mut first = Side::A;
        for turn in 1..=TURNS {
            let last_turn = turn == TURNS;
            let locked = batch.platform.lock(first.of(folios), &Alone(()));
            match locked {
                Err(failure) => {
                    batch.stays(first.index(pair), failure);
                    break;
                }
                Ok(held) => batch.hold(pair, folios, first, held),
            }
            let second = first.other();
            match batch.platform.try_lock(second.of(folios)) {
                Ok(held) => {
                    batch.hold(pair, folios, second, held);
                    batch.part_with_last_if_alike();
                    break;
                }
                Err(failure) => {
                    batch.release_last(first, None);
                    if last_turn || failure.why != Why::Busy {
                        batch.stays(second.index(pair), failure);
                        break;
                    }
                }
            }
            first = second;
        }
        batch.pair()
    }
}

impl<'p, P: Exchange> Batch<'p, P, Pairs> {
    fn of_pairs(platform: &'p mut P, work: &'p mut Work<P, Pairs>, pairs: usize) -> Self {
        work.make_room(2 * pairs);
        Self {
            platform,
            work,
            step: Step::Lock,
            place: Place::Source,
        }
    }

    /// Until all are locked, those of the second side are where nobody has left yet: `Batch` has them there too, so
    /// that a platform that panics leaves no lock behind.
    fn hold(&mut self, pair: usize, folios: (Folio, Folio), side: Side, held: P::Held) {
        let entry = Entry::new(side.index(pair), side.of(folios), held);
        match side {
            Side::A => self.work.entries.push(entry),
            Side::B => self.work.leaving.push(entry),
        }
    }

    fn stays(&mut self, index: usize, failure: Failure) {
        self.work.ended.push((index, Outcome::Stayed(failure)));
    }

    fn try_lock(&mut self, pair: usize, folios: (Folio, Folio), side: Side) -> Result<(), ()> {
        match self.platform.try_lock(side.of(folios)) {
            Ok(held) => {
                self.hold(pair, folios, side, held);
                Ok(())
            }
            Err(failure) => {
                self.stays(side.index(pair), failure);
                Err(())
            }
        }
    }

    /// Gives up the lock that was taken last, for that outcome if it is one.
    fn release_last(&mut self, side: Side, outcome: Option<Outcome>) {
        let work = &mut *self.work;
        let ended = &mut work.ended;
        let locked = match side {
            Side::A => &mut work.entries,
            Side::B => &mut work.leaving,
        };
        release_last(self.platform, locked, |index| {
            ended.extend(outcome.map(|outcome| (index, outcome)));
        });
    }

    /// Lets a pair go that was just locked, if an exchange would change nothing.
    fn part_with_last_if_alike(&mut self) {
        if let (Some(a), Some(b)) = (self.work.entries.last(), self.work.leaving.last())
            && self.platform.are_alike(&a.held, &b.held)
        {
            self.release_last(Side::A, Some(Outcome::AlreadyThere));
            self.release_last(Side::B, Some(Outcome::AlreadyThere));
        }
    }

    fn pair(mut self) -> Isolated<'p, P, Pairs> {
        self.step = Step::Reserve;
        // The first folios of all pairs, then the second ones.
        let work = &mut *self.work;
        work.entries.append(&mut work.leaving);
        if !self.work.entries.is_empty() {
            let middle = self.work.entries.len() / 2;
            let (a, b) = self.work.entries.split_at_mut(middle);
            self.platform.pair(a, b);
            self.part_with_failed();
        }
        // Two folios are held from here on, so nothing may wait.
        Isolated {
            batch: self,
            wait: Wait::Never,
        }
    }
}

impl<'p, P: Exchange> Flushed<'p, P, Pairs> {
    /// Hands every eligible pair to the swapper as one list. What it leaves untouched stays in the
    /// batch and is swapped by the CPU in the next step.
    pub fn swap<S: Swapper<P::SwapJob> + ?Sized>(self, swapper: &S) -> Copied<'p, P, Pairs> {
        let Self { mut batch } = self;
        batch.step = Step::Copy;
        let began = batch.platform.now();
        let work = &mut *batch.work;
        for (a, b) in partners(&mut work.entries) {
            let eligible = batch.platform.is_eligible(a.folio(), &a.held)
                && batch.platform.is_eligible(b.folio(), &b.held);
            if eligible {
                work.jobs
                    .push(batch.platform.swap_job(&mut a.held, &mut b.held));
                a.marked = true;
            }
        }
        if !work.jobs.is_empty() {
            work.answers.clear();
            work.answers.resize(work.jobs.len(), SwapAnswer::Untouched);
            let answered = Answered { work };
            swapper.swap(&answered.work.jobs, &mut answered.work.answers);
        }
        let now = batch.platform.now();
        batch.work.times.copy += now.saturating_sub(began);
        Copied { batch }
    }
}

/// Marks the pairs that were swapped when it is dropped, also by a swapper that panics: what it has
/// confirmed by then is to be swapped back.
struct Answered<'w, P: Exchange> {
    work: &'w mut Work<P, Pairs>,
}

impl<P: Exchange> Drop for Answered<'_, P> {
    fn drop(&mut self) {
        let work = &mut *self.work;
        work.jobs.clear();
        let mut answers = work.answers.drain(..);
        for (a, _) in partners(&mut work.entries) {
            if core::mem::take(&mut a.marked) {
                a.copied = answers.next() == Some(SwapAnswer::Swapped);
                if a.copied {
                    work.counts.copied_by_copier += 1;
                } else {
                    work.counts.unconfirmed += 1;
                }
            }
        }
    }
}

impl<'p, P: Exchange> Copied<'p, P, Pairs> {
    /// Swaps on the CPU what is not confirmed, then makes each folio reachable in the other's frame.
    ///
    /// A pair of which neither could be made reachable is swapped back and put back. Where one has
    /// become reachable threads may have stored to it, so the pair can only go forward: its partner
    /// is brought in, whatever that takes.
    pub fn remap(self) -> Remapped<'p, P, Pairs> {
        let Self { mut batch } = self;
        batch.step = Step::Copy;
        let began = batch.platform.now();
        let work = &mut *batch.work;
        for (a, b) in partners(&mut work.entries) {
            if a.copied {
                continue;
            }
            match batch.platform.swap_on_cpu(&mut a.held, &mut b.held) {
                Ok(()) => {
                    a.copied = true;
                    work.counts.copied_by_cpu += 1;
                }
                Err((Side::A, failure)) => a.fail(failure),
                Err((Side::B, failure)) => b.fail(failure),
            }
        }
        work.times.copy += batch.platform.now().saturating_sub(began);
        batch.part_with_failed();
        batch.step = Step::Remap;
        if !batch.work.entries.is_empty() {
            batch.platform.remap(&mut batch.work.entries);
        }
        let work = &mut *batch.work;
        for (a, b) in partners(&mut work.entries) {
            if a.is_alive() == b.is_alive() {
                continue;
            }
            for one in [a, b] {
                let failure = one.failure.take();
                one.marked = failure.is_some();
                let ran_out = failure.filter(|failure| failure.why == Why::NoMemory);
                work.ran_out = work.ran_out.or(ran_out);
            }
        }
        batch.take_out_failed();
        // From here on those in the batch have arrived, even if putting back the others panics.
        batch.place = Place::Destination;
        batch.bring_in();
        batch.put_back_leaving();
        batch.end_cut_off();
        Remapped { batch }
    }
}
