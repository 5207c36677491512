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
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use transhume_sys::signals::HeldOff;

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
    /// The descriptor that becomes readable when there are events.
    fn events(&self) -> impl AsFd;
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
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
    process: u32,
}

#[derive(Debug)]
struct Bell {
    wake: OwnedFd,
    stop: AtomicBool,
    refill: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        // The counter of an eventfd only refuses when it is about to overflow, and then it rings.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Keeper {
    pub(crate) fn start<K: Keep>(region: Arc<K>) -> io::Result<Self> {
        let bell = Arc::new(Bell {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stop: AtomicBool::new(false),
            refill: AtomicBool::new(false),
        });
        let heard = Arc::clone(&bell);
        let _handlers = HeldOff::begin();
        let thread = std::thread::Builder::new()
            .name("transhume-keeper".to_owned())
            .spawn(move || keep(&*region, &heard))?;
        Ok(Self {
            bell,
            thread: Some(thread),
            process: std::process::id(),
        })
    }

    /// Asks for the pools to be filled.
    pub(crate) fn refill(&self) {
        if !self.bell.refill.swap(true, Ordering::Relaxed) {
            self.bell.ring();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // A child of a fork has the handle but not the thread.
        if self.process != std::process::id() {
            return;
        }
        self.bell.stop.store(true, Ordering::Relaxed);
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            // It ended by panicking only if an assertion failed, which has been printed.
            let _ = thread.join();
        }
    }
}

fn keep<K: Keep>(region: &K, bell: &Bell) {
    let mut more = false;
    let mut rests = false;
    let mut unanswered = false;
    loop {
        let events = region.events();
        let mut fds = [
            PollFd::new(&bell.wake, PollFlags::IN),
            PollFd::new(&events, PollFlags::IN),
        ];
        let (fds, patience) = match (rests, more) {
            (true, false) => (&mut fds[..1], Some(&REST)),
            (_, true) => (&mut fds[..], Some(&NOW)),
            (false, false) if unanswered => (&mut fds[..], Some(&SOON)),
            (false, false) => (&mut fds[..], None),
        };
        if poll(fds, patience).is_err() {
            // Interrupted, or short of memory: the next round finds what there is.
            std::thread::sleep(Duration::from_micros(100));
        }
        if !fds[0].revents().is_empty() {
            let _ = rustix::io::read(&bell.wake, &mut [0u8; 8]);
        }
        unanswered = region.answer();
        rests = region.can_wait();
        if bell.stop.load(Ordering::Relaxed) {
            return;
        }
        if bell.refill.swap(false, Ordering::Relaxed) || more {
            more = region.refill();
        }
    }
}
