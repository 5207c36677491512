//! Which pages have a request under way, and how many are on their way to each tier.

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
    to: TierId,
    asked: usize,
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
    number: u64,
}

impl Claims {
    /// Claims `pages` for a request that moves them to `to`, of which `capacity` pages is the limit.
    pub(crate) fn claim(
        &self,
        pages: RunSet,
        to: TierId,
        capacity: usize,
        table: &FolioTable,
    ) -> Result<Claim<'_>, Refused> {
        let mut open = self.lock();
        let taken = open
            .iter()
            .find_map(|other| first_common(&other.pages, &pages));
        if let Some(page) = taken {
            return Err(Refused::Overlap { page });
        }
        let elsewhere = |pages: &RunSet| {
            pages
                .iter()
                .flatten()
                .filter(|&page| table.tier(page) != to)
                .count()
        };
        let asked = elsewhere(&pages);
        let alike = || open.iter().filter(|other| other.to == to);
        // Those that have arrived of a request under way are counted twice here, which does no
        // harm where there is room all the same, and saves looking at its pages.
        let at_most = alike().map(|other| other.asked).sum::<usize>();
        if table.population(to) + at_most + asked > capacity {
            // Those on their way first: who arrives meanwhile is counted twice, and never missed.
            let coming = alike().map(|other| elsewhere(&other.pages)).sum::<usize>();
            let used = coming + table.population(to);
            if used + asked > capacity {
                return Err(Refused::Full { used, asked });
            }
        }
        let number = open.last().map_or(0, |last| last.number + 1);
        open.push(Open {
            pages,
            to,
            asked,
            number,
        });
        Ok(Claim {
            claims: self,
            number,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        // A list of requests stays true whoever panicked while looking at it.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.lock().retain(|open| open.number != self.number);
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
    fn room_counts_those_on_their_way_once() {
        let (claims, table) = (Claims::default(), table());
        let claim = |range, to| claims.claim(pages(range), TierId(to), 6, &table);
        let _first = claim(0..4, 1).unwrap();
        assert_eq!(
            claim(4..8, 1).unwrap_err(),
            Refused::Full { used: 4, asked: 4 }
        );
        let mut tally = Tally::new(&table);
        tally.moved(0, TierId(0), TierId(1));
        tally.moved(1, TierId(0), TierId(1));
        drop(tally);
        assert_eq!(
            claim(4..8, 1).unwrap_err(),
            Refused::Full { used: 4, asked: 4 }
        );
        drop(claim(4..6, 1).unwrap());
    }
}
