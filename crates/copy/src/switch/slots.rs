//! Two places for what is in use, so that it can be exchanged while it is used.
//!
//! One place is *current*, the other *spare*. Who uses what is there keeps its place locked for
//! reading, and never waits: a place is written only while it is spare. An exchange goes in two steps,
//! by one thread at a time:
//!
//! 1. [`replace`](Slots::replace) writes the new to the spare place, then makes that one current. From
//!    then on everybody who comes gets the new, so an exchange waits for those only who were there
//!    before it, however many come after.
//! 2. [`retire`](Slots::retire) takes the old out of what is now the spare place, as soon as nobody has
//!    it any more.
//!
//! Nothing waits here; who exchanges asks again until it is so. `tests/slots.rs` runs this file under a
//! model checker, for which `super::sync` stands for what it is made of.

use super::sync::{AtomicUsize, Ordering, RwLock, TryLockError, again};

pub(crate) struct Slots<T> {
    places: [RwLock<Option<T>>; 2],
    current: AtomicUsize,
}

impl<T> Slots<T> {
    pub(crate) fn new(first: T) -> Self {
        Self {
            places: [RwLock::new(Some(first)), RwLock::new(None)],
            current: AtomicUsize::new(0),
        }
    }

    /// Lends what is current, which is not retired before `f` returns or unwinds.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        loop {
            let current = self.current.load(Ordering::Acquire);
            let held = match self.places[current].try_read() {
                Ok(held) => Some(held),
                Err(TryLockError::Poisoned(held)) => Some(held.into_inner()),
                // It is spare by now, and being written.
                Err(TryLockError::WouldBlock) => None,
            };
            // Exchanged before it was locked, it may be empty, or hold what is not current yet.
            let still = self.current.load(Ordering::Acquire) == current;
            if let Some(value) = held.as_ref().and_then(|held| held.as_ref())
                && still
            {
                return f(value);
            }
            drop(held);
            again();
        }
    }

    /// Makes `new` current. Gives it back if the spare place is not free: what was current before the
    /// last time has not been retired, or somebody is just looking there.
    pub(crate) fn replace(&self, new: T) -> Result<(), T> {
        let spare = self.spare();
        let mut place = match self.places[spare].try_write() {
            Ok(place) => place,
            Err(TryLockError::Poisoned(place)) => place.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(new),
        };
        if place.is_some() {
            return Err(new);
        }
        *place = Some(new);
        drop(place);
        self.current.store(spare, Ordering::Release);
        Ok(())
    }

    /// Takes what was current before, unless somebody still has it.
    pub(crate) fn retire(&self) -> Option<T> {
        match self.places[self.spare()].try_write() {
            Ok(mut place) => place.take(),
            Err(TryLockError::Poisoned(place)) => place.into_inner().take(),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn spare(&self) -> usize {
        1 - self.current.load(Ordering::Relaxed)
    }
}
