//! Whether the blind has pages, and whether a fault on it waits: who lays it finds it empty, and who
//! fills it waits for nobody.

use std::sync::{PoisonError, TryLockError};

use crate::sync::{AtomicBool, Ordering, RwLock};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Filled {
    /// Whether it has pages. Read by those that lay it, written by those that fill or empty it.
    filled: RwLock<bool>,
    /// Whether a fault on it waits for an answer.
    asked: AtomicBool,
}

impl Filled {
    /// Of a blind that is empty.
    pub(crate) fn new() -> Self {
        Self {
            filled: RwLock::new(false),
            asked: AtomicBool::new(false),
        }
    }

    /// Does `lay` while it is empty, for which it is made so by `empty`.
    pub(crate) fn while_empty<E>(
        &self,
        empty: impl Fn() -> Result<(), E>,
        lay: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let filled = self.filled.read().unwrap_or_else(PoisonError::into_inner);
            if !*filled {
                return lay();
            }
            drop(filled);
            let mut filled = self.filled.write().unwrap_or_else(PoisonError::into_inner);
            if *filled {
                empty()?;
                *filled = false;
            }
        }
    }

    /// Notes a fault on it.
    pub(crate) fn ask(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Answers what was noted by `fill`, which says whether it could; says whether something is left to
    /// answer, which is so while the blind is being laid. Never waits: who lays it waits for the thread
    /// that calls this.
    pub(crate) fn answer(&self, fill: impl FnOnce() -> bool) -> bool {
        if !self.asked.load(Ordering::Relaxed) {
            return false;
        }
        let mut filled = match self.filled.try_write() {
            Ok(filled) => filled,
            Err(TryLockError::Poisoned(filled)) => filled.into_inner(),
            Err(TryLockError::WouldBlock) => return true,
        };
        *filled = true;
        let answered = fill();
        self.asked.store(!answered, Ordering::Relaxed);
        !answered
    }
}
