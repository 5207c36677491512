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

mod turnstile;

use std::sync::Once;

use transhume_sys::signals::HeldOff;

use crate::sync::{AtomicBool, AtomicUsize, Ordering};
use turnstile::{Inside, Turnstile};

pub(crate) use turnstile::Forking;

static TURNSTILE: Turnstile = Turnstile {
    inside: AtomicUsize::new(0),
    forking: AtomicUsize::new(0),
};
static REGISTERED: AtomicBool = AtomicBool::new(false);
static REGISTER: Once = Once::new();

/// A batch that is inside: no `fork` copies page tables until it is dropped. Nor does a signal
/// handler run on this thread, which could fork, and then wait for itself.
#[derive(Debug)]
pub(crate) struct Pass {
    _inside: Inside<'static>,
    _handlers: HeldOff,
}

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
    let _inside = TURNSTILE.enter()?;
    Ok(Pass { _inside, _handlers })
}

extern "C" fn before() {
    TURNSTILE.before_fork();
}

extern "C" fn after() {
    TURNSTILE.after_fork();
}

extern "C" fn in_child() {
    TURNSTILE.in_child();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_nest_and_end() {
        assert!(install());
        let first = enter().unwrap();
        let second = enter().unwrap();
        assert!(TURNSTILE.inside.load(Ordering::SeqCst) >= 2);
        drop((first, second));
        before();
        assert_eq!(TURNSTILE.inside.load(Ordering::SeqCst), 0);
        assert_eq!(enter().unwrap_err(), Forking, "while a fork is under way");
        after();
        drop(enter().unwrap());
    }
}
