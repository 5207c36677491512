//! The processes whose memory is moved.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use procfs::ProcError;
use procfs::process::{Process, Stat, StatFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::PidfdFlags;
use transhume_sys::numa::query_pages;
use transhume_sys::pagemap::Pagemap;
use transhume_sys::{CallError, Errno, Pid};

/// Why the memory of a process cannot be moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// No process has this number.
    #[error(
        "there is no process {pid}; inside a container its processes have other numbers than outside"
    )]
    NoSuch {
        /// The number.
        pid: i32,
    },
    /// The number is that of a thread.
    #[error("{tid} is a thread of process {pid}; name the process")]
    Thread {
        /// The number.
        tid: i32,
        /// The process.
        pid: i32,
    },
    /// It has ended and only its exit status is left.
    #[error(
        "process {pid} ({name}) has ended and has no memory; its parent has not asked for it yet"
    )]
    Zombie {
        /// The number.
        pid: i32,
        /// The name.
        name: String,
    },
    /// It is part of the kernel.
    #[error("{pid} ({name}) is a kernel thread, whose memory is the kernel's; name a process")]
    KernelThread {
        /// The number.
        pid: i32,
        /// The name.
        name: String,
    },
    /// This process may not look into it.
    #[error(
        "not permitted to look into process {pid} ({name}): run as root, or as its user with CAP_SYS_PTRACE"
    )]
    NotPermitted {
        /// The number.
        pid: i32,
        /// The name.
        name: String,
    },
    /// procfs shows the processes of another namespace.
    #[error("/proc shows another PID namespace than this process is in; mount one of its own")]
    ForeignProc,
    /// procfs does not say what it should.
    #[error("cannot read what /proc says of process {pid}: {source}")]
    Proc {
        /// The number.
        pid: i32,
        /// What went wrong.
        source: io::Error,
    },
    /// The kernel refuses.
    #[error("process {pid}: {source}")]
    Call {
        /// The number.
        pid: i32,
        /// The call.
        source: CallError,
    },
}

/// A process that runs, or did when it was opened.
///
/// It is held by descriptors, so that another one that gets its number later is not taken for it.
#[derive(Debug)]
pub struct Target {
    pid: Pid,
    name: String,
    handle: OwnedFd,
    process: Process,
    pagemap: Pagemap,
}

impl Target {
    /// Finds a process by its number in this process's PID namespace, and makes sure that its memory
    /// can be looked at.
    ///
    /// # Errors
    ///
    /// [`TargetError`] says what is wrong with it, and what to do.
    pub fn open(pid: i32) -> Result<Self, TargetError> {
        let own = fs::read_link("/proc/self").ok();
        let own = own.and_then(|link| link.to_str()?.parse::<u32>().ok());
        if own != Some(std::process::id()) {
            return Err(TargetError::ForeignProc);
        }
        let number = Some(pid).filter(|&pid| pid > 0).and_then(Pid::from_raw);
        let number = number.ok_or(TargetError::NoSuch { pid })?;
        let process = Process::new(pid).map_err(|error| proc_error(pid, error))?;
        let stat = process.stat().map_err(|error| proc_error(pid, error))?;
        let name = stat.comm.clone();
        if is_kernel_thread(&stat) {
            return Err(TargetError::KernelThread { pid, name });
        }
        if matches!(stat.state, 'Z' | 'X' | 'x') {
            return Err(TargetError::Zombie { pid, name });
        }
        let status = process.status().map_err(|error| proc_error(pid, error))?;
        if status.tgid != pid {
            return Err(TargetError::Thread {
                tid: pid,
                pid: status.tgid,
            });
        }
        let refused = |source: CallError| match source.errno {
            Errno::ACCESS | Errno::PERM => TargetError::NotPermitted {
                pid,
                name: name.clone(),
            },
            Errno::SRCH | Errno::NOENT => TargetError::NoSuch { pid },
            _ => TargetError::Call { pid, source },
        };
        let handle = rustix::process::pidfd_open(number, PidfdFlags::empty()).map_err(|errno| {
            TargetError::Proc {
                pid,
                source: errno.into(),
            }
        })?;
        query_pages(Some(number), &[], &mut []).map_err(refused)?;
        let pagemap = Pagemap::open(number).map_err(refused)?;
        Ok(Self {
            pid: number,
            name,
            handle,
            process,
            pagemap,
        })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its number, as a number.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// The name of its program, as far as the kernel keeps it: 15 bytes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut wanted = [PollFd::new(&self.handle, PollFlags::IN)];
        let now = Timespec::default();
        matches!(poll(&mut wanted, Some(&now)), Ok(ready) if ready > 0)
    }

