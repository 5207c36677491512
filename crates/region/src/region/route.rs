//! Between which nodes the pages of a request are copied, for a copier that chooses by that.

use transhume_copy::auto::NodePair;

use super::Region;
use crate::runs::RunSet;
use crate::table::FolioTable;
use crate::tier::{Place, Tier, TierId};

impl Region {
    /// Where tiers have nodes: from that of the first page that is not at its destination, since the
    /// pages of a request mostly come from one tier.
    pub(super) fn route(&self, pages: &RunSet, table: &FolioTable, to: TierId) -> Option<NodePair> {
        let mut tiers = pages.iter().flatten().map(|page| table.tier(page));
        let from = tiers.find(|&tier| tier != to)?;
        pair(&self.tiers, from, to)
    }
}

fn pair(tiers: &[Tier], from: TierId, to: TierId) -> Option<NodePair> {
    let node = |tier: TierId| match tiers.get(tier.index())?.place {
        Place::Node(node) => Some(node),
        _ => None,
    };
    Some(NodePair {
        from: node(from)?,
        to: node(to)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tiers_with_nodes_have_a_route() {
        let tiers = [Tier::node("a", 3), Tier::memfd("b"), Tier::node("c", 0)];
        let pair = |from, to| pair(&tiers, TierId(from), TierId(to));
        assert_eq!(pair(0, 2), Some(NodePair { from: 3, to: 0 }));
        assert_eq!(pair(2, 0), Some(NodePair { from: 0, to: 3 }));
        assert_eq!(pair(0, 1), None);
        assert_eq!(pair(1, 0), None);
        assert_eq!(pair(0, 7), None);
    }
}
