//! The Linux ABI of Transhume, thin: what `rustix` lacks, and what has to stand in front of
//! `rustix` so that a test can make it fail.
//!
//! One module per family of calls:
//!
//! - [`uffd`] is userfaultfd, with partial results as results and not as errors,
//! - [`pagemap`] is `PAGEMAP_SCAN`, and the entries of the page map,
//! - [`numa`] has `move_pages`, `migrate_pages`, `mbind`, memory policies, the nodes of the machine and their tiers,
//! - [`advise`] has `madvise`, and `process_madvise` of many ranges in one call,
//! - [`map`] has mappings, memfds,
//! - [`shootdown`] has counters of TLB shootdowns,
//! - [`limits`] says what the machine and the process may use,
//! - [`signals`] keeps signal handlers off a thread,
//! - [`peer`] says who is at the other end of a socket.
//!
//! # Addresses
//!
//! Memory under migration changes place, is cut off and comes back, all behind the back of the
//! compiler. So addresses are plain numbers here, nothing hands out a reference, and the caller
//! reaches the memory by raw or volatile access only. The exception is [`numa::NodeMemory`], which
//! nobody else can reach and which stays at its addresses. A function is safe when the kernel's own
//! checks keep it from touching memory that nobody promised, and `unsafe` with the missing promise
//! spelled out otherwise. The promises are made at [`uffd::Uffd::register`] and [`map::Mapping`].
//!
//! # Errors
//!
//! A call that fails as a whole is a [`CallError`]: which call, on which addresses, and the errno.
//! A call that can stop half-way answers [`Progress`].
//!
//! # Injection
//!
//! With the feature `inject`, every wrapper asks the module `inject` before it enters the kernel.
//! Without it the question compiles to nothing.

#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

mod abi;
mod call;
mod hook;
mod progress;
mod text;

pub mod advise;
#[cfg(feature = "inject")]
pub mod inject;
pub mod limits;
pub mod map;
pub mod numa;
pub mod pagemap;
pub mod peer;
pub mod shootdown;
pub mod signals;
pub mod tlb;
pub mod uffd;

pub use call::{Call, CallError};
pub use progress::Progress;
pub use rustix::io::Errno;
pub use rustix::process::Pid;
pub use text::TextError;
