//! The thread that settles pairs: where a store waits, where they are old, where memory is short.
//!
//! It is not the [keeper](crate::keeper), which must go on reading events while pages are cut off.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::keeper::Keeper;
use crate::kernel::HeldOff;
use crate::sync::{Builder, Condvar, JoinHandle, Mutex, MutexGuard, catch_unwind};

/// It looks at ages so often in the time that a pair may wait, and at memory at least so often.
const LOOKS_AN_AGE: u32 = 10;
const LONGEST_REST: Duration = Duration::from_millis(100);
const SHORTEST_REST: Duration = Duration::from_millis(1);

/// What the thread does for its region.
pub(crate) trait Settle: Send + Sync + 'static {
    /// What it is asked for.
    fn wants(&self) -> Option<&Wants>;
    /// The longest that a pair may wait.
    fn max_age(&self) -> Duration;
    /// Settles this folio's pair, with those beside it: somebody waits to store there.
    fn settle_for_store(&self, keeper: &Keeper, folio: usize);
    /// Settles some of what is due; says what is left.
    fn settle_due(&self, keeper: &Keeper) -> Left;
}

/// What is left to settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    /// Pairs that can go on waiting.
    Waiting,
    /// Some that are due.
    Due,
}

/// What the thread is asked for.
#[derive(Debug, Default)]
pub(crate) struct Wants {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stores: Vec<usize>,
    look: bool,
    stop: bool,
}

impl Wants {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A store to this folio waits for its pair to settle.
    pub(crate) fn store(&self, folio: usize) {
        self.lock().stores.push(folio);
        self.changed.notify_one();
    }

    /// There are pairs, of which the thread should know.
    pub(crate) fn look(&self) {
        let mut state = self.lock();
        if !state.look {
            state.look = true;
            self.changed.notify_one();
        }
    }
}

/// The thread's handle. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Settler<S: Settle> {
    region: Arc<S>,
    thread: Option<JoinHandle<()>>,
    process: u32,
}

impl<S: Settle> Settler<S> {
    pub(crate) fn start(region: Arc<S>, keeper: Arc<Keeper>) -> io::Result<Self> {
        let served = Arc::clone(&region);
        let _handlers = HeldOff::begin();
        let thread = Builder::new()
            .name("transhume-settle".to_owned())
            .spawn(move || serve(&*served, &keeper))?;
        Ok(Self {
            region,
            thread: Some(thread),
            process: std::process::id(),
        })
    }
}

impl<S: Settle> Drop for Settler<S> {
    fn drop(&mut self) {
        // A child of a fork has the handle but not the thread.
        if self.process != std::process::id() {
            std::mem::forget(self.thread.take());
            return;
        }
        if let Some(wants) = self.region.wants() {
            wants.lock().stop = true;
            wants.changed.notify_one();
        }
        if let Some(thread) = self.thread.take() {
            // It ended by panicking only if an assertion failed, which has been printed.
            let _ = thread.join();
        }
    }
}

fn serve<S: Settle>(region: &S, keeper: &Keeper) {
    let Some(wants) = region.wants() else { return };
    let rest = (region.max_age() / LOOKS_AN_AGE).clamp(SHORTEST_REST, LONGEST_REST);
    let mut left = Left::Nothing;
    loop {
        let stores = {
            let mut state = wants.lock();
            let idle = |state: &State| state.stores.is_empty() && !state.look && !state.stop;
            while idle(&state) && left != Left::Due {
                if left == Left::Waiting {
                    let (next, rested) = wants
                        .changed
                        .wait_timeout(state, rest)
                        .unwrap_or_else(PoisonError::into_inner);
                    state = next;
                    if rested.timed_out() {
                        break;
                    }
                } else {
                    let next = wants.changed.wait(state);
                    state = next.unwrap_or_else(PoisonError::into_inner);
                }
            }
            if state.stop {
                return;
            }
            state.look = false;
            std::mem::take(&mut state.stores)
        };
        // An owner of pages can panic, which has been printed; the others' stores wait for this thread.
        for folio in stores {
            let settle = || region.settle_for_store(keeper, folio);
            let _ = catch_unwind(AssertUnwindSafe(settle));
        }
        let due = catch_unwind(AssertUnwindSafe(|| region.settle_due(keeper)));
        left = due.unwrap_or(Left::Waiting);
    }
}
