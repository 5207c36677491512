//! What the keeper waits at: its bell, and the descriptor of the userfaultfd.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use transhume_sys::uffd::Uffd;

use crate::sync::sleep;

/// How long to wait again after the kernel could not.
const NAP: std::time::Duration = std::time::Duration::from_micros(100);

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(eventfd(0, flags)?))
    }

    /// Whoever waits, or waits next, goes on.
    pub(crate) fn ring(&self) {
        // The counter of an eventfd only refuses when it is about to overflow, and then it rings.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Waits until it rings, until there are `events` to read, or for `patience`.
    pub(crate) fn wait(&self, events: Option<&Uffd>, patience: Option<&Timespec>) {
        let bell = PollFd::new(&self.0, PollFlags::IN);
        let rings = match events {
            Some(events) => {
                let events = events.as_fd();
                let mut both = [bell, PollFd::new(&events, PollFlags::IN)];
                waited(&mut both, patience)
            }
            None => waited(&mut [bell], patience),
        };
        if rings {
            let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
        }
    }
}

/// Says whether the first is ready.
fn waited(fds: &mut [PollFd<'_>], patience: Option<&Timespec>) -> bool {
    if poll(fds, patience).is_err() {
        // Interrupted, or short of memory: the next round finds what there is.
        sleep(NAP);
    }
    fds.first().is_some_and(|first| !first.revents().is_empty())
}
