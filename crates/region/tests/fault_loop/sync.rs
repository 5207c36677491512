//! What the fault loop is made of, watched by the model checker. Time-outs never come, so that what
//! only a clock would mend is found; who naps lets the others go on.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::UnwindSafe;
use std::sync::{LockResult, RwLockReadGuard, RwLockWriteGuard, TryLockError, TryLockResult};
use std::time::Duration;

use crate::kernel::Machine;
use crate::mutants::Mutant;

pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
pub(crate) use loom::thread::{Builder, JoinHandle};

/// Nothing panics here but what has found something.
pub(crate) fn catch_unwind<R>(work: impl FnOnce() -> R + UnwindSafe) -> std::thread::Result<R> {
    Ok(work())
}

pub(crate) fn sleep(_: Duration) {
    loom::thread::yield_now();
}

pub(crate) fn fence(order: Ordering) {
    if Machine::here().mutant != Some(Mutant::NoFence) {
        loom::sync::atomic::fence(order);
    }
}

/// A clock that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(Duration);

impl Instant {
    pub(crate) fn now() -> Self {
        Self(Duration::ZERO)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

impl std::ops::Sub for Instant {
    type Output = Duration;

    fn sub(self, before: Self) -> Duration {
        self.0 - before.0
    }
}

/// One whose operations have the one order of all that `SeqCst` asks for. The checker gives that to
/// fences only.
#[derive(Debug)]
pub(crate) struct AtomicUsize(loom::sync::atomic::AtomicUsize);

impl AtomicUsize {
    pub(crate) fn new(value: usize) -> Self {
        Self(loom::sync::atomic::AtomicUsize::new(value))
    }

    fn at<R>(
        &self,
        order: Ordering,
        work: impl FnOnce(&loom::sync::atomic::AtomicUsize) -> R,
    ) -> R {
        if order != Ordering::SeqCst {
            return work(&self.0);
        }
        loom::sync::atomic::fence(order);
        let result = work(&self.0);
        loom::sync::atomic::fence(order);
        result
    }

    pub(crate) fn load(&self, order: Ordering) -> usize {
        self.at(order, |atomic| atomic.load(order))
    }

    pub(crate) fn store(&self, value: usize, order: Ordering) {
        self.at(order, |atomic| atomic.store(value, order));
    }

    pub(crate) fn fetch_add(&self, value: usize, order: Ordering) -> usize {
        self.at(order, |atomic| atomic.fetch_add(value, order))
    }

    pub(crate) fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
        self.at(order, |atomic| atomic.fetch_sub(value, order))
    }

    pub(crate) fn fetch_update(
        &self,
        set: Ordering,
        fetch: Ordering,
        update: impl FnMut(usize) -> Option<usize>,
    ) -> Result<usize, usize> {
        self.at(set, |atomic| atomic.fetch_update(set, fetch, update))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let locked = self.0.lock().unwrap();
        Ok(MutexGuard {
            mutex: self,
            locked: Some(locked),
        })
    }
}

/// One that knows what it locks, so that a mutant can lose it for a moment.
pub(crate) struct MutexGuard<'m, T> {
    mutex: &'m Mutex<T>,
    locked: Option<loom::sync::MutexGuard<'m, T>>,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.locked.as_ref().unwrap()
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.locked.as_mut().unwrap()
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// One of our own: who only tries to have the checker's may have to wait for it.
#[derive(Debug)]
pub(crate) struct RwLock<T> {
    /// How many read, or that one writes.
    users: Mutex<Users>,
    free: Condvar,
    value: std::sync::RwLock<T>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Users {
    Read(usize),
    Write,
}

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            users: Mutex::new(Users::Read(0)),
            free: Condvar::default(),
            value: std::sync::RwLock::new(value),
        }
    }

    pub(crate) fn read(&self) -> LockResult<Held<'_, T, RwLockReadGuard<'_, T>>> {
        let mut users = self.users.lock().unwrap();
        loop {
            if let Users::Read(count) = *users {
                *users = Users::Read(count + 1);
                break;
            }
            users = self.free.wait_well(users);
        }
        Ok(self.held(self.value.try_read().unwrap()))
    }

    pub(crate) fn write(&self) -> LockResult<Held<'_, T, RwLockWriteGuard<'_, T>>> {
        let mut users = self.users.lock().unwrap();
        while *users != Users::Read(0) {
            users = self.free.wait_well(users);
        }
        *users = Users::Write;
        Ok(self.held(self.value.try_write().unwrap()))
    }

    pub(crate) fn try_write(&self) -> TryLockResult<Held<'_, T, RwLockWriteGuard<'_, T>>> {
        if Machine::here().mutant == Some(Mutant::WaitsForWhoWaits) {
            return Ok(self.write().unwrap());
        }
        let mut users = self.users.lock().unwrap();
        if *users != Users::Read(0) {
            return Err(TryLockError::WouldBlock);
        }
        *users = Users::Write;
        Ok(self.held(self.value.try_write().unwrap()))
    }

    fn held<G>(&self, guard: G) -> Held<'_, T, G> {
        Held {
            lock: self,
            guard: Some(guard),
        }
    }
}

pub(crate) struct Held<'l, T, G> {
    lock: &'l RwLock<T>,
    guard: Option<G>,
}

impl<T, G: Deref<Target = T>> Deref for Held<'_, T, G> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guard.as_ref().unwrap()
    }
}

impl<T, G: DerefMut<Target = T>> DerefMut for Held<'_, T, G> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_mut().unwrap()
    }
}

impl<T, G> Drop for Held<'_, T, G> {
    fn drop(&mut self) {
        self.guard = None;
        let mut users = self.lock.users.lock().unwrap();
        *users = match *users {
            Users::Read(count) => Users::Read(count.saturating_sub(1)),
            Users::Write => Users::Read(0),
        };
        drop(users);
        self.lock.free.notify_all();
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(loom::sync::Condvar);

impl Condvar {
    /// As the region's threads wait.
    pub(crate) fn wait<'m, T>(
        &self,
        mut guard: MutexGuard<'m, T>,
    ) -> LockResult<MutexGuard<'m, T>> {
        if Machine::here().mutant == Some(Mutant::WaitsLate) {
            guard.locked = None;
            guard = guard.mutex.lock().unwrap();
        }
        Ok(self.wait_well(guard))
    }

    /// As what is around the region waits, in which nothing is wrong.
    pub(crate) fn wait_well<'m, T>(&self, mut guard: MutexGuard<'m, T>) -> MutexGuard<'m, T> {
        let locked = self.0.wait(guard.locked.take().unwrap()).unwrap();
        guard.locked = Some(locked);
        guard
    }

    pub(crate) fn wait_timeout<'m, T>(
        &self,
        guard: MutexGuard<'m, T>,
        _: Duration,
    ) -> LockResult<(MutexGuard<'m, T>, Rested)> {
        Ok((self.wait(guard).unwrap(), Rested))
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

pub(crate) struct Rested;

impl Rested {
    pub(crate) fn timed_out(&self) -> bool {
        false
    }
}
