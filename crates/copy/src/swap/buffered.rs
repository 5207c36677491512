//! The portable swap.

use std::mem::MaybeUninit;

use transhume_engine::{SwapAnswer, Swapper};

use super::{SwapJob, swap_here};
use crate::Mover;
use crate::parts::Job;

/// What goes through the buffer at a time, in bytes: all three places stay in the first cache.
const BUFFER: usize = 1 << 10;

/// Swaps through a buffer that stays in the cache, by the C library's `memcpy`, on the calling thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffered;

impl Buffered {
    pub(super) fn swap_one(job: &SwapJob) {
        let mut buffer = [MaybeUninit::<u8>::uninit(); BUFFER];
        let between = buffer.as_mut_ptr().cast::<u8>();
        for at in (0..job.bytes()).step_by(BUFFER) {
            let part = job.part(at, BUFFER);
            // SAFETY: a part is no longer than the buffer, which is our own.
            unsafe { std::ptr::copy_nonoverlapping(part.a(), between, part.bytes()) };
            // SAFETY: both ranges are the job's, by the promise at `SwapJob::new`.
            unsafe { std::ptr::copy_nonoverlapping(part.b(), part.a(), part.bytes()) };
            // SAFETY: as for the first; so many bytes of the buffer have just been written.
            unsafe { std::ptr::copy_nonoverlapping(between, part.b(), part.bytes()) };
        }
    }
}

impl Mover<SwapJob> for Buffered {
    fn move_all(&self, jobs: &mut dyn Iterator<Item = SwapJob>) {
        jobs.for_each(|job| Self::swap_one(&job));
    }

    fn undo(&self, part: SwapJob) {
        Self::swap_one(&part);
    }
}

impl Swapper<SwapJob> for Buffered {
    fn name(&self) -> &'static str {
        "buffered"
    }

    fn swap(&self, pairs: &[SwapJob], answers: &mut [SwapAnswer]) {
        swap_here(self, pairs, answers);
    }
}
