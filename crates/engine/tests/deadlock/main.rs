//! The deadlock of \[batch-deadlock\], by threads that really wait.
//!
//! A batch holds the locks of many folios. A journal holds the latch of one folio's buffer and wants
//! the lock of another one, to write it. If the batch waits for the latch, neither ever goes on. The
//! same load runs with an owner that waits in batches, where a watchdog must find the deadlock, and
//! with one that keeps the rule, where there must be none. If the engine asked owners in batches by
//! the call that may wait, the second would fail.

#[cfg(test)]
mod board;
#[cfg(test)]
mod file_system;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use transhume_engine::{FolioOwner, Mode, Request, migrate};

    use crate::board::{Board, What, Who};
    use crate::file_system::{Buffers, Migrator, NoCopier, PAGES, Pages, RashBuffers, folio};

    const WRITES: usize = 2_000;

    /// What the journal writes: the latch of the first page, the lock of the second.
    fn writes() -> impl Iterator<Item = (u64, u64)> {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        // The first: a batch locks page 1 before it comes to page 2.
        std::iter::once((2, 1)).chain(std::iter::from_fn(move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let pages = PAGES as u64;
            let (latched, apart) = (random % pages, 1 + (random >> 32) % (pages - 1));
            Some((latched, (latched + apart) % pages))
        }))
    }

    /// Ends what others do, also when this thread panics.
    struct AtEnd<F: Fn()>(F);

    impl<F: Fn()> Drop for AtEnd<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    /// Writes by the journal, the first when the migrator holds the lock that it wants.
    fn journal(board: &Board, pages: &Pages) {
        for (n, (latched, locked)) in writes().take(WRITES).enumerate() {
            let (latch, lock) = (What::Latch(latched), What::Lock(locked));
            // The journal is never the one whose wait is broken, nor does it wait in a ring alone.
            board.take(Who::Journal, latch).unwrap();
            if n == 0 {
                board.wait_until_held_by(Who::Migrator, lock);
            }
            board.take(Who::Journal, lock).unwrap();
            pages.add_one(latched);
            pages.add_one(locked);
            board.give(Who::Journal, lock);
            board.give(Who::Journal, latch);
        }
    }

    /// Migrates all pages to and fro, by batches first and then one by one, until `enough`.
    fn migrator(board: &Board, pages: &Pages, owner: &dyn FolioOwner, enough: &AtomicBool) {
        board.wait_until_held_by(Who::Journal, What::Latch(2));
        for to in [1, 0].into_iter().cycle() {
            let mut platform = Migrator {
                board,
                pages,
                owner,
            };
            let request = Request {
                mode: Mode::Sync,
                ..Request::new((0..PAGES).map(folio).collect(), to)
            };
            let report = migrate(&mut platform, &NoCopier, request);
            assert_eq!(report.folios().len(), PAGES);
            assert!(report.is_complete(), "{:?}", report.stayed().next());
            let is_there = |page: usize| pages.tier(folio(page).page()) == to;
            assert!((0..PAGES).all(is_there));
            if enough.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Runs both under the watchdog; says what it found.
    fn deadlocks(owner: impl FnOnce(&Board) -> Box<dyn FolioOwner + '_>) -> Vec<String> {
        let (board, pages) = (Board::default(), Pages::default());
        let enough = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| board.watch());
            let _unwatched = AtEnd(|| board.is_over());
            std::thread::scope(|scope| {
                let owner = owner(&board);
                let (board, pages, enough) = (&board, &pages, &enough);
                scope.spawn(move || migrator(board, pages, &*owner, enough));
                let _enough = AtEnd(|| enough.store(true, Ordering::Relaxed));
                journal(board, pages);
            });
        });
        let mut expected = [0; PAGES];
        for page in writes().take(WRITES).flat_map(<[u64; 2]>::from) {
            expected[usize::try_from(page).unwrap()] += 1;
        }
        let written = std::array::from_fn(|page| pages.get(folio(page).page()));
        assert_eq!(written, expected, "no write is lost");
        board.into_deadlocks()
    }

    #[test]
    fn an_owner_that_waits_in_a_batch_deadlocks_with_the_journal() {
        let found = deadlocks(|board| Box::new(RashBuffers(Buffers(board))));
        let first = found.first().map(String::as_str);
        println!("{} deadlocks, the first: {first:?}", found.len());
        assert_eq!(
            first,
            Some(
                "the journal holds the latch of page 2 and waits for the lock of page 1; \
                 the migrator holds the lock of page 1 and waits for the latch of page 2"
            )
        );
    }

    #[test]
    fn an_owner_that_is_only_tried_in_a_batch_does_not() {
        let found = deadlocks(|board| Box::new(Buffers(board)));
        assert_eq!(found, [""; 0]);
    }
}
