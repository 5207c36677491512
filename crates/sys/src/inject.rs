//! Faults on demand, for tests only.
//!
//! Every wrapper of this crate asks here before it enters the kernel. A test [arms](arm) a [`Plan`]
//! for one [`Call`]; the plan lets some calls through, spoils the next ones, and ends when its
//! guard is dropped. Plans hold for the whole process and all its threads, so tests that use them
//! must not run beside each other. Calls are counted whether or not a plan is armed.
//!
//! When several plans are armed for one call, all of them count it, and the oldest one whose turn
//! it is decides.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

pub use crate::Call;
use crate::hook::Verdict;

/// How a call is spoiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails, and the kernel is not entered.
    Errno(Errno),
    /// The first `bytes` are really done, then the call reports that it stopped with `errno`.
    ///
    /// So it is for calls that answer [`Progress`](crate::Progress), for
    /// [`move_pages`](crate::numa::move_pages), where a page counts as a base page whatever its
    /// size, and for `madvise`, which does a part and reports an error. Any other call fails, as
    /// with [`Fault::Errno`].
    Partial {
        /// What is done; a multiple of the page size, or the kernel refuses it.
        bytes: usize,
        /// Why no more is done.
        errno: Errno,
    },
    /// The first `bytes` are really done, and then the call says that it found them done and did
    /// nothing. `UFFDIO_MOVE` does so on Linux 6.18 (see [`Uffd::move_range`]).
    ///
    /// For calls that answer [`Progress`](crate::Progress); any other fails with `EEXIST`.
    ///
    /// [`Uffd::move_range`]: crate::uffd::Uffd::move_range
    Uncounted {
        /// What is done; a multiple of the page size, or the kernel refuses it.
        bytes: usize,
    },
}

/// Which calls are spoiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// So many are let through first.
    pub skip: u64,
    /// So many are spoiled after that.
    pub times: u64,
    /// In this way.
    pub fault: Fault,
}

impl Plan {
    /// Spoils the next call only.
    #[must_use]
    pub const fn once(fault: Fault) -> Self {
        Self {
            skip: 0,
            times: 1,
            fault,
        }
    }

    /// Spoils every call.
    #[must_use]
    pub const fn always(fault: Fault) -> Self {
        Self {
            skip: 0,
            times: u64::MAX,
            fault,
        }
    }
}

#[derive(Debug)]
struct Entry {
    id: u64,
    call: Call,
    plan: Plan,
    seen: u64,
    fired: u64,
}

#[derive(Debug)]
struct Plans {
    next: u64,
    entries: Vec<Entry>,
}

static PLANS: Mutex<Plans> = Mutex::new(Plans {
    next: 0,
    entries: Vec::new(),
});
/// How many plans there are, so that calls need no lock while there is none.
static ARMED: AtomicUsize = AtomicUsize::new(0);
static CALLS: [AtomicU64; Call::ALL.len()] = [const { AtomicU64::new(0) }; Call::ALL.len()];

fn plans() -> MutexGuard<'static, Plans> {
    PLANS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A plan in force; it ends when this is dropped.
#[derive(Debug)]
#[must_use = "the plan ends when this is dropped"]
pub struct Armed {
    id: u64,
}

impl Armed {
    /// How many calls the plan has spoiled.
    #[must_use]
    pub fn fired(&self) -> u64 {
        plans()
            .entries
            .iter()
            .find(|entry| entry.id == self.id)
            .map_or(0, |entry| entry.fired)
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        let mut plans = plans();
        plans.entries.retain(|entry| entry.id != self.id);
        ARMED.store(plans.entries.len(), Ordering::Release);
    }
}

/// Puts a plan in force.
pub fn arm(call: Call, plan: Plan) -> Armed {
    let mut plans = plans();
    let id = plans.next;
    plans.next += 1;
    plans.entries.push(Entry {
        id,
        call,
        plan,
        seen: 0,
        fired: 0,
    });
    ARMED.store(plans.entries.len(), Ordering::Release);
    Armed { id }
}

/// How often a call has been made in this process, spoiled or not.
#[must_use]
pub fn calls(call: Call) -> u64 {
    CALLS[call as usize].load(Ordering::Relaxed)
}

pub(crate) fn ask(call: Call) -> Verdict {
    CALLS[call as usize].fetch_add(1, Ordering::Relaxed);
    if ARMED.load(Ordering::Acquire) == 0 {
        return Verdict::Go;
    }
    let mut verdict = Verdict::Go;
    for entry in plans()
        .entries
        .iter_mut()
        .filter(|entry| entry.call == call)
    {
        let turn = entry.seen;
        entry.seen += 1;
        let due = turn
            .checked_sub(entry.plan.skip)
            .is_some_and(|n| n < entry.plan.times);
        if due && matches!(verdict, Verdict::Go) {
            entry.fired += 1;
            verdict = match entry.plan.fault {
                Fault::Errno(errno) => Verdict::Fail(errno),
                Fault::Partial { bytes, errno } => Verdict::Partial { bytes, errno },
                Fault::Uncounted { bytes } => Verdict::Uncounted { bytes },
            };
        }
    }
    verdict
}
