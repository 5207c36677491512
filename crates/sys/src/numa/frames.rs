//! Which frames are on which node.

use std::ops::Range;
use std::path::Path;

use super::MAX_NODES;
use super::topology::numbered;
use crate::text::{self, TextError};

/// The frames of each node, by the numbers that the page map shows
/// ([`PageEntry::frame`](crate::pagemap::PageEntry::frame)).
///
/// Frames of blocks that several nodes share are nobody's here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFrames {
    /// In order, none in two.
    spans: Vec<(Range<u64>, u32)>,
}

impl NodeFrames {
    /// Those of this machine, now. Memory may be added and removed later.
    ///
    /// # Errors
    ///
    /// [`TextError`] on a kernel without NUMA, and on one that does not show blocks of memory, as it
    /// cannot add any.
    ///
    /// # References
    ///
    /// `Documentation/admin-guide/mm/memory-hotplug.rst`,
    /// `Documentation/ABI/testing/sysfs-devices-memory`.
    pub fn here() -> Result<Self, TextError> {
        Self::read(Path::new("/sys"), rustix::param::page_size())
    }

    /// Reads a tree that is like `/sys`, of a machine with base pages of a size in bytes.
    ///
    /// # Errors
    ///
    /// As [`here`](Self::here).
    pub fn read(root: &Path, page_size: usize) -> Result<Self, TextError> {
        let path = root.join("devices/system/memory/block_size_bytes");
        let block = u64::from_str_radix(text::read(&path)?.trim(), 16).ok();
        let frames = block.map(|block| block / crate::abi::to_u64(page_size));
        let frames = frames
            .filter(|&frames| frames > 0)
            .ok_or_else(|| TextError::unexpected(&path, "a size"))?;
        let folder = root.join("devices/system/node");
        let mut blocks = Vec::new();
        for node in text::read_list(folder.join("online"), MAX_NODES)? {
            let of_node = numbered(&folder.join(format!("node{node}")), "memory")?;
            blocks.extend(of_node.into_iter().map(|block| (u64::from(block), node)));
        }
        blocks.sort_unstable();
        Ok(Self {
            spans: spans(&blocks, frames),
        })
    }

    /// The node of a frame, with frames around it that are on the same; `None` where it is not known.
    #[must_use]
    pub fn around(&self, frame: u64) -> Option<(Range<u64>, u32)> {
        let at = self.spans.partition_point(|(span, _)| span.end <= frame);
        let found = self.spans.get(at);
        found.filter(|(span, _)| span.contains(&frame)).cloned()
    }
}

/// From spans of frames, in order and apart, with the node of each.
impl FromIterator<(Range<u64>, u32)> for NodeFrames {
    fn from_iter<T: IntoIterator<Item = (Range<u64>, u32)>>(spans: T) -> Self {
        Self {
            spans: spans.into_iter().collect(),
        }
    }
}

/// What blocks, in order, of so many frames each are in one piece. A block of two nodes is left out.
fn spans(blocks: &[(u64, u32)], frames: u64) -> Vec<(Range<u64>, u32)> {
    let mut spans = Vec::<(Range<u64>, u32)>::new();
    for one in blocks.chunk_by(|(block, _), (next, _)| block == next) {
        let &[(block, node)] = one else { continue };
        let start = block.saturating_mul(frames);
        let end = start.saturating_add(frames);
        match spans.last_mut() {
            Some((span, of)) if span.end == start && *of == node => span.end = end,
            _ => spans.push((start..end, node)),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_side_by_side_are_one_span() {
        let blocks = [(0, 0), (1, 0), (2, 0), (2, 1), (3, 1), (8, 1), (9, 0)];
        let frames = NodeFrames::from_iter(spans(&blocks, 100));
        assert_eq!(frames.spans.len(), 4);
        assert_eq!(frames.around(0), Some((0..200, 0)));
        assert_eq!(frames.around(199), Some((0..200, 0)));
        assert_eq!(frames.around(200), None, "a block of two nodes");
        assert_eq!(frames.around(399), Some((300..400, 1)));
        assert_eq!(frames.around(400), None, "no block");
        assert_eq!(frames.around(850), Some((800..900, 1)));
        assert_eq!(frames.around(900), Some((900..1000, 0)));
        assert_eq!(frames.around(1000), None);
        assert_eq!(NodeFrames::default().around(0), None);
    }
}
