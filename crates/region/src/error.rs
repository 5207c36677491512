//! What a region can refuse, each in one line with the cure.

use std::io;
use std::path::PathBuf;

use crate::mechanism::Mechanism;

/// Why a region cannot be made. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No pages were asked for.
    #[error("a region needs at least one page")]
    NoPages,
    /// More than an address space holds.
    #[error("{pages} pages of {page_bytes} bytes are more than an address space holds")]
    TooLarge {
        /// The pages asked for.
        pages: usize,
        /// Their size.
        page_bytes: usize,
    },
    /// The number of tiers is not 1 to 64.
    #[error("a region has 1 to 64 tiers, not {0}")]
    TierCount(usize),
    /// Two tiers have the same name.
    #[error("two tiers are named '{0}'")]
    DuplicateTier(String),
    /// The tier that the pages are to begin in is not among the tiers.
    #[error("no tier is named '{name}'; the tiers are {known}")]
    UnknownTier {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// Tiers of anonymous and of mapped memory in one region.
    #[error(
        "tiers '{anonymous}' (anonymous) and '{mapped}' (mapped) cannot be in one region: a page cannot \
         go from anonymous memory to a file; use only Tier::node, or only the others"
    )]
    MixedBacking {
        /// A tier of anonymous memory.
        anonymous: String,
        /// A tier of mapped memory.
        mapped: String,
    },
    /// A NUMA node that is not there or has no memory.
    #[error(
        "tier '{tier}': node {node} is not online or has no memory; nodes with memory: {online}"
    )]
    NoSuchNode {
        /// The tier.
        tier: String,
        /// The node asked for.
        node: u32,
        /// The nodes there are.
        online: String,
    },
    /// The first tier cannot hold all pages.
    #[error("tier '{tier}' holds {capacity} bytes, less than the region's {needed}")]
    Capacity {
        /// The tier.
        tier: String,
        /// What it holds.
        capacity: usize,
        /// What is needed.
        needed: usize,
    },
    /// A size that is not a multiple of the page size.
    #[error("tier '{tier}': {bytes} bytes is not a multiple of the page size, {page_bytes}")]
    NotAMultiple {
        /// The tier.
        tier: String,
        /// Its capacity.
        bytes: usize,
        /// The page size.
        page_bytes: usize,
    },
    /// Mapped backing without the promise that it needs.
    #[error(
        "mapped backing needs Builder::pins(Pins::Declared): the kernel does not tell which of these \
         pages direct I/O has pinned, so the application must hold them by Region::pin meanwhile"
    )]
    PinsUndeclared,
    /// A page size that the tier does not have.
    #[error("tier '{tier}' has pages of 2 MiB only; use PageSize::Huge")]
    PageSize {
        /// The tier.
        tier: String,
    },
    /// Too few huge pages in the pool.
    #[error(
        "tier '{tier}' needs {needed} free huge pages of 2 MiB, there are {free}; \
         cure: sysctl vm.nr_hugepages={cure}"
    )]
    HugePages {
        /// The tier.
        tier: String,
        /// How many are needed.
        needed: usize,
        /// How many are free.
        free: usize,
        /// A value of the sysctl that is enough.
        cure: usize,
    },
    /// The file has content, which a region would overwrite.
    #[error("tier '{tier}': {} is not empty, and a tier overwrites its file; name an empty or a new one", path.display())]
    FileNotEmpty {
        /// The tier.
        tier: String,
        /// The file.
        path: PathBuf,
    },
    /// The file or device already serves a region.
    #[error("tier '{tier}': {} is in use by another region", path.display())]
    InUse {
        /// The tier.
        tier: String,
        /// The file.
        path: PathBuf,
    },
    /// Pages of these tiers cannot be held from all stores, or are moved by the kernel, so nothing of
    /// them can be deferred.
    #[error("{reason}; cure: {cure}")]
    CannotDefer {
        /// Why.
        reason: String,
        /// What to do about it.
        cure: &'static str,
    },
    /// There is no userfaultfd that serves the region's needs, and no other mechanism.
    #[error("{reason}; cure: {cure}")]
    NoMechanism {
        /// What is missing.
        reason: String,
        /// What to do about it.
        cure: String,
    },
    /// The mechanism that was chosen is for other memory.
    #[error("{mechanism} does not move {memory} memory")]
    WrongMechanism {
        /// The mechanism.
        mechanism: Mechanism,
        /// What kind of memory the tiers have.
        memory: &'static str,
    },
    /// A step of setting up failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a request to a region was refused. Nothing has been moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// No tier has this name.
    #[error("no tier is named '{name}'; the tiers are {known}")]
    UnknownTier {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A page that the region does not have.
    #[error("page {page} is outside the region, which has pages 0 to {last}")]
    OutsideRegion {
        /// The page asked for.
        page: usize,
        /// The last page there is.
        last: usize,
    },
    /// No pages were asked for.
    #[error("the request names no page")]
    NoPages,
    /// Some of the pages are in a request that another thread is making.
    #[error("page {page} is in a request that another thread is making")]
    Overlap {
        /// The first such page.
        page: usize,
    },
    /// The tier is full.
    #[error(
        "tier '{tier}' holds {capacity} pages, of which {used} are used: {asked} more do not fit; \
         move some away first"
    )]
    Full {
        /// The tier.
        tier: String,
        /// How many pages it holds.
        capacity: usize,
        /// How many of this region live there, and how many are on their way.
        used: usize,
        /// How many would be added.
        asked: usize,
    },
    /// The two lists of an exchange are not of one length.
    #[error("an exchange needs two lists of one length, and these have {a} and {b} pages")]
    UnequalLists {
        /// Pages of the first.
        a: usize,
        /// Pages of the second.
        b: usize,
    },
    /// An exchange stores to frames that a pipe could still hold.
    #[error(
        "an exchange stores to the frames that the pages have, and a pipe may hold one of them; \
         cure: Builder::pins(Pins::Declared), which promises that Region::pin holds such pages"
    )]
    ExchangeUndeclared,
    /// The kernel moves the pages of this region, and has no exchange.
    #[error("{0} cannot exchange pages; it moves them one way, through free memory")]
    NoExchange(Mechanism),
    /// The kernel's limit of mappings would come too close.
    #[error(
        "moving these pages could need {needed} mappings, and the kernel allows this region {allowed}; \
         cure: move longer runs, or raise vm.max_map_count"
    )]
    TooManyMappings {
        /// How many mappings there could be in the worst case.
        needed: usize,
        /// How many are allowed.
        allowed: usize,
    },
    /// A deferred request to a region that was not made for it.
    #[error("this region was built without Builder::deferral, so it has no limit for what waits")]
    NoDeferral,
    /// Huge pages cannot be made, or kept whole, in this memory.
    #[error("{what}; cure: {cure}")]
    NoHugePages {
        /// What is in the way.
        what: &'static str,
        /// What to do about it.
        cure: &'static str,
    },
    /// The region was inherited through a fork; only the process that made it can migrate it.
    #[error(
        "this process was forked from the one that made the region, and only that one can use it"
    )]
    Forked,
    /// An owner asked for it while it was being asked for a page itself: pages are locked then, and
    /// nothing may wait for others.
    #[error("an owner cannot migrate or pin pages while it is asked for one")]
    InsideOwner,
    /// A page stayed under migration for too long to be pinned, or has 63 pins.
    #[error("page {page} cannot be pinned now: it is being migrated, or it has 63 pins already")]
    CannotPin {
        /// The page.
        page: usize,
    },
}
