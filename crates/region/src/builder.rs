//! Describing a region, and what must hold before there is one.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;

use transhume_copy::Switch;
use transhume_engine::FolioOwner;
use transhume_sys::CallError;
use transhume_sys::limits::{self, ThpMode};
use transhume_sys::numa;
use transhume_sys::uffd::Uffd;

use crate::anonymous::{Anonymous, Plan, SourceFrames};
use crate::deferral::Deferral;
use crate::error::BuildError;
use crate::gate;
use crate::mapped::{FileTier, Mapped};
use crate::mechanism::{self, Mechanism, Notice};
use crate::move_pages::MovePages;
use crate::options::{AnyCopier, KernelAccess, Pins};
use crate::owner::Owner;
use crate::region::{Memory, Parts, Region};
use crate::tier::{PageSize, Place, Tier, TierId};

/// What part of a region's size waits as free frames when nothing else is asked for: under 1 %.
const POOL_SHARE: usize = 128;

/// Describes a [`Region`].
#[derive(Clone, Default)]
#[must_use = "nothing is made before build is called"]
pub struct Builder {
    tiers: Vec<Tier>,
    pages: usize,
    page_size: PageSize,
    pins: Pins,
    kernel_access: KernelAccess,
    pool_bytes: Option<usize>,
    copier: Option<Chosen>,
    mechanism: Option<Mechanism>,
    owner: Option<Arc<dyn FolioOwner>>,
    deferral: Option<Deferral>,
}

/// Which copier migrations use.
#[derive(Clone)]
enum Chosen {
    /// This one at first.
    Copier(AnyCopier),
    /// Whichever is in use there.
    Switch(Arc<Switch>),
}

impl Builder {
    /// Adds a tier. All pages begin in the first.
    pub fn tier(mut self, tier: Tier) -> Self {
        self.tiers.push(tier);
        self
    }

    /// Sets how many pages the region has, in its page size.
    pub fn pages(mut self, pages: usize) -> Self {
        self.pages = pages;
        self
    }

    /// Sets the size of its pages.
    pub fn page_size(mut self, page_size: PageSize) -> Self {
        self.page_size = page_size;
        self
    }

    /// Promises something about references to the frames; see [`Pins`].
    pub fn pins(mut self, pins: Pins) -> Self {
        self.pins = pins;
        self
    }

    /// Promises something about system calls on the memory; see [`KernelAccess`].
    pub fn kernel_access(mut self, kernel_access: KernelAccess) -> Self {
        self.kernel_access = kernel_access;
        self
    }

    /// Sets how many bytes of free frames each tier may keep while nothing moves; a migration keeps
    /// one batch more, of files 2 MiB at least. The default is less than 1 % of the region.
    pub fn pool_bytes(mut self, bytes: usize) -> Self {
        self.pool_bytes = Some(bytes);
        self
    }

    /// Sets the copier that migrations use unless they name another. The default is `memcpy`. It can be
    /// changed later, see [`Region::copier_switch`].
    pub fn copier(mut self, copier: AnyCopier) -> Self {
        self.copier = Some(Chosen::Copier(copier));
        self
    }

    /// Has migrations use the copier that is in use in `switch`, which several regions can share. It
    /// takes the place of [`copier`](Self::copier).
    pub fn copier_switch(mut self, switch: Arc<Switch>) -> Self {
        self.copier = Some(Chosen::Switch(switch));
        self
    }

    /// Chooses how pages are cut off. Without this it is the best way that the machine has, and
    /// [`Region::notices`] says what a better one would need.
    pub fn mechanism(mut self, mechanism: Mechanism) -> Self {
        self.mechanism = Some(mechanism);
        self
    }

    /// Names the owner of the pages: an application that has latches on them lets go of a page before
    /// it is cut off, and is told when it is back. See [`owner`](crate::owner) for what it may do.
    /// Without one nobody is asked.
    pub fn owner(mut self, owner: Arc<dyn FolioOwner>) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Lets requests be [deferred](crate::Options::deferred), within these limits (\[deferred-flush\]).
    /// Stores to pages that wait are held off by the userfaultfd, so the region's memory must not be
    /// where this program's own allocator takes its memory from. It needs [`Pins::Declared`]: a device
    /// that has pinned a page is not held off.
    pub fn deferral(mut self, deferral: Deferral) -> Self {
        self.deferral = Some(deferral);
        self
    }

