//! A work queue as the copier uses it: a portal, and the count of its room.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::descriptor::Descriptor;
use super::portal::{Portal, QueueMode, Shape, Submitted};

/// A queue that all callers share.
pub(crate) struct Queue {
    portal: Box<dyn Portal>,
    /// Descriptors of ours that the device has.
    held: AtomicU32,
    gone: AtomicBool,
}

/// What a descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Work,
    /// Ends a list. Room for one is left by work, where there is more than one place.
    Drain,
}

impl Queue {
    pub(crate) fn new(portal: Box<dyn Portal>) -> Self {
        Self {
            portal,
            held: AtomicU32::new(0),
            gone: AtomicBool::new(false),
        }
    }

    pub(crate) fn shape(&self) -> &Shape {
        self.portal.shape()
    }

    /// Whether it is out of use for good.
    pub(crate) fn is_gone(&self) -> bool {
        // Acquire: the records of what was called off with it are seen as they will stay.
        self.gone.load(Ordering::Acquire)
    }

    /// Submits a descriptor if there is room. One that was accepted is [`release`](Self::release)d
    /// when it has ended.
    ///
    /// A full dedicated queue drops what it is given, without a word to the program. A shared one
    /// says that it is full, to us because of what others submitted too.
    ///
    /// # Safety
    ///
    /// As [`Portal::submit`].
    pub(crate) unsafe fn submit(&self, descriptor: &Descriptor, purpose: Purpose) -> Submitted {
        let shape = self.shape();
        let room = match (shape.mode, purpose) {
            (QueueMode::Shared, _) => u32::MAX,
            (QueueMode::Dedicated, Purpose::Work) => shape.size.saturating_sub(1).max(1),
            (QueueMode::Dedicated, Purpose::Drain) => shape.size.max(1),
        };
        // Relaxed: the count orders nothing; the record of the one that ended made room visible.
        let counted = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                (held < room).then_some(held + 1)
            });
        if counted.is_err() {
            return Submitted::Retry;
        }
        let held = Held(self);
        // SAFETY: the caller's promise.
        let submitted = unsafe { self.portal.submit(descriptor) };
        match submitted {
            Submitted::Accepted => std::mem::forget(held),
            Submitted::Retry => {}
            Submitted::Gone => self.gone.store(true, Ordering::Release),
        }
        submitted
    }

    /// One that was accepted has ended.
    pub(crate) fn release(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    /// See [`Portal::call_off`].
    pub(crate) fn call_off(&self) {
        self.portal.call_off();
    }
}

/// A place in a queue that is given back on drop.
struct Held<'q>(&'q Queue);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}
