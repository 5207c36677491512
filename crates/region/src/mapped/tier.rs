//! A file that serves as a tier.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use rustix::fs::{FlockOperation, flock};
use transhume_sys::advise::{self, Advice};
use transhume_sys::limits;
use transhume_sys::map::{self, Mapping, MemfdPages};
use transhume_sys::{CallError, Errno};

use super::slots::{Memory, Slots};
use crate::error::BuildError;
use crate::tier::{PageSize, Place, Tier};

/// How much of a tier is given memory in the background before events are looked at again.
const REFILL_BYTES: usize = 1 << 20;

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Memory only, gone with its descriptor.
    InMemory,
    /// A file that was empty and will be so again.
    Plain,
    /// A device whose memory is there whether we use it or not.
    Device,
}

/// A file whose slots hold pages, with a second mapping of all of it for the copiers.
#[derive(Debug)]
pub(crate) struct FileTier {
    file: OwnedFd,
    kind: Kind,
    merges: bool,
    page: usize,
    /// Where the copiers reach the slots; no page of the region is reached by it otherwise.
    alias: Mapping,
    slots: Mutex<Slots>,
    /// Held while free slots are out of the sets, to get memory or to give theirs back.
    in_passing: Mutex<()>,
    /// Free slots with memory that are kept while no request is under way.
    bound: usize,
    /// And those that requests under way keep beyond that.
    leave: AtomicUsize,
    /// Slots that got their memory while a request waited for them.
    fresh: AtomicU64,
}

impl FileTier {
    /// Opens the file and maps it: `capacity` slots, of which the first `used` are taken at once.
    pub(crate) fn open(
        tier: &Tier,
        page_size: PageSize,
        capacity: usize,
        used: usize,
        bound: usize,
    ) -> Result<Self, BuildError> {
        let page = page_size.bytes();
        let bytes = capacity * page;
        let failed = |what: &str| {
            let what = format!("{what} for tier '{}'", tier.name);
            move |source: io::Error| BuildError::System { what, source }
        };
        let (file, kind) = match &tier.place {
            Place::Memfd => (
                map::memfd(c"transhume", MemfdPages::Shmem)
                    .map_err(io_error)
                    .map_err(failed("make a memfd"))?,
                Kind::InMemory,
            ),
            Place::Hugetlb => {
                check_huge_pages(tier, used)?;
                let file = map::memfd(c"transhume", MemfdPages::Huge).map_err(io_error);
                (file.map_err(failed("make a hugetlb file"))?, Kind::InMemory)
            }
            Place::File(path) => open_file(tier, path, page_size, bytes)?,
            Place::Node(_) => return Err(BuildError::PinsUndeclared),
        };
        if kind != Kind::Device {
            let len = u64::try_from(bytes).unwrap_or(u64::MAX);
            map::resize(&file, len)
                .map_err(io_error)
                .map_err(failed("set the size of the file"))?;
        }
        let mapped = || -> Result<Mapping, CallError> {
            let alias = Mapping::reserve_aligned(bytes, page)?;
            // SAFETY: the addresses were just reserved and nothing is there.
            unsafe { map::map_file_fixed(alias.range(), &file, 0) }?;
            advise::advise(alias.range(), Advice::DontFork)?;
            if tier.place == Place::Memfd && page_size == PageSize::Huge {
                // Refused where shared memory has no huge pages: then base pages do.
                let _ = advise::advise(alias.range(), Advice::HugePage);
            }
            Ok(alias)
        };
        let alias = mapped().map_err(|error| {
            if kind == Kind::Plain {
                // As it was found. If this fails, it is not empty, and the next region says so.
                let _ = map::resize(&file, 0);
            }
            failed("map the file")(io_error(error))
        })?;
        let tier = Self {
            file,
            kind,
            merges: tier.place != Place::Hugetlb,
            page,
            alias,
            slots: Mutex::new(Slots::new(capacity, used)),
            in_passing: Mutex::new(()),
            bound,
            leave: AtomicUsize::new(0),
            fresh: AtomicU64::new(0),
        };
        tier.prepare_first(used)
            .map_err(io_error)
            .map_err(failed("allocate the pages"))?;
        Ok(tier)
    }

