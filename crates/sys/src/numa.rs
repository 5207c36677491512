//! Memory policy, and moving pages between nodes.
//!
//! Everything here changes where memory is and not what it contains, so it is safe.

mod frames;
mod memory;
mod policy;
pub mod topology;

use std::fmt;

use rustix::io::Errno;
use rustix::process::Pid;

use crate::abi::answer;
use crate::text::{self, TextError};
use crate::{Call, CallError, hook};
use policy::NodeMask;

pub use frames::NodeFrames;
pub use memory::{NodeMemory, NodePages};
pub use policy::{
    BindFlags, MAX_NODES, Policy, PolicyKind, PolicyReport, ThreadPolicy, bind, mbind, node_at,
    policy_at,
};

/// What move_pages(2) says of one page, in the form that the kernel writes.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PageStatus(i32);

impl PageStatus {
    /// The kernel has said nothing. It never writes this value.
    pub const UNKNOWN: Self = Self(i32::MIN);

    /// What the kernel says of a page on this node; nothing if no node has such a number.
    #[must_use]
    pub fn on_node(node: u32) -> Self {
        i32::try_from(node).map_or(Self::UNKNOWN, Self)
    }

    /// The node the page is on.
    #[must_use]
    pub fn node(self) -> Option<u32> {
        u32::try_from(self.0).ok()
    }

    /// Why there is none: `ENOENT` for a page that is absent, `EFAULT` for no mapping or the zero
    /// page, `EACCES` for one that several processes map, `EBUSY` for one that could not be
    /// isolated, `ENOMEM` without room on the node.
    #[must_use]
    pub fn errno(self) -> Option<Errno> {
        crate::abi::errno_in_field(self.0.into())
    }

    /// Says whether the kernel has said nothing.
    #[must_use]
    pub fn is_unknown(self) -> bool {
        self == Self::UNKNOWN
    }
}

impl From<Errno> for PageStatus {
    fn from(errno: Errno) -> Self {
        Self(-errno.raw_os_error())
    }
}

impl Default for PageStatus {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

impl fmt::Debug for PageStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.node(), self.errno()) {
            (Some(node), _) => write!(f, "Node({node})"),
            (None, Some(errno)) => write!(f, "{errno:?}"),
            (None, None) => f.write_str("Unknown"),
        }
    }
}

/// Whose pages may be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shared {
    /// Those that this process alone maps.
    Leave,
    /// All; needs `CAP_SYS_NICE`.
    Move,
}

/// What came of [`move_pages`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "pages may be left where they were, without any error"]
pub struct Moved {
    /// Pages of which the kernel said nothing: those of the batch where it gave up, also those that
    /// it did move before, and all after it. [`query_pages`] tells where they are.
    pub not_attempted: usize,
    /// Its own count of the pages that it left, from the batch where it gave up on. It differs from
    /// `not_attempted` by pages that were moved and have no status.
    pub left: usize,
}

/// Finds the node of each page of a process; `None` is this one.
///
/// A status for each page is written, or the call fails.
///
/// # Errors
///
/// `ESRCH` and `EPERM` for a process that is not there or may not be traced, `EINVAL` for one that is
/// about to end, and for lists of different lengths, `ENOSYS` on a kernel without migration.
///
/// # References
///
/// move_pages(2).
pub fn query_pages(
    process: Option<Pid>,
    pages: &[usize],
    status: &mut [PageStatus],
) -> Result<(), CallError> {
    let mut query = || {
        hook::whole(Call::QueryPages)?;
        same_length(&[pages.len(), status.len()])?;
        status.fill(PageStatus::UNKNOWN);
        // SAFETY: without nodes the kernel moves nothing and writes a status for each page.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_move_pages,
                raw_pid(process),
                pages.len(),
                pages.as_ptr(),
                std::ptr::null::<u32>(),
                status.as_mut_ptr(),
                0,
            )
        };
        answer(ret).map(drop)
    };
    query().map_err(|errno| error(Call::QueryPages, pages, errno))
}

