//! Swaps through vector registers.
//!
//! Both sides are loaded into registers and stored crosswise. The stores are ordinary ones: unlike a
//! copy's, they go to lines that were just loaded, so there is nothing to save by going past the cache.

#[cfg(target_arch = "x86_64")]
mod x86;

use transhume_engine::{SwapAnswer, Swapper};

use super::{SwapJob, swap_here};
use crate::streaming::{Isa, Streaming, Unavailable};
use crate::{Mover, swap::Buffered};

/// Swaps by the registers of one instruction set, on the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    isa: Isa,
}

impl Registers {
    /// With the widest registers that this processor has.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] on processors other than x86-64.
    pub fn detect() -> Result<Self, Unavailable> {
        Streaming::detect().map(|best| Self { isa: best.isa() })
    }

    /// With the registers of `isa`.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if this processor does not have them.
    pub fn with(isa: Isa) -> Result<Self, Unavailable> {
        Streaming::with(isa).map(|_| Self { isa })
    }

    /// Which registers.
    #[must_use]
    pub const fn isa(&self) -> Isa {
        self.isa
    }
}

impl Mover<SwapJob> for Registers {
    fn move_all(&self, jobs: &mut dyn Iterator<Item = SwapJob>) {
        #[cfg(target_arch = "x86_64")]
        x86::swap(self.isa, jobs);
        // No `Registers` is made there.
        #[cfg(not(target_arch = "x86_64"))]
        Buffered.move_all(jobs);
    }

    fn undo(&self, part: SwapJob) {
        Buffered::swap_one(&part);
    }
}

impl Swapper<SwapJob> for Registers {
    fn name(&self) -> &'static str {
        match self.isa {
            Isa::Avx512 => "registers-avx512",
            Isa::Avx2 => "registers-avx2",
            Isa::Sse2 => "registers-sse2",
        }
    }

    fn swap(&self, pairs: &[SwapJob], answers: &mut [SwapAnswer]) {
        swap_here(self, pairs, answers);
    }
}
