//! The copiers of Transhume: what moves the bytes of pages under migration.
//!
//! A copier is handed (source, destination, length) jobs and answers for each (\[offload\]). All of
//! them implement [`transhume_engine::Copier`] over [`CopyJob`], so one can stand for another:
//!
//! - [`Memcpy`]: the library's `memcpy`, on the calling thread,
//! - [`Streaming`]: non-temporal stores, which do not read the destination into the cache first,
//! - [`Threads`]: a pool of pinned threads, which split one large folio or share many (\[fast-copy\]),
//! - [`Dsa`]: the work queues of Intel's Data Streaming Accelerator, and [`DsaModel`] in its place for tests,
//! - [`Auto`]: each list by the one that was measured to be best for lists of its shape.
//!
//! What trades places has its bytes swapped in place instead, see [`swap`].
//!
//! [`registry`] names them for a command line, and says which this machine has. A [`Switch`] is the
//! copier in use, and can be changed while migrations run; [`control`] lets another process do so.
//!
//! # Memory that others write
//!
//! A source may be mapped elsewhere, and the kernel or a device may look at a destination. So the
//! bytes are never seen as `&` or `&mut`, here or by the caller: copies go by raw pointers, under
//! the promise made at [`CopyJob::new`].

pub mod auto;
mod board;
pub mod control;
pub mod dsa;
mod job;
mod memcpy;
mod parts;
mod placement;
mod pool;
mod raw;
mod reasons;
pub mod registry;
mod streaming;
pub mod swap;
mod switch;
mod threads;

pub use auto::Auto;
pub use dsa::{Dsa, DsaModel};
pub use job::CopyJob;
pub use memcpy::Memcpy;
pub use placement::{Cpu, Topology};
pub use raw::{RawArea, copy_once};
pub use reasons::{Reasons, UnknownReason};
pub use registry::{EngineInfo, SharedCopier, UnknownCopier, by_name, engines};
pub use streaming::{Isa, Streaming, Unavailable};
pub use switch::{Beside, Choice, CopierTally, ForReason, InUse, Switch, SwitchError, Tally};
pub use threads::{Inner, Threads, ThreadsError, ThreadsOptions};

/// How bytes are moved; what [`Threads`] and [`swap::Threads`] are made of.
pub(crate) trait Mover<J = CopyJob>: Send + Sync {
    /// Moves the bytes of jobs, or of parts of jobs, and makes them visible to every CPU. Keeps none
    /// of them.
    fn move_all(&self, jobs: &mut dyn Iterator<Item = J>);

    /// Makes undone what it has done for a part of a job of which another part has failed. A copy
    /// leaves its source as it was, so there is nothing to do for one.
    fn undo(&self, _part: J) {}
}