/// Moves each page of a process to its node; `None` is this process.
///
/// `status` is filled with [`PageStatus::UNKNOWN`] first, and stays so where the kernel says
/// nothing: when it cannot move all pages of a batch it gives up there, and answers a count and no
/// error. A status that is a node is where the page is now.
///
/// # Errors
///
/// `ESRCH` and `EPERM` for a process that is not there or may not be traced, `EINVAL` for one that is
/// about to end, and for lists of different lengths, `ENODEV` and `EACCES` for a node that is not there or not allowed, `ENOMEM`,
/// `ENOSYS` on a kernel without migration. Pages before the bad one may have been moved.
///
/// # References
///
/// move_pages(2).
pub fn move_pages(
    process: Option<Pid>,
    pages: &[usize],
    nodes: &[u32],
    status: &mut [PageStatus],
    shared: Shared,
) -> Result<Moved, CallError> {
    status.fill(PageStatus::UNKNOWN);
    let flags = match shared {
        Shared::Leave => policy::MPOL_MF_MOVE,
        Shared::Move => policy::MPOL_MF_MOVE_ALL,
    };
    let raw = |count: usize, status: &mut [PageStatus]| {
        // SAFETY: the lists have `count` entries, and moving a page leaves its contents.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_move_pages,
                raw_pid(process),
                count,
                pages.as_ptr(),
                nodes.as_ptr(),
                status.as_mut_ptr(),
                flags,
            )
        };
        answer(ret)
    };
    let count = pages.len();
    let moved = same_length(&[count, nodes.len(), status.len()]).and_then(|()| {
        match hook::ask(Call::MovePages) {
            hook::Verdict::Go => raw(count, status),
            hook::Verdict::Uncounted { .. } => Err(Errno::EXIST),
            hook::Verdict::Fail(errno) => Err(errno),
            hook::Verdict::Partial { bytes, .. } => {
                let first = (bytes / rustix::param::page_size()).min(count);
                let left = if first == 0 { 0 } else { raw(first, status)? };
                Ok(left + (count - first))
            }
        }
    });
    let left = moved.map_err(|errno| error(Call::MovePages, pages, errno))?;
    let not_attempted = status.iter().filter(|status| status.is_unknown()).count();
    Ok(Moved {
        not_attempted,
        left,
    })
}

/// Moves all pages of a process that are on nodes of `from` to nodes of `to`; `None` is this process.
/// Says how many it left, by its own count; of which, it does not say.
///
/// The kernel pairs the nodes by their order, and finds the pages by itself. What other processes map
/// too moves if the caller has `CAP_SYS_NICE`.
///
/// # Errors
///
/// `ESRCH` and `EPERM` for a process that is not there or may not be moved, `EINVAL` for nodes that
/// are not there or without memory, `ENOMEM` without room, `ENOSYS` on a kernel without migration.
/// Some pages may have been moved.
///
/// # References
///
/// migrate_pages(2).
pub fn migrate_pages(process: Option<Pid>, from: &[u32], to: &[u32]) -> Result<usize, CallError> {
    let migrate = || {
        hook::whole(Call::MigratePages)?;
        let (from, to) = (NodeMask::of(from)?, NodeMask::of(to)?);
        // SAFETY: the masks have as many bits as is said, and moving a page leaves its contents.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_migrate_pages,
                raw_pid(process),
                NodeMask::BITS,
                from.as_ptr(),
                to.as_ptr(),
            )
        };
        answer(ret)
    };
    migrate().map_err(|errno| CallError::new(Call::MigratePages, errno))
}

fn same_length(lengths: &[usize]) -> Result<(), Errno> {
    let same = lengths.windows(2).all(|pair| pair[0] == pair[1]);
    if same { Ok(()) } else { Err(Errno::INVAL) }
}

fn raw_pid(process: Option<Pid>) -> i32 {
    process.map_or(0, |pid| pid.as_raw_nonzero().get())
}

/// Names the addresses between the lowest page and the highest.
fn error(call: Call, pages: &[usize], errno: Errno) -> CallError {
    match (pages.iter().min(), pages.iter().max()) {
        (Some(&low), Some(&high)) => CallError::at(
            call,
            low..high.saturating_add(rustix::param::page_size()),
            errno,
        ),
        _ => CallError::new(call, errno),
    }
}

/// The nodes that are online, in order.
///
/// # Errors
///
/// [`TextError`] on a kernel without NUMA.
///
/// # References
///
/// `Documentation/ABI/stable/sysfs-devices-node`.
pub fn online_nodes() -> Result<Vec<u32>, TextError> {
    node_list("/sys/devices/system/node/online")
}

/// The nodes that have memory, in order.
///
/// # Errors
///
/// [`TextError`] on a kernel without NUMA.
///
/// # References
///
/// `Documentation/ABI/stable/sysfs-devices-node`.
pub fn nodes_with_memory() -> Result<Vec<u32>, TextError> {
    node_list("/sys/devices/system/node/has_memory")
}

/// The nodes that have CPUs, in order.
///
/// # Errors
///
/// [`TextError`] on a kernel without NUMA.
///
/// # References
///
/// `Documentation/ABI/stable/sysfs-devices-node`.
pub fn nodes_with_cpus() -> Result<Vec<u32>, TextError> {
    node_list("/sys/devices/system/node/has_cpu")
}

fn node_list(path: &str) -> Result<Vec<u32>, TextError> {
    text::read_list(path, MAX_NODES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        assert_eq!(PageStatus(1).node(), Some(1));
        assert_eq!(PageStatus::on_node(1), PageStatus(1));
        assert!(PageStatus::on_node(u32::MAX).is_unknown());
        assert_eq!(PageStatus(-2).errno(), Some(Errno::NOENT));
        assert_eq!(PageStatus(-2).node(), None);
        let unknown = PageStatus::default();
        assert!(unknown.is_unknown() && unknown.node().is_none() && unknown.errno().is_none());
        assert_eq!(
            format!("{:?} {unknown:?}", PageStatus(3)),
            "Node(3) Unknown"
        );
    }
}
