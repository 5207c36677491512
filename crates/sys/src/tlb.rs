//! Misses of the translation caches, where the machine counts them.

use std::mem::size_of;
use std::os::fd::OwnedFd;

use crate::shootdown::perf::open_cache_misses;
use crate::{Call, CallError, hook};

/// Which translation cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// That of data accesses.
    Data,
    /// That of instruction fetches.
    Instruction,
}

impl Cache {
    /// `PERF_COUNT_HW_CACHE_DTLB` and `PERF_COUNT_HW_CACHE_ITLB`.
    const fn number(self) -> u64 {
        match self {
            Self::Data => 3,
            Self::Instruction => 4,
        }
    }
}

/// Counts the misses of one thread.
#[derive(Debug)]
pub struct MissCounter {
    fd: OwnedFd,
}

impl MissCounter {
    /// Counts the calling thread's misses from now on.
    ///
    /// # Errors
    ///
    /// `ENOENT` or `EOPNOTSUPP` on a machine that does not count them, as virtual machines often do
    /// not; `EACCES` where `kernel.perf_event_paranoid` forbids it.
    ///
    /// # References
    ///
    /// perf_event_open(2), `PERF_TYPE_HW_CACHE`.
    pub fn open(cache: Cache) -> Result<Self, CallError> {
        let open = || {
            hook::whole(Call::PerfEventOpen)?;
            open_cache_misses(cache.number())
        };
        let fd = open().map_err(|errno| CallError::new(Call::PerfEventOpen, errno))?;
        Ok(Self { fd })
    }

    /// The misses so far.
    ///
    /// # Errors
    ///
    /// Whatever read(2) says.
    pub fn read(&self) -> Result<u64, CallError> {
        let mut count = [0; size_of::<u64>()];
        hook::whole(Call::PerfCounter)
            .and_then(|()| rustix::io::read(&self.fd, &mut count))
            .map_err(|errno| CallError::new(Call::PerfCounter, errno))?;
        Ok(u64::from_ne_bytes(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_are_counted_or_refused() {
        for cache in [Cache::Data, Cache::Instruction] {
            match MissCounter::open(cache) {
                Ok(counter) => {
                    let before = counter.read().unwrap();
                    assert!(counter.read().unwrap() >= before);
                }
                Err(error) => assert!(error.to_string().contains("perf_event_open"), "{error}"),
            }
        }
    }
}
