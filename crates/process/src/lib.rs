//! Moving the memory of running processes between NUMA nodes.
//!
//! The kernel moves the pages, by move_pages(2), and its pipeline is the engine's: it cuts off up to
//! 512 base pages, flushes once, copies, maps (\[batch-flush\]). What a call costs depends on what is
//! in it, and that is this crate's work:
//!
//! - **What to submit.** A page that is in its place already, or absent, or of another destination,
//!   closes the kernel's batch early, and each batch is a shootdown. So only pages are submitted that
//!   are in memory and misplaced, a list for each destination, in the order of their addresses.
//!   A huge page goes by its head: of the other pages in it the kernel says `EBUSY`. Folios of other
//!   sizes nobody shows, so how large they are is learned from such answers.
//! - **Where pages are** is read off their frames, which costs a fifth of a scan and the question, and
//!   takes `CAP_SYS_ADMIN`. Where that does not tell, these two do.
//! - **How much at a time.** A call costs 30 to 50 us before it moves anything, so it gets 8,192 base
//!   pages. With [`Request::max_stall`] it gets at most 512, one batch, and fewer where calls take
//!   longer than that. [`Request::bandwidth`] spaces calls out.
//! - **Who submits.** Threads that run near the destination and take disjoint windows of the address
//!   space; fewer, when the last of them adds nothing. One alone is the caller's.
//! - **What the answers mean.** [`bring`] says of every page whether it is there, or why not. What
//!   was in use gets ten passes in all, as in the engine.
//! - **What is left.** At the end the kernel's count is compared with what was done. What is still
//!   there and has no reason appeared during the move, and is gone after; what remains is reported.
//!
//! A process may fork, map, unmap, execute, stop and exit meanwhile.
//!
//! ```no_run
//! use transhume_process::{Progress, Request, Target};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let target = Target::open(4711)?;
//! let request = Request::new([0].into(), "1".parse()?);
//! request.check(&target)?;
//! let report = request.run(vec![target], &Progress::new());
//! println!("{} bytes moved in {:?}", report.account().moved.bytes, report.elapsed);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![cfg(target_os = "linux")]

mod account;
mod backoff;
mod bring;
mod budget;
mod crew;
mod exchange;
mod failure;
mod family;
mod frames;
mod list;
mod mapping;
mod near;
mod pace;
mod plan;
mod progress;
mod request;
mod run;
mod scan;
mod select;
mod shares;
mod stride;
mod target;
mod worker;

pub use account::{Account, Amount, Stayed};
pub use bring::{Brought, Check, Kernel, Mover, bring};
pub use failure::{failed, why};
pub use mapping::{Kind, Mapping, mappings};
pub use pace::SLICE_PAGES;
pub use plan::{Part, Plan, PlanError, visit_pages};
pub use progress::Progress;
pub use request::{Nodes, Request, RequestError};
pub use run::{ProcessReport, Report, Stop};
pub use select::{Select, UnknownSelect};
pub use shares::{Shares, SharesError};
pub use target::{Target, TargetError};

/// The smallest page: 4 KiB.
pub const BASE_PAGE: usize = 4096;
