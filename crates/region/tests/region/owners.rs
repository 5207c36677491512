//! Owners of pages: asked before a page is cut off, in batches without waiting, told when it is back.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use transhume_region::owner::{Alone, FolioOwner, Place, Refused};
use transhume_region::{
    Builder, Failure, Folio, Mechanism, Mode, Neighbours, Options, PageSize, Pins, Region,
    RegionError, Step, Tier, Why,
};
use transhume_sys::{Call, inject};

use crate::Case;
use crate::herd::{self, Herd};
use crate::migrate::{two_memfds, two_nodes};
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case("owners::anonymous_base_pages", &[Need::Move], || {
        asked_and_told(two_nodes(1500), PageSize::Base);
    }),
    Case(
        "owners::anonymous_huge_pages",
        &[Need::Move, Need::HugePages],
        || asked_and_told(two_nodes(6), PageSize::Huge),
    ),
    Case("owners::mapped_memfd", &[Need::Blind], || {
        asked_and_told(two_memfds(1500), PageSize::Base);
    }),
    Case("owners::moved_by_the_kernel", &[Need::TwoNodes], || {
        let builder = Region::builder()
            .tier(Tier::node("near", 0))
            .tier(Tier::node("far", 1))
            .mechanism(Mechanism::MovePages);
        asked_and_told(builder.pages(1500), PageSize::Base);
    }),
    Case(
        "owners::pages_in_use_stay",
        &[Need::Move],
        pages_in_use_stay,
    ),
    Case(
        "owners::alone_it_may_wait",
        &[Need::Move],
        alone_it_may_wait,
    ),
    Case("owners::neighbours", &[Need::MoveInBatches], neighbours),
    Case(
        "owners::that_migrate_or_pin",
        &[Need::Move],
        that_migrate_or_pin,
    ),
    Case("owners::that_panic", &[Need::Move, Need::Blind], that_panic),
    Case(
        "owners::that_panic_for_a_neighbour",
        &[Need::MoveInBatches],
        that_panic_for_a_neighbour,
    ),
    Case("owners::buffer_pool", &[Need::Move], || {
        println!("{}", crate::buffer_pool::run().unwrap());
    }),
];

const FREE: u8 = 0;
const IN_USE: u8 = 1;
const DETACHED: u8 = 2;

/// What an owner saw of one page.
#[derive(Debug, Default)]
struct Seen {
    state: AtomicU8,
    tried: AtomicU32,
    waited: AtomicU32,
    attached: AtomicU32,
    arrived: AtomicU32,
}

impl Seen {
    fn counts(&self) -> [u32; 4] {
        let counts = [&self.tried, &self.waited, &self.attached, &self.arrived];
        counts.map(|count| count.load(Ordering::Relaxed))
    }
}

/// Pages with a latch each.
#[derive(Debug)]
struct Latches {
    pages: Vec<Seen>,
    base_pages: u64,
    detached: AtomicUsize,
    /// The most that were detached at a time.
    most: AtomicUsize,
}

impl Latches {
    fn new(pages: usize, page_size: PageSize) -> Arc<Self> {
        Arc::new(Self {
            pages: (0..pages).map(|_| Seen::default()).collect(),
            base_pages: (page_size.bytes() / PageSize::Base.bytes()) as u64,
            detached: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        })
    }

    fn seen(&self, folio: Folio) -> &Seen {
        assert_eq!(folio.base_pages(), self.base_pages);
        &self.pages[(folio.page() / self.base_pages) as usize]
    }

    fn latch(&self, page: usize) {
        self.change(&self.pages[page], FREE, IN_USE).unwrap();
    }

    fn unlatch(&self, page: usize) {
        self.change(&self.pages[page], IN_USE, FREE).unwrap();
    }

    fn change(&self, page: &Seen, from: u8, to: u8) -> Result<(), Refused> {
        let state = &page.state;
        let changed = state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        changed.map(drop).map_err(|_| Refused)
    }

    fn take(&self, page: &Seen) -> Result<(), Refused> {
        self.change(page, FREE, DETACHED)?;
        let now = self.detached.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        Ok(())
    }

    fn assert_all_attached(&self) {
        assert_eq!(self.detached.load(Ordering::Relaxed), 0);
        let detached = |page: &&Seen| page.state.load(Ordering::Relaxed) == DETACHED;
        assert_eq!(self.pages.iter().position(|page| detached(&page)), None);
    }
}

impl FolioOwner for Latches {
    fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
        let page = self.seen(folio);
        page.tried.fetch_add(1, Ordering::Relaxed);
        self.take(page)
    }

    fn detach(&self, folio: Folio, _alone: &Alone) -> Result<(), Refused> {
        assert_eq!(self.detached.load(Ordering::Relaxed), 0, "not alone");
        let page = self.seen(folio);
        page.waited.fetch_add(1, Ordering::Relaxed);
        while self.take(page).is_err() {
            std::thread::yield_now();
        }
        Ok(())
    }

    fn attach(&self, folio: Folio, at: Place) {
        let page = self.seen(folio);
        page.attached.fetch_add(1, Ordering::Relaxed);
        let arrived = u32::from(at == Place::Destination);
        page.arrived.fetch_add(arrived, Ordering::Relaxed);
        self.detached.fetch_sub(1, Ordering::Relaxed);
        self.change(page, DETACHED, FREE).unwrap();
    }
}