    /// The nodes that its cpuset lets it have memory on, in order; `None` where the kernel does not
    /// say.
    #[must_use]
    pub fn allowed_nodes(&self) -> Option<BTreeSet<u32>> {
        let ranges = self.process.status().ok()?.mems_allowed_list?;
        Some(ranges.iter().flat_map(|&(low, high)| low..=high).collect())
    }

    /// The numbers of the processes that it has started, and they, and so on, in order.
    #[must_use]
    pub fn descendants(&self) -> Vec<i32> {
        let mut parents = Vec::new();
        // Processes end while the list is read.
        for process in procfs::process::all_processes()
            .into_iter()
            .flatten()
            .flatten()
        {
            if let Ok(stat) = process.stat()
                && !is_kernel_thread(&stat)
            {
                parents.push((stat.pid, stat.ppid));
            }
        }
        descendants(self.number(), &parents)
    }

    pub(crate) fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    /// One of its files in procfs, as bytes: a path in it may be anything.
    pub(crate) fn read(&self, file: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut opened = self
            .process
            .open_relative(file)
            .map_err(|error| io_error(&error))?;
        io::Read::read_to_end(&mut opened, &mut bytes)?;
        Ok(bytes)
    }
}

fn descendants(of: i32, parents: &[(i32, i32)]) -> Vec<i32> {
    let mut found = BTreeSet::from([of]);
    loop {
        let before = found.len();
        let children = parents.iter().filter(|(_, parent)| found.contains(parent));
        let children = children.map(|&(child, _)| child).collect::<Vec<_>>();
        found.extend(children);
        if found.len() == before {
            found.remove(&of);
            return found.into_iter().collect();
        }
    }
}

fn is_kernel_thread(stat: &Stat) -> bool {
    stat.flags & StatFlags::PF_KTHREAD.bits() != 0
}

fn io_error(error: &ProcError) -> io::Error {
    match error {
        ProcError::NotFound(_) => io::ErrorKind::NotFound.into(),
        ProcError::PermissionDenied(_) => io::ErrorKind::PermissionDenied.into(),
        other => io::Error::other(other.to_string()),
    }
}

fn proc_error(pid: i32, error: ProcError) -> TargetError {
    match error {
        ProcError::NotFound(_) => TargetError::NoSuch { pid },
        other => TargetError::Proc {
            pid,
            source: io_error(&other),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_whatever_their_order() {
        let parents = [(5, 4), (4, 2), (3, 1), (2, 1), (9, 8)];
        assert_eq!(descendants(2, &parents), [4, 5]);
        assert_eq!(descendants(1, &parents), [2, 3, 4, 5]);
        assert_eq!(descendants(7, &parents), [] as [i32; 0]);
    }

    #[test]
    fn numbers_that_are_no_process_are_refused() {
        for pid in [0, -1, i32::MAX] {
            assert!(
                matches!(Target::open(pid), Err(TargetError::NoSuch { .. })),
                "{pid}"
            );
        }
        let error = Target::open(2).unwrap_err();
        assert!(
            matches!(
                error,
                TargetError::KernelThread { pid: 2, .. } | TargetError::NoSuch { pid: 2 }
            ),
            "{error}"
        );
    }
}
