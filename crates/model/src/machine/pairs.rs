//! The pairs that wait for their switch, as the machine sees them.

use std::collections::{BTreeMap, BTreeSet};

use super::{FrameId, Page};

/// Two frames of a folio, and how many base pages it has.
#[derive(Clone, Copy, Debug)]
struct Pair {
    frames: [FrameId; 2],
    base_pages: u64,
}

/// Source and destination of every folio that waits, by page and by frame.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    by_page: BTreeMap<Page, Pair>,
    by_frame: BTreeSet<(FrameId, Page)>,
    base_pages: u64,
}

impl Pairs {
    /// The folio of this page waits in these frames, and in no others.
    pub(crate) fn insert(&mut self, page: Page, frames: [FrameId; 2], base_pages: u64) {
        self.remove(page);
        self.by_frame.extend(frames.map(|frame| (frame, page)));
        self.base_pages += base_pages;
        self.by_page.insert(page, Pair { frames, base_pages });
    }

    /// It does not wait any more; its frames, if it did.
    pub(crate) fn remove(&mut self, page: Page) -> Option<[FrameId; 2]> {
        let Pair { frames, base_pages } = self.by_page.remove(&page)?;
        for frame in frames {
            self.by_frame.remove(&(frame, page));
        }
        self.base_pages -= base_pages;
        Some(frames)
    }

    /// The frames of the folio of this page.
    pub(crate) fn get(&self, page: Page) -> Option<[FrameId; 2]> {
        self.by_page.get(&page).map(|pair| pair.frames)
    }

    /// The page whose folio waits in this frame.
    pub(crate) fn of_frame(&self, frame: FrameId) -> Option<Page> {
        let mut of_frame = self.by_frame.range((frame, Page::MIN)..=(frame, Page::MAX));
        of_frame.next().map(|&(_, page)| page)
    }

    /// How many base pages wait.
    pub(crate) fn base_pages(&self) -> u64 {
        self.base_pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_known_by_its_page_and_by_both_frames_until_it_is_gone() {
        let mut pairs = Pairs::default();
        pairs.insert(4, [1, 2], 1);
        pairs.insert(8, [3, 5], 4);
        assert_eq!((pairs.get(4), pairs.base_pages()), (Some([1, 2]), 5));
        assert_eq!(
            [1, 2, 3, 4, 5].map(|frame| pairs.of_frame(frame)),
            [Some(4), Some(4), Some(8), None, Some(8)]
        );
        pairs.insert(4, [1, 7], 1);
        assert_eq!([2, 7].map(|frame| pairs.of_frame(frame)), [None, Some(4)]);
        assert_eq!(pairs.base_pages(), 5);
        assert_eq!((pairs.remove(8), pairs.remove(8)), (Some([3, 5]), None));
        assert_eq!((pairs.of_frame(3), pairs.base_pages()), (None, 1));
    }
}
