//! Which pages have a request under way, and the room that is kept for them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::runs::RunSet;
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

/// Why a request cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Another request has this page.
    Overlap { page: usize },
    /// The tier has or will have `used` pages, and `asked` more are too many.
    Full { used: usize, asked: usize },
}

/// A request's right to its pages; given up when dropped.
#[derive(Debug)]
pub(crate) struct Claim<'c> {
    claims: &'c Claims,
    table: &'c FolioTable,
    /// Where they go, and have room taken; nowhere if they trade places.
    to: Option<TierId>,
    number: u64,
}

impl Claims {
    /// Claims `pages` for a request that moves them to `to`, of which `capacity` pages is the limit.
    pub(crate) fn claim<'c>(
        &'c self,
        pages: RunSet,
        to: TierId,
        capacity: usize,
        table: &'c FolioTable,
    ) -> Result<Claim<'c>, Refused> {
        let mut open = self
            .free_of(&pages)
            .map_err(|page| Refused::Overlap { page })?;
        let asked = elsewhere(&pages, to, table);
        table
            .take_room(to, asked, capacity)
            .map_err(|used| Refused::Full { used, asked })?;
        let number = add(&mut open, pages);
        Ok(Claim {
            claims: self,
            table,
            to: Some(to),
            number,
        })
    }

    /// Claims `pages` for an exchange, which takes no room; if another request has one of them, says
    /// which.
    pub(crate) fn claim_in_place<'c>(
        &'c self,
        pages: RunSet,
        table: &'c FolioTable,
    ) -> Result<Claim<'c>, usize> {
        let mut open = self.free_of(&pages)?;
        let number = add(&mut open, pages);
        Ok(Claim {
            claims: self,
            table,
            to: None,
            number,
        })
    }

    /// The list of requests, if none of them has one of these pages; else the first that one has.
    fn free_of(&self, pages: &RunSet) -> Result<MutexGuard<'_, Vec<Open>>, usize> {
        let open = self.lock();
        let taken = open
            .iter()
            .find_map(|other| first_common(&other.pages, pages));
        match taken {
            Some(page) => Err(page),
            None => Ok(open),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        // A list of requests stays true whoever panicked while looking at it.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut open = self.claims.lock();
        if let Some(at) = open.iter().position(|open| open.number == self.number) {
            let Open { pages, .. } = open.remove(at);
            if let Some(to) = self.to {
                let stayed = elsewhere(&pages, to, self.table);
                self.table.free_room(to, stayed);
            }
        }
    }
}

/// Adds a request to the list, and numbers it.
fn add(open: &mut Vec<Open>, pages: RunSet) -> u64 {
    let number = open.last().map_or(0, |last| last.number + 1);
    open.push(Open { pages, number });
    number
}

/// How many of these pages are in another tier. Nobody moves them but whoever has claimed them.
fn elsewhere(pages: &RunSet, to: TierId, table: &FolioTable) -> usize {
    let away = |&page: &usize| table.tier(page) != to;
    pages.iter().flatten().filter(away).count()
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
    use super::*;
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
        let claim = |range, to| claims.claim(pages(range), TierId(to), 16, &table);
        let first = claim(0..4, 1).unwrap();
        assert_eq!(claim(3..5, 1).unwrap_err(), Refused::Overlap { page: 3 });
        let second = claim(4..8, 1).unwrap();
        drop(first);
        let third = claim(0..4, 0).unwrap();
        drop((second, third));
        drop(claim(0..8, 0).unwrap());
    }

    #[test]
    fn an_exchange_claims_pages_and_no_room() {
        let (claims, table) = (Claims::default(), table());
        let claim = claims.claim_in_place(pages(2..6), &table).unwrap();
        assert_eq!(claims.claim_in_place(pages(0..3), &table).err(), Some(2));
        let overlap = claims
            .claim(pages(5..9), TierId(1), 16, &table)
            .unwrap_err();
        assert_eq!(overlap, Refused::Overlap { page: 5 });
        drop(claim);
        // All of the tier's room is there.
        drop(claims.claim(pages(0..4), TierId(1), 4, &table).unwrap());
    }

    #[test]
    fn room_counts_those_on_their_way_once() {
        let (claims, table) = (Claims::default(), table());
        let claim = |range, to| claims.claim(pages(range), TierId(to), 6, &table);
        let first = claim(0..4, 1).unwrap();
        let full = |used| Refused::Full { used, asked: 4 };
        assert_eq!(claim(4..8, 1).unwrap_err(), full(4));
        let mut tally = Tally::new(&table);
        tally.moved(0, TierId(0), TierId(1));
        tally.moved(1, TierId(0), TierId(1));
        drop(tally);
        assert_eq!(claim(4..8, 1).unwrap_err(), full(4));
        drop(claim(4..6, 1).unwrap());
        drop(first);
        drop(claim(4..8, 1).unwrap());
        assert_eq!(table.population(TierId(1)), 2, "the others stayed");
    }
}
