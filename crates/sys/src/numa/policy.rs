//! Which nodes memory comes from.

use std::marker::PhantomData;
use std::ops::Range;

use bitflags::bitflags;
use rustix::io::Errno;

use crate::abi::{answer, len};
use crate::{Call, CallError, hook};

/// Nodes have numbers below this, in every kernel so far.
pub const MAX_NODES: u32 = 1024;

const MPOL_DEFAULT: i32 = 0;
const MPOL_PREFERRED: i32 = 1;
const MPOL_BIND: i32 = 2;
const MPOL_INTERLEAVE: i32 = 3;
const MPOL_LOCAL: i32 = 4;
const MPOL_PREFERRED_MANY: i32 = 5;
const MPOL_WEIGHTED_INTERLEAVE: i32 = 6;
/// Flags that share a word with the mode.
const MPOL_MODE_FLAGS: i32 = 0b111 << 13;

const MPOL_F_NODE: u32 = 1 << 0;
const MPOL_F_ADDR: u32 = 1 << 1;

const MPOL_MF_STRICT: u32 = 1 << 0;
pub(super) const MPOL_MF_MOVE: u32 = 1 << 1;
pub(super) const MPOL_MF_MOVE_ALL: u32 = 1 << 2;

/// A policy to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy<'a> {
    /// That of the thread, or of the system.
    Default,
    /// From these nodes only.
    Bind(&'a [u32]),
    /// From this node if it has room.
    Preferred(u32),
    /// From these nodes if they have room, Linux 5.15.
    PreferredMany(&'a [u32]),
    /// From these nodes in turn.
    Interleave(&'a [u32]),
    /// From the node of the CPU that asks.
    Local,
}

impl Policy<'_> {
    fn raw(&self) -> Result<(i32, NodeMask), Errno> {
        let (mode, nodes) = match self {
            Self::Default => (MPOL_DEFAULT, &[][..]),
            Self::Bind(nodes) => (MPOL_BIND, *nodes),
            Self::Preferred(node) => (MPOL_PREFERRED, std::slice::from_ref(node)),
            Self::PreferredMany(nodes) => (MPOL_PREFERRED_MANY, *nodes),
            Self::Interleave(nodes) => (MPOL_INTERLEAVE, *nodes),
            Self::Local => (MPOL_LOCAL, &[][..]),
        };
        Ok((mode, NodeMask::of(nodes)?))
    }
}

bitflags! {
    /// What becomes of pages that are there already.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct BindFlags: u32 {
        /// `EIO` if a page is elsewhere.
        const STRICT = MPOL_MF_STRICT;
        /// Pages that this process alone maps are moved.
        const MOVE = MPOL_MF_MOVE;
        /// All pages are moved; needs `CAP_SYS_NICE`.
        const MOVE_ALL = MPOL_MF_MOVE_ALL;
    }
}

/// Sets the policy of a range.
///
/// # Errors
///
/// `EINVAL` for a node that has no memory, is not allowed or not there; `EFAULT` where nothing is
/// mapped; `EIO` by [`BindFlags`] that pages do not obey; `ENOMEM` with too many mappings; `ENOSYS`
/// on a kernel without NUMA.
///
/// # References
///
/// mbind(2).
pub fn mbind(range: Range<usize>, policy: Policy<'_>, flags: BindFlags) -> Result<(), CallError> {
    let bind = || {
        hook::whole(Call::Mbind)?;
        let (mode, mask) = policy.raw()?;
        // SAFETY: a policy changes where memory is and not what it contains.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                range.start,
                len(&range),
                // The kernel takes these as whole words.
                libc::c_long::from(mode),
                mask.as_ptr(),
                NodeMask::BITS,
                libc::c_ulong::from(flags.bits()),
            )
        };
        answer(ret).map(drop)
    };
    bind().map_err(|errno| CallError::at(Call::Mbind, range.clone(), errno))
}

/// Binds a range to one node; pages that are there stay where they are.
///
/// # Errors
///
/// As [`mbind`].
///
/// # References
///
/// mbind(2).
pub fn bind(range: Range<usize>, node: u32) -> Result<(), CallError> {
    mbind(range, Policy::Bind(&[node]), BindFlags::empty())
}

/// A policy of the calling thread; it ends, and the default holds again, when this is dropped.
///
/// It belongs to the thread that made it and cannot be sent to another. Two at a time do not nest:
/// the first one dropped ends both.
#[derive(Debug)]
#[must_use = "the policy ends when this is dropped"]
pub struct ThreadPolicy {
    of_this_thread: PhantomData<*const ()>,
}

impl ThreadPolicy {
    /// Sets a policy for what the calling thread allocates.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a node that has no memory, is not allowed or not there; `ENOSYS` on a kernel
    /// without NUMA.
    ///
    /// # References
    ///
    /// set_mempolicy(2).
    pub fn set(policy: Policy<'_>) -> Result<Self, CallError> {
        hook::whole(Call::SetMempolicy)
            .and_then(|()| set_mempolicy(policy))
            .map_err(|errno| CallError::new(Call::SetMempolicy, errno))?;
        Ok(Self {
            of_this_thread: PhantomData,
        })
    }

