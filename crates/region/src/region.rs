//! The region: what an application holds.

mod exchange;
mod route;
mod settling;

use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use transhume_copy::auto::Route;
use transhume_copy::{CopyJob, Switch};
use transhume_engine::{Copier, Limit, Outcome, Report, Request, defer, migrate};
use transhume_sys::uffd::Uffd;

use crate::anonymous::{self, Anonymous};
use crate::builder::Builder;
use crate::claims::{self, Claims};
use crate::deferral::{Cause, Desk, Pending};
use crate::error::RegionError;
use crate::faults;
use crate::huge::huge_bytes;
use crate::keeper::Keep;
use crate::kept::{Core, Kept};
use crate::mapped::{self, Mapped};
use crate::mechanism::{Mechanism, Notice};
use crate::move_pages::{self, MovePages};
use crate::options::{Options, Pages};
use crate::owner::{self, Owner};
use crate::pin::Pin;
use crate::runs::RunSet;
use crate::table::FolioTable;
use crate::tier::{PageSize, Place, Tier, TierId};
use crate::{BASE_PAGE, folio_at, index_of};

/// How long [`Region::pin`] waits for migrations of its pages to end.
const PIN_PATIENCE: Duration = Duration::from_secs(1);
/// How often it looks whether the switch of a page waits.
const PIN_LOOK: Duration = Duration::from_millis(1);

/// Memory whose pages live in tiers.
///
/// All its memory is there from the beginning, zeroed, in the first tier. Threads use it through
/// [`words`](Self::words) or [`as_ptr`](Self::as_ptr), and never as a Rust reference to plain data:
/// the memory is shared with every thread that has the region. Any thread may migrate any pages at
/// any time; requests with common pages exclude each other.
///
/// The memory is the region's to give back: do not `munmap` or `mremap` parts of it. Anonymous pages
/// that are given to `madvise(MADV_DONTNEED)` read as zeros afterwards, unless they are cut off just
/// then, for a request of their own or as [`Neighbours`](crate::Neighbours) of one: then they come
/// back as they were. Mapped pages read as before.
///
/// ```
/// use std::sync::atomic::Ordering;
/// use transhume_region::{Options, Region, Tier};
///
/// let region = Region::builder()
///     .tier(Tier::node("near", 0))
///     .tier(Tier::node("far", 0))
///     .pages(256)
///     .build()?;
/// region.words()[42].store(7, Ordering::Relaxed);
///
/// let report = region.migrate(.., "far", &Options::new())?;
/// assert!(report.is_complete());
/// assert_eq!(region.words()[42].load(Ordering::Relaxed), 7);
/// assert_eq!(region.tier_of(0)?, "far");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Region {
    backing: Backing,
    claims: Claims,
    tiers: Vec<Tier>,
    capacity: Vec<usize>,
    switch: Arc<Switch>,
    mechanism: Mechanism,
    notices: Vec<Notice>,
    process: u32,
}

/// The region's memory, by its backing.
#[derive(Debug)]
enum Backing {
    Anonymous(Kept<Anonymous>),
    Mapped(Kept<Mapped>),
    /// Here the kernel answers all faults.
    MovePages(Core<MovePages>),
}

/// What the builder has allocated.
pub(crate) enum Memory {
    Anonymous(Box<Anonymous>),
    Mapped(Box<Mapped>),
    MovePages(MovePages),
}

/// Everything that the builder found out.
pub(crate) struct Parts {
    pub(crate) memory: Memory,
    pub(crate) pages: usize,
    pub(crate) tiers: Vec<Tier>,
    pub(crate) capacity: Vec<usize>,
    pub(crate) switch: Arc<Switch>,
    pub(crate) mechanism: Mechanism,
    pub(crate) notices: Vec<Notice>,
    pub(crate) owner: Option<Owner>,
}

impl Keep for Core<Anonymous> {
    fn events(&self) -> &Uffd {
        &self.memory.uffd
    }

    fn answer(&self) -> bool {
        faults::answer(&self.memory, &self.table)
    }

