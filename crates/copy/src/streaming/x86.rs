//! The stores themselves, for x86-64.
//!
//! The processor fetches ahead within a page of 4 KiB and stops at its end, and the first access to
//! each page walks the page tables. A copy that goes through one page after the other waits for both
//! at every page. So up to [`LANES`] pages are copied side by side, a block of each in turn: while
//! one waits, the others move. Measured on cold scattered 4 KiB pages that is 1.6 times the rate of
//! one page after the other, and 1.2 times inside 2 MiB pages; prefetch instructions, on top of it
//! or instead, gave nothing that lasted.

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128, _mm256_loadu_si256,
    _mm256_stream_si256, _mm512_loadu_si512, _mm512_stream_si512,
};

use super::Isa;
use crate::parts::Job;
use crate::{CopyJob, Memcpy};

/// A line of the cache, in bytes.
const LINE: usize = 64;
/// What a lane has, in bytes.
const PAGE: usize = 4 << 10;
/// Pages side by side. Four are nearly as good; sixteen are no better.
const LANES: usize = 8;
/// Registers that are loaded before they are stored, so that loads and stores do not take turns one
/// by one at the memory controller.
const REGISTERS: usize = 8;

/// Whether this processor has an instruction set.
pub(super) fn has(isa: Isa) -> bool {
    match isa {
        Isa::Avx512 => is_x86_feature_detected!("avx512f"),
        Isa::Avx2 => is_x86_feature_detected!("avx2"),
        Isa::Sse2 => true,
    }
}

/// Copies jobs past the cache, and makes them visible to every CPU.
///
/// `isa` was detected, or there would be no [`Streaming`](super::Streaming) to ask for it.
pub(super) fn stream(isa: Isa, jobs: &mut dyn Iterator<Item = CopyJob>) {
    let mut lanes = Lanes {
        isa,
        waiting: [Lane::EMPTY; LANES],
        count: 0,
    };
    jobs.for_each(|job| lanes.push(&job));
    lanes.flush();
    // Non-temporal stores are not ordered: this puts them before whatever comes next.
    // SAFETY: every x86-64 processor has it, and it touches no memory of its own.
    unsafe { _mm_sfence() }
}

/// Bytes that can be streamed: they are those of a job, the destination begins at a line, and their
/// number, which is the same for all lanes copied at once, is a multiple of a line.
#[derive(Clone, Copy)]
struct Lane {
    from: *const u8,
    to: *mut u8,
}

impl Lane {
    const EMPTY: Self = Self {
        from: std::ptr::null(),
        to: std::ptr::null_mut(),
    };
}

/// Whole pages that wait until there are enough of them to copy side by side.
struct Lanes {
    isa: Isa,
    waiting: [Lane; LANES],
    count: usize,
}

impl Lanes {
    fn push(&mut self, job: &CopyJob) {
        // The stores want whole lines; what is before the first and after the last goes plainly.
        let head = job.destination().align_offset(LINE).min(job.bytes());
        let body = (job.bytes() - head) / LINE * LINE;
        Memcpy::copy_one(&job.part(0, head));
        Memcpy::copy_one(&job.part(head + body, LINE));
        let lane = |at: usize| {
            let rest = job.part(head + at, 0);
            Lane {
                from: rest.source(),
                to: rest.destination(),
            }
        };
        let pages = body / PAGE * PAGE;
        for at in (0..pages).step_by(PAGE) {
            if let Some(place) = self.waiting.get_mut(self.count) {
                *place = lane(at);
                self.count += 1;
            }
            if self.count == LANES {
                self.flush();
            }
        }
        if pages < body {
            copy(self.isa, &[lane(pages)], body - pages);
        }
    }

    fn flush(&mut self) {
        copy(
            self.isa,
            self.waiting.get(..self.count).unwrap_or(&[]),
            PAGE,
        );
        self.count = 0;
    }
}

/// Copies `bytes` bytes of each of `lanes`.
fn copy(isa: Isa, lanes: &[Lane], bytes: usize) {
    let kernel: unsafe fn(&[Lane], usize) = match isa {
        Isa::Avx512 => avx512,
        Isa::Avx2 => avx2,
        Isa::Sse2 => sse2,
    };
    // SAFETY: the processor has the instruction set; lanes are aligned and `bytes` are whole lines,
    // both by construction in `push`; the rest is the jobs' promise.
    unsafe { kernel(lanes, bytes) }
}

macro_rules! kernel {
    ($name:ident, $feature:literal, $register:ty, $load:ident, $store:ident) => {
        /// # Safety
        ///
        /// The processor has the feature. `bytes` is a multiple of a line, and each lane has as
        /// many bytes that can be read and written, that do not overlap, and to a whole line.
        #[target_feature(enable = $feature)]
        #[allow(
            clippy::multiple_unsafe_ops_per_block,
            reason = "one promise covers the block"
        )]
        unsafe fn $name(lanes: &[Lane], bytes: usize) {
            const WIDTH: usize = size_of::<$register>();
            const BLOCK: usize = REGISTERS * WIDTH;
            let mut at = 0;
            while bytes - at >= BLOCK {
                for lane in lanes {
                    // SAFETY: all of the block lies within the lane, as the caller promised.
                    unsafe {
                        let from = lane.from.add(at).cast::<$register>();
                        let to = lane.to.add(at).cast::<$register>();
                        let mut block = [$load(from.cast()); REGISTERS];
                        for (n, value) in block.iter_mut().enumerate().skip(1) {
                            *value = $load(from.add(n).cast());
                        }
                        for (n, value) in block.into_iter().enumerate() {
                            $store(to.add(n).cast(), value);
                        }
                    }
                }
                at += BLOCK;
            }
            while at < bytes {
                for lane in lanes {
                    // SAFETY: a line is a multiple of a register, and lies within the lane.
                    unsafe {
                        let value = $load(lane.from.add(at).cast());
                        $store(lane.to.add(at).cast(), value);
                    }
                }
                at += WIDTH;
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
