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
//! A call that lays the blind takes the old mapping away before it can still fail. So what it needs
//! is made sure of before: mappings are [charged](budget), and limits of address space are looked at.
//!
//! The copy keeps its registration because the userfaultfd asks for remap events; the region's
//! [`keeper`](crate::keeper) reads them, until when `mremap` waits. No fault needs an answer.

mod blind;
mod budget;
mod exchange;
mod seams;
mod session;
mod slots;
mod stores;
mod tier;

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use transhume_sys::CallError;
use transhume_sys::advise::{self, Advice};
use transhume_sys::limits;
use transhume_sys::map::{self, Mapping};
use transhume_sys::uffd::Uffd;

use self::blind::Blind;
use self::seams::Seams;
pub(crate) use self::session::{Held, Session};
pub(crate) use self::tier::FileTier;
use crate::TABLE_BYTES;
use crate::deferral::{Deferral, Pending};
use crate::error::RegionError;
use crate::faults;
use crate::layout::Layout;
use crate::table::{FolioTable, Tally};
use crate::tier::PageSize;

/// The memory of a mapped region.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) uffd: Uffd,
    pub(crate) memory: Mapping,
    pub(crate) page_size: PageSize,
    tiers: Vec<FileTier>,
    blind: Blind,
    /// The slot of each folio in its tier's file.
    slot: Box<[AtomicU32]>,
    /// The lock is held whenever the tier or the slot of a folio changes, so that the count of
    /// mappings stays true.
    seams: Mutex<Seams>,
    /// How many mappings the regions of this process may need.
    allowed: usize,
    /// Requests under way.
    sessions: AtomicUsize,
    /// Pairs whose switch waits, where that is allowed.
    pub(crate) pending: Option<Pending<session::Held>>,
}

impl Mapped {
    /// Maps the first tier's first slots as the region's pages.
    pub(crate) fn create(
        uffd: Uffd,
        page_size: PageSize,
        pages: usize,
        tiers: Vec<FileTier>,
        deferral: Option<&Deferral>,
    ) -> Result<Self, CallError> {
        let page = page_size.bytes();
        let memory = Mapping::reserve_aligned(pages * page, TABLE_BYTES)?;
        // SAFETY: the addresses were just reserved and nothing is there.
        unsafe { map::map_file_fixed(memory.range(), &tiers[0], 0) }?;
        advise::advise(memory.range(), Advice::DontFork)?;
        advise::populate_write(memory.range())?;
        let at_once = deferral.map_or(0, |deferral| deferral.at_once_bytes.get().min(pages * page));
        let blind = Blind::create(&uffd, page, at_once)?;
        let slot = |index| AtomicU32::new(u32::try_from(index).unwrap_or(u32::MAX));
        Ok(Self {
            uffd,
            memory,
            page_size,
            tiers,
            blind,
            slot: (0..pages).map(slot).collect(),
            seams: Mutex::new(Seams::new(pages)),
            allowed: budget::allowed(),
            sessions: AtomicUsize::new(0),
            pending: deferral.map(|deferral| Pending::new(deferral, pages)),
        })
    }

    fn seams(&self) -> MutexGuard<'_, Seams> {
        // Whoever panicked while it held the lock had counted a folio or had not.
        self.seams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many mappings the region's pages need now.
    pub(crate) fn mappings(&self) -> usize {
        self.seams().mappings()
    }

    /// How many free slots of all tiers have memory.
    pub(crate) fn pooled_slots(&self) -> usize {
        self.tiers.iter().map(FileTier::pooled).sum()
    }

    /// How many slots got their memory while a request waited for them.
    pub(crate) fn fresh_frames(&self) -> u64 {
        self.tiers.iter().map(FileTier::fresh).sum()
    }

    pub(crate) fn table_bytes(&self) -> usize {
        let pending = self.pending.as_ref().map_or(0, Pending::bytes);
        size_of_val(&*self.slot) + self.seams().bytes() + pending
    }

    /// Refuses a request that could bring the kernel's limit of mappings too close: each of its
    /// runs can cut a mapping in two places, and the blind over it in two more.
    pub(crate) fn check_mappings(&self, runs: usize) -> Result<(), RegionError> {
        let needed = budget::used() + 2 * runs + 4;
        if needed <= self.allowed {
            return Ok(());
        }
        Err(RegionError::TooManyMappings {
            needed,
            allowed: self.allowed,
        })
    }

    /// Reads what has been reported: remap events, which need to be read and no more, and faults,
    /// which end when their page is back unless they are on the blind itself, or are stores that were
    /// held off. Says whether something is left to do.
    pub(crate) fn answer_events(&self, table: &FolioTable) -> bool {
        let see = |address| self.blind.see_fault(address);
        let stores_left = faults::answer_events(&self.uffd, self.stores(), table, see);
        self.blind.answer(&self.uffd) || stores_left
    }

    /// Fills the pools of free slots by a little; says whether there is more to do. Not while pages
    /// migrate: a migrator waits for the thread that does this.
    pub(crate) fn refill(&self) -> bool {
        let mut tiers = self.tiers.iter();
        self.sessions.load(Ordering::Relaxed) == 0 && tiers.any(FileTier::refill)
    }

    /// Which folios are locked into memory (`mlock`); `None` if nothing of this process is.
    fn locked(&self) -> Option<Layout> {
        let locked = limits::process_memory().is_ok_and(|memory| memory.locked > 0);
        locked.then(|| Layout::read(&self.memory.range(), self.page_size.bytes()))
    }

    fn slot(&self, index: usize) -> usize {
        // Widening: this is a 64-bit platform.
        self.slot[index].load(Ordering::Relaxed) as usize
    }

    /// Records where folios are that have been mapped again, and counts mappings.
    fn record(
        &self,
        table: &FolioTable,
        tally: &mut Tally<'_>,
        mapped: impl Iterator<Item = session::Mapped>,
    ) {
        let mut seams = self.seams();
        for folio in mapped {
            let index = folio.index;
            let around = |seams: &Seams| {
                let right = [index, index + 1].into_iter();
                right
                    .filter(|&right| self.is_seam(table, seams, right))
                    .count()
            };
            let gone = around(&seams);
            if let Some((tier, slot)) = folio.arrived {
                tally.moved(index, table.tier(index), tier);
                self.slot[index].store(u32::try_from(slot).unwrap_or(u32::MAX), Ordering::Relaxed);
            }
            seams.set_cut(index, folio.begins);
            seams.set_cut(index + 1, folio.ends);
            let come = around(&seams);
            seams.count(come, gone);
        }
    }

    /// Whether a mapping ends between the folio `right` and the one before it.
    fn is_seam(&self, table: &FolioTable, seams: &Seams, right: usize) -> bool {
        if right == 0 || right == table.len() {
            return false;
        }
        let left = right - 1;
        let tier = table.tier(left);
        tier != table.tier(right)
            || self.slot(left) + 1 != self.slot(right)
            || (seams.is_cut(right) && !self.tiers[tier.index()].merges())
    }
}
