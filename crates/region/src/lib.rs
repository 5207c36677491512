//! Memory in tiers: a [`Region`] is memory of an application whose pages migrate from one kind of
//! memory to another while its threads read and write them.
//!
//! The engine ([`transhume_engine`]) knows how a migration goes; this crate is its platform over
//! userfaultfd and mmap. See [`Region`] for what an application can do with it, [`Tier`] for the
//! kinds of memory, and [`Pins`] and [`KernelAccess`] for the two things that only the application
//! knows about its memory.
//!
//! # How a page moves
//!
//! | | anonymous backing | mapped backing |
//! |---|---|---|
//! | tiers | NUMA nodes | memfd, hugetlb, files, DAX devices |
//! | unmap and shootdown | `UFFDIO_MOVE` of each run out to staging slots | `mremap` of a userfaultfd-registered blind over each run |
//! | copy | staging slots to frames of the destination's pool | between permanent second mappings of the files |
//! | remap | `UFFDIO_MOVE` of each run in | `mmap` of the destination's file over each run |
//! | who waits | faults on the missing page | faults on the blind |
//!
//! Scattered anonymous pages that lie close together are cut off with what lies between them, which
//! comes back as it was: see [`Neighbours`].
//!
//! Without `UFFDIO_MOVE`, or without a userfaultfd, pages still go from node to node: the kernel moves
//! them itself, see [`Mechanism::MovePages`].
//!
//! # What application threads see
//!
//! Loads and stores work at any time. One that meets a page under migration waits in the kernel,
//! for as long as its batch is cut off, and then sees the right data. That holds for `read`,
//! `write`, io_uring and `process_vm_readv` too, unless [`KernelAccess::Never`] was promised. A
//! thread that is killed while it waits just dies; a signal is handled while it waits.
//!
//! # What does not work yet
//!
//! - `ptrace` and `/proc/PID/mem` cannot wait: they fail with `EIO` on a page that is cut off just
//!   then, and can be repeated; their stores to a page whose switch waits fail until it has settled.
//! - A futex in a mapped region must be a private one: process-shared mutexes, semaphores and
//!   condition variables lose wake-ups when their page moves.
//! - A robust mutex whose owner dies while its page is cut off is not released. Hold such pages, and
//!   the stacks of threads, by [`Region::pin`], or keep them elsewhere.
//! - A copy that the kernel makes by itself, as for a store to a page that a child shares, can be on
//!   another node than [`Region::tier_of`] says. The next request that asks for the page's tier moves
//!   it there.
//! - Before Linux 6.18 `UFFDIO_MOVE` flushes page by page, so anonymous batches save little there.
//!
//! # Forks
//!
//! A child of `fork` has the pages of an anonymous region as they were, as it would without this
//! crate; pages that it shares with its parent are made the parent's own before they move. A mapped
//! region does not exist in the child: its pages would change place unseen. In either case the
//! child cannot migrate: requests answer [`RegionError::Forked`].
#![forbid(clippy::undocumented_unsafe_blocks)]

mod anonymous;
mod bell;
mod builder;
mod claims;
mod deferral;
mod error;
mod failure;
mod faults;
mod free_runs;
mod gate;
mod huge;
mod keeper;
mod kept;
mod kernel;
mod layout;
mod mapped;
mod mechanism;
mod move_pages;
mod options;
pub mod owner;
mod pin;
mod placement;
mod region;
mod runs;
mod shootdowns;
mod smaps;
mod sync;
mod table;
mod tier;
mod units;
mod walk;

pub use builder::Builder;
pub use deferral::{Deferral, DeferralUsage, Settled};
pub use error::{BuildError, RegionError};
pub use mechanism::{Mechanism, Notice};
pub use options::{AnyCopier, AnySwapper, KernelAccess, Neighbours, Options, Pages, Pins};
pub use pin::Pin;
pub use region::{Region, TierUsage, Usage};
pub use tier::{PageSize, Place, Tier, TierId};
pub use transhume_copy::{Choice, InUse, Reasons, Switch, SwitchError, Tally, control};
pub use transhume_engine::{
    ExchangeReport, Failure, Folio, Mode, Nonsense, Outcome, PairOutcome, PairReport, Reason,
    Report, Reshaped, Settlement, Side, Step, Why,
};

use units::{BASE_PAGE, SPARE_BYTES, TABLE_BYTES, folio_at, index_of};

/// The README's example, compiled and run with the tests.
#[doc = include_str!("../../../README.md")]
#[cfg(doctest)]
struct Readme;
