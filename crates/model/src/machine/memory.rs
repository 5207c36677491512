//! Frames, and the allocator that reuses them at once.

use std::collections::BTreeSet;

use transhume_engine::Folio;

use super::{FrameId, Machine, Object, Page, Pte, SpaceId, Version};

/// What is in a frame that nobody has written to since it was freed.
pub(crate) const POISON: Version = Version::MAX;

/// A frame for a folio of any order.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) tier: usize,
    pub(crate) words: Vec<Version>,
    /// The page that it is for; free if none.
    pub(crate) page: Option<Page>,
    /// References beside those of page tables, and how many of them are pins.
    pub(crate) references: u32,
    pub(crate) pins: u32,
}

impl Machine {
    /// Adds a free frame of so many words to a tier.
    pub(crate) fn add_frame(&mut self, tier: usize, words: usize) -> FrameId {
        let id = self.frames.len();
        self.frames.push(Frame {
            tier,
            words: vec![POISON; words],
            page: None,
            references: 0,
            pins: 0,
        });
        self.free[tier].push(id);
        id
    }

    /// Puts a folio with new contents into a frame of its own, mapped by those address spaces.
    pub(crate) fn add_folio(
        &mut self,
        folio: Folio,
        tier: usize,
        spaces: &[SpaceId],
        words: usize,
    ) {
        let frame = self.add_frame(tier, words);
        self.free[tier].pop();
        self.fill(folio, frame, spaces, 0);
    }

    /// Gives a folio new contents in this frame, and maps it.
    pub(crate) fn fill(&mut self, folio: Folio, frame: FrameId, spaces: &[SpaceId], actor: usize) {
        let words = self.frames[frame].words.len();
        let stored: Vec<Version> = (0..words).map(|_| self.fresh(actor)).collect();
        self.frames[frame].words.clone_from(&stored);
        self.frames[frame].page = Some(folio.page());
        for &space in spaces {
            let pte = Pte::Present {
                frame,
                writable: true,
            };
            self.spaces[space].insert(folio.page(), pte);
        }
        let ever: BTreeSet<Version> = stored.iter().copied().collect();
        let object = Object {
            folio,
            stored,
            spaces: spaces.to_vec(),
            ever,
        };
        self.objects.insert(folio.page(), object);
    }

    /// A free frame with so many words: the one that was freed last.
    pub(crate) fn allocate(&mut self, tier: usize, words: usize, page: Page) -> Option<FrameId> {
        let fits = |frame: &FrameId| self.frames[*frame].words.len() == words;
        let at = self.free[tier].iter().rposition(fits)?;
        let frame = self.free[tier].remove(at);
        self.frames[frame].page = Some(page);
        Some(frame)
    }

    /// Frees a frame, which may be another's at the next step.
    pub(crate) fn free(&mut self, frame: FrameId) {
        if self.frames[frame].page.take().is_none() {
            self.violated(format!("frame {frame} is freed twice"));
            return;
        }
        for (cpu, state) in self.cpus.iter().enumerate() {
            let reach = state.tlb.iter().find(|(_, entry)| entry.frame == frame);
            if let Some(((_, page), _)) = reach {
                let what = format!(
                    "frame {frame} is freed while CPU {cpu} can reach it, as page {page}, by an old translation"
                );
                self.violated(what);
                break;
            }
        }
        if let Some(page) = self.pairs.of_frame(frame) {
            let what = format!("frame {frame} is freed while the pair of page {page} waits");
            self.violated(what);
        }
        if self.frames[frame].pins > 0 {
            self.violated(format!("frame {frame} is freed while it is pinned"));
        }
        self.frames[frame].words.fill(POISON);
        let tier = self.frames[frame].tier;
        self.free[tier].push(frame);
    }

    /// Copies one word.
    pub(crate) fn copy_word(&mut self, from: FrameId, to: FrameId, word: usize) {
        let value = self.frames[from].words[word];
        self.frames[to].words[word] = value;
    }
}