/// A region with such an owner.
fn owned(builder: Builder, page_size: PageSize) -> (Region, Arc<Latches>) {
    let builder = builder.page_size(page_size);
    let pages = builder.clone().build().unwrap().pages();
    let latches = Latches::new(pages, page_size);
    let region = builder.owner(Arc::clone(&latches) as _).build().unwrap();
    herd::fill(&region);
    (region, latches)
}

fn asked_and_told(builder: Builder, page_size: PageSize) {
    let (region, latches) = owned(builder.pins(Pins::Declared), page_size);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, &region, 2, &stop);
        for (round, tier) in (1..).zip(["far", "near", "far"]) {
            let report = region.migrate(.., tier, &Options::new()).unwrap();
            assert!(report.is_complete(), "{:?}", report.stayed().next());
            latches.assert_all_attached();
            for page in &latches.pages {
                let [tried, waited, attached, arrived] = page.counts();
                // More often where the kernel wanted a page to be tried again.
                assert!(tried >= round);
                assert_eq!((waited, attached, arrived), (0, tried, round));
            }
        }
        herd.gather();
    });
    herd::sweep(region.words());
    let most = latches.most.load(Ordering::Relaxed);
    assert!(
        most > 1 || page_size == PageSize::Huge,
        "they go in batches"
    );
}

fn pages_in_use_stay() {
    let (region, latches) = owned(two_nodes(600), PageSize::Base);
    let in_use = |page: &usize| page % 3 == 1;
    (0..600).filter(in_use).for_each(|page| latches.latch(page));
    let pin = region.pin(7).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, &region, 2, &stop);
        let report = region.migrate(.., "far", &Options::new()).unwrap();
        let stayed = report
            .stayed()
            .map(|(folio, failure)| (folio.page() as usize, failure));
        let expected = (0..600).filter(in_use).map(|page| {
            let why = match page {
                7 => Failure::new(Step::Lock, Why::Pinned),
                _ => Failure::new(Step::Unmap, Why::Busy),
            };
            (page, why)
        });
        assert!(stayed.eq(expected), "{:?}", report.stayed().next());
        herd.gather();
    });
    assert_eq!(latches.pages[7].counts(), [0; 4], "nobody asks for a pin");
    latches.assert_all_attached();
    drop(pin);
    (0..600)
        .filter(in_use)
        .for_each(|page| latches.unlatch(page));
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    assert!(report.is_complete());
    herd::sweep(region.words());
}

/// A page that is in use until somebody waits for it.
fn alone_it_may_wait() {
    let (region, latches) = owned(two_nodes(100), PageSize::Base);
    for page in [30, 60] {
        latches.latch(page);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for page in [30, 60] {
                while latches.pages[page].counts()[1] == 0 {
                    std::thread::yield_now();
                }
                latches.unlatch(page);
            }
        });
        let report = region
            .migrate(.., "far", &Options::new().mode(Mode::Sync))
            .unwrap();
        assert!(report.is_complete(), "{:?}", report.stayed().next());
    });
    latches.assert_all_attached();
    assert_eq!(latches.pages[30].counts(), [3, 1, 1, 1]);
    assert_eq!(latches.pages[31].counts()[1], 0);
    herd::sweep(region.words());
}

/// Every fourth page moves; some of those between are in use.
fn neighbours() {
    let (region, latches) = owned(two_nodes(1024), PageSize::Base);
    let is_wanted = |page: usize| page % 4 == 1;
    let is_in_use = |page: usize| page % 32 == 2;
    let wanted = (0..1024).filter(|&page| is_wanted(page));
    let wanted = wanted.collect::<Vec<_>>();
    // Says how often pages were given up that had been cut off together with others.
    let migrate = |neighbours| {
        let before = inject::calls(Call::ProcessMadvise);
        for tier in ["far", "near"] {
            let options = Options::new().neighbours(neighbours);
            let report = region.migrate(&wanted[..], tier, &options).unwrap();
            assert!(report.is_complete(), "{:?}", report.stayed().next());
        }
        inject::calls(Call::ProcessMadvise) - before
    };
    let counts = |page: usize| latches.pages[page].counts();
    assert_eq!(migrate(Neighbours::Left), 0);
    assert!((0..1024).all(|page| is_wanted(page) == (counts(page)[0] > 0)));
    (0..1024)
        .filter(|&page| is_in_use(page))
        .for_each(|page| latches.latch(page));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, &region, 2, &stop);
        assert!(migrate(Neighbours::Taken) > 0);
        herd.gather();
    });
    let mut asked = [0; 2];
    for page in (0..1024).filter(|&page| !is_wanted(page)) {
        let [tried, waited, attached, arrived] = counts(page);
        let detached = if is_in_use(page) { 0 } else { tried };
        assert_eq!((waited, attached, arrived), (0, detached, 0), "page {page}");
        asked[usize::from(is_in_use(page))] += tried;
    }
    assert!(asked.iter().all(|&times| times > 0), "{asked:?}");
    latches.assert_all_attached();
    drop(region.pin(..).unwrap());
    herd::sweep(region.words());
}