    fn can_wait(&self) -> bool {
        self.memory.needs_no_answers()
    }

    fn refill(&self) -> bool {
        self.memory.refill()
    }
}

impl Keep for Core<Mapped> {
    fn events(&self) -> &Uffd {
        &self.memory.uffd
    }

    fn answer(&self) -> bool {
        self.memory.answer_events(&self.table)
    }

    fn can_wait(&self) -> bool {
        // A migrator waits for its remap event to be read.
        false
    }

    fn refill(&self) -> bool {
        self.memory.refill()
    }
}

impl Region {
    /// Begins to describe a region.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn start(parts: Parts) -> std::io::Result<Self> {
        let Parts {
            memory,
            pages,
            tiers,
            capacity,
            switch,
            mechanism,
            notices,
            owner,
        } = parts;
        let table = FolioTable::new(pages, tiers.len()).with_owner(owner);
        let backing = match memory {
            Memory::Anonymous(memory) => {
                let memory = *memory;
                Backing::Anonymous(Kept::start(Core { table, memory })?)
            }
            Memory::Mapped(memory) => {
                let memory = *memory;
                let kept = Kept::start(Core { table, memory })?;
                kept.keeper.refill();
                Backing::Mapped(kept)
            }
            Memory::MovePages(memory) => Backing::MovePages(Core { table, memory }),
        };
        let process = std::process::id();
        Ok(Self {
            backing,
            claims: Claims::default(),
            tiers,
            capacity,
            switch,
            mechanism,
            notices,
            process,
        })
    }

    pub(crate) fn table(&self) -> &FolioTable {
        match &self.backing {
            Backing::Anonymous(Kept { core, .. }) => &core.table,
            Backing::Mapped(Kept { core, .. }) => &core.table,
            Backing::MovePages(core) => &core.table,
        }
    }

    /// How many pages it has, in its page size.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.table().len()
    }

    /// The size of its pages.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        match &self.backing {
            Backing::Anonymous(Kept { core, .. }) => core.memory.page_size,
            Backing::Mapped(Kept { core, .. }) => core.memory.page_size,
            Backing::MovePages(core) => core.memory.page_size,
        }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages() * self.page_size().bytes()
    }

    /// Never: a region has at least one page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Its first byte. The memory lives as long as the region. It is shared: use raw or volatile
    /// accesses or atomics, never a reference to plain data.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        match &self.backing {
            Backing::Anonymous(Kept { core, .. }) => core.memory.memory.as_ptr(),
            Backing::Mapped(Kept { core, .. }) => core.memory.memory.as_ptr(),
            Backing::MovePages(core) => core.memory.memory.as_ptr(),
        }
    }

    /// The whole memory as shared 64-bit words.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        let words = self.as_ptr().cast::<AtomicU64>();
        // SAFETY: the memory is readable, writable, zeroed at first, aligned to a page, and lives
        // as long as the region. Atomics may be shared while anybody stores to them. While a page
        // is under migration an access waits in a fault, so it sees the memory as never gone.
        unsafe { std::slice::from_raw_parts(words, self.len() / size_of::<AtomicU64>()) }
    }

    /// The region's tiers, in the order in which they were given.
    #[must_use]
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// The name of the tier in which a page is now.
    ///
    /// # Errors
    ///
    /// [`RegionError::OutsideRegion`].
    pub fn tier_of(&self, page: usize) -> Result<&str, RegionError> {
        if page >= self.pages() {
            return Err(RegionError::OutsideRegion {
                page,
                last: self.pages() - 1,
            });
        }
        Ok(&self.tiers[self.table().tier(page).index()].name)
    }

    /// How pages are moved here.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// The copier in use, which can be changed at any time, and what each copier did (\[offload\]).
    /// Copiers that requests name themselves are counted there too. Where the kernel moves the pages
    /// ([`Mechanism::MovePages`]) no copier is asked.
    #[must_use]
    pub fn copier_switch(&self) -> &Arc<Switch> {
        &self.switch
    }

    /// What the machine lacks, each in one line with the cure.
    #[must_use]
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// Moves pages to the tier of this name, in the way of `options` (\[batch-flush\]).
    ///
    /// What happened to each page stands in the report; a page that could not be moved is where it
    /// was, with its data. Pages that are there already are left alone.
    ///
    /// # Errors
    ///
    /// Only for requests that are wrong as a whole, and then nothing has been moved: see
    /// [`RegionError`].
    pub fn migrate(
        &self,
        pages: impl Into<Pages>,
        tier: &str,
        options: &Options,
    ) -> Result<Report<TierId>, RegionError> {
        self.check_process()?;
        owner::check_outside()?;
        let to = self.tier_named(tier)?;
        let pages = pages.into().resolve(self.pages())?;
        if options.deferred && self.pending().is_none() {
            return Err(RegionError::NoDeferral);
        }
        if options.collapse || options.whole {
            self.check_huge_pages(options)?;
        }
        let table = self.table();
        if let Backing::Mapped(Kept { core, .. }) = &self.backing {
            core.memory.check_mappings(pages.run_count())?;
        }
        let order = self.page_size().order();
        let folios = pages
            .iter()
            .flatten()
            .filter_map(|page| folio_at(page, order))
            .collect();
        let capacity = self.capacity[to.index()];
        let claim = self.claims.claim(pages.clone(), table);
        let mut claim = claim.map_err(|page| RegionError::Overlap { page })?;
        // Before room is counted: what waits has room somewhere.
        self.settle_pages(&pages, Cause::Request);
        let mut room = claim.take_room(to, capacity);
        if room.is_err() && self.pending().is_some() {
            // What waits to leave the tier has room there still.
            self.settle_pages(&RunSet::all(self.pages()), Cause::Request);
            room = claim.take_room(to, capacity);
        }
        room.map_err(|full| {
            let claims::Full { used, asked } = full;
            let tier = self.tiers[to.index()].name.clone();
            RegionError::Full {
                tier,
                capacity,
                used,
                asked,
            }
        })?;

        let mut request = Request {
            mode: options.mode,
            limit: limit(options),
            reason: options.reason,
            ..Request::new(folios, to)
        };
        if let Some(pending) = self.pending().filter(|_| options.deferred) {
            claim.may_wait(pending);
            // A batch that is larger than what may wait would not wait.
            let limit = &mut request.limit.base_pages;
            *limit = pending.limit().min(*limit);
        }
        let (beside, in_use);
        let copier: &dyn Copier<CopyJob> = match &options.copier {
            Some(copier) => {
                beside = self.switch.beside(Arc::clone(copier));
                &beside
            }
            None => {
                in_use = self.switch.for_reason(options.reason);
                &in_use
            }
        };
        let base_pages = request.limit.base_pages;
        let batch = self.pages_of(&request, base_pages);
        let _route = Route::begin(self.route(&pages, table, to));
        let report = match &self.backing {
            Backing::Anonymous(Kept { keeper, core, .. }) => {
                let memory = &core.memory;
                match memory.pending.as_ref().filter(|_| options.deferred) {
                    Some(pending) => {
                        let mut session =
                            anonymous::Session::deferring(memory, table, keeper, batch);
                        defer(&mut session, copier, request, &mut Desk(pending))
                    }
                    None => {
                        let neighbours = options.neighbours;
                        let shape = anonymous::Shape {
                            collapse: options.collapse.then_some(pages),
                            whole: options.whole,
                        };
                        let mut session =
                            anonymous::Session::new(memory, table, keeper, batch, neighbours)
                                .in_shape(shape);
                        migrate(&mut session, copier, request)
                    }
                }
            }
            Backing::Mapped(Kept { keeper, core, .. }) => {
                // Memory is given back by a call a run: with tiny batches that would be one a page.
                let kept = self.pages_of(&request, base_pages.max(Limit::DEFAULT_BASE_PAGES));
                let mut session = mapped::Session::new(&core.memory, table, keeper, kept);
                match core.memory.pending.as_ref().filter(|_| options.deferred) {
                    Some(pending) => defer(&mut session, copier, request, &mut Desk(pending)),
                    None => migrate(&mut session, copier, request),
                }
            }
            Backing::MovePages(core) => {
                let mut session = move_pages::Session::new(&core.memory, table);
                migrate(&mut session, copier, request)
            }
        };
        if options.deferred {
            let stays = |one: &transhume_engine::FolioReport<TierId>| {
                matches!(one.outcome, Outcome::Stayed(_)) && table.tier(index_of(one.folio)) != to
            };
            claim.end(report.folios().filter(stays).count());
        }
        Ok(report)
    }

    /// Holds pages where they are, waiting first for a migration of them to end.
    ///
    /// With [`Pins::Declared`](crate::Pins::Declared) the application promises to hold the pages so
    /// before it lets anything take a reference to their frames.
    ///
    /// # Errors
    ///
    /// [`RegionError::CannotPin`] after a second of waiting, [`RegionError::OutsideRegion`],
    /// [`RegionError::NoPages`], [`RegionError::Forked`], [`RegionError::InsideOwner`]. Then nothing is
    /// held.
    pub fn pin(&self, pages: impl Into<Pages>) -> Result<Pin<'_>, RegionError> {
        self.check_process()?;
        owner::check_outside()?;
        let pages = pages.into().resolve(self.pages())?;
        let mut pin = Pin {
            region: self,
            runs: Vec::new(),
        };
        let until = Instant::now() + PIN_PATIENCE;
        for run in pages.iter() {
            pin.runs.push(run.start..run.start);
            for page in run {
                self.pin_page(page, until)?;
                if let Some(last) = pin.runs.last_mut() {
                    last.end = page + 1;
                }
            }
        }
        Ok(pin)
    }

    /// Pins a page, which settles first if its switch waits.
    fn pin_page(&self, page: usize, until: Instant) -> Result<(), RegionError> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let waits = self.pending().map(|pending| pending.is_parked(page));
            let patience = match waits {
                Some(true) => Duration::ZERO,
                // A batch that has it now may leave it waiting.
                Some(false) => left.min(PIN_LOOK),
                None => left,
            };
            match self.table().pin(page, patience) {
                Ok(()) => return Ok(()),
                Err(_) if Instant::now() >= until => return Err(RegionError::CannotPin { page }),
                Err(_) if waits == Some(true) => {
                    let mut one = RunSet::default();
                    one.insert(page..page + 1);
                    self.settle_pages(&one, Cause::Request);
                }
                Err(_) => {}
            }
        }
    }

    /// Where its pages are and what it takes beside them.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let page = self.page_size().bytes();
        let table = self.table();
        let tiers =
            self.tiers
                .iter()
                .zip(&self.capacity)
                .zip(0..)
                .map(|((tier, &capacity), id)| TierUsage {
                    name: tier.name.clone(),
                    place: tier.place.clone(),
                    pages: table.population(TierId(id)),
                    capacity,
                });
        let memory = self.as_ptr().addr();
        let huge_bytes = huge_bytes(memory..memory + self.len()).ok();
        let (pooled_bytes, tables, mappings, fresh_frames) = match &self.backing {
            Backing::Anonymous(Kept { core, .. }) => {
                let memory = &core.memory;
                let tables = memory.pending.as_ref().map_or(0, Pending::bytes);
                let pooled_bytes = memory.pooled_frames() * page;
                (pooled_bytes, tables, 1, memory.fresh_frames())
            }
            Backing::Mapped(Kept { core, .. }) => (
                core.memory.pooled_slots() * page,
                core.memory.table_bytes(),
                core.memory.mappings(),
                core.memory.fresh_frames(),
            ),
            // The kernel allocates each.
            Backing::MovePages(_) => (0, 0, 1, table.moved()),
        };
        let deferred = self.deferral().map_or(0, |deferral| deferral.bytes);
        Usage {
            tiers: tiers.collect(),
            mappings,
            pooled_bytes,
            overhead_bytes: pooled_bytes + deferred + tables + table.bytes(),
            moved: table.moved(),
            fresh_frames,
            huge_bytes,
        }
    }

    /// Whether the shape of pages is ours to choose.
    fn check_huge_pages(&self, options: &Options) -> Result<(), RegionError> {
        let (what, cure) = match &self.backing {
            Backing::Anonymous(Kept { core, .. }) => {
                if !options.collapse || core.memory.can_collapse() != Some(false) {
                    return Ok(());
                }
                (
                    "this kernel leaves the page table of base pages in place, so that no huge page can \
                     follow them",
                    "a kernel from 6.14 on with CONFIG_PT_RECLAIM (x86-64)",
                )
            }
            Backing::Mapped { .. } => (
                "what files are made of is for their file systems to say",
                "tiers of hugetlb, or anonymous backing",
            ),
            Backing::MovePages(_) => (
                "the kernel moves the pages of this region, and splits huge pages or not as it sees fit",
                "a kernel from 6.8 on and the right to use userfaultfd",
            ),
        };
        Err(RegionError::NoHugePages { what, cure })
    }

    fn check_process(&self) -> Result<(), RegionError> {
        if self.process == std::process::id() {
            Ok(())
        } else {
            Err(RegionError::Forked)
        }
    }

    fn tier_named(&self, name: &str) -> Result<TierId, RegionError> {
        let found = self
            .tiers
            .iter()
            .zip(0..)
            .find(|(tier, _)| tier.name == name);
        found
            .map(|(_, id)| TierId(id))
            .ok_or_else(|| RegionError::UnknownTier {
                name: name.to_owned(),
                known: names(&self.tiers),
            })
    }

    /// How many pages of this request so many base pages are, and one at least.
    fn pages_of(&self, request: &Request<TierId>, base_pages: NonZeroU64) -> usize {
        let pages = base_pages.get() / self.page_size().order().base_pages();
        usize::try_from(pages.max(1))
            .unwrap_or(usize::MAX)
            .min(request.folios.len())
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("pages", &self.pages())
            .field("page_size", &self.page_size())
            .field("tiers", &self.tiers)
            .field("mechanism", &self.mechanism)
            .finish_non_exhaustive()
    }
}

