//! Deferred switches under programs that panic, wait and get in their own way.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use transhume_copy::{CopyJob, Memcpy};
use transhume_engine::{Copier, CopyAnswer};
use transhume_region::owner::{Alone, FolioOwner, Place, Refused};
use transhume_region::{Folio, Mode, Options, PageSize, Pins, Region, RegionError, Tier};

use super::{
    ANONYMOUS, Kind, MEMFD, PAGES, builder, bytes, deferred, filled, pages_in, patient, wait_until,
};
use crate::Case;
use crate::herd;
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case("deferral::a_copier_that_panics", &[Need::Stores], || {
        a_copier_that_panics(MEMFD);
    }),
    Case(
        "deferral::anonymous::a_copier_that_panics",
        &[Need::Protect],
        || a_copier_that_panics(ANONYMOUS),
    ),
    Case(
        "deferral::a_copier_that_panics_when_pairs_have_stayed",
        &[Need::Stores],
        || a_copier_that_panics_when_pairs_have_stayed(MEMFD),
    ),
    Case(
        "deferral::anonymous::a_copier_that_panics_when_pairs_have_stayed",
        &[Need::Protect],
        || a_copier_that_panics_when_pairs_have_stayed(ANONYMOUS),
    ),
    Case(
        "deferral::a_pin_of_what_is_being_copied",
        &[Need::Stores],
        || a_pin_of_what_is_being_copied(MEMFD),
    ),
    Case(
        "deferral::anonymous::a_pin_of_what_is_being_copied",
        &[Need::Protect],
        || a_pin_of_what_is_being_copied(ANONYMOUS),
    ),
    Case("deferral::an_owner_that_panics", &[Need::Stores], || {
        an_owner_that_panics(MEMFD)
    }),
    Case(
        "deferral::anonymous::an_owner_that_panics",
        &[Need::Protect],
        || an_owner_that_panics(ANONYMOUS),
    ),
    Case(
        "deferral::an_owner_that_settles",
        &[Need::Stores],
        an_owner_that_settles,
    ),
    Case(
        "deferral::who_holds_a_latch_can_store",
        &[Need::Stores],
        || who_holds_a_latch_can_store(MEMFD),
    ),
    Case(
        "deferral::anonymous::who_holds_a_latch_can_store",
        &[Need::Protect],
        || who_holds_a_latch_can_store(ANONYMOUS),
    ),
    Case(
        "deferral::a_full_tier_settles_first",
        &[Need::Stores],
        a_full_tier_settles_first,
    ),
    Case(
        "deferral::the_files_hold_no_more_than_the_limit",
        &[Need::Stores],
        the_files_hold_no_more_than_the_limit,
    ),
];

/// Nobody prints what is planned.
fn panics() -> ! {
    resume_unwind(Box::new("planned"))
}

/// Panics at its second list.
struct Second(AtomicUsize);

impl Copier<CopyJob> for Second {
    fn name(&self) -> &str {
        "second"
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        if self.0.fetch_add(1, Ordering::Relaxed) == 1 {
            panics();
        }
        Memcpy.copy(jobs, answers);
    }
}

fn a_copier_that_panics(kind: Kind) {
    let region = filled(builder(kind, patient(PAGES, PageSize::Base)));
    let copier = Arc::new(Second(AtomicUsize::new(0)));
    let options = deferred().copier(copier);
    let caught = catch_unwind(AssertUnwindSafe(|| region.migrate(.., "far", &options)));
    assert!(caught.is_err());
    assert_eq!(region.deferral().unwrap().pages, 512);
    region.settle(..).unwrap();
    assert_eq!(pages_in(&region, "far"), 512);
    // All room is where the pages are.
    for tier in ["near", "far", "near"] {
        let report = region.migrate(.., tier, &Options::new()).unwrap();
        assert!(report.is_complete());
    }
    herd::sweep(region.words());
}

