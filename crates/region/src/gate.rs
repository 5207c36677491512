//! Holding forks off while pages are cut off.
//!
//! A fork copies the page tables as they are. Were a page cut off at that moment, the child would
//! have a hole there and read zeros. So a batch passes this gate before it cuts anything off, and
//! `fork` waits at the other side until no batch is inside. A batch is short, so is the wait.
//!
//! Handlers of `pthread_atfork` run for libc's `fork`; a raw `clone` does not call them, and
//! `vfork` and `posix_spawn`, which copy no page tables, need not.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

static INSIDE: AtomicUsize = AtomicUsize::new(0);
static FORKING: AtomicUsize = AtomicUsize::new(0);
static REGISTERED: AtomicBool = AtomicBool::new(false);
static REGISTER: Once = Once::new();
const NAP: Duration = Duration::from_micros(20);

/// A batch that is inside: no `fork` copies page tables until it is dropped.
#[derive(Debug)]
pub(crate) struct Pass(());

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
pub(crate) fn enter() -> Pass {
    loop {
        while FORKING.load(Ordering::SeqCst) != 0 {
            std::thread::sleep(NAP);
        }
        INSIDE.fetch_add(1, Ordering::SeqCst);
        if FORKING.load(Ordering::SeqCst) == 0 {
            return Pass(());
        }
        // A fork came between; it may be waiting for us to leave.
        INSIDE.fetch_sub(1, Ordering::SeqCst);
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
        let first = enter();
        let second = enter();
        assert!(INSIDE.load(Ordering::SeqCst) >= 2);
        drop((first, second));
        before();
        assert_eq!(INSIDE.load(Ordering::SeqCst), 0);
        after();
        drop(enter());
    }
}
