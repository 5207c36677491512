//! What can be seen of a move while it runs, and how it is stopped.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Shared between a move and those who watch it. Everything may be read at any time.
#[derive(Debug, Default)]
pub struct Progress {
    planned: AtomicU64,
    handled: AtomicU64,
    moved: AtomicU64,
    pages: AtomicU64,
    workers: AtomicUsize,
    stop: AtomicBool,
}

impl Progress {
    /// Nothing done yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes are to move, as far as is known.
    #[must_use]
    pub fn planned_bytes(&self) -> u64 {
        self.planned.load(Relaxed)
    }

    /// How many bytes have had their turn, whatever became of them.
    #[must_use]
    pub fn handled_bytes(&self) -> u64 {
        self.handled.load(Relaxed)
    }

    /// How many bytes have moved.
    #[must_use]
    pub fn moved_bytes(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    /// How many folios have moved.
    #[must_use]
    pub fn moved_folios(&self) -> u64 {
        self.pages.load(Relaxed)
    }

    /// How many workers are at work now.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.load(Relaxed)
    }

    /// Asks the move to stop after the calls under way.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Whether it was asked to.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    pub(crate) fn plan(&self, bytes: u64) {
        self.planned.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn handle(&self, bytes: u64) {
        self.handled.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn count_moved(&self, folios: u64, bytes: u64) {
        self.pages.fetch_add(folios, Relaxed);
        self.moved.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn set_workers(&self, workers: usize) {
        self.workers.store(workers, Relaxed);
    }
}
