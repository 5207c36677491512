//! Swaps in place: two ranges of bytes trade contents, with no third one (\[fast-copy\]).
//!
//! A copy through a spare page reads and writes every byte twice. A swap that loads both sides and
//! stores them crosswise reads and writes each once, and the lines that it stores to are in the cache
//! already. All swappers implement [`transhume_engine::Swapper`] over [`SwapJob`]:
//!
//! - [`Buffered`]: through a buffer that stays in the cache; any processor,
//! - [`Registers`]: through vector registers,
//! - [`Threads`]: a pool of pinned threads, which split one large pair or share many.

mod buffered;
mod job;
mod registers;
mod registry;
mod threads;

use transhume_engine::SwapAnswer;

pub use buffered::Buffered;
pub use job::SwapJob;
pub use registers::Registers;
pub use registry::{SharedSwapper, SwapperInfo, UnknownSwapper, swapper_by_name, swappers};
pub use threads::{Threads, ThreadsOptions};

use crate::Mover;
use crate::parts::Job;

/// Swaps all of a list on the calling thread. No mover of this crate unwinds.
fn swap_here(mover: &impl Mover<SwapJob>, pairs: &[SwapJob], answers: &mut [SwapAnswer]) {
    mover.move_all(&mut pairs.iter().map(SwapJob::whole));
    for (_, answer) in pairs.iter().zip(answers) {
        *answer = SwapAnswer::Swapped;
    }
}
