//! Holding forks off while pages are cut off.
//!
//! A fork copies the page tables as they are. Were a page cut off at that moment, the child would
//! have a hole there and read zeros. So a batch passes this gate before it cuts anything off, and
//! `fork` waits at the other side until no batch is inside. A batch is short, so is the wait.
//!
//! Handlers of `pthread_atfork` run for libc's `fork`; a raw `clone` does not call them, and
//! `vfork` and `posix_spawn`, which copy no page tables, need not.
//!
//! Nobody waits at the gate for long. A `fork` under way may itself be waiting, in a handler of the
//! program's own, for a lock that is held around the migration; then the batch fails and is tried
//! again later. And a batch holds forks off only while it works, for which it needs no lock of the
//! program's.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use transhume_sys::signals::HeldOff;

static INSIDE: AtomicUsize = AtomicUsize::new(0);
static FORKING: AtomicUsize = AtomicUsize::new(0);
static REGISTERED: AtomicBool = AtomicBool::new(false);
static REGISTER: Once = Once::new();
const NAP: Duration = Duration::from_micros(20);

/// How long a batch waits for forks under way: longer than the copy of large page tables takes.
const PATIENCE: Duration = Duration::from_millis(100);

/// A batch that is inside: no `fork` copies page tables until it is dropped. Nor does a signal
/// handler run on this thread, which could fork, and then wait for itself.
#[derive(Debug)]
pub(crate) struct Pass {
    _handlers: HeldOff,
}

/// Forks were under way for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forking;

/// Makes `fork` wait for batches from now on; says whether that worked.
pub(crate) fn install() -> bool {
    REGISTER.call_once(|| {
        // SAFETY: the handlers are functions that live as long as the program; they only touch
        // atomics and sleep, which is allowed both before a fork and in the child after it.
        let failed = unsafe { libc::pthread_atfork(Some(before), Some(after), Some(in_child)) };
        REGISTERED.store(failed == 0, Ordering::Release);
    });
    REGISTERED.load(Ordering::Acquire)
}

/// Waits for forks under way, then keeps others out until the pass is dropped.
pub(crate) fn enter() -> Result<Pass, Forking> {
    let _handlers = HeldOff::begin();
    let mut until = None;
    loop {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        if FORKING.load(Ordering::SeqCst) == 0 {
            return Ok(Pass { _handlers });
        }
        // The fork may be waiting for us to leave.
        INSIDE.fetch_sub(1, Ordering::SeqCst);
        let until = *until.get_or_insert_with(|| Instant::now() + PATIENCE);
        while FORKING.load(Ordering::SeqCst) != 0 {
            if Instant::now() > until {
                return Err(Forking);
            }
            std::thread::sleep(NAP);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}

extern "C" fn before() {
    FORKING.fetch_add(1, Ordering::SeqCst);
    while INSIDE.load(Ordering::SeqCst) != 0 {
        std::thread::sleep(NAP);
    }
}

extern "C" fn after() {
    FORKING.fetch_sub(1, Ordering::SeqCst);
}

extern "C" fn in_child() {
    // Only the forking thread exists here, and nobody was inside when it forked.
    FORKING.store(0, Ordering::SeqCst);
    INSIDE.store(0, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_nest_and_end() {
        assert!(install());
        let first = enter().unwrap();
        let second = enter().unwrap();
        assert!(INSIDE.load(Ordering::SeqCst) >= 2);
        drop((first, second));
        before();
        assert_eq!(INSIDE.load(Ordering::SeqCst), 0);
        assert_eq!(enter().unwrap_err(), Forking, "while a fork is under way");
        after();
        drop(enter().unwrap());
    }
}
