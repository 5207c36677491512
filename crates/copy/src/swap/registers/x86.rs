//! The loads and stores themselves, for x86-64.
//!
//! As in streaming copies, several pages go side by side, a block of each in turn: while one waits for
//! the page tables or for its first lines, the others move.

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm_loadu_si128, _mm_storeu_si128, _mm256_loadu_si256,
    _mm256_storeu_si256, _mm512_loadu_si512, _mm512_storeu_si512,
};

use super::super::SwapJob;
use crate::streaming::Isa;
use crate::swap::Buffered;

/// What a lane has, in bytes.
const PAGE: usize = 4 << 10;
/// Pairs of pages side by side.
const LANES: usize = 4;
/// Registers of each side that are loaded before any is stored.
const REGISTERS: usize = 4;

/// Swaps jobs. `isa` was detected, or there would be no [`Registers`](super::Registers) to ask for it.
pub(super) fn swap(isa: Isa, jobs: &mut dyn Iterator<Item = SwapJob>) {
    let mut lanes = Lanes {
        isa,
        waiting: [Lane::EMPTY; LANES],
        count: 0,
    };
    jobs.for_each(|job| lanes.push(&job));
    lanes.flush();
}

/// A page of either side of a job.
#[derive(Clone, Copy)]
struct Lane {
    a: *mut u8,
    b: *mut u8,
}

impl Lane {
    const EMPTY: Self = Self {
        a: std::ptr::null_mut(),
        b: std::ptr::null_mut(),
    };
}

/// Whole pages that wait until there are enough of them to swap side by side.
struct Lanes {
    isa: Isa,
    waiting: [Lane; LANES],
    count: usize,
}

impl Lanes {
    fn push(&mut self, job: &SwapJob) {
        let pages = job.bytes() / PAGE * PAGE;
        for at in (0..pages).step_by(PAGE) {
            let page = job.part(at, PAGE);
            if let Some(place) = self.waiting.get_mut(self.count) {
                *place = Lane {
                    a: page.a(),
                    b: page.b(),
                };
                self.count += 1;
            }
            if self.count == LANES {
                self.flush();
            }
        }
        Buffered::swap_one(&job.part(pages, PAGE));
    }

    fn flush(&mut self) {
        let kernel: unsafe fn(&[Lane]) = match self.isa {
            Isa::Avx512 => avx512,
            Isa::Avx2 => avx2,
            Isa::Sse2 => sse2,
        };
        let lanes = self.waiting.get(..self.count).unwrap_or(&[]);
        // SAFETY: the processor has the instruction set; each lane is a whole page of a job on either
        // side by construction in `push`; the rest is the jobs' promise.
        unsafe { kernel(lanes) };
        self.count = 0;
    }
}

macro_rules! kernel {
    ($name:ident, $feature:literal, $register:ty, $load:ident, $store:ident) => {
        /// # Safety
        ///
        /// The processor has the feature. Each lane has a page that can be read and written on either
        /// side, and the two do not overlap.
        #[target_feature(enable = $feature)]
        #[allow(
            clippy::multiple_unsafe_ops_per_block,
            reason = "one promise covers the block"
        )]
        unsafe fn $name(lanes: &[Lane]) {
            const BLOCK: usize = REGISTERS * size_of::<$register>();
            const { assert!(PAGE.is_multiple_of(BLOCK)) };
            for at in (0..PAGE).step_by(BLOCK) {
                for lane in lanes {
                    // SAFETY: all of the block lies within the page, as the caller promised.
                    unsafe {
                        let a = lane.a.add(at).cast::<$register>();
                        let b = lane.b.add(at).cast::<$register>();
                        let mut of_a = [$load(a.cast()); REGISTERS];
                        let mut of_b = [$load(b.cast()); REGISTERS];
                        for n in 1..REGISTERS {
                            of_a[n] = $load(a.add(n).cast());
                            of_b[n] = $load(b.add(n).cast());
                        }
                        for n in 0..REGISTERS {
                            $store(a.add(n).cast(), of_b[n]);
                            $store(b.add(n).cast(), of_a[n]);
                        }
                    }
                }
            }
        }
    };
}

kernel!(
    avx512,
    "avx512f",
    __m512i,
    _mm512_loadu_si512,
    _mm512_storeu_si512
);
kernel!(
    avx2,
    "avx2",
    __m256i,
    _mm256_loadu_si256,
    _mm256_storeu_si256
);
kernel!(sse2, "sse2", __m128i, _mm_loadu_si128, _mm_storeu_si128);
