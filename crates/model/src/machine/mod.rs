//! The simulated machine: frames, page tables, CPUs with TLBs, locks, latches and a ledger.
//!
//! Nothing here knows of orders. Every change is made by an [`Actor`](crate::actor::Actor) in a step
//! of its own, and whose step comes next is somebody else's choice.

mod access;
mod flush;
mod memory;
mod pairs;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use transhume_engine::{Folio, Generations, Ledger};

pub(crate) use self::access::{Access, Place};
pub(crate) use self::flush::{Flush, Wrapping};
pub(crate) use self::memory::{Frame, POISON};
pub(crate) use self::pairs::Pairs;
use crate::account::Account;
use crate::bug::Bug;
use crate::platform::Held;

/// The number of a base page; a folio is known by its first.
pub(crate) type Page = u64;
/// The number of a frame.
pub(crate) type FrameId = usize;
/// The number of a CPU.
pub(crate) type CpuId = usize;
/// The number of an address space.
pub(crate) type SpaceId = usize;
/// The number of an actor, in the order in which they were named.
pub(crate) type ActorId = usize;
/// What a store leaves: who made it, and the how-manieth of his it was.
pub(crate) type Version = u32;

/// How many kinds of memory the machine has.
pub(crate) const TIERS: usize = 3;

/// What a page table says of a folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pte {
    /// It is there.
    Present {
        /// Where.
        frame: FrameId,
        /// Whether stores are allowed.
        writable: bool,
    },
    /// It is being moved: who wants it waits.
    Migrating {
        /// Where it was.
        source: FrameId,
    },
}

/// What a TLB says of a folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Translation {
    pub(crate) frame: FrameId,
    pub(crate) writable: bool,
}

/// A CPU as the others see it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cpu {
    /// Translations, by address space and page, also such as the page table does not have any more.
    pub(crate) tlb: BTreeMap<(SpaceId, Page), Translation>,
    /// Interrupts that have been sent and not been taken.
    pub(crate) inbox: VecDeque<usize>,
}

/// Contents that programs share by an address.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) folio: Folio,
    /// What was stored last, word by word.
    pub(crate) stored: Vec<Version>,
    /// The address spaces that map it.
    pub(crate) spaces: Vec<SpaceId>,
    /// The values that were ever stored here: others have never been.
    pub(crate) ever: BTreeSet<Version>,
}

/// Who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Somebody who is at work.
    Actor(ActorId),
    /// Nobody has to be waited for: the folio is to be had from the ledger.
    Ledger,
}

/// A copy that a device makes, word by word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) list: usize,
    pub(crate) from: FrameId,
    pub(crate) to: FrameId,
    pub(crate) word: usize,
    /// Whether its completion ends the list for a driver that looks at the last descriptor only.
    pub(crate) last: bool,
}

/// How the device stands with one list.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) left: usize,
    pub(crate) last_done: bool,
}

/// What an actor has cut off.
#[derive(Clone, Debug, Default)]
pub(crate) struct CutOff {
    pub(crate) pages: BTreeSet<Page>,
    pub(crate) base_pages: u64,
}

