//! Where descriptors are submitted.

use std::fmt;

use super::descriptor::Descriptor;

/// How a work queue takes descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueueMode {
    /// By `ENQCMD`, from any number of programs; it says whether there was room.
    Shared,
    /// By `MOVDIR64B`, from one program, which keeps count of the room itself.
    Dedicated,
}

impl fmt::Display for QueueMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Dedicated => "dedicated",
        })
    }
}

/// How a work queue is made up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Its name, such as `wq0.1`.
    pub(crate) name: String,
    pub(crate) mode: QueueMode,
    /// How many descriptors it holds, batches counted as one; 1 or more.
    pub(crate) size: u32,
    /// The longest copy in bytes; 1 or more.
    pub(crate) max_transfer: u32,
    /// The longest batch in descriptors. Below 2 there are none.
    pub(crate) max_batch: u32,
    /// The NUMA node of the device.
    pub(crate) node: Option<u32>,
}

/// What became of a descriptor that was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Submitted {
    /// The device has it.
    Accepted,
    /// The device does not have it; it may do so later.
    Retry,
    /// The queue is out of use, and all that was submitted to it has ended.
    Gone,
}

/// A way to submit descriptors to one work queue.
///
/// # Safety
///
/// Whoever frees memory that a descriptor named relies on this: when [`call_off`](Self::call_off)
/// has returned, or [`submit`](Self::submit) has said [`Submitted::Gone`], neither memory nor
/// records named by what was submitted before are read or written any more, by anybody, on behalf
/// of the queue. And nothing that was not accepted is ever executed.
pub(crate) unsafe trait Portal: Send + Sync {
    /// How the queue is made up.
    fn shape(&self) -> &Shape;

    /// Submits a descriptor. What this thread stored before is visible to the device when it takes it.
    ///
    /// # Safety
    ///
    /// What the descriptor names, and the descriptors of its batch name, may be read and written as
    /// it says, by any thread, until the device has completed it or [`call_off`](Self::call_off)
    /// has returned.
    unsafe fn submit(&self, descriptor: &Descriptor) -> Submitted;

    /// Ends all that was submitted, by every thread, and returns when nothing of it touches memory any
    /// more. It waits for as long as that takes.
    fn call_off(&self);
}
