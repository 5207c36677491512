//! Two counters by which batches and forks keep out of each other's way.

use std::time::Duration;

use crate::sync::{AtomicUsize, Instant, Ordering, sleep};

const NAP: Duration = Duration::from_micros(20);

/// How long a batch waits for forks under way: longer than the copy of large page tables takes.
const PATIENCE: Duration = Duration::from_millis(100);

/// How many batches are inside, and how many forks are under way.
#[derive(Debug)]
pub(crate) struct Turnstile {
    pub(crate) inside: AtomicUsize,
    pub(crate) forking: AtomicUsize,
}

/// A batch that is inside until it is dropped.
#[derive(Debug)]
pub(crate) struct Inside<'t>(&'t Turnstile);

/// Forks were under way for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forking;

impl Turnstile {
    /// Waits for forks under way, then keeps others out.
    pub(crate) fn enter(&self) -> Result<Inside<'_>, Forking> {
        let mut until = None;
        loop {
            self.inside.fetch_add(1, Ordering::SeqCst);
            if self.forking.load(Ordering::SeqCst) == 0 {
                return Ok(Inside(self));
            }
            // The fork may be waiting for us to leave.
            self.inside.fetch_sub(1, Ordering::SeqCst);
            let until = *until.get_or_insert_with(|| Instant::now() + PATIENCE);
            while self.forking.load(Ordering::SeqCst) != 0 {
                if Instant::now() > until {
                    return Err(Forking);
                }
                sleep(NAP);
            }
        }
    }

    /// Waits until no batch is inside, and keeps others out until the fork is over.
    pub(crate) fn before_fork(&self) {
        self.forking.fetch_add(1, Ordering::SeqCst);
        while self.inside.load(Ordering::SeqCst) != 0 {
            sleep(NAP);
        }
    }

    /// In the parent.
    pub(crate) fn after_fork(&self) {
        self.forking.fetch_sub(1, Ordering::SeqCst);
    }

    /// Only the forking thread exists here, and nobody was inside when it forked.
    pub(crate) fn in_child(&self) {
        self.forking.store(0, Ordering::SeqCst);
        self.inside.store(0, Ordering::SeqCst);
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}