    /// Makes the region: reserves and allocates all its memory, zeroed, in the first tier.
    ///
    /// # Errors
    ///
    /// See [`BuildError`]; each says in one line what is wrong and what cures it.
    pub fn build(self) -> Result<Region, BuildError> {
        let pages = self.pages;
        let page = self.page_size.bytes();
        let bytes = self.check_size()?;
        self.check_tiers()?;
        let capacity = self.capacities()?;
        let mut mechanism = self.find_mechanism()?;
        self.check_deferral(mechanism)?;
        let mut notices = Vec::new();
        if !gate::install() {
            notices.push(Notice {
                what: "forks cannot be held off while pages are cut off".to_owned(),
                cure: "do not fork while a region migrates".to_owned(),
            });
        }
        let pooled = self.pool_bytes.unwrap_or(bytes / POOL_SHARE) / page;

        let memory = match mechanism {
            Mechanism::Move => {
                match mechanism::open(mechanism, self.kernel_access, self.deferral.is_some()) {
                    Ok(uffd) => {
                        let memory = self.anonymous(uffd, pooled, &mut notices)?;
                        Memory::Anonymous(Box::new(memory))
                    }
                    Err(lacking) if self.deferral.is_some() => return Err(lacking),
                    Err(lacking) => {
                        let memory = self.moved_by_the_kernel(lacking, &mut notices)?;
                        self.notice_missing_huge_pages(memory.huge_pages(), &mut notices);
                        mechanism = Mechanism::MovePages;
                        Memory::MovePages(memory)
                    }
                }
            }
            Mechanism::MovePages => {
                let memory = self.move_pages()?;
                self.notice_missing_huge_pages(memory.huge_pages(), &mut notices);
                Memory::MovePages(memory)
            }
            Mechanism::Blind => {
                if self.pins == Pins::Undeclared {
                    return Err(BuildError::PinsUndeclared);
                }
                if limits::overcommit_is_forbidden() {
                    // A mapping that is replaced is taken away first.
                    return Err(BuildError::NoMechanism {
                        reason:
                            "with vm.overcommit_memory=2 the kernel can refuse to map a page again \
                                 that was cut off"
                                .to_owned(),
                        cure: "sysctl vm.overcommit_memory=0, or anonymous backing".to_owned(),
                    });
                }
                let uffd = mechanism::open(mechanism, self.kernel_access, self.deferral.is_some())?;
                let mut files = Vec::with_capacity(self.tiers.len());
                for (tier, &slots) in self.tiers.iter().zip(&capacity) {
                    let used = if files.is_empty() { pages } else { 0 };
                    files.push(FileTier::open(tier, self.page_size, slots, used, pooled)?);
                }
                self.notice_small_shared_pages(&mut notices);
                let memory =
                    Mapped::create(uffd, self.page_size, pages, files, self.deferral.as_ref());
                let memory = memory.map_err(allocation)?;
                if self.deferral.is_some() {
                    memory.check_deferral()?;
                }
                Memory::Mapped(Box::new(memory))
            }
        };
        let switch = match self.copier {
            None => Arc::new(Switch::default()),
            Some(Chosen::Copier(copier)) => Arc::new(Switch::new(copier)),
            Some(Chosen::Switch(switch)) => switch,
        };
        let tiers = self.tiers;
        let parts = Parts {
            memory,
            pages,
            tiers,
            capacity,
            switch,
            mechanism,
            notices,
            owner: self.owner.map(Owner),
        };
        Region::start(parts).map_err(|source| BuildError::System {
            what: "start the region's thread".to_owned(),
            source,
        })
    }