/// Says when it has begun, and copies when it may.
#[derive(Default)]
struct Waits {
    begun: AtomicBool,
    may: AtomicBool,
}

impl Copier<CopyJob> for Waits {
    fn name(&self) -> &str {
        "waits"
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        self.begun.store(true, Ordering::SeqCst);
        while !self.may.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        Memcpy.copy(jobs, answers);
    }
}

/// Who waits for a page while it is copied does not wait until the pair is old.
fn a_pin_of_what_is_being_copied(kind: Kind) {
    let region = filled(builder(kind, patient(PAGES, PageSize::Base)));
    let copier = Arc::new(Waits::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let options = deferred().copier(Arc::clone(&copier) as _);
            region.migrate(..100, "far", &options).unwrap();
        });
        while !copier.begun.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let pins = scope.spawn(|| region.pin(50).map(drop));
        // Long enough for it to wait for the page, or the test shows nothing, which does no harm.
        std::thread::sleep(Duration::from_millis(100));
        copier.may.store(true, Ordering::SeqCst);
        assert_eq!(pins.join().unwrap(), Ok(()));
    });
    assert_eq!(region.tier_of(50), Ok("far"));
    region.settle(..).unwrap();
    herd::sweep(region.words());
}

/// Settles the pairs of its first list, and panics at the second.
#[derive(Default)]
struct Settles {
    lists: AtomicUsize,
    region: OnceLock<Weak<Region>>,
}

impl Copier<CopyJob> for Settles {
    fn name(&self) -> &str {
        "settles"
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        if self.lists.fetch_add(1, Ordering::Relaxed) == 1 {
            let region = self.region.get().and_then(Weak::upgrade).unwrap();
            region.settle(..).unwrap();
            panics();
        }
        Memcpy.copy(jobs, answers);
    }
}

/// Room is counted once, whoever finds out that a page does not come.
fn a_copier_that_panics_when_pairs_have_stayed(kind: Kind) {
    let page = PageSize::Base.bytes();
    let latch = Arc::new(Latch::default());
    let described = Region::builder()
        .tier((kind.tier)("near"))
        .tier((kind.tier)("far").capacity(600 * page))
        .pages(1000)
        .pins(Pins::Declared)
        .deferral(patient(PAGES, PageSize::Base))
        .owner(Arc::clone(&latch) as _);
    let region = Arc::new(filled(described));
    let copier = Arc::new(Settles::default());
    copier.region.set(Arc::downgrade(&region)).unwrap();
    let options = deferred().copier(Arc::clone(&copier) as _);
    // No pair can switch.
    latch.taken.store(true, Ordering::SeqCst);
    let caught = catch_unwind(AssertUnwindSafe(|| region.migrate(..600, "far", &options)));
    assert!(caught.is_err());
    assert_eq!(region.deferral().unwrap().stayed, 512);
    latch.taken.store(false, Ordering::SeqCst);
    let report = region.migrate(..600, "far", &Options::new());
    assert_eq!(report.map(|report| report.moved()), Ok(600));
    let full = region.migrate(600, "far", &Options::new());
    assert!(matches!(full, Err(RegionError::Full { used: 600, .. })));
    herd::sweep(region.words());
}

/// An owner that panics when it is asked for a page, while that is armed.
struct Fragile {
    page: u64,
    armed: AtomicBool,
}

impl FolioOwner for Fragile {
    fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
        if folio.page() == self.page && self.armed.swap(false, Ordering::SeqCst) {
            panics();
        }
        Ok(())
    }

    fn attach(&self, _folio: Folio, _at: Place) {}
}

