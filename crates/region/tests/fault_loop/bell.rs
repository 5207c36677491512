//! The keeper's bell. A time-out may come at any time, so it comes at once.

use std::io;

use rustix::event::Timespec;

use crate::kernel::{Machine, Uffd};

#[derive(Debug)]
pub(crate) struct Bell(());

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(()))
    }

    pub(crate) fn ring(&self) {
        Machine::here().ring();
    }

    pub(crate) fn wait(&self, events: Option<&Uffd>, patience: Option<&Timespec>) {
        if patience.is_some() {
            loom::thread::yield_now();
        }
        Machine::here().poll(events.is_some(), patience.is_some());
    }
}
