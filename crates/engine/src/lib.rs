//! The migration engine of Transhume: how folios move from one kind of memory to another while the
//! programs that use them keep running.
//!
//! The engine knows the order of things and nothing else. It has no syscall, no register and no
//! `unsafe`; whoever owns the page tables implements [`Platform`], whoever moves bytes implements
//! [`Copier`], and [`migrate`] drives both.
//!
//! # The pipeline (\[batch-flush\], \[offload\])
//!
//! A batch is a value that walks through types. Each step consumes the one before it, so no step
//! can be left out or made twice, and putting a batch down early puts every folio back:
//!
//! ```text
//! Isolated -> Unmapped -> Flushed -> Copied -> Remapped -> Report
//! ```
//!
//! | step | engine | platform |
//! |---|---|---|
//! | isolate | [`Isolated::gather`], [`Isolated::alone`] | [`Platform::try_lock`], [`Platform::lock`], [`Platform::reserve`] |
//! | unmap | [`Isolated::unmap`] | the [`FolioOwner`] is asked, if there is one; [`Platform::unmap`], once a folio |
//! | shootdown | [`Unmapped::shootdown`] | [`Platform::shootdown`], once a batch |
//! | copy | [`Flushed::copy`] | [`Platform::job`], and the [`Copier`] once a batch |
//! | remap | [`Copied::remap`] | [`Platform::copy_on_cpu`] for what the copier did not confirm, [`Platform::remap`] once a batch |
//! | report | [`Remapped::finish`] | the owner is told; [`Platform::release`] |
//!
//! # Exchange (\[fast-copy\])
//!
//! Two folios can trade places without a free frame: [`exchange`] drives batches of [`Pairs`] through
//! the same types. What is different is this:
//!
//! | step | engine | platform |
//! |---|---|---|
//! | isolate | [`Isolated::pairs`], [`Isolated::pair_alone`] | [`Exchange::pair`] in place of [`Platform::reserve`] |
//! | copy | [`Flushed::swap`] | [`Exchange::swap_job`], and the [`Swapper`] once a batch |
//! | remap | [`Copied::remap`] | [`Exchange::swap_on_cpu`] for what the swapper left, [`Exchange::swap_back`] and [`Exchange::follow`] where remap fails |
//!
//! # The lock rule (\[batch-deadlock\])
//!
//! While more than one folio lock is held, every further lock is try-lock. The types say so: a
//! batch of many is made by [`Isolated::gather`], which can only call [`Platform::try_lock`]. The
//! call that may block, [`Platform::lock`], wants an [`Alone`], and only [`Isolated::alone`], which
//! makes a batch of exactly one folio, can make one, or [`Isolated::pair_alone`] for the first folio
//! of a pair; the second it can only try, and what follows may not wait. All hold the platform by `&mut`, so a thread
//! cannot open the second batch while it has the first.
//!
//! What an application has on its pages, latches or buffers, obeys the same rule: a [`FolioOwner`] is
//! asked by [`FolioOwner::try_detach`] in a batch, and by [`FolioOwner::detach`], which wants an
//! [`Alone`] too, when its folio is the only one.
//!
//! # What does not compile
//!
//! This is a batch from its beginning to its end:
//!
//! ```
//! # use transhume_engine::{Copier, Folio, Isolated, Platform, Work};
//! # fn walk<P: Platform, C: Copier<P::Job>>(
//! #     platform: &mut P, work: &mut Work<P>, folios: &[(usize, Folio)], to: P::Tier, copier: &C,
//! # ) -> usize {
//! let isolated = Isolated::gather(platform, work, folios, to);
//! let unmapped = isolated.unmap();
//! let flushed = unmapped.shootdown();
//! let copied = flushed.copy(copier);
//! let remapped = copied.remap();
//! remapped.finish()
//! # }
//! ```
//!
//! No step can be left out: what is not flushed cannot be copied, what is not copied not remapped.
//!
//! ```compile_fail,E0599
//! # use transhume_engine::{Copier, Platform, Unmapped};
//! # fn walk<P: Platform, C: Copier<P::Job>>(unmapped: Unmapped<'_, P>, copier: &C) {
//! let _ = unmapped.copy(copier);
//! # }
//! ```
//!
//! ```compile_fail,E0599
//! # use transhume_engine::{Flushed, Platform};
//! # fn walk<P: Platform>(flushed: Flushed<'_, P>) {
//! let _ = flushed.remap();
//! # }
//! ```
//!
//! None can be made twice:
//!
//! ```compile_fail,E0382
//! # use transhume_engine::{Platform, Unmapped};
//! # fn walk<P: Platform>(unmapped: Unmapped<'_, P>) {
//! let _ = unmapped.shootdown();
//! let _ = unmapped.shootdown();
//! # }
//! ```
//!
//! A batch has no call that waits for a lock, and the proof that the platform's own wants cannot be
//! made outside the engine:
//!
//! ```compile_fail,E0599
//! # use transhume_engine::{Folio, Isolated, Platform};
//! # fn walk<P: Platform>(isolated: &mut Isolated<'_, P>, folio: Folio) {
//! let _ = isolated.lock(folio);
//! # }
//! ```
//!
//! ```compile_fail,E0423
//! # use transhume_engine::{Alone, Folio, Platform};
//! # fn walk<P: Platform>(platform: &mut P, folio: Folio) {
//! let _ = platform.lock(folio, &Alone(()));
//! # }
//! ```
//!
//! No second batch can be opened while there is a first, nor can the platform be used directly:
//!
//! ```compile_fail,E0499
//! # use transhume_engine::{Folio, Isolated, Platform, Work};
//! # fn walk<P: Platform>(
//! #     platform: &mut P, work: &mut Work<P>, other: &mut Work<P>, folio: Folio, to: P::Tier,
//! # ) {
//! let first = Isolated::gather(platform, work, &[(0, folio)], to);
//! let second = Isolated::alone(platform, other, 1, folio, to);
//! drop(first);
//! # }
//! ```
//!
//! ```compile_fail,E0499
//! # use transhume_engine::{Folio, Isolated, Platform, Work};
//! # fn walk<P: Platform>(platform: &mut P, work: &mut Work<P>, folio: Folio, to: P::Tier) {
//! let first = Isolated::gather(platform, work, &[(0, folio)], to);
//! let _ = platform.try_lock(folio);
//! drop(first);
//! # }
//! ```
//!
//! A batch of pairs is swapped and not copied, so none of its folios can lose its bytes to the other;
//! and a batch of folios, which have no partners, is not swapped.
//!
//! ```compile_fail,E0599
//! # use transhume_engine::{Copier, Exchange, Flushed, Pairs};
//! # fn walk<P: Exchange, C: Copier<P::Job>>(flushed: Flushed<'_, P, Pairs>, copier: &C) {
//! let _ = flushed.copy(copier);
//! # }
//! ```
//!
//! ```compile_fail,E0599
//! # use transhume_engine::{Exchange, Flushed, Swapper};
//! # fn walk<P: Exchange, S: Swapper<P::SwapJob>>(flushed: Flushed<'_, P>, swapper: &S) {
//! let _ = flushed.swap(swapper);
//! # }
//! ```
//!
//! ```
//! # use transhume_engine::{Exchange, Folio, Isolated, Pairs, Swapper, Work};
//! # fn walk<P: Exchange, S: Swapper<P::SwapJob>>(
//! #     platform: &mut P, work: &mut Work<P, Pairs>, pairs: &[(usize, (Folio, Folio))], swapper: &S,
//! # ) -> usize {
//! let isolated = Isolated::pairs(platform, work, pairs);
//! isolated.unmap().shootdown().swap(swapper).remap().finish()
//! # }
//! ```
//!
//! # Deferral (\[deferred-flush\])
//!
//! [`defer()`] copies folios to which nobody can store while readers go on, and [`settle`] switches many
//! of them by one shootdown. Pairs wait in a [`Ledger`] meanwhile. A platform that can hold stores off
//! implements [`Deferral`].
//!
//! # Failure
//!
//! Failure is per folio, in an exchange per pair. A folio whose step failed leaves the batch at once and is put back; the
//! rest go on. Whatever happens, every folio of a request ends mapped exactly once and has exactly
//! one [`Outcome`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod batch;
mod copier;
mod defer;
mod exchange;
mod failure;
mod folio;
mod generation;
mod ledger;
mod limit;
mod migrate;
mod mode;
mod owner;
mod platform;
mod report;

pub use batch::{Copied, Flushed, Folios, Isolated, Kind, Pairs, Remapped, Side, Unmapped, Work};
pub use copier::{Copier, CopyAnswer};
pub use defer::{Deferral, Duplicated, Holding, Settlement, Waiting, defer, settle};
pub use exchange::{
    Exchange, ExchangeCounts, ExchangeReport, ExchangeRequest, Nonsense, PairOutcome, PairReport,
    SwapAnswer, Swapper, exchange,
};
pub use failure::{Errno, Failure, Step, Why};
pub use folio::{Folio, FolioError, Order};
pub use generation::{Generation, Generations};
pub use ledger::{Ledger, Parked};
pub use limit::{Limit, StallGovernor};
pub use migrate::{Reason, Request, migrate};
pub use mode::{ASYNC_PASSES, Mode, SYNC_ALONE_PASSES, SYNC_BATCH_PASSES};
pub use owner::{FolioOwner, Refused, all_or_none};
pub use platform::{Alone, Entry, Place, Platform, Wait};
pub use report::{Counts, FolioReport, Outcome, Report, Reshaped, Times};