fn an_owner_that_panics(kind: Kind) {
    let owner = Arc::new(Fragile {
        page: 100,
        armed: AtomicBool::new(false),
    });
    let at_once = bytes(64 * PageSize::Base.bytes());
    let deferral = patient(PAGES, PageSize::Base).at_once_bytes(at_once);
    let region = filled(builder(kind, deferral).owner(Arc::clone(&owner) as _));
    region.migrate(.., "far", &deferred()).unwrap();

    owner.armed.store(true, Ordering::SeqCst);
    let caught = catch_unwind(AssertUnwindSafe(|| region.settle(..)));
    assert!(caught.is_err());
    // Those that were not reached wait as before.
    let waiting = region.deferral().unwrap().pages;
    assert!(waiting > 0 && waiting < PAGES, "{waiting}");
    assert_eq!(waiting + pages_in(&region, "far") + stayed(&region), PAGES);
    region.words()[4000 * 512].store(herd_value(4000 * 512), Ordering::Relaxed);
    region.settle(..).unwrap();
    assert_eq!(region.deferral().unwrap().pages, 0);

    // And the region's own thread goes on when it is asked there.
    region.migrate(.., "near", &Options::new()).unwrap();
    region.migrate(.., "far", &deferred()).unwrap();
    owner.armed.store(true, Ordering::SeqCst);
    for page in [100, 101, 3000] {
        let word = page * 512;
        region.words()[word].store(herd_value(word), Ordering::Relaxed);
    }
    wait_until("stores settle", || region.tier_of(3000).unwrap() == "far");
    assert!(!owner.armed.load(Ordering::SeqCst));
    region.settle(..).unwrap();
    herd::sweep(region.words());
}

/// Pages that neither wait nor have moved.
fn stayed(region: &Region) -> usize {
    let waiting = region.deferral().unwrap().pages;
    pages_in(region, "near") - waiting
}

/// What the herd's first version of a word is.
fn herd_value(word: usize) -> u64 {
    (word as u64) << 32
}

/// An owner that asks its region for what cannot be asked from inside.
#[derive(Default)]
struct Meddling {
    region: OnceLock<Weak<Region>>,
    refused: AtomicUsize,
}

impl FolioOwner for Meddling {
    fn try_detach(&self, _folio: Folio) -> Result<(), Refused> {
        let region = self.region.get().and_then(Weak::upgrade);
        if let Some(region) = region {
            let inside = |refused: Option<RegionError>| refused == Some(RegionError::InsideOwner);
            let exchanged = region.exchange(0..1, 1..2, &Options::new());
            let both = inside(region.settle(..).err()) && inside(exchanged.err());
            self.refused.fetch_add(usize::from(both), Ordering::Relaxed);
        }
        Ok(())
    }

    fn attach(&self, _folio: Folio, _at: Place) {}
}

fn an_owner_that_settles() {
    let owner = Arc::new(Meddling::default());
    let described = builder(MEMFD, patient(PAGES, PageSize::Base)).owner(Arc::clone(&owner) as _);
    let region = Arc::new(filled(described));
    owner.region.set(Arc::downgrade(&region)).unwrap();
    region.migrate(.., "far", &deferred()).unwrap();
    region.settle(..).unwrap();
    assert_eq!(owner.refused.load(Ordering::Relaxed), PAGES);
}

/// A latch on one page.
#[derive(Default)]
struct Latch {
    taken: AtomicBool,
    waited_in_vain: AtomicBool,
}

impl FolioOwner for Latch {
    fn try_detach(&self, _folio: Folio) -> Result<(), Refused> {
        let taken = self.taken.load(Ordering::SeqCst);
        if taken { Err(Refused) } else { Ok(()) }
    }

