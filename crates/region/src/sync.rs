//! What the fault loop is made of: locks, atomics, threads, the clock. `tests/fault_loop` runs the files
//! that name it under a model checker, which has its own of each.

pub(crate) use std::panic::catch_unwind;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, RwLock};
pub(crate) use std::thread::{Builder, JoinHandle, sleep};
pub(crate) use std::time::Instant;
