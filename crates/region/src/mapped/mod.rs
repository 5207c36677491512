//! Mapped backing: the pages of a region are pages of files, its tiers are the files.
//!
//! Each tier's file is mapped twice. The region is a patchwork of mappings, a piece of some file
//! for each run of pages; and each file has an alias, a mapping of all of it, through which the
//! copiers read and write slots. A migration copies from alias to alias and then maps the
//! destination's slot over the page.
//!
//! # The blind
//!
//! What cuts pages off is a *blind*: anonymous memory without a page, registered with a userfaultfd
//! for missing pages. `mremap` lays a copy of it over a run of pages (`MREMAP_DONTUNMAP` keeps the
//! original). The kernel takes the run's translations out and flushes them before it puts the blind
//! there, all under one lock, so an access meets the old page or the blind. At the blind it waits.
//! Mapping the destination's file replaces the blind, and a wake lets the waiting threads look
//! again. This needs no support for userfaultfd from the file, so every kind of file works, and it
//! costs one shootdown a run.
//!
//! The copy keeps its registration because the userfaultfd asks for remap events; the region's
//! [`keeper`](crate::keeper) reads them, until when `mremap` waits. No fault needs an answer.

mod session;
mod slots;
mod tier;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use transhume_sys::CallError;
use transhume_sys::advise::{self, Advice};
use transhume_sys::limits;
use transhume_sys::map::{self, Mapping};
use transhume_sys::uffd::{RegisterMode, Uffd};

pub(crate) use self::session::Session;
pub(crate) use self::tier::FileTier;
use crate::TABLE_BYTES;
use crate::error::RegionError;
use crate::runs::RunSet;
use crate::table::{FolioTable, Tally};
use crate::tier::PageSize;

/// How long a run one blind can cover.
const BLIND_BYTES: usize = 32 << 20;

/// Mappings that are left to the rest of the program.
const SPARE_MAPPINGS: usize = 1024;

/// The memory of a mapped region.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) uffd: Uffd,
    pub(crate) memory: Mapping,
    pub(crate) page_size: PageSize,
    tiers: Vec<FileTier>,
    blind: Mapping,
    /// The slot of each folio in its tier's file.
    slot: Box<[AtomicU32]>,
    /// How many mappings the region's pages need. The lock is held whenever the tier or the slot of
    /// a folio changes, so that the count stays true.
    mappings: Mutex<usize>,
    /// How many they may need.
    allowed: usize,
}

impl Mapped {
    /// Maps the first tier's first slots as the region's pages.
    pub(crate) fn create(
        uffd: Uffd,
        page_size: PageSize,
        pages: usize,
        tiers: Vec<FileTier>,
    ) -> Result<Self, CallError> {
        let page = page_size.bytes();
        let memory = Mapping::reserve_aligned(pages * page, TABLE_BYTES)?;
        // SAFETY: the addresses were just reserved and nothing is there.
        unsafe { map::map_file_fixed(memory.range(), &tiers[0], 0) }?;
        advise::advise(memory.range(), Advice::DontFork)?;
        advise::populate_write(memory.range())?;

        let blind = Mapping::reserve_aligned(BLIND_BYTES.max(page), page)?;
        advise::advise(blind.range(), Advice::DontFork)?;
        // SAFETY: the blind is our own and is never touched, except by threads of the application
        // that meet it in place of a page.
        unsafe { uffd.register(blind.range(), RegisterMode::MISSING) }?;

        let limit = limits::max_map_count().unwrap_or(usize::MAX);
        let elsewhere = limits::mapping_count().unwrap_or(0);
        let slot = |index| AtomicU32::new(u32::try_from(index).unwrap_or(u32::MAX));
        Ok(Self {
            uffd,
            memory,
            page_size,
            tiers,
            blind,
            slot: (0..pages).map(slot).collect(),
            mappings: Mutex::new(1),
            allowed: limit.saturating_sub(elsewhere + SPARE_MAPPINGS),
        })
    }

    /// How many mappings the region's pages need now.
    pub(crate) fn mappings(&self) -> usize {
        *self.mappings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many free slots of all tiers have memory.
    pub(crate) fn pooled_slots(&self) -> usize {
        self.tiers.iter().map(FileTier::pooled).sum()
    }

    pub(crate) fn table_bytes(&self) -> usize {
        size_of_val(&*self.slot)
    }

    /// Refuses a request that could bring the kernel's limit of mappings too close: each of its
    /// runs can cut a mapping in two places, and the blind over it in two more.
    pub(crate) fn check_mappings(&self, pages: &RunSet) -> Result<(), RegionError> {
        let needed = self.mappings() + 2 * pages.run_count() + 4;
        if needed <= self.allowed {
            return Ok(());
        }
        Err(RegionError::TooManyMappings {
            needed,
            allowed: self.allowed,
        })
    }

    /// Reads what has been reported: remap events, which need to be read and no more, and faults,
    /// which end when their page is back.
    pub(crate) fn answer_events(&self) {
        let mut events = Vec::with_capacity(64);
        while self
            .uffd
            .read_events(&mut events)
            .is_ok_and(|count| count > 0)
        {
            events.clear();
        }
    }

    fn slot(&self, index: usize) -> usize {
        // Widening: this is a 64-bit platform.
        self.slot[index].load(Ordering::Relaxed) as usize
    }

    /// Records that folios have moved, each to a tier and a slot, and counts mappings.
    fn record(&self, table: &FolioTable, moved: impl Iterator<Item = session::Arrived>) {
        let mut mappings = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        let seams = |index: usize| {
            [index, index + 1]
                .into_iter()
                .filter(|&right| self.is_seam(table, right))
                .count()
        };
        let mut tally = Tally::new(table);
        for session::Arrived { index, tier, slot } in moved {
            let before = seams(index);
            tally.moved(index, table.tier(index), tier);
            self.slot[index].store(u32::try_from(slot).unwrap_or(u32::MAX), Ordering::Relaxed);
            *mappings = (*mappings + seams(index)).saturating_sub(before);
        }
    }

    /// Whether a mapping ends between the folio `right` and the one before it.
    fn is_seam(&self, table: &FolioTable, right: usize) -> bool {
        if right == 0 || right == table.len() {
            return false;
        }
        let left = right - 1;
        table.tier(left) != table.tier(right) || self.slot(left) + 1 != self.slot(right)
    }
}