    fn anonymous(
        &self,
        uffd: Uffd,
        pooled: usize,
        notices: &mut Vec<Notice>,
    ) -> Result<Anonymous, BuildError> {
        let source_frames = match self.pins {
            Pins::Declared => SourceFrames::Reuse,
            Pins::Undeclared => SourceFrames::Release,
        };
        let plan = Plan {
            page_size: self.page_size,
            pages: self.pages,
            nodes: self.nodes()?,
            source_frames,
            pooled,
            deferral: self.deferral,
        };
        let memory = Anonymous::create(uffd, &plan).map_err(allocation)?;
        self.notice_missing_huge_pages(memory.huge_pages(), notices);
        if !mechanism::moves_in_batches() {
            notices.push(Notice {
                what: "UFFDIO_MOVE of this kernel flushes page by page, so batches save little"
                    .to_owned(),
                cure: "a kernel from 6.18 on".to_owned(),
            });
        }
        Ok(memory)
    }

    fn move_pages(&self) -> Result<MovePages, BuildError> {
        MovePages::create(self.page_size, self.pages, self.nodes()?).map_err(allocation)
    }

    /// What is left where the best mechanism is lacking. Between tiers of one node there is nothing
    /// that the kernel would move.
    fn moved_by_the_kernel(
        &self,
        lacking: BuildError,
        notices: &mut Vec<Notice>,
    ) -> Result<MovePages, BuildError> {
        let nodes = self.nodes()?;
        let several = nodes.iter().any(|node| *node != nodes[0]);
        match lacking {
            BuildError::NoMechanism { reason, cure } if several && self.mechanism.is_none() => {
                notices.push(Notice {
                    what: format!(
                        "{reason}; the kernel moves the pages itself, by move_pages(2), and no copier takes part"
                    ),
                    cure,
                });
                self.move_pages()
            }
            lacking => Err(lacking),
        }
    }

    /// Whether switches can wait. Which mapped memory that is true of is found out later.
    fn check_deferral(&self, mechanism: Mechanism) -> Result<(), BuildError> {
        match mechanism {
            _ if self.deferral.is_none() => Ok(()),
            Mechanism::MovePages => Err(BuildError::CannotDefer {
                reason: "where the kernel moves the pages itself no switch can wait".to_owned(),
                cure: "another Builder::mechanism, or no Builder::deferral",
            }),
            Mechanism::Move if self.pins == Pins::Undeclared => Err(BuildError::CannotDefer {
                reason:
                    "a device that has pinned a page could store to it after it was copied, unseen"
                        .to_owned(),
                cure: "Builder::pins(Pins::Declared), and Region::pin around direct I/O; or no Builder::deferral",
            }),
            Mechanism::Move | Mechanism::Blind => Ok(()),
        }
    }

    /// The size of the region in bytes.
    fn check_size(&self) -> Result<usize, BuildError> {
        /// Slots are numbered in 32 bits, and user space ends at 2^47 on most machines.
        const MOST_BYTES: usize = 1 << 44;
        if self.pages == 0 {
            return Err(BuildError::NoPages);
        }
        let page_bytes = self.page_size.bytes();
        let bytes = self
            .pages
            .checked_mul(page_bytes)
            .filter(|&bytes| bytes <= MOST_BYTES);
        bytes.ok_or(BuildError::TooLarge {
            pages: self.pages,
            page_bytes,
        })
    }

    fn check_tiers(&self) -> Result<(), BuildError> {
        if !(1..=TierId::MAX).contains(&self.tiers.len()) {
            return Err(BuildError::TierCount(self.tiers.len()));
        }
        let mut seen = BTreeSet::new();
        for tier in &self.tiers {
            if !seen.insert(&tier.name) {
                return Err(BuildError::DuplicateTier(tier.name.clone()));
            }
            if tier.place == Place::Hugetlb && self.page_size == PageSize::Base {
                return Err(BuildError::PageSize {
                    tier: tier.name.clone(),
                });
            }
        }
        Ok(())
    }

