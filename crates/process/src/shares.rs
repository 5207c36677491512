//! Where pages are to go: one node, or several by share.

use std::fmt;
use std::str::FromStr;

/// Nodes with their weights, as in `1` or `1,2` or `1=3,2=1`. Memory is dealt in pieces of 2 MiB by
/// address, so the same page always belongs to the same node, and a folio of up to that size, which
/// moves as a whole whoever asks for a page of it, to one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shares {
    /// At least one, each node once, each weight from 1 on.
    shares: Vec<(u32, u32)>,
    total: u64,
}

/// What is wrong with a list of nodes and shares.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SharesError {
    /// It is no list of nodes.
    #[error(
        "{0:?} is no list of nodes such as 1 or 1,2 or, three pages there for one here, 1=3,2=1"
    )]
    NoList(String),
    /// A node is named twice.
    #[error("node {0} is named twice")]
    Twice(u32),
    /// A share is zero, or above 10,000.
    #[error("the share of node {0} is none of 1 to 10000")]
    Weight(u32),
}

/// What goes to one node at least.
const PIECE: usize = 2 << 20;

impl Shares {
    /// The largest weight of a node.
    pub const MAX_WEIGHT: u32 = 10_000;

    /// These nodes with these weights, 1 to [`Shares::MAX_WEIGHT`].
    ///
    /// # Errors
    ///
    /// [`SharesError`].
    pub fn new(shares: Vec<(u32, u32)>) -> Result<Self, SharesError> {
        if shares.is_empty() {
            return Err(SharesError::NoList(String::new()));
        }
        for (at, &(node, weight)) in shares.iter().enumerate() {
            if shares[..at].iter().any(|&(other, _)| other == node) {
                return Err(SharesError::Twice(node));
            }
            if weight == 0 || weight > Self::MAX_WEIGHT {
                return Err(SharesError::Weight(node));
            }
        }
        let total = shares.iter().map(|&(_, weight)| u64::from(weight)).sum();
        Ok(Self { shares, total })
    }

    /// The nodes, in the order given.
    pub fn nodes(&self) -> impl Iterator<Item = u32> + '_ {
        self.shares.iter().map(|&(node, _)| node)
    }

    /// Whether it is one of the nodes.
    #[must_use]
    pub fn contains(&self, node: u32) -> bool {
        self.nodes().any(|other| other == node)
    }

    /// The node that the page at an address belongs to.
    #[must_use]
    pub fn node(&self, address: usize) -> u32 {
        let mut at = (address / PIECE) as u64 % self.total;
        for &(node, weight) in &self.shares {
            match at.checked_sub(weight.into()) {
                Some(rest) => at = rest,
                None => return node,
            }
        }
        // The weights add up to the total.
        self.shares[0].0
    }
}

impl FromStr for Shares {
    type Err = SharesError;

    fn from_str(list: &str) -> Result<Self, SharesError> {
        let share = |word: &str| {
            let (node, weight) = word.split_once('=').unwrap_or((word, "1"));
            Some((node.parse().ok()?, weight.parse().ok()?))
        };
        let shares = list.split(',').map(share).collect::<Option<_>>();
        Self::new(shares.ok_or_else(|| SharesError::NoList(list.to_owned()))?)
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alike = self.shares.iter().all(|&(_, weight)| weight == 1);
        for (at, (node, weight)) in self.shares.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            write!(f, "{node}")?;
            if !alike {
                write!(f, "={weight}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_dealt_by_share() {
        let shares = "1=3,2=1".parse::<Shares>().unwrap();
        let nodes = (0..8).map(|piece| shares.node(piece * PIECE + 4096));
        let nodes = nodes.collect::<Vec<_>>();
        assert_eq!(nodes, [1, 1, 1, 2, 1, 1, 1, 2]);
        let alike = "5,0".parse::<Shares>().unwrap();
        assert_eq!([0, 1, 2].map(|piece| alike.node(piece * PIECE)), [5, 0, 5]);
        assert_eq!(
            (shares.to_string(), alike.to_string()),
            ("1=3,2=1".into(), "5,0".into())
        );
        let one = "7".parse::<Shares>().unwrap();
        assert!((0..100).all(|piece| one.node(piece * PIECE) == 7));
    }

    #[test]
    fn wrong_lists_are_refused() {
        for list in ["", "x", "1,", "1=", "1=x", "-1", "1 2"] {
            assert!(
                matches!(list.parse::<Shares>(), Err(SharesError::NoList(_))),
                "{list}"
            );
        }
        assert_eq!("1,2,1".parse::<Shares>(), Err(SharesError::Twice(1)));
        assert_eq!("1=0".parse::<Shares>(), Err(SharesError::Weight(1)));
        assert_eq!("1=10001".parse::<Shares>(), Err(SharesError::Weight(1)));
    }
}
