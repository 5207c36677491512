//! Which pages have a request under way, and the room that is kept for them.

use std::sync::PoisonError;

use crate::deferral::AnyPending;
use crate::runs::RunSet;
use crate::sync::{Mutex, MutexGuard};
use crate::table::FolioTable;
use crate::tier::TierId;

/// The requests that are being served. Pages in one cannot be in another.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    open: Mutex<Vec<Open>>,
}

#[derive(Debug)]
struct Open {
    pages: RunSet,
    number: u64,
}

/// The tier has or will have `used` pages, and `asked` more are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) used: usize,
    pub(crate) asked: usize,
}

/// A request's right to its pages, and its room; given up when dropped.
pub(crate) struct Claim<'c> {
    claims: &'c Claims,
    table: &'c FolioTable,
    number: u64,
    room_in: Option<TierId>,
    /// How many pages keep no room at the destination, if that is known.
    stays: Option<usize>,
    /// Which may still come after the request, if some may.
    waiting: Option<&'c dyn AnyPending>,
}

impl Claims {
    /// Claims `pages` for a request, without room for them anywhere; if another request has one of
    /// them, says which.
    pub(crate) fn claim<'c>(
        &'c self,
        pages: RunSet,
        table: &'c FolioTable,
    ) -> Result<Claim<'c>, usize> {
        let mut open = self.lock();
        let taken = open
            .iter()
            .find_map(|other| first_common(&other.pages, &pages));
        if let Some(page) = taken {
            return Err(page);
        }
        let number = open.last().map_or(0, |last| last.number + 1);
        open.push(Open { pages, number });
        Ok(Claim {
            claims: self,
            table,
            number,
            room_in: None,
            stays: None,
            waiting: None,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        // A list of requests stays true whoever panicked while looking at it.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'c> Claim<'c> {
    /// Takes room for the claimed pages in `to`, of which `capacity` pages is the limit. Those whose
    /// switch waits must have settled.
    pub(crate) fn take_room(&mut self, to: TierId, capacity: usize) -> Result<(), Full> {
        let asked = self.count_elsewhere(to);
        self.table
            .take_room(to, asked, capacity)
            .map_err(|used| Full { used, asked })?;
        self.room_in = Some(to);
        Ok(())
    }

    /// Pages of the request may still come when it has ended, or panicked.
    pub(crate) fn may_wait(&mut self, pending: &'c dyn AnyPending) {
        self.with_pages(|pages| pending.begin(pages));
        self.waiting = Some(pending);
    }

    /// Ends a request after which pages of other tiers may still come: `stays` of them will not.
    pub(crate) fn end(mut self, stays: usize) {
        self.stays = Some(stays);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // While nobody else can claim the pages, and so move them.
        if let Some(to) = self.room_in {
            let stayed = self.stays.unwrap_or_else(|| self.count_stays(to));
            self.table.free_room(to, stayed);
        }
        let mut open = self.claims.lock();
        open.retain(|open| open.number != self.number);
    }
}

impl Claim<'_> {
    fn with_pages<T: Default>(&self, look: impl FnOnce(&RunSet) -> T) -> T {
        let open = self.claims.lock();
        let mine = open.iter().find(|open| open.number == self.number);
        mine.map(|open| look(&open.pages)).unwrap_or_default()
    }

    /// How many of the pages are in another tier. Nobody moves them but whoever has claimed them.
    fn count_elsewhere(&self, to: TierId) -> usize {
        let away = |&page: &usize| self.table.tier(page) != to;
        self.with_pages(|pages| pages.iter().flatten().filter(away).count())
    }

    /// How many of the pages will not come any more and have room all the same.
    fn count_stays(&self, to: TierId) -> usize {
        let Some(pending) = self.waiting else {
            return self.count_elsewhere(to);
        };
        // What is being settled can take long, and other requests claim their pages meanwhile.
        let pages = self.with_pages(RunSet::clone);
        let mut count = 0;
        // Neither there nor waiting would be what is being settled.
        pending.while_none_settles(&mut || {
            let stays = |&page: &usize| {
                let was_pair = pending.is_parked(page) || pending.has_stayed(page);
                self.table.tier(page) != to && !was_pair
            };
            count = pages.iter().flatten().filter(stays).count();
        });
        count
    }
}

