//! The thread that keeps a region: it reads the events of the userfaultfd, answers those that a
//! migrator does not, and fills the pools of frames in the background.
//!
//! # Faults
//!
//! A fault on a page that a migrator has cut off needs no answer: bringing the page back wakes the
//! thread. A fault on any other page can only come from one that the application has given back
//! with `madvise`; it is answered with zeros, as for any anonymous memory. To tell the two apart:
//!
//! 1. The folio is locked: leave a mark in its state, and the holder wakes the thread when it
//!    unlocks. The thread then faults again if the page is still absent.
//! 2. The folio is free and its page is there: the fault was answered before it was read. Waking
//!    its thread once more does no harm.
//! 3. The folio is free and there is no page: lock it, so that nobody cuts it off meanwhile, ask for
//!    a zero page, unlock it, and wake the thread.
//!
//! The mark and the lock are in one word, so no fault falls between the two.

use std::io;
use std::sync::Arc;

use rustix::event::Timespec;

use crate::bell::Bell;
use crate::kernel::{HeldOff, Uffd};
use crate::sync::{AtomicBool, Builder, JoinHandle, Ordering};

/// How long events wait while pages migrate. Nearly all of them are faults on pages that are cut off,
/// which need no answer, and waking for each would cost the application and the migrator more.
const REST: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};
const SOON: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000,
};
const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// What the thread does for its region.
pub(crate) trait Keep: Send + Sync + 'static {
    /// Where there are events to read.
    fn events(&self) -> &Uffd;
    /// Reads and answers all events there are; says whether one cannot be answered yet.
    fn answer(&self) -> bool;
    /// Whether the next events, should there be any, can wait for [`REST`].
    fn can_wait(&self) -> bool;
    /// Fills pools by a little; says whether there is more to do.
    fn refill(&self) -> bool;
}

/// The thread's handle. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Keeper {
    wants: Arc<Wants>,
    thread: Option<JoinHandle<()>>,
    process: u32,
}

/// What the thread is asked for.
#[derive(Debug)]
struct Wants {
    bell: Bell,
    stop: AtomicBool,
    refill: AtomicBool,
}

impl Keeper {
    pub(crate) fn start<K: Keep>(region: Arc<K>) -> io::Result<Self> {
        let wants = Arc::new(Wants {
            bell: Bell::new()?,
            stop: AtomicBool::new(false),
            refill: AtomicBool::new(false),
        });
        let heard = Arc::clone(&wants);
        let _handlers = HeldOff::begin();
        let thread = Builder::new()
            .name("transhume-keeper".to_owned())
            .spawn(move || keep(&*region, &heard))?;
        Ok(Self {
            wants,
            thread: Some(thread),
            process: std::process::id(),
        })
    }

    /// Asks for the pools to be filled.
    pub(crate) fn refill(&self) {
        if !self.wants.refill.swap(true, Ordering::Relaxed) {
            self.wants.bell.ring();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // A child of a fork has the handle but not the thread.
        if self.process != std::process::id() {
            return;
        }
        self.wants.stop.store(true, Ordering::Relaxed);
        self.wants.bell.ring();
        if let Some(thread) = self.thread.take() {
            // It ended by panicking only if an assertion failed, which has been printed.
            let _ = thread.join();
        }
    }
}

fn keep<K: Keep>(region: &K, wants: &Wants) {
    let mut more = false;
    let mut rests = false;
    let mut unanswered = false;
    loop {
        let events = region.events();
        let (events, patience) = match (rests, more) {
            (true, false) => (None, Some(&REST)),
            (_, true) => (Some(events), Some(&NOW)),
            (false, false) if unanswered => (Some(events), Some(&SOON)),
            (false, false) => (Some(events), None),
        };
        wants.bell.wait(events, patience);
        unanswered = region.answer();
        rests = region.can_wait();
        if wants.stop.load(Ordering::Relaxed) {
            return;
        }
        if wants.refill.swap(false, Ordering::Relaxed) || more {
            more = region.refill();
        }
    }
}