/// Everything there is.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) bug: Option<Bug>,
    /// Whether anybody defers, and whether a pair is mapped at its destination while it waits.
    pub(crate) defers: bool,
    pub(crate) lazy: bool,
    /// Whether what is busy is tried again only when it may be free.
    pub(crate) patient: bool,
    /// Whether folios have an owner.
    pub(crate) owned: bool,
    /// Pages of which one is taken away to map something else there.
    pub(crate) replaced: BTreeSet<Page>,
    pub(crate) frames: Vec<Frame>,
    pub(crate) free: [Vec<FrameId>; TIERS],
    pub(crate) spaces: Vec<BTreeMap<Page, Pte>>,
    /// The CPUs that may have translations of an address space.
    pub(crate) users: Vec<BTreeSet<CpuId>>,
    pub(crate) cpus: Vec<Cpu>,
    pub(crate) flushes: Vec<Flush>,
    /// How many of them have been acknowledged by all, up to the first that has not.
    flushed: usize,
    /// Whether mapping needs a shootdown as well, and whether each page table needs one of its own.
    pub(crate) remap_flushes: bool,
    pub(crate) flushes_per_table: bool,
    pub(crate) generations: Generations,
    pub(crate) wrapping: Wrapping,
    pub(crate) objects: BTreeMap<Page, Object>,
    pub(crate) locks: BTreeMap<Page, Holder>,
    pub(crate) latches: BTreeMap<Page, ActorId>,
    pub(crate) ledger: Ledger<Held>,
    pub(crate) channels: Vec<VecDeque<Descriptor>>,
    pub(crate) lists: Vec<Progress>,
    /// Whether two channels may have parts of the same frame.
    pub(crate) splits_folios: bool,
    /// The copier in use, and how many copies each has under way, or that it is gone.
    pub(crate) copier: usize,
    pub(crate) copies_by: Vec<Option<usize>>,
    /// How many calls may still fail for no reason, and whether each answer is tried that they may give.
    pub(crate) failures: u32,
    pub(crate) any_answer: bool,
    /// Who may still panic, once.
    pub(crate) panics: Option<ActorId>,
    /// Base pages that each actor has cut off now, and may.
    pub(crate) cut_off: BTreeMap<ActorId, CutOff>,
    pub(crate) limits: BTreeMap<ActorId, u64>,
    /// The frames that wait in pairs.
    pub(crate) pairs: Pairs,
    /// Frames that the last attempt left, for the bug that uses a copy again.
    pub(crate) stale_copies: BTreeMap<Page, FrameId>,
    /// How many steps each actor has stored in.
    pub(crate) stores: BTreeMap<ActorId, u16>,
    /// What each actor has read last.
    pub(crate) read: BTreeMap<ActorId, Version>,
    /// What each actor has done for its request, and what for pairs that it settles now.
    pub(crate) accounts: BTreeMap<ActorId, Account>,
    pub(crate) settling: BTreeMap<ActorId, Account>,
    /// Whether no pair that was to trade places has stayed.
    pub(crate) all_exchanged: bool,
    /// What the engine said of each request, by who made it.
    pub(crate) reports: Vec<(ActorId, transhume_engine::Report<crate::platform::Tier>)>,
    /// What was violated first.
    pub(crate) violation: Option<String>,
}

