//! DMA by Intel's Data Streaming Accelerator (\[fast-copy\] 4, \[offload\]).
//!
//! The device takes descriptors of 64 bytes from user space, copies by virtual addresses of the
//! process that submitted them, and writes a completion record of 32 bytes for each. [`Dsa`] hands
//! it a list of jobs whole. [`DsaModel`] is the device in software, for machines without one and
//! for tests: it executes the same descriptors on threads of its own, and can be told to do so
//! badly. It is no way to copy fast, and nothing it takes is a figure of DMA.
//!
//! # Where it is written
//!
//! - *Intel Data Streaming Accelerator Architecture Specification* (341204): work queues and
//!   portals (shared, `ENQCMD`; dedicated, `MOVDIR64B`), the formats of descriptors and completion
//!   records, the operations no-op, batch, drain and memory move, page faults and partial
//!   completion, error codes.
//! - `include/uapi/linux/idxd.h`: the same formats and codes as Linux exports them; the
//!   assertions on layout are against it.
//! - `Documentation/ABI/stable/sysfs-driver-dma-idxd`: where queues are found and how they are made
//!   up.
//! - `drivers/dma/idxd/cdev.c`: a queue's file is mapped by one page, which a fork does not
//!   inherit; the end of the last mapping waits for what is in flight and for records that the
//!   kernel itself writes; since the advisory INTEL-SA-01084 mapping wants `CAP_SYS_RAWIO` on the
//!   processors it names.
//! - *Intel 64 and IA-32 Architectures Software Developer's Manual*, volume 2: `ENQCMD`, `MOVDIR64B`.
//!
//! # How a copy ends
//!
//! A copier that returns touches no byte of any job any more, and a device that holds addresses
//! cannot be made to forget them by not looking. So a list ends in one of these ways, tried in this
//! order:
//!
//! 1. Every descriptor has its completion record. Each record is looked at, in whatever order they
//!    come; that of a batch says that its members have ended, and a member is confirmed by its own
//!    record alone.
//! 2. The deadline passes. A drain descriptor is submitted to each queue that still has something:
//!    when the device has completed it, it has completed what was submitted to that queue before
//!    it.
//! 3. A record is still missing after the drain, or the drain does not end either. The queue is
//!    *called off*. On a device that is unmapping the portal: the kernel waits for what is in
//!    flight, and for records that it writes itself where the device met a page fault at one. A
//!    process can do no more, since a queue is reset by root only. There is no deadline for that
//!    wait: a device that has stopped altogether holds the caller, because whoever went on would
//!    free memory under it. What has no record then is
//!    [`TimedOut`](transhume_engine::CopyAnswer::TimedOut), and the queue is out of use until the
//!    copier is made anew.
//!
//! No descriptor asks the device to block on page faults, so each ends in bounded time: at a fault the
//! device stops and says how far it got. The page is then touched by the CPU and the rest submitted
//! again, a few times; in the end the CPU copies the rest.

mod copier;
mod descriptor;
mod device;
mod discovery;
mod flight;
mod instructions;
mod model;
mod portal;
mod queue;
mod record;
mod slot;

pub use copier::{Dsa, DsaOptions};
pub use model::{DsaModel, Fault, Faults, ModelOptions, ModelQueue};
pub use portal::QueueMode;
