//! Counters of TLB shootdowns.
//!
//! A shootdown is a flush that one CPU asks of others, by interrupts. Two things can be counted:
//!
//! - *requests*, by the tracepoint `tlb:tlb_flush` with the reason "remote ipi send":
//!   [`ShootdownCounter`]. One flush is one request, however many CPUs it reaches; it is counted
//!   for the thread that asks. Reading the tracepoint needs privilege.
//! - *arrivals*, by the row `TLB` of `/proc/interrupts`: [`InterruptCounter`]. One flush is one
//!   arrival on each CPU that it reaches. It counts the whole machine, and anybody may read it.
//!
//! They differ where a hypervisor helps: a flush of a CPU that is descheduled is noted and not
//! sent. On processors that flush others by an instruction (arm64, and `INVLPGB` on x86) there are
//! no interrupts, and nothing is counted.

pub(crate) mod perf;
mod tracefs;

use std::fmt;

use rustix::io::Errno;
use rustix::process::Pid;

use self::perf::{Scope, Tracepoint};
use crate::CallError;
use crate::text::{self, TextError};

/// Why a counter cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// This architecture flushes without interrupts.
    #[error(
        "{} flushes the TLBs of other CPUs without interrupts",
        std::env::consts::ARCH
    )]
    Architecture,
    /// tracefs is not mounted, or not to be read, and there is no mounting it.
    #[error(
        "tracefs cannot be reached (mounted: {mounted}; own mount: {own}), \
         which root can, or it can be mounted at /sys/kernel/tracing"
    )]
    Tracefs {
        /// What became of the usual places.
        mounted: Errno,
        /// What became of a detached mount.
        own: Errno,
    },
    /// The kernel has no such tracepoint, or it is not what it was.
    #[error("the tracepoint tlb:tlb_flush {0}")]
    Tracepoint(&'static str),
    /// The tracepoint may not be counted.
    #[error("tlb:tlb_flush may not be counted ({0}), which takes CAP_PERFMON")]
    Refused(CallError),
    /// The threads or CPUs to count cannot be found.
    #[error(transparent)]
    Text(#[from] TextError),
    /// `/proc/interrupts` has no row for shootdowns.
    #[error("/proc/interrupts has no row TLB")]
    NoRow,
}

/// What to do about a thread that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Skip,
    Fail,
}

/// Counts the shootdowns that threads request.
#[derive(Debug)]
pub struct ShootdownCounter {
    tracepoints: Vec<Tracepoint>,
}

impl ShootdownCounter {
    /// Counts the requests of the calling thread from now on, and of no other.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] says what is missing.
    ///
    /// # References
    ///
    /// perf_event_open(2), `Documentation/trace/events.rst`.
    pub fn open_for_this_thread() -> Result<Self, Unavailable> {
        Self::open(&[Scope::Thread(None)], Ended::Fail)
    }

    /// Counts the requests of some threads from now on; not those of threads that they start.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] says what is missing; `ESRCH` in it for a thread that has ended.
    ///
    /// # References
    ///
    /// perf_event_open(2).
    pub fn open_for_threads(threads: &[Pid]) -> Result<Self, Unavailable> {
        let scope = |&thread| Scope::Thread(Some(thread));
        Self::open(&threads.iter().map(scope).collect::<Vec<_>>(), Ended::Fail)
    }

    /// Counts the requests of all threads that this process has now; not those of later threads.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] says what is missing.
    ///
    /// # References
    ///
    /// perf_event_open(2), proc_pid_task(5).
    pub fn open_for_this_process() -> Result<Self, Unavailable> {
        let path = "/proc/self/task";
        let read = |source| TextError::Read {
            path: path.into(),
            source,
        };
        let mut threads = Vec::new();
        for entry in std::fs::read_dir(path).map_err(read)? {
            let name = entry.map_err(read)?.file_name();
            let thread = name
                .to_str()
                .and_then(|name| name.parse().ok())
                .and_then(Pid::from_raw);
            let thread = thread.ok_or_else(|| TextError::unexpected(path, "threads"))?;
            threads.push(Scope::Thread(Some(thread)));
        }
        // Threads may end while the list is read.
        Self::open(&threads, Ended::Skip)
    }