    /// How many pages each tier holds.
    fn capacities(&self) -> Result<Vec<usize>, BuildError> {
        let page_bytes = self.page_size.bytes();
        let mut capacities = Vec::with_capacity(self.tiers.len());
        for tier in &self.tiers {
            let bytes = tier.capacity.unwrap_or(self.pages * page_bytes);
            if bytes % page_bytes != 0 || bytes == 0 {
                return Err(BuildError::NotAMultiple {
                    tier: tier.name.clone(),
                    bytes,
                    page_bytes,
                });
            }
            capacities.push(bytes / page_bytes);
        }
        if capacities[0] < self.pages {
            return Err(BuildError::Capacity {
                tier: self.tiers[0].name.clone(),
                capacity: capacities[0] * page_bytes,
                needed: self.pages * page_bytes,
            });
        }
        Ok(capacities)
    }

    fn find_mechanism(&self) -> Result<Mechanism, BuildError> {
        let is_anonymous = |tier: &&Tier| matches!(tier.place, Place::Node(_));
        let anonymous = self.tiers.iter().find(is_anonymous);
        let mapped = self.tiers.iter().find(|tier| !is_anonymous(tier));
        match (anonymous, mapped) {
            (Some(anonymous), Some(mapped)) => Err(BuildError::MixedBacking {
                anonymous: anonymous.name.clone(),
                mapped: mapped.name.clone(),
            }),
            (_, None) => match self.mechanism {
                Some(mechanism @ Mechanism::Blind) => Err(BuildError::WrongMechanism {
                    mechanism,
                    memory: "anonymous",
                }),
                chosen => Ok(chosen.unwrap_or(Mechanism::Move)),
            },
            (None, Some(_)) => match self.mechanism {
                Some(mechanism) if mechanism != Mechanism::Blind => {
                    Err(BuildError::WrongMechanism {
                        mechanism,
                        memory: "mapped",
                    })
                }
                _ => Ok(Mechanism::Blind),
            },
        }
    }

    /// The node of each tier of an anonymous region.
    fn nodes(&self) -> Result<Vec<u32>, BuildError> {
        let online = numa::nodes_with_memory().map_err(|error| BuildError::System {
            what: "find the NUMA nodes".to_owned(),
            source: io::Error::other(error),
        })?;
        let mut nodes = Vec::with_capacity(self.tiers.len());
        for tier in &self.tiers {
            let Place::Node(node) = tier.place else {
                continue;
            };
            if !online.contains(&node) {
                let known = online
                    .iter()
                    .map(u32::to_string)
                    .collect::<Vec<_>>()
                    .join(", ");
                return Err(BuildError::NoSuchNode {
                    tier: tier.name.clone(),
                    node,
                    online: known,
                });
            }
            nodes.push(node);
        }
        Ok(nodes)
    }

    fn notice_small_shared_pages(&self, notices: &mut Vec<Notice>) {
        let memfd = self.tiers.iter().any(|tier| tier.place == Place::Memfd);
        let shmem = limits::thp().ok().and_then(|thp| thp.shmem);
        if self.page_size == PageSize::Huge
            && memfd
            && matches!(shmem, Some(ThpMode::Never | ThpMode::Deny))
        {
            notices.push(Notice {
                what: "the memfd's pages of 2 MiB are made of base pages".to_owned(),
                cure: "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled, or hugetlb"
                    .to_owned(),
            });
        }
    }

    fn notice_missing_huge_pages(&self, huge: Result<usize, CallError>, notices: &mut Vec<Notice>) {
        if self.page_size != PageSize::Huge {
            return;
        }
        // Where it cannot be told, nothing is known to be missing.
        let huge = huge.unwrap_or(self.pages);
        if huge < self.pages {
            notices.push(Notice {
                what: format!(
                    "{} of {} pages of 2 MiB are made of base pages, which move one by one",
                    self.pages - huge,
                    self.pages
                ),
                cure: "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, or free memory"
                    .to_owned(),
            });
        }
    }
}

fn allocation(failed: CallError) -> BuildError {
    BuildError::System {
        what: "allocate the region's memory".to_owned(),
        source: failed.errno.into(),
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("tiers", &self.tiers)
            .field("pages", &self.pages)
            .field("page_size", &self.page_size)
            .field("pins", &self.pins)
            .field("kernel_access", &self.kernel_access)
            .field("has_owner", &self.owner.is_some())
            .finish_non_exhaustive()
    }
}
