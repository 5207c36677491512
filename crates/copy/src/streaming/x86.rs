//! The stores themselves, for x86-64.

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_sfence,
    _mm_stream_si128, _mm256_loadu_si256, _mm256_stream_si256, _mm512_loadu_si512,
    _mm512_stream_si512,
};

use super::Isa;
use crate::{CopyJob, Memcpy, Mover};

/// A line of the cache.
const LINE: usize = 64;
/// Lines that are loaded before they are stored: loads and non-temporal stores that take turns one
/// by one keep the memory controller turning round.
const BLOCK: usize = 4 * LINE;
/// How far ahead lines are asked for.
const AHEAD: usize = 8 * LINE;

/// Whether this processor has an instruction set.
pub(super) fn has(isa: Isa) -> bool {
    match isa {
        Isa::Avx512 => is_x86_feature_detected!("avx512f"),
        Isa::Avx2 => is_x86_feature_detected!("avx2"),
        Isa::Sse2 => true,
    }
}

/// Copies the bytes of a job past the cache.
///
/// `isa` was detected, or there would be no [`Streaming`](super::Streaming) to ask for it.
pub(super) fn stream(isa: Isa, job: &CopyJob) {
    // The stores want whole lines; what is before the first and after the last goes plainly.
    let head = job.destination().align_offset(LINE).min(job.bytes());
    let body = (job.bytes() - head) / BLOCK * BLOCK;
    Memcpy.move_bytes(&job.part(0, head));
    let lines = job.part(head, body);
    let kernel: unsafe fn(*const u8, *mut u8, usize) = match isa {
        Isa::Avx512 => avx512,
        Isa::Avx2 => avx2,
        Isa::Sse2 => sse2,
    };
    // SAFETY: the processor has the instruction set; the destination is aligned to a line and the
    // length is a multiple of a block, both by construction; the rest is the job's promise.
    unsafe { kernel(lines.source(), lines.destination(), body) };
    Memcpy.move_bytes(&job.part(head + body, usize::MAX));
}

/// Orders all earlier non-temporal stores before whatever comes next.
pub(super) fn fence() {
    // SAFETY: every x86-64 processor has it, and it touches no memory of its own.
    unsafe { _mm_sfence() }
}

macro_rules! kernel {
    ($name:ident, $feature:literal, $register:ty, $load:ident, $store:ident) => {
        /// # Safety
        ///
        /// The processor has the feature. `from` can be read and `to` written for `bytes` bytes,
        /// they do not overlap, `to` is aligned to a line and `bytes` is a multiple of a block.
        #[target_feature(enable = $feature)]
        #[allow(
            clippy::multiple_unsafe_ops_per_block,
            reason = "one promise covers the block"
        )]
        unsafe fn $name(from: *const u8, to: *mut u8, bytes: usize) {
            const WIDTH: usize = size_of::<$register>();
            const REGISTERS: usize = BLOCK / WIDTH;
            let mut at = 0;
            while at < bytes {
                // SAFETY: all of the block lies within the range that the caller promised; a
                // prefetch may name any address.
                unsafe {
                    for line in 0..BLOCK / LINE {
                        let ahead = from.wrapping_add(at + AHEAD + line * LINE);
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    }
                    let source = from.add(at).cast::<$register>();
                    let target = to.add(at).cast::<$register>();
                    let mut block = [$load(source.cast()); REGISTERS];
                    for (n, value) in block.iter_mut().enumerate().skip(1) {
                        *value = $load(source.add(n).cast());
                    }
                    for (n, value) in block.into_iter().enumerate() {
                        $store(target.add(n).cast(), value);
                    }
                }
                at += BLOCK;
            }
        }
    };
}

kernel!(
    avx512,
    "avx512f",
    __m512i,
    _mm512_loadu_si512,
    _mm512_stream_si512
);
kernel!(
    avx2,
    "avx2",
    __m256i,
    _mm256_loadu_si256,
    _mm256_stream_si256
);
kernel!(sse2, "sse2", __m128i, _mm_loadu_si128, _mm_stream_si128);