    /// Counts the requests of the whole machine from now on, CPU by CPU.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] says what is missing.
    ///
    /// # References
    ///
    /// perf_event_open(2).
    pub fn open_for_system() -> Result<Self, Unavailable> {
        const MAX_CPUS: u32 = 1 << 16;
        let cpus = text::read_list("/sys/devices/system/cpu/online", MAX_CPUS)?;
        let scopes: Vec<_> = cpus.into_iter().map(Scope::Cpu).collect();
        Self::open(&scopes, Ended::Fail)
    }

    fn open(scopes: &[Scope], ended: Ended) -> Result<Self, Unavailable> {
        if !cfg!(target_arch = "x86_64") {
            return Err(Unavailable::Architecture);
        }
        let event = tracefs::tlb_flush()?;
        let mut tracepoints = Vec::with_capacity(scopes.len());
        for &scope in scopes {
            match Tracepoint::open(&event, scope) {
                Ok(tracepoint) => tracepoints.push(tracepoint),
                Err(error) if error.errno == Errno::SRCH && ended == Ended::Skip => {}
                Err(error) => return Err(Unavailable::Refused(error)),
            }
        }
        let counter = Self { tracepoints };
        counter.enable().map_err(Unavailable::Refused)?;
        Ok(counter)
    }

    /// How many requests there were, of all that is counted together.
    ///
    /// # Errors
    ///
    /// Whatever read(2) says.
    ///
    /// # References
    ///
    /// perf_event_open(2).
    pub fn read(&self) -> Result<u64, CallError> {
        self.tracepoints.iter().map(Tracepoint::read).sum()
    }

    /// Goes on counting.
    ///
    /// # Errors
    ///
    /// Whatever ioctl(2) says.
    ///
    /// # References
    ///
    /// perf_event_open(2), `PERF_EVENT_IOC_ENABLE`.
    pub fn enable(&self) -> Result<(), CallError> {
        self.tracepoints.iter().try_for_each(Tracepoint::enable)
    }

    /// Stops counting; the count stays.
    ///
    /// # Errors
    ///
    /// Whatever ioctl(2) says.
    ///
    /// # References
    ///
    /// perf_event_open(2), `PERF_EVENT_IOC_DISABLE`.
    pub fn disable(&self) -> Result<(), CallError> {
        self.tracepoints.iter().try_for_each(Tracepoint::disable)
    }
}

/// Counts the interrupts for shootdowns that arrive, on the whole machine, since it started.
#[derive(Clone, Copy, Debug)]
pub struct InterruptCounter {
    // Made by `open` only.
    checked: (),
}

impl InterruptCounter {
    const PATH: &'static str = "/proc/interrupts";

    /// Makes sure that there is something to read.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] says what is missing.
    ///
    /// # References
    ///
    /// proc_interrupts(5).
    pub fn open() -> Result<Self, Unavailable> {
        if !cfg!(target_arch = "x86_64") {
            return Err(Unavailable::Architecture);
        }
        tlb_row(&text::read(Self::PATH)?).ok_or(Unavailable::NoRow)?;
        Ok(Self { checked: () })
    }

    /// The sum over all CPUs.
    ///
    /// # Errors
    ///
    /// [`TextError`] without procfs.
    ///
    /// # References
    ///
    /// proc_interrupts(5).
    pub fn read(&self) -> Result<u64, TextError> {
        let () = self.checked;
        tlb_row(&text::read(Self::PATH)?)
            .ok_or_else(|| TextError::unexpected(Self::PATH, "a row TLB"))
    }
}

