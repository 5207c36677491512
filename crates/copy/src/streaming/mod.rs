//! Copies by non-temporal stores.
//!
//! An ordinary store to a line that is not in the cache first reads it from memory, so a copy of
//! cold pages costs three transfers a line: source in, destination in, destination out. A
//! non-temporal store writes the whole line past the cache and saves the second. It loses when the
//! data is small and wanted soon, because then it was better off in the cache.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;

use transhume_engine::{Copier, CopyAnswer};

use crate::parts::Job;
use crate::{CopyJob, Mover};

/// An instruction set with non-temporal stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// 64 bytes a store.
    Avx512,
    /// 32 bytes a store.
    Avx2,
    /// 16 bytes a store; every x86-64 processor has it.
    Sse2,
}

impl Isa {
    /// All of them, the widest first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Sse2];

    /// Its name on a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Sse2 => "sse2",
        }
    }

    const fn copier_name(self) -> &'static str {
        match self {
            Self::Avx512 => "streaming-avx512",
            Self::Avx2 => "streaming-avx2",
            Self::Sse2 => "streaming-sse2",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a copier is not to be had on this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub(crate) String);

/// Copies by the non-temporal stores of one instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streaming {
    isa: Isa,
}

impl Streaming {
    /// With the widest stores that this processor has.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] on processors other than x86-64.
    pub fn detect() -> Result<Self, Unavailable> {
        let first = Isa::ALL.into_iter().find_map(|isa| Self::with(isa).ok());
        first.ok_or_else(|| Unavailable("non-temporal stores are only made on x86-64".to_owned()))
    }

    /// With the stores of `isa`.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if this processor does not have them.
    pub fn with(isa: Isa) -> Result<Self, Unavailable> {
        #[cfg(target_arch = "x86_64")]
        let has = x86::has(isa);
        #[cfg(not(target_arch = "x86_64"))]
        let has = false;
        if has {
            Ok(Self { isa })
        } else {
            let why = if cfg!(target_arch = "x86_64") {
                format!("this processor has no {isa}")
            } else {
                format!("{isa} is a matter of x86-64")
            };
            Err(Unavailable(why))
        }
    }

    /// Which stores it makes.
    #[must_use]
    pub const fn isa(&self) -> Isa {
        self.isa
    }
}

impl Mover for Streaming {
    fn move_all(&self, jobs: &mut dyn Iterator<Item = CopyJob>) {
        #[cfg(target_arch = "x86_64")]
        x86::stream(self.isa, jobs);
        // No `Streaming` is made there.
        #[cfg(not(target_arch = "x86_64"))]
        crate::Memcpy.move_all(jobs);
    }
}

impl Copier<CopyJob> for Streaming {
    fn name(&self) -> &'static str {
        self.isa.copier_name()
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        self.move_all(&mut jobs.iter().map(CopyJob::whole));
        for (_, answer) in jobs.iter().zip(answers) {
            *answer = CopyAnswer::Copied;
        }
    }
}
