//! The processes whose memory is moved.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use procfs::process::{Process, Stat, StatFlags, Status};
use procfs::{FromBufRead, FromRead, ProcError, ProcResult};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::PidfdFlags;
use transhume_sys::numa::{NodeFrames, query_pages};
use transhume_sys::pagemap::Pagemap;
use transhume_sys::{Call, CallError, Errno, Pid};

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
/// It is held by descriptors, which another process that gets its number later does not answer to.
/// move_pages(2) knows numbers only: before each call it is made sure that the process has not ended.
#[derive(Debug)]
pub struct Target {
    pid: Pid,
    name: String,
    started: u64,
    handle: OwnedFd,
    process: Process,
    /// Read when they are wanted first.
    node_frames: OnceLock<Option<NodeFrames>>,
}

/// A process as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    /// When it started, in the kernel's ticks.
    pub(crate) started: u64,
}

/// The processes that there are, kernel threads left out.
pub(crate) fn running() -> Vec<Running> {
    let all = procfs::process::all_processes().into_iter().flatten();
    // Processes end while the list is read.
    let stats = all.flatten().filter_map(|process| stat(&process).ok());
    // This process may be a child of one that is to move.
    let own = std::process::id();
    let stats = stats.filter(|stat| !is_kernel_thread(stat) && u32::try_from(stat.pid) != Ok(own));
    let running = stats.map(|stat| Running {
        pid: stat.pid,
        parent: stat.ppid,
        started: stat.starttime,
    });
    running.collect()
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
        let stat = stat(&process).map_err(|error| proc_error(pid, error))?;
        let name = plain(&stat.comm);
        if is_kernel_thread(&stat) {
            return Err(TargetError::KernelThread { pid, name });
        }
        if matches!(stat.state, 'Z' | 'X' | 'x') {
            return Err(TargetError::Zombie { pid, name });
        }
        let status = status(&process).map_err(|error| proc_error(pid, error))?;
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
            Errno::SRCH | Errno::INVAL | Errno::NOENT => TargetError::NoSuch { pid },
            _ => TargetError::Call { pid, source },
        };
        let handle = rustix::process::pidfd_open(number, PidfdFlags::empty());
        let handle = handle.map_err(|errno| match errno {
            Errno::SRCH => TargetError::NoSuch { pid },
            _ => TargetError::Proc {
                pid,
                source: errno.into(),
            },
        })?;
        query_pages(Some(number), &[], &mut []).map_err(refused)?;
        let target = Self {
            pid: number,
            name: name.clone(),
            started: stat.starttime,
            handle,
            process,
            node_frames: OnceLock::new(),
        };
        target.pagemap().map_err(refused)?;
        // Between the look-ups its number may have become another's.
        let again = self::stat(&target.process).map_err(|error| proc_error(pid, error))?;
        if again.starttime != stat.starttime || target.has_ended() {
            return Err(TargetError::NoSuch { pid });
        }
        Ok(target)
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
        allowed_nodes(&self.process)
    }

    /// When it started, in the kernel's ticks.
    pub(crate) fn started(&self) -> u64 {
        self.started
    }

    /// Its page map, as it is now: a program that it executes later has another.
    pub(crate) fn pagemap(&self) -> Result<Pagemap, CallError> {
        let opened = self.process.open_relative("pagemap");
        let opened = opened.map_err(|error| io_error(&error)).map_err(|error| {
            let errno = error.raw_os_error().map(Errno::from_raw_os_error);
            let by_kind = match error.kind() {
                io::ErrorKind::PermissionDenied => Errno::ACCESS,
                io::ErrorKind::NotFound => Errno::NOENT,
                _ => Errno::IO,
            };
            CallError {
                call: Call::PagemapOpen,
                range: None,
                errno: errno.unwrap_or(by_kind),
            }
        })?;
        Ok(Pagemap::from(OwnedFd::from(opened)))
    }

    /// Which frames are on which node of the machine, for all who look for its pages; `None` where the
    /// kernel does not say.
    pub(crate) fn node_frames(&self) -> Option<&NodeFrames> {
        let frames = self.node_frames.get_or_init(|| NodeFrames::here().ok());
        frames.as_ref()
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

fn allowed_nodes(process: &Process) -> Option<BTreeSet<u32>> {
    let ranges = status(process).ok()?.mems_allowed_list?;
    Some(ranges.iter().flat_map(|&(low, high)| low..=high).collect())
}

/// The nodes that this process may have memory on.
pub(crate) fn own_allowed_nodes() -> Option<BTreeSet<u32>> {
    allowed_nodes(&Process::myself().ok()?)
}

/// What procfs says of a process. Its name may be any bytes.
fn stat(process: &Process) -> ProcResult<Stat> {
    Stat::from_read(lossy(process, "stat")?.as_bytes())
}

fn status(process: &Process) -> ProcResult<Status> {
    Status::from_buf_read(lossy(process, "status")?.as_bytes())
}

fn lossy(process: &Process, file: &str) -> ProcResult<String> {
    let mut bytes = Vec::new();
    let mut opened = process.open_relative(file)?;
    io::Read::read_to_end(&mut opened, &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A name without what a terminal would obey.
pub(crate) fn plain(name: &str) -> String {
    let plain = |char: char| match char.is_control() {
        true => char.escape_default().collect(),
        false => String::from(char),
    };
    name.chars().map(plain).collect()
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
    fn names_are_plain() {
        assert_eq!(plain("a b é"), "a b é");
        assert_eq!(plain("\x1b[31m\n"), "\\u{1b}[31m\\n");
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
