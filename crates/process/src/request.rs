//! What is asked for, and whether the machine has it.

use std::collections::BTreeSet;
use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

use transhume_sys::TextError;
use transhume_sys::numa::{self, Shared};

use crate::select::Select;
use crate::shares::Shares;
use crate::target::{self, Target};

/// Which memory moves from where to where, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The nodes that memory leaves.
    pub from: BTreeSet<u32>,
    /// Where it goes.
    pub to: Shares,
    /// Which memory; all if it is empty.
    pub only: Vec<Select>,
    /// The most threads that move at once.
    pub threads: NonZeroUsize,
    /// The most bytes that move.
    pub limit: Option<NonZeroU64>,
    /// The most bytes a second, of all threads together.
    pub bandwidth: Option<NonZeroU64>,
    /// The longest that an access should wait for its page.
    pub max_stall: Option<Duration>,
    /// Whether pages move that other processes map as well.
    pub shared: Shared,
    /// Whether memory that is not selected and on a full destination goes to where the selected
    /// memory comes from, slice by slice, to make room.
    pub exchange: bool,
    /// Whether processes that these have started are moved too, also those started meanwhile.
    pub follow_children: bool,
    /// Whether the workers count their shootdowns. It takes the kernel longer to let go of the counter
    /// than to move some ten MiB, because it waits until no CPU can be in the tracepoint.
    pub count_shootdowns: bool,
}

/// Why a request makes no sense on this machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// There is no other node.
    #[error(
        "nothing to do: only node {0} of this machine has memory, so there is no other to move to"
    )]
    OneNode(u32),
    /// The machine has no such node.
    #[error("there is no node {node} that is online; nodes with memory are {have}")]
    Absent {
        /// The node.
        node: u32,
        /// Those that there are.
        have: String,
    },
    /// The node has no memory.
    #[error("node {node} has no memory; nodes with memory are {have}")]
    NoMemory {
        /// The node.
        node: u32,
        /// Those that have.
        have: String,
    },
    /// Memory would go to where it comes from.
    #[error("node {0} is both where memory comes from and where it goes; name it once")]
    Overlap(u32),
    /// All nodes are destinations.
    #[error("all nodes with memory are destinations, so there is none to move memory from")]
    NothingLeft,
    /// The process may not have memory there.
    #[error(
        "the cpuset of process {pid} does not let it have memory on node {node}: \
         allow it there (cpuset.mems) first"
    )]
    Cpuset {
        /// The process.
        pid: i32,
        /// The node.
        node: u32,
    },
    /// This process may not have memory there, on whose account the kernel finds room.
    #[error(
        "this process's own cpuset has not got node {0}, and the kernel looks for room on its account: \
         run it in a cgroup with that node in cpuset.mems"
    )]
    OwnCpuset(u32),
    /// There is nothing to exchange with.
    #[error(
        "--exchange needs --only: what makes room is memory of the same processes that is not selected"
    )]
    NothingToExchange,
    /// The kernel has no NUMA.
    #[error("the kernel does not say which nodes there are, so it is one without NUMA: {0}")]
    NoNuma(#[from] TextError),
}

/// The nodes of the machine, as far as moving goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes {
    online: BTreeSet<u32>,
    with_memory: BTreeSet<u32>,
}

impl Nodes {
    /// Those of this machine, now.
    ///
    /// # Errors
    ///
    /// [`TextError`] on a kernel without NUMA.
    pub fn here() -> Result<Self, TextError> {
        Ok(Self {
            online: numa::online_nodes()?.into_iter().collect(),
            with_memory: numa::nodes_with_memory()?.into_iter().collect(),
        })
    }

    /// Makes sure that memory can go from some nodes to others; `None` is from all others.
    ///
    /// # Errors
    ///
    /// [`RequestError`] says what cannot be.
    pub fn check(
        &self,
        from: Option<&BTreeSet<u32>>,
        to: &Shares,
    ) -> Result<BTreeSet<u32>, RequestError> {
        let have = || {
            let numbers = self.with_memory.iter().map(u32::to_string);
            numbers.collect::<Vec<_>>().join(", ")
        };
        if let (Some(&only), 1) = (self.with_memory.first(), self.with_memory.len()) {
            return Err(RequestError::OneNode(only));
        }
        for node in to.nodes().chain(from.into_iter().flatten().copied()) {
            if self.with_memory.contains(&node) {
                continue;
            }
            return Err(if self.online.contains(&node) {
                RequestError::NoMemory { node, have: have() }
            } else {
                RequestError::Absent { node, have: have() }
            });
        }
        if let Some(from) = from {
            match to.nodes().find(|node| from.contains(node)) {
                Some(node) => return Err(RequestError::Overlap(node)),
                None => return Ok(from.clone()),
            }
        }
        let to = to.nodes().collect();
        let from = self
            .with_memory
            .difference(&to)
            .copied()
            .collect::<BTreeSet<_>>();
        if from.is_empty() {
            return Err(RequestError::NothingLeft);
        }
        Ok(from)
    }
}

impl Request {
    /// Memory of these nodes to those, without any limits, by one thread.
    #[must_use]
    pub fn new(from: BTreeSet<u32>, to: Shares) -> Self {
        Self {
            from,
            to,
            only: Vec::new(),
            threads: NonZeroUsize::MIN,
            limit: None,
            bandwidth: None,
            max_stall: None,
            shared: Shared::Leave,
            exchange: false,
            follow_children: false,
            count_shootdowns: false,
        }
    }

    /// Makes sure that a process may have memory where it is to go, and that there is something to
    /// exchange with.
    ///
    /// # Errors
    ///
    /// [`RequestError::Cpuset`], [`RequestError::OwnCpuset`] and
    /// [`RequestError::NothingToExchange`].
    pub fn check(&self, target: &Target) -> Result<(), RequestError> {
        if self.exchange && self.only.is_empty() {
            return Err(RequestError::NothingToExchange);
        }
        let lacks = |allowed: Option<BTreeSet<u32>>| {
            let allowed = allowed?;
            self.to.nodes().find(|node| !allowed.contains(node))
        };
        if let Some(node) = lacks(target.allowed_nodes()) {
            let pid = target.number();
            return Err(RequestError::Cpuset { pid, node });
        }
        match lacks(target::own_allowed_nodes()) {
            Some(node) => Err(RequestError::OwnCpuset(node)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(with_memory: &[u32]) -> Nodes {
        Nodes {
            online: (0..4).collect(),
            with_memory: with_memory.iter().copied().collect(),
        }
    }

    fn said(nodes: &Nodes, from: Option<&[u32]>, to: &str) -> String {
        let from = from.map(|from| from.iter().copied().collect());
        match nodes.check(from.as_ref(), &to.parse().unwrap()) {
            Ok(from) => format!("{from:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let three = nodes(&[0, 1, 2]);
        assert_eq!(said(&three, Some(&[0]), "1,2"), "{0}");
        assert_eq!(said(&three, None, "2"), "{0, 1}");
        assert!(said(&three, None, "0,1,2").contains("none to move memory from"));
        assert!(said(&three, Some(&[0]), "0").contains("node 0 is both"));
        assert!(said(&three, Some(&[0, 1]), "1,2").contains("node 1 is both"));
        assert!(said(&three, Some(&[0]), "3").contains("node 3 has no memory"));
        assert!(said(&three, Some(&[7]), "1").contains("no node 7"));
        assert!(said(&nodes(&[0]), None, "0").contains("only node 0"));
        assert!(said(&nodes(&[0]), Some(&[0]), "1").contains("only node 0"));
    }
}