fn first_common(a: &RunSet, b: &RunSet) -> Option<usize> {
    let (few, many) = if a.run_count() < b.run_count() {
        (a, b)
    } else {
        (b, a)
    };
    few.iter().find_map(|run| many.first_in(&run))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use transhume_engine::{Failure, Folio};

    use super::*;
    use crate::deferral::DeferralUsage;
    use crate::table::Tally;

    fn pages(range: std::ops::Range<usize>) -> RunSet {
        let mut set = RunSet::default();
        set.insert(range);
        set
    }

    fn table() -> FolioTable {
        FolioTable::new(16, 2)
    }

    #[test]
    fn a_page_is_claimed_once() {
        let (claims, table) = (Claims::default(), table());
        let claim = |range| claims.claim(pages(range), &table);
        let first = claim(0..4).unwrap();
        assert_eq!(claim(3..5).err(), Some(3));
        let second = claim(4..8).unwrap();
        drop(first);
        let third = claim(0..4).unwrap();
        drop((second, third));
        drop(claim(0..8).unwrap());
    }

    #[test]
    fn a_claim_takes_no_room_by_itself() {
        let (claims, table) = (Claims::default(), table());
        let claim = claims.claim(pages(2..6), &table).unwrap();
        let mut other = claims.claim(pages(6..10), &table).unwrap();
        other.take_room(TierId(1), 4).unwrap();
        drop(other);
        drop(claim);
    }

    #[test]
    fn what_may_still_come_keeps_its_room() {
        let (claims, table) = (Claims::default(), table());
        let claim = |range, capacity| {
            let mut claim = claims.claim(pages(range), &table).unwrap();
            claim.take_room(TierId(1), capacity).map(|()| claim)
        };
        // Of four pages one stays for good, and three wait.
        claim(0..4, 4).unwrap().end(1);
        assert_eq!(claim(4..8, 6).err(), Some(Full { used: 3, asked: 4 }));
        drop(claim(4..8, 7).unwrap());
    }

    /// Nothing waits, and somebody claims other pages before that is known.
    struct Slow<'c>(&'c Claims, &'c FolioTable);

    impl AnyPending for Slow<'_> {
        fn usage(&self) -> DeferralUsage {
            DeferralUsage::default()
        }

        fn take_stayed(&self) -> Vec<(Folio, Failure)> {
            Vec::new()
        }

        fn is_parked(&self, _folio: usize) -> bool {
            false
        }

        fn begin(&self, _folios: &RunSet) {}

        fn has_stayed(&self, _folio: usize) -> bool {
            false
        }

        fn limit(&self) -> NonZeroU64 {
            NonZeroU64::MIN
        }

        fn while_none_settles(&self, work: &mut dyn FnMut()) {
            assert_eq!(self.0.claim(pages(3..9), self.1).err(), Some(3));
            drop(self.0.claim(pages(4..8), self.1).unwrap());
            work();
        }
    }

    #[test]
    fn a_request_that_panicked_keeps_nobody_from_other_pages() {
        let (claims, table) = (Claims::default(), table());
        let slow = Slow(&claims, &table);
        let mut claim = claims.claim(pages(0..4), &table).unwrap();
        claim.take_room(TierId(1), 4).unwrap();
        claim.may_wait(&slow);
        drop(claim);
        let mut all = claims.claim(pages(0..8), &table).unwrap();
        all.take_room(TierId(1), 8).unwrap();
    }

    #[test]
    fn room_counts_those_on_their_way_once() {
        let (claims, table) = (Claims::default(), table());
        let claim = |range, to| {
            let mut claim = claims.claim(pages(range), &table).unwrap();
            claim.take_room(TierId(to), 6).map(|()| claim)
        };
        let first = claim(0..4, 1).unwrap();
        let full = |used| Full { used, asked: 4 };
        assert_eq!(claim(4..8, 1).err(), Some(full(4)));
        let mut tally = Tally::new(&table);
        tally.moved(0, TierId(0), TierId(1));
        tally.moved(1, TierId(0), TierId(1));
        drop(tally);
        assert_eq!(claim(4..8, 1).err(), Some(full(4)));
        drop(claim(4..6, 1).unwrap());
        drop(first);
        drop(claim(4..8, 1).unwrap());
        assert_eq!(table.population(TierId(1)), 2, "the others stayed");
    }
}