/// Sums the row of the shootdowns: a count for each CPU, then a text.
fn tlb_row(interrupts: &str) -> Option<u64> {
    let row = text::field(interrupts, "TLB")?;
    Some(
        row.split_whitespace()
            .map_while(|count| count.parse::<u64>().ok())
            .sum(),
    )
}

/// What a [`Counter`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Requests of a thread, by the tracepoint `tlb:tlb_flush`.
    Requests,
    /// Arrivals on the whole machine, by `/proc/interrupts`.
    Arrivals,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "tlb:tlb_flush",
            Self::Arrivals => "/proc/interrupts",
        })
    }
}

/// The best counter that can be had.
#[derive(Debug)]
pub enum Counter {
    /// The requests of what was asked for.
    Requests(ShootdownCounter),
    /// What arrives on the whole machine.
    Arrivals {
        /// The counter.
        counter: InterruptCounter,
        /// Why there is no better one.
        because: Unavailable,
    },
}

/// There is no counter of shootdowns.
#[derive(Debug, thiserror::Error)]
#[error("no counter of TLB shootdowns: {requests}; {arrivals}")]
pub struct NoCounter {
    /// Why there is none of requests.
    pub requests: Unavailable,
    /// Why there is none of arrivals.
    pub arrivals: Unavailable,
}

/// A counter cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// That of requests.
    #[error(transparent)]
    Requests(#[from] CallError),
    /// That of arrivals.
    #[error(transparent)]
    Arrivals(#[from] TextError),
}

impl Counter {
    /// The requests of the calling thread, or else what arrives.
    ///
    /// # Errors
    ///
    /// [`NoCounter`] with both reasons.
    ///
    /// # References
    ///
    /// perf_event_open(2), proc_interrupts(5).
    pub fn best_for_this_thread() -> Result<Self, NoCounter> {
        Self::or_arrivals(ShootdownCounter::open_for_this_thread())
    }

    /// The requests of all threads that this process has now, or else what arrives.
    ///
    /// # Errors
    ///
    /// [`NoCounter`] with both reasons.
    ///
    /// # References
    ///
    /// perf_event_open(2), proc_interrupts(5).
    pub fn best_for_this_process() -> Result<Self, NoCounter> {
        Self::or_arrivals(ShootdownCounter::open_for_this_process())
    }

    /// Takes the counter of requests, or the one of arrivals with the reason.
    ///
    /// # Errors
    ///
    /// [`NoCounter`] with both reasons.
    pub fn or_arrivals(requests: Result<ShootdownCounter, Unavailable>) -> Result<Self, NoCounter> {
        match requests {
            Ok(counter) => Ok(Self::Requests(counter)),
            Err(because) => match InterruptCounter::open() {
                Ok(counter) => Ok(Self::Arrivals { counter, because }),
                Err(arrivals) => Err(NoCounter {
                    requests: because,
                    arrivals,
                }),
            },
        }
    }

    /// The count so far. Only differences mean anything.
    ///
    /// # Errors
    ///
    /// [`ReadError`] of the counter in use.
    pub fn read(&self) -> Result<u64, ReadError> {
        match self {
            Self::Requests(counter) => Ok(counter.read()?),
            Self::Arrivals { counter, .. } => Ok(counter.read()?),
        }
    }

    /// What it counts.
    #[must_use]
    pub const fn source(&self) -> Source {
        match self {
            Self::Requests(_) => Source::Requests,
            Self::Arrivals { .. } => Source::Arrivals,
        }
    }

    /// Why it is not the better one; `None` if it is.
    #[must_use]
    pub const fn because(&self) -> Option<&Unavailable> {
        match self {
            Self::Requests(_) => None,
            Self::Arrivals { because, .. } => Some(because),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_is_summed_over_the_cpus() {
        let text = "           CPU0       CPU1\n  1:   7   8  IO-APIC\n\
                    TLB:         12         30   TLB shootdowns\n";
        assert_eq!(tlb_row(text), Some(42));
        assert_eq!(tlb_row("CPU0\n"), None);
    }
}