    /// Binds what the calling thread allocates to one node.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set).
    ///
    /// # References
    ///
    /// set_mempolicy(2).
    pub fn bind(node: u32) -> Result<Self, CallError> {
        Self::set(Policy::Bind(&[node]))
    }
}

impl Drop for ThreadPolicy {
    fn drop(&mut self) {
        // Taking a policy away allocates nothing and has nothing to fail at.
        let _ = set_mempolicy(Policy::Default);
    }
}

fn set_mempolicy(policy: Policy<'_>) -> Result<(), Errno> {
    let (mode, mask) = policy.raw()?;
    // SAFETY: a policy changes where memory comes from and not what it contains.
    let ret =
        unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask.as_ptr(), NodeMask::BITS) };
    answer(ret).map(drop)
}

/// The node of the page at an address. A page that is not there is fetched as if it were read.
///
/// # Errors
///
/// `EFAULT` where nothing is mapped, `ENOSYS` on a kernel without NUMA.
///
/// # References
///
/// get_mempolicy(2), `MPOL_F_NODE | MPOL_F_ADDR`.
pub fn node_at(address: usize) -> Result<u32, CallError> {
    let (node, _) = get_mempolicy(address, MPOL_F_NODE | MPOL_F_ADDR)?;
    u32::try_from(node).map_err(|_| CallError::at(Call::GetMempolicy, address..address, Errno::IO))
}

/// The kind of a policy that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PolicyKind {
    /// [`Policy::Default`].
    Default,
    /// [`Policy::Bind`].
    Bind,
    /// [`Policy::Preferred`].
    Preferred,
    /// [`Policy::PreferredMany`].
    PreferredMany,
    /// [`Policy::Interleave`].
    Interleave,
    /// Interleaved by weight.
    WeightedInterleave,
    /// [`Policy::Local`].
    Local,
    /// Something that this version does not know.
    Unknown(i32),
}

/// A policy that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyReport {
    /// Its kind.
    pub kind: PolicyKind,
    /// Its nodes, in order.
    pub nodes: Vec<u32>,
}

/// The policy of the memory at an address.
///
/// # Errors
///
/// `EFAULT` where nothing is mapped, `ENOSYS` on a kernel without NUMA.
///
/// # References
///
/// get_mempolicy(2), `MPOL_F_ADDR`.
pub fn policy_at(address: usize) -> Result<PolicyReport, CallError> {
    let (mode, mask) = get_mempolicy(address, MPOL_F_ADDR)?;
    let kind = match mode & !MPOL_MODE_FLAGS {
        MPOL_DEFAULT => PolicyKind::Default,
        MPOL_BIND => PolicyKind::Bind,
        MPOL_PREFERRED => PolicyKind::Preferred,
        MPOL_PREFERRED_MANY => PolicyKind::PreferredMany,
        MPOL_INTERLEAVE => PolicyKind::Interleave,
        MPOL_WEIGHTED_INTERLEAVE => PolicyKind::WeightedInterleave,
        MPOL_LOCAL => PolicyKind::Local,
        other => PolicyKind::Unknown(other),
    };
    Ok(PolicyReport {
        kind,
        nodes: mask.nodes(),
    })
}

fn get_mempolicy(address: usize, flags: u32) -> Result<(i32, NodeMask), CallError> {
    let mut mode = 0_i32;
    let mut mask = NodeMask::default();
    let mut get = || {
        hook::whole(Call::GetMempolicy)?;
        // SAFETY: the kernel writes the mode and as many bits of the mask as it is told to.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut mode,
                mask.0.as_mut_ptr(),
                NodeMask::BITS,
                address,
                libc::c_ulong::from(flags),
            )
        };
        answer(ret)
    };
    match get() {
        Ok(_) => Ok((mode, mask)),
        Err(errno) => Err(CallError::at(
            Call::GetMempolicy,
            address..address.saturating_add(1),
            errno,
        )),
    }
}

#[derive(Debug, Default)]
pub(super) struct NodeMask([u64; MAX_NODES as usize / 64]);

impl NodeMask {
    /// What the kernel is told: it takes one bit less.
    pub(super) const BITS: usize = MAX_NODES as usize + 1;

    pub(super) fn of(nodes: &[u32]) -> Result<Self, Errno> {
        let mut mask = Self::default();
        for &node in nodes {
            let word = mask.0.get_mut(node as usize / 64).ok_or(Errno::INVAL)?;
            *word |= 1 << (node % 64);
        }
        Ok(mask)
    }

    /// The mask as an argument; a policy without nodes wants none.
    pub(super) fn as_ptr(&self) -> *const u64 {
        if self.0.iter().all(|&word| word == 0) {
            std::ptr::null()
        } else {
            self.0.as_ptr()
        }
    }

    fn nodes(&self) -> Vec<u32> {
        let is_set = |node: &u32| self.0[*node as usize / 64] >> (node % 64) & 1 == 1;
        (0..MAX_NODES).filter(is_set).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        let mask = NodeMask::of(&[0, 63, 64, 1023]).unwrap();
        assert_eq!(mask.nodes(), [0, 63, 64, 1023]);
        assert_eq!(NodeMask::of(&[1024]).unwrap_err(), Errno::INVAL);
        assert!(NodeMask::default().as_ptr().is_null());
    }
}