fn limit(options: &Options) -> Limit {
    let pages = options
        .limit_bytes
        .map(|bytes| NonZeroUsize::get(bytes) / BASE_PAGE);
    Limit {
        base_pages: pages.map_or(Limit::DEFAULT_BASE_PAGES, |pages| {
            u64::try_from(pages)
                .ok()
                .and_then(NonZeroU64::new)
                .unwrap_or(NonZeroU64::MIN)
        }),
        max_stall: options.max_stall,
    }
}

pub(crate) fn names(tiers: &[Tier]) -> String {
    tiers
        .iter()
        .map(|tier| tier.name.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

/// What a region takes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// The tiers, in the order in which they were given.
    pub tiers: Vec<TierUsage>,
    /// Mappings (VMAs) over the region's pages. The kernel limits those of a process
    /// (`vm.max_map_count`).
    pub mappings: usize,
    /// Bytes of frames that wait to become destinations.
    pub pooled_bytes: usize,
    /// Bytes beyond the pages themselves: waiting frames, the second frames of pages whose switch
    /// waits, and the region's tables.
    pub overhead_bytes: usize,
    /// Pages that have moved since the region was made, each as often as it did.
    pub moved: u64,
    /// Destination frames that the kernel had to allocate, and zero, while a request waited for
    /// them. All others had been waiting in a pool.
    pub fresh_frames: u64,
    /// Bytes of the region that are mapped by huge pages now, by the page map, which takes a few
    /// microseconds to look at for each 2 MiB that are not; `None` if it cannot be read.
    pub huge_bytes: Option<usize>,
}

/// One tier of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TierUsage {
    /// Its name.
    pub name: String,
    /// Where its frames come from.
    pub place: Place,
    /// How many of the region's pages are in it.
    pub pages: usize,
    /// How many it can hold.
    pub capacity: usize,
}