    /// Allocates the first `used` slots and makes sure that they are zeros.
    fn prepare_first(&self, used: usize) -> Result<(), CallError> {
        if used == 0 {
            return Ok(());
        }
        let bytes = self.alias_of(0..used);
        advise::populate_write(bytes.clone())?;
        if self.kind == Kind::Device {
            // SAFETY: these are slots of our own alias mapping, not reached by anybody yet.
            unsafe { std::ptr::write_bytes(self.alias.as_ptr(), 0, bytes.len()) };
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // Every change to the sets is complete before anything that could panic.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the kernel makes one mapping of two that continue each other in the file.
    pub(crate) fn merges(&self) -> bool {
        self.merges
    }

    /// Whether its pages are those of shared memory, which has no place elsewhere.
    pub(crate) fn is_shared_memory(&self) -> bool {
        self.kind == Kind::InMemory
    }

    /// Whether fewer free slots have memory than the bound allows.
    pub(crate) fn is_short(&self) -> bool {
        self.kind != Kind::Device && self.lock().full() < self.bound
    }

    /// Gives some free slots memory, up to the bound; says whether there is more to do.
    pub(crate) fn refill(&self) -> bool {
        if !self.is_short() {
            return false;
        }
        let filled = self.fill_some();
        // What should have been trimmed meanwhile was not.
        self.trim();
        filled && self.is_short()
    }

    fn fill_some(&self) -> bool {
        let step = (REFILL_BYTES / self.page).max(1);
        let _passing = self
            .in_passing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let empty = {
            let mut slots = self.lock();
            let missing = self.bound.saturating_sub(slots.full());
            slots.take_empty(missing.min(step))
        };
        let Some(slots) = empty else { return false };
        if advise::populate_write(self.alias_of(slots.clone())).is_err() {
            self.free(slots);
            return false;
        }
        self.lock().put(slots, Memory::Present);
        true
    }

    /// Where the copiers reach slots.
    pub(crate) fn alias_of(&self, slots: Range<usize>) -> Range<usize> {
        let start = self.alias.range().start;
        start + slots.start * self.page..start + slots.end * self.page
    }

    /// Where a slot begins in the file.
    pub(crate) fn offset(&self, slot: usize) -> u64 {
        // A file's length fits, so its offsets do.
        u64::try_from(slot * self.page).unwrap_or(u64::MAX)
    }

    /// Free slots that have memory.
    pub(crate) fn pooled(&self) -> usize {
        match self.kind {
            // That memory is the device's, and nobody else could have it.
            Kind::Device => 0,
            Kind::InMemory | Kind::Plain => self.lock().full(),
        }
    }

    /// Takes up to `want` adjacent slots, near `hint` if it can, and gives them memory. May block,
    /// so no folio may be locked. `None` if there are no slots or no memory.
    pub(crate) fn take(&self, want: usize, hint: usize) -> Option<Range<usize>> {
        let found = self.lock().take(want, hint);
        let (slots, memory) = found.or_else(|| {
            // Those that are being filled or trimmed are free again in a moment.
            let _passed = self
                .in_passing
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            self.lock().take(want, hint)
        })?;
        if memory == Memory::Present {
            return Some(slots);
        }
        self.fresh.fetch_add(slots.len() as u64, Ordering::Relaxed);
        match advise::populate_write(self.alias_of(slots.clone())) {
            Ok(()) => Some(slots),
            Err(_) => {
                // Some may have got memory, which punching takes back.
                self.free(slots);
                None
            }
        }
    }

    /// Puts slots back that keep their memory, as far as the bound allows.
    pub(crate) fn retire(&self, slots: Range<usize>) {
        self.lock().put(slots, Memory::Present);
        self.trim();
    }

    /// Gives memory back if more free slots have any than may be kept: then all beyond the bound, since
    /// it takes a call a run and mostly a shootdown.
    pub(crate) fn trim(&self) {
        if self.kind == Kind::Device {
            return;
        }
        let _passing = match self.in_passing.try_lock() {
            Ok(passing) => passing,
            Err(TryLockError::Poisoned(passing)) => passing.into_inner(),
            // Whoever is at it trims until there is no excess.
            Err(TryLockError::WouldBlock) => return,
        };
        while self.pooled() > self.bound + self.leave.load(Ordering::Relaxed) {
            loop {
                let excess = self.lock().take_excess(self.bound);
                let Some(slots) = excess else { break };
                if !self.free(slots) {
                    return;
                }
            }
        }
    }

    /// Gives back the memory of slots; says whether that worked. If not they are free all the same.
    fn free(&self, slots: Range<usize>) -> bool {
        let bytes = slots.start * self.page..slots.end * self.page;
        let punched = map::punch_hole(&self.file, bytes).is_ok();
        let memory = if punched {
            Memory::Absent
        } else {
            Memory::Present
        };
        self.lock().put(slots, memory);
        punched
    }

    /// Lets a request keep `slots` slots more than the bound while it is under way.
    pub(crate) fn grant(&self, slots: usize) {
        self.leave.fetch_add(slots, Ordering::Relaxed);
    }

    /// How many slots got their memory while a request waited for them.
    pub(crate) fn fresh(&self) -> u64 {
        self.fresh.load(Ordering::Relaxed)
    }

    /// Takes back what [`grant`](Self::grant) gave.
    pub(crate) fn revoke(&self, slots: usize) {
        self.leave.fetch_sub(slots, Ordering::Relaxed);
        self.trim();
    }
}

impl AsFd for FileTier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for FileTier {
    fn drop(&mut self) {
        if self.kind == Kind::Plain {
            // The file was empty when we took it. If this fails, it is not empty, and the next
            // region says so.
            let _ = map::resize(&self.file, 0);
        }
    }
}

fn io_error(failed: CallError) -> io::Error {
    failed.errno.into()
}

fn check_huge_pages(tier: &Tier, needed: usize) -> Result<(), BuildError> {
    let pool = limits::hugetlb_pool(map::HUGE_PAGE).unwrap_or_default();
    if pool.free < needed {
        return Err(BuildError::HugePages {
            tier: tier.name.clone(),
            needed,
            free: pool.free,
            cure: pool.total - pool.free + needed,
        });
    }
    Ok(())
}

/// Opens a plain file or a DAX device and locks it for us.
fn open_file(
    tier: &Tier,
    path: &Path,
    page_size: PageSize,
    bytes: usize,
) -> Result<(OwnedFd, Kind), BuildError> {
    let failed = |what: &str| {
        let what = format!("{what} {} for tier '{}'", path.display(), tier.name);
        move |source: io::Error| BuildError::System { what, source }
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed("open"))?;
    let metadata = file.metadata().map_err(failed("look at"))?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_char_device() {
        let wrong = io::Error::new(
            io::ErrorKind::InvalidInput,
            "neither a file nor a DAX device",
        );
        return Err(failed("use")(wrong));
    }
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
        Errno::WOULDBLOCK => BuildError::InUse {
            tier: tier.name.clone(),
            path: path.to_owned(),
        },
        errno => failed("lock")(errno.into()),
    })?;
    if kind.is_char_device() {
        check_device(tier, &file, page_size, bytes, &failed)?;
        return Ok((file.into(), Kind::Device));
    }
    // Looked at again, now that nobody else can make it grow as a tier.
    if file.metadata().map_err(failed("look at"))?.len() > 0 {
        return Err(BuildError::FileNotEmpty {
            tier: tier.name.clone(),
            path: path.to_owned(),
        });
    }
    Ok((file.into(), Kind::Plain))
}

fn check_device<F: FnOnce(io::Error) -> BuildError>(
    tier: &Tier,
    file: &File,
    page_size: PageSize,
    bytes: usize,
    failed: &impl Fn(&str) -> F,
) -> Result<(), BuildError> {
    if page_size == PageSize::Base {
        return Err(BuildError::PageSize {
            tier: tier.name.clone(),
        });
    }
    let device = file.metadata().map_err(failed("look at"))?.rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let size = std::fs::read_to_string(format!("/sys/dev/char/{major}:{minor}/size"))
        .map_err(failed("find the size of"))?;
    let size = size.trim().parse().unwrap_or(0);
    if size < bytes {
        return Err(BuildError::Capacity {
            tier: tier.name.clone(),
            capacity: size,
            needed: bytes,
        });
    }
    Ok(())
}