    fn detach(&self, folio: Folio, _alone: &Alone) -> Result<(), Refused> {
        let until = Instant::now() + Duration::from_secs(60);
        while self.try_detach(folio).is_err() {
            if Instant::now() > until {
                self.waited_in_vain.store(true, Ordering::SeqCst);
                return Err(Refused);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn attach(&self, _folio: Folio, _at: Place) {}
}

/// A page from which stores were held off and that stayed is as it was before: who holds its latch
/// and stores there waits for nobody, least of all for who waits for the latch.
fn who_holds_a_latch_can_store(kind: Kind) {
    let latch = Arc::new(Latch::default());
    let described = builder(kind, patient(PAGES, PageSize::Base)).owner(Arc::clone(&latch) as _);
    let region = filled(described);
    {
        let _pin = region.pin(1500).unwrap();
        let report = region.migrate(.., "far", &deferred()).unwrap();
        assert_eq!(report.stayed().count(), 1);
    }
    region.settle(..).unwrap();
    latch.taken.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let migrator = scope.spawn(|| {
            let options = Options::new().mode(Mode::Sync);
            region.migrate(1500, "far", &options).unwrap()
        });
        // Long enough for it to wait for the latch, or the test shows nothing, which does no harm.
        std::thread::sleep(Duration::from_millis(100));
        let word = 1500 * 512;
        region.words()[word].store(herd_value(word), Ordering::Relaxed);
        latch.taken.store(false, Ordering::SeqCst);
        assert_eq!(migrator.join().unwrap().moved(), 1);
    });
    assert!(!latch.waited_in_vain.load(Ordering::SeqCst));
    herd::sweep(region.words());
}

fn a_full_tier_settles_first() {
    let page = PageSize::Base.bytes();
    let region = Region::builder()
        .tier(Tier::memfd("near").capacity(1000 * page))
        .tier(Tier::memfd("far").capacity(200 * page))
        .pages(1000)
        .pins(Pins::Declared)
        .deferral(patient(PAGES, PageSize::Base));
    let region = filled(region);
    region.migrate(0..200, "far", &Options::new()).unwrap();
    region.migrate(0..50, "near", &deferred()).unwrap();
    assert_eq!(region.deferral().unwrap().pages, 50);
    // What waits to leave has its room until it has left.
    let report = region.migrate(500..550, "far", &Options::new()).unwrap();
    assert_eq!(report.moved(), 50);
    assert_eq!(region.deferral().unwrap().settled.by_request, 50);
    herd::sweep(region.words());
}

/// The files of this process's regions.
fn files() -> Vec<PathBuf> {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let ours = files.map(|file| file.path()).filter(|path| {
        let path = std::fs::read_link(path).unwrap_or_default();
        path.to_string_lossy().starts_with("/memfd:transhume")
    });
    ours.collect()
}

/// Bytes that the memory of these files takes at one moment. `None` where it changed meanwhile: what has
/// gone from one file to another between two looks would count twice.
fn bytes_of(files: &[PathBuf]) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    let look = || {
        let each = files.iter().map(|file| std::fs::metadata(file).unwrap());
        each.map(|file| file.blocks() * 512).collect::<Vec<_>>()
    };
    let first = look();
    (look() == first).then(|| first.iter().sum())
}

fn the_files_hold_no_more_than_the_limit() {
    let limit = 1024 * PageSize::Base.bytes();
    let deferral = patient(1024, PageSize::Base)
        .at_once_bytes(bytes(256 * PageSize::Base.bytes()))
        .max_age(Duration::from_millis(10));
    let region = filled(builder(MEMFD, deferral).pool_bytes(0));
    let files = files();
    let stop = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            loop {
                let is_over = stop.load(Ordering::Relaxed);
                let seen = bytes_of(&files);
                most = most.max(seen.unwrap_or(0));
                if is_over && seen.is_some() {
                    return most;
                }
            }
        });
        for round in 0..6 {
            let to = ["far", "near"][round % 2];
            region.migrate(.., to, &deferred()).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    // A request keeps the slots of a batch beyond that, free or about to be.
    let batch = 2 * 512 * PageSize::Base.bytes();
    let allowed = region.len() + limit + batch;
    assert!(
        most >= region.len() as u64,
        "{most} bytes, and all is there"
    );
    assert!(most <= allowed as u64, "{most} of {allowed} bytes");
    assert!(region.deferral().unwrap().most_bytes <= limit);
    herd::sweep(region.words());
}
