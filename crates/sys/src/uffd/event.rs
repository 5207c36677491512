//! What a userfaultfd reports.

use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

use super::abi::{self, Message};
use super::flags::FaultFlags;
use super::{Access, Uffd};
use crate::abi::to_usize;

/// What a userfaultfd reports.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A thread waits for a page.
    Pagefault {
        /// The address, rounded down to its page unless
        /// [`Features::EXACT_ADDRESS`](super::Features::EXACT_ADDRESS) is on.
        addr: usize,
        /// What it tried, and what kept it.
        flags: FaultFlags,
        /// Who, if [`Features::THREAD_ID`](super::Features::THREAD_ID) is on.
        thread: Option<Pid>,
    },
    /// The process has forked; the child waits until this is read.
    Fork {
        /// A userfaultfd for the memory of the child.
        uffd: Uffd,
    },
    /// mremap(2) has moved a range; the thread waits until this is read.
    Remap {
        /// Where it was.
        from: usize,
        /// Where it is.
        to: usize,
        /// How long it is.
        len: usize,
    },
    /// The pages of a range are being given up, as by `MADV_DONTNEED`; the thread waits until this
    /// is read.
    Remove(Range<usize>),
    /// A range is being unmapped; the thread waits until this is read.
    Unmap(Range<usize>),
    /// Something that this version does not know.
    Unknown(u8),
}

impl Event {
    /// # Safety
    ///
    /// `message` came from the kernel, and is decoded once: a fork event brings a descriptor.
    pub(super) unsafe fn decode(message: &Message, access: Access) -> Self {
        let [first, second, third] = message.words;
        match message.event {
            abi::EVENT_PAGEFAULT => Self::Pagefault {
                flags: FaultFlags::from_bits_retain(first),
                addr: to_usize(second),
                thread: low_half(third).and_then(Pid::from_raw),
            },
            abi::EVENT_FORK => match low_half(first) {
                Some(fd) => {
                    // SAFETY: the kernel has installed this descriptor for the reader of the
                    // message.
                    let uffd = unsafe { Uffd::from_kernel(fd, access) };
                    Self::Fork { uffd }
                }
                None => Self::Unknown(message.event),
            },
            abi::EVENT_REMAP => Self::Remap {
                from: to_usize(first),
                to: to_usize(second),
                len: to_usize(third),
            },
            abi::EVENT_REMOVE => Self::Remove(to_usize(first)..to_usize(second)),
            abi::EVENT_UNMAP => Self::Unmap(to_usize(first)..to_usize(second)),
            other => Self::Unknown(other),
        }
    }
}

impl Uffd {
    /// # Safety
    ///
    /// `fd` is a userfaultfd that nobody else owns.
    unsafe fn from_kernel(fd: RawFd, access: Access) -> Self {
        // SAFETY: by this function's contract.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Self { fd, access }
    }
}

/// The 32-bit field at the start of a word of the message.
fn low_half(word: u64) -> Option<i32> {
    let [a, b, c, d, ..] = word.to_ne_bytes();
    i32::try_from(u32::from_ne_bytes([a, b, c, d])).ok()
}
