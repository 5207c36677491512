//! What must hold while pages of an anonymous region are cut off.
//!
//! Three others could do harm then, and each is kept away in its own way:
//!
//! - **`fork`** would copy the holes, and the child would read zeros. It waits at the [gate].
//! - **A raw `clone`** does not know the gate. So the region is not inherited (`MADV_DONTFORK`)
//!   while pages are cut off: a child made in that moment does not have the region at all, which
//!   ends it at its first access, and never lets it read what was not there.
//! - **`ptrace` and `/proc/PID/mem`** take a reference to a page's frame, which is not a pin, and
//!   then store to it, all under the read side of the lock of the address space. One that began
//!   before the page was cut off would store to the source after it was copied. So between cutting
//!   off and copying, [`wait_out`](Seclusion::wait_out) takes the write side once.
//!
//! The last two cost about a microsecond a batch.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use transhume_engine::{Failure, Step, Why};
use transhume_sys::CallError;
use transhume_sys::advise::{self, Advice};

use crate::failure::failed;
use crate::gate::{self, Forking, Pass};

/// How often it is tried to show the region to children again.
const DO_FORK_TRIES: u32 = 8;

/// Keeps the state of a region's memory range.
#[derive(Debug)]
pub(crate) struct Seclusion {
    range: Range<usize>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Sessions with pages cut off.
    inside: usize,
    /// Whether the range is kept from children.
    hidden: bool,
}

/// A session that may cut pages off.
#[derive(Debug)]
pub(crate) struct Secluded<'s> {
    seclusion: &'s Seclusion,
    _pass: Pass,
}

impl Seclusion {
    pub(crate) fn new(range: Range<usize>) -> Self {
        Self {
            range,
            state: Mutex::default(),
        }
    }

    /// After stores to pages have been held off, or pages cut off, and before they are copied: returns
    /// when every access through another process's eyes that began before has ended.
    pub(crate) fn wait_out(&self) -> Result<(), CallError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // It changes nothing, but the kernel takes the lock to find that out.
        let as_it_is = if state.hidden {
            Advice::DontFork
        } else {
            Advice::DoFork
        };
        advise::advise(self.range.clone(), as_it_is)
    }

    /// Before pages are cut off.
    pub(crate) fn enter(&self) -> Result<Secluded<'_>, Failure> {
        let pass = gate::enter().map_err(|Forking| Failure::new(Step::Shootdown, Why::Busy))?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.hidden {
            advise::advise(self.range.clone(), Advice::DontFork).map_err(system)?;
            state.hidden = true;
        }
        state.inside += 1;
        Ok(Secluded {
            seclusion: self,
            _pass: pass,
        })
    }
}

fn system(error: CallError) -> Failure {
    failed(Step::Shootdown, Why::System, error.errno)
}

impl Secluded<'_> {
    /// See [`Seclusion::wait_out`].
    pub(crate) fn wait_out(&self) -> Result<(), Failure> {
        self.seclusion.wait_out().map_err(system)
    }
}

impl Drop for Secluded<'_> {
    fn drop(&mut self) {
        let mut state = self
            .seclusion
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        state.inside -= 1;
        if state.inside == 0 {
            let show =
                |_: &u32| advise::advise(self.seclusion.range.clone(), Advice::DoFork).is_ok();
            // If this fails the region stays hidden from children until the next batch has ended.
            state.hidden = (0..DO_FORK_TRIES).find(show).is_none();
        }
    }
}