impl Machine {
    pub(crate) fn new(bug: Option<Bug>, cpus: usize, spaces: usize, ledger: Ledger<Held>) -> Self {
        Self {
            bug,
            defers: false,
            lazy: false,
            patient: false,
            owned: false,
            replaced: BTreeSet::new(),
            frames: Vec::new(),
            free: Default::default(),
            spaces: vec![BTreeMap::new(); spaces],
            users: vec![BTreeSet::new(); spaces],
            cpus: vec![Cpu::default(); cpus],
            flushes: Vec::new(),
            flushed: 0,
            remap_flushes: false,
            flushes_per_table: false,
            generations: Generations::new(),
            wrapping: Wrapping::new(),
            objects: BTreeMap::new(),
            locks: BTreeMap::new(),
            latches: BTreeMap::new(),
            ledger,
            channels: Vec::new(),
            lists: Vec::new(),
            splits_folios: true,
            copier: 0,
            copies_by: vec![Some(0); 2],
            failures: 0,
            any_answer: false,
            panics: None,
            cut_off: BTreeMap::new(),
            limits: BTreeMap::new(),
            pairs: Pairs::default(),
            stale_copies: BTreeMap::new(),
            stores: BTreeMap::new(),
            read: BTreeMap::new(),
            accounts: BTreeMap::new(),
            settling: BTreeMap::new(),
            all_exchanged: true,
            reports: Vec::new(),
            violation: None,
        }
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Remembers what went wrong, if it is the first.
    pub(crate) fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// A value that nobody has stored before.
    pub(crate) fn fresh(&mut self, actor: ActorId) -> Version {
        let count = self.stores.entry(actor).or_default();
        // Values come again after so many stores, which no explored scene has.
        *count = count.wrapping_add(1);
        (u32::try_from(actor).unwrap_or(u32::MAX) << 16) | u32::from(*count)
    }

    /// Whether a pair of this page can be had from the ledger.
    pub(crate) fn waits(&self, page: Page) -> bool {
        let object = self.objects.get(&page);
        object.is_some_and(|object| self.ledger.contains(object.folio))
    }

    /// How many base pages the folio of this page has.
    pub(crate) fn base_pages(&self, page: Page) -> u64 {
        let object = self.objects.get(&page);
        object.map_or(0, |object| object.folio.base_pages())
    }

    /// One more page is cut off by this actor.
    pub(crate) fn cut_off(&mut self, actor: ActorId, page: Page) {
        let base_pages = self.base_pages(page);
        let cut = self.cut_off.entry(actor).or_default();
        if cut.pages.insert(page) {
            cut.base_pages += base_pages;
        }
        let (sum, count) = (cut.base_pages, cut.pages.len());
        let limit = self.limits.get(&actor).copied().unwrap_or(u64::MAX);
        if sum > limit && count > 1 {
            let what = format!("{sum} base pages are cut off at once, and {limit} may be");
            self.violated(what);
        }
    }

    /// It is not cut off any more.
    pub(crate) fn reachable(&mut self, actor: ActorId, page: Page) {
        let base_pages = self.base_pages(page);
        if let Some(cut) = self.cut_off.get_mut(&actor)
            && cut.pages.remove(&page)
        {
            cut.base_pages -= base_pages;
        }
    }

    /// What the bug does that knows of a page only where it is going.
    pub(crate) fn forget_pair(&mut self, page: Page) {
        let folio = self.objects[&page].folio;
        drop(self.ledger.take(|other| other == folio));
        if let Some([source, _]) = self.pairs.remove(page) {
            self.free(source);
        }
    }

    /// The frame in which the page is, by a page table that maps it.
    pub(crate) fn frame_of(&self, page: Page) -> Option<FrameId> {
        let mut ptes = self.spaces.iter().filter_map(|table| table.get(&page));
        ptes.find_map(|pte| match pte {
            Pte::Present { frame, .. } => Some(*frame),
            Pte::Migrating { .. } => None,
        })
    }
}

/// What the machine with a clock asks.
impl Machine {
    /// How many folios the actor has cut off.
    pub(crate) fn pages_cut_off(&self, actor: ActorId) -> usize {
        self.cut_off.get(&actor).map_or(0, |cut| cut.pages.len())
    }

    /// One of them, about the `nth` where they lie side by side.
    pub(crate) fn cut_off_page(&self, actor: ActorId, nth: usize) -> Option<Page> {
        let pages = &self.cut_off.get(&actor)?.pages;
        let (first, last) = (pages.first()?, pages.last()?);
        let span = last - first + 1;
        let from = first + span * nth as u64 / pages.len() as u64;
        pages.range(from..).next().or(Some(first)).copied()
    }

    /// The CPU has nothing to do: it forgets its translations, and nobody has to interrupt it.
    pub(crate) fn sleep(&mut self, cpu: CpuId) {
        self.cpus[cpu].tlb.clear();
        for users in &mut self.users {
            users.remove(&cpu);
        }
    }

    /// How many of these folios a page table maps in this tier.
    pub(crate) fn in_tier(&self, pages: &[Page], tier: usize) -> usize {
        let there = |page: &&Page| {
            let frame = self.frame_of(**page);
            frame.is_some_and(|frame| self.frames[frame].tier == tier)
        };
        pages.iter().filter(there).count()
    }
}

/// How a value is written in a timeline.
pub(crate) fn name(version: Version) -> String {
    if version == POISON {
        return "poison".to_owned();
    }
    match (version >> 16, version & 0xffff) {
        (0, n) => format!("first {n}"),
        (actor, n) => format!("{actor}.{n}"),
    }
}
