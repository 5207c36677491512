//! What a CPU does at a load or a store.

use super::{ActorId, CpuId, FrameId, Machine, Page, Pte, SpaceId, Translation, name};
use crate::bug::Bug;

/// How far an access has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It is done.
    Done,
    /// There is a translation now; the access itself comes next.
    Translated,
    /// The page is being moved away from this frame.
    Waits { source: FrameId },
    /// Stores are held off.
    Held,
    /// Nothing is mapped there.
    Nothing,
}

/// What is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) cpu: CpuId,
    pub(crate) space: SpaceId,
    pub(crate) page: Page,
    pub(crate) word: usize,
}

impl Machine {
    /// What the TLB of the CPU allows for this access.
    pub(crate) fn translation(&self, place: Place, store: bool) -> Option<Translation> {
        let entry = self.cpus[place.cpu].tlb.get(&(place.space, place.page));
        entry.copied().filter(|entry| entry.writable || !store)
    }

    /// The frame to which a fault takes a reference, if it would: that is a bug.
    pub(crate) fn reference_of_fault(&self, place: Place) -> Option<FrameId> {
        let pte = self.spaces[place.space].get(&place.page);
        match pte {
            Some(&Pte::Migrating { source }) if self.has(Bug::FaultTakesReference) => Some(source),
            _ => None,
        }
    }

    /// A load or a store by a translation that the TLB has, or else a walk through the page table.
    /// Either is one step, since a CPU takes interrupts between instructions.
    pub(crate) fn access(&mut self, actor: ActorId, place: Place, store: bool) -> Access {
        if let Some(entry) = self.translation(place, store) {
            if store {
                self.store(actor, place, entry);
            } else {
                self.load(actor, place, entry);
            }
            return Access::Done;
        }
        match self.spaces[place.space].get(&place.page) {
            None => Access::Nothing,
            Some(&Pte::Migrating { source }) => {
                if self.has(Bug::FaultTakesReference) {
                    self.frames[source].references += 1;
                }
                Access::Waits { source }
            }
            Some(Pte::Present {
                writable: false, ..
            }) if store => Access::Held,
            Some(Pte::Present { .. }) => {
                self.translate(place);
                Access::Translated
            }
        }
    }

    /// The CPU takes what the page table says, if the page is there.
    pub(crate) fn translate(&mut self, place: Place) {
        let pte = self.spaces[place.space].get(&place.page);
        if let Some(&Pte::Present { frame, writable }) = pte {
            let entry = Translation { frame, writable };
            let cpu = &mut self.cpus[place.cpu];
            cpu.tlb.insert((place.space, place.page), entry);
            self.users[place.space].insert(place.cpu);
        }
    }

    /// Nothing was mapped there, which is right where it is being replaced or is none of the space.
    pub(crate) fn expect_absent(&mut self, place: Place) {
        let object = self.objects.get(&place.page);
        let is_mapped = object.is_some_and(|object| object.spaces.contains(&place.space));
        if is_mapped && !self.replaced.contains(&place.page) {
            let page = place.page;
            self.violated(format!(
                "page {page} is mapped nowhere, and a program wants it"
            ));
        }
    }

    fn store(&mut self, actor: ActorId, place: Place, entry: Translation) {
        let version = self.fresh(actor);
        self.frames[entry.frame].words[place.word] = version;
        self.record_store(place.page, place.word, version);
        if let Some([source, destination]) = self.pairs.get(place.page) {
            self.violated(format!(
                "page {} is stored to while its pair waits in frames {source} and {destination}",
                place.page
            ));
        }
    }

    /// Somebody has stored to this word of the page.
    pub(crate) fn record_store(&mut self, page: Page, word: usize, version: u32) {
        if let Some(object) = self.objects.get_mut(&page) {
            object.stored[word] = version;
            object.ever.insert(version);
        }
    }

    fn load(&mut self, actor: ActorId, place: Place, entry: Translation) {
        let value = self.frames[entry.frame].words[place.word];
        self.read.insert(actor, value);
        let Some(object) = self.objects.get(&place.page) else {
            return;
        };
        let last = object.stored[place.word];
        if value == last {
            return;
        }
        let (page, frame) = (place.page, entry.frame);
        let (value_name, last_name) = (name(value), name(last));
        let what = if object.ever.contains(&value) {
            format!(
                "a store is lost: page {page} reads {value_name} from frame {frame}, and {last_name} was stored last"
            )
        } else {
            format!(
                "page {page} reads {value_name} from frame {frame}, which was never stored there ({last_name} was)"
            )
        };
        self.violated(what);
    }
}