/// An owner that does what it must not.
#[derive(Debug, Default)]
struct Restless {
    region: OnceLock<Weak<Region>>,
    refused: Mutex<Vec<RegionError>>,
}

impl Restless {
    fn migrate_and_pin(&self) {
        let region = self.region.get().and_then(Weak::upgrade).unwrap();
        let migrated = region.migrate(3, "far", &Options::new());
        let pinned = region.pin(5);
        let mut refused = self.refused.lock().unwrap();
        refused.push(migrated.map(drop).unwrap_err());
        refused.push(pinned.map(drop).unwrap_err());
        assert_eq!(region.tier_of(3), Ok("near"), "it may look");
    }
}

impl FolioOwner for Restless {
    fn try_detach(&self, _folio: Folio) -> Result<(), Refused> {
        self.migrate_and_pin();
        Err(Refused)
    }

    fn detach(&self, _folio: Folio, _alone: &Alone) -> Result<(), Refused> {
        self.migrate_and_pin();
        Ok(())
    }

    fn attach(&self, _folio: Folio, _at: Place) {
        self.migrate_and_pin();
    }
}

fn that_migrate_or_pin() {
    let restless = Arc::new(Restless::default());
    let builder = two_nodes(8).owner(Arc::clone(&restless) as _);
    let region = Arc::new(builder.build().unwrap());
    restless.region.set(Arc::downgrade(&region)).unwrap();
    let sync = Options::new().mode(Mode::Sync);
    assert!(region.migrate(0, "far", &sync).unwrap().is_complete());
    let refused = std::mem::take(&mut *restless.refused.lock().unwrap());
    // Three tries in batches, one alone, and back.
    assert_eq!(refused, vec![RegionError::InsideOwner; 2 * 5]);
    drop(region.pin(..).unwrap());
}

/// Which call of an owner's panics, for page 5 and once.
#[derive(Debug)]
struct Panicking {
    latches: Arc<Latches>,
    in_attach: bool,
    armed: AtomicBool,
}

impl Panicking {
    fn panic_once(&self, folio: Folio, in_attach: bool) {
        let here = folio.page() == 5 && in_attach == self.in_attach;
        if here && self.armed.swap(false, Ordering::Relaxed) {
            resume_unwind(Box::new("planned"));
        }
    }
}

impl FolioOwner for Panicking {
    fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
        self.panic_once(folio, false);
        self.latches.try_detach(folio)
    }

    fn attach(&self, folio: Folio, at: Place) {
        self.latches.attach(folio, at);
        self.panic_once(folio, true);
    }
}

fn that_panic() {
    for (memory, in_attach) in [
        (two_nodes(64), false),
        (two_nodes(64), true),
        (two_memfds(64), false),
        (two_memfds(64), true),
    ] {
        let region = panicking(memory, in_attach, &(0..64).collect::<Vec<_>>());
        // In detach nothing has moved yet, in attach everything has.
        let at = if in_attach { "far" } else { "near" };
        assert!((0..64).all(|page| region.tier_of(page) == Ok(at)));
        comes_to_rest(&region);
    }
}

fn that_panic_for_a_neighbour() {
    for in_attach in [false, true] {
        // Page 5 is one.
        let region = panicking(two_nodes(64), in_attach, &[1, 4, 7, 10]);
        comes_to_rest(&region);
    }
}

/// A region whose owner has panicked in a migration of these pages, and all are attached.
fn panicking(memory: Builder, in_attach: bool, pages: &[usize]) -> Region {
    let latches = Latches::new(64, PageSize::Base);
    let owner = Panicking {
        latches: Arc::clone(&latches),
        in_attach,
        armed: AtomicBool::new(true),
    };
    let region = memory.owner(Arc::new(owner)).build().unwrap();
    herd::fill(&region);
    let migrate = || region.migrate(pages, "far", &Options::new());
    let panic = catch_unwind(AssertUnwindSafe(migrate)).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"planned"));
    latches.assert_all_attached();
    herd::sweep(region.words());
    region
}

/// No page is left locked.
fn comes_to_rest(region: &Region) {
    drop(region.pin(..).unwrap());
    for tier in ["near", "far"] {
        let report = region.migrate(.., tier, &Options::new()).unwrap();
        assert!(report.is_complete(), "{:?}", report.stayed().next());
    }
    herd::sweep(region.words());
}
