//! Deferred switches: pages are copied while threads read them, and many are switched at once.

pub(crate) mod anonymous;
pub(crate) mod troubles;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use transhume_region::{
    Builder, Deferral, Mechanism, Options, Outcome, PageSize, Pins, Region, RegionError, Tier,
};

use crate::Case;
use crate::herd::{self, Herd};
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case("deferral::pairs_wait_and_settle", &[Need::Stores], || {
        pairs_wait_and_settle(MEMFD)
    }),
    Case(
        "deferral::anonymous::pairs_wait_and_settle",
        &[Need::Protect],
        || pairs_wait_and_settle(ANONYMOUS),
    ),
    Case(
        "deferral::one_shootdown_for_many",
        &[Need::Stores, Need::Counter],
        || one_shootdown_for_many(MEMFD),
    ),
    Case(
        "deferral::anonymous::one_shootdown_for_many",
        &[Need::Protect, Need::Counter],
        || one_shootdown_for_many(ANONYMOUS),
    ),
    Case(
        "deferral::a_store_settles_its_pair",
        &[Need::Stores],
        || a_store_settles_its_pair(MEMFD),
    ),
    Case(
        "deferral::anonymous::a_store_settles_its_pair",
        &[Need::Protect],
        || a_store_settles_its_pair(ANONYMOUS),
    ),
    Case(
        "deferral::threads_that_store_lose_nothing",
        &[Need::Stores],
        || threads_that_store_lose_nothing(MEMFD),
    ),
    Case(
        "deferral::anonymous::threads_that_store_lose_nothing",
        &[Need::Protect],
        || threads_that_store_lose_nothing(ANONYMOUS),
    ),
    Case(
        "deferral::never_more_than_the_limit",
        &[Need::Stores],
        || never_more_than_the_limit(MEMFD),
    ),
    Case(
        "deferral::anonymous::never_more_than_the_limit",
        &[Need::Protect],
        || never_more_than_the_limit(ANONYMOUS),
    ),
    Case(
        "deferral::pairs_of_two_requests_settle_together",
        &[Need::Stores],
        || pairs_of_two_requests_settle_together(MEMFD),
    ),
    Case(
        "deferral::anonymous::pairs_of_two_requests_settle_together",
        &[Need::Protect],
        || pairs_of_two_requests_settle_together(ANONYMOUS),
    ),
    Case("deferral::pairs_grow_old", &[Need::Stores], || {
        pairs_grow_old(MEMFD)
    }),
    Case(
        "deferral::anonymous::pairs_grow_old",
        &[Need::Protect],
        || pairs_grow_old(ANONYMOUS),
    ),
    Case("deferral::no_pairs_under_pressure", &[Need::Stores], || {
        no_pairs_under_pressure(MEMFD)
    }),
    Case(
        "deferral::anonymous::no_pairs_under_pressure",
        &[Need::Protect],
        || no_pairs_under_pressure(ANONYMOUS),
    ),
    Case(
        "deferral::another_request_settles_first",
        &[Need::Stores],
        || another_request_settles_first(MEMFD),
    ),
    Case(
        "deferral::anonymous::another_request_settles_first",
        &[Need::Protect],
        || another_request_settles_first(ANONYMOUS),
    ),
    Case("deferral::pins_settle_first", &[Need::Stores], || {
        pins_settle_first(MEMFD)
    }),
    Case(
        "deferral::anonymous::pins_settle_first",
        &[Need::Protect],
        || pins_settle_first(ANONYMOUS),
    ),
    Case("deferral::full_tiers_count_pairs", &[Need::Stores], || {
        full_tiers_count_pairs(MEMFD)
    }),
    Case(
        "deferral::anonymous::full_tiers_count_pairs",
        &[Need::Protect],
        || full_tiers_count_pairs(ANONYMOUS),
    ),
    Case(
        "deferral::a_region_that_ends_with_pairs",
        &[Need::Stores],
        || a_region_that_ends_with_pairs(MEMFD),
    ),
    Case(
        "deferral::anonymous::a_region_that_ends_with_pairs",
        &[Need::Protect],
        || a_region_that_ends_with_pairs(ANONYMOUS),
    ),
    Case("deferral::system_calls_that_store", &[Need::Stores], || {
        system_calls_that_store(MEMFD)
    }),
    Case(
        "deferral::anonymous::system_calls_that_store",
        &[Need::Protect],
        || system_calls_that_store(ANONYMOUS),
    ),
    Case(
        "deferral::hugetlb",
        &[Need::Stores, Need::Hugetlb(24)],
        || huge_pages(HUGETLB),
    ),
    Case(
        "deferral::anonymous::huge_pages",
        &[Need::Protect, Need::HugePages],
        || huge_pages(HUGE),
    ),
    Case(
        "deferral::huge_pages_under_stores",
        &[Need::Stores, Need::Hugetlb(24)],
        || huge_pages_under_stores(HUGETLB),
    ),
    Case(
        "deferral::anonymous::huge_pages_under_stores",
        &[Need::Protect, Need::HugePages],
        || huge_pages_under_stores(HUGE),
    ),
    Case("deferral::refusals", &[Need::Stores], refusals),
];

/// What a region is made of: its tiers and the size of its pages.
#[derive(Clone, Copy)]
struct Kind {
    tier: fn(&str) -> Tier,
    page: PageSize,
    /// How many base pages one shootdown can switch.
    at_once: usize,
}

const MEMFD: Kind = Kind {
    tier: |name| Tier::memfd(name),
    page: PageSize::Base,
    at_once: PAGES,
};
const HUGETLB: Kind = Kind {
    tier: |name| Tier::hugetlb(name),
    page: PageSize::Huge,
    ..MEMFD
};
const ANONYMOUS: Kind = Kind {
    tier: |name| Tier::node(name, 0),
    page: PageSize::Base,
    at_once: 512,
};
const HUGE: Kind = Kind {
    page: PageSize::Huge,
    ..ANONYMOUS
};

const PAGES: usize = 4096;

fn bytes(bytes: usize) -> NonZeroUsize {
    NonZeroUsize::new(bytes).unwrap()
}

/// So many pages may wait, for as long as they like, whatever the machine's memory is.
fn patient(pages: usize, page: PageSize) -> Deferral {
    Deferral::new(bytes(pages * page.bytes()))
        .max_age(Duration::from_secs(3600))
        .keep_free_bytes(0)
}

fn builder(kind: Kind, deferral: Deferral) -> Builder {
    Region::builder()
        .tier((kind.tier)("near"))
        .tier((kind.tier)("far"))
        .page_size(kind.page)
        .pages(PAGES)
        .pins(Pins::Declared)
        .deferral(deferral)
}

fn filled(builder: Builder) -> Region {
    let region = builder.build().unwrap();
    herd::fill(&region);
    region
}

fn deferred() -> Options {
    Options::new().deferred()
}

fn pages_in(region: &Region, tier: &str) -> usize {
    let usage = region.usage();
    usage
        .tiers
        .iter()
        .find(|one| one.name == tier)
        .unwrap()
        .pages
}

fn pairs_wait_and_settle(kind: Kind) {
    waits_and_settles(&filled(builder(kind, patient(PAGES, PageSize::Base))));
}

fn waits_and_settles(region: &Region) {
    let pages = region.pages();
    let report = region.migrate(.., "far", &deferred()).unwrap();
    assert_eq!(
        (report.deferred(), report.moved()),
        (pages, 0),
        "{:?}",
        report.stayed().next()
    );
    // Readers go on, and nothing settles for them.
    herd::sweep(region.words());
    let usage = region.deferral().unwrap();
    assert_eq!((usage.pages, usage.settled), (pages, Default::default()));
    assert_eq!(region.tier_of(0).unwrap(), "near");
    assert!(region.usage().overhead_bytes >= region.len());

    let settlement = region.settle(..).unwrap();
    assert_eq!(settlement.outcomes.len(), pages);
    assert!(
        settlement
            .outcomes
            .iter()
            .all(|one| one.1 == Outcome::Moved)
    );
    assert_eq!(pages_in(region, "far"), pages);
    let usage = region.deferral().unwrap();
    assert_eq!((usage.pages, usage.settled.asked), (0, pages as u64));
    herd::sweep(region.words());
    // And it can be stored to as before, and comes back at once.
    herd::fill(region);
    let report = region.migrate(.., "near", &Options::new()).unwrap();
    assert_eq!(report.moved(), pages);
    herd::sweep(region.words());
    assert!(region.take_stayed().is_empty());
}

fn huge_pages(kind: Kind) {
    let deferral = patient(8, PageSize::Huge);
    waits_and_settles(&filled(builder(kind, deferral).pages(8)));
}

fn one_shootdown_for_many(kind: Kind) {
    let region = filled(builder(kind, patient(PAGES, PageSize::Base)));
    let stop = AtomicBool::new(false);
    let reader = || {
        while !stop.load(Ordering::Relaxed) {
            herd::sweep(region.words());
        }
    };
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(reader);
        let report = region.migrate(.., "far", &deferred()).unwrap();
        assert_eq!((report.deferred(), report.counts.batches), (PAGES, 8));
        let holds = report.shootdowns.unwrap();
        assert!(holds <= 2, "stores are held off by one call: {holds}");
        assert_eq!(report.counts.rounds, 0);
        let settlement = region.settle(..).unwrap();
        let rounds = PAGES.div_ceil(kind.at_once) as u64;
        assert_eq!(settlement.counts.rounds, rounds);
        if rounds > 1 {
            // Out and in, for each page table, and one more where the pool gives the old frames back.
            let switches = settlement.shootdowns.unwrap();
            assert!(
                switches <= 3 * rounds,
                "{switches} for {rounds} page tables"
            );
        }
    });
}

/// Sets a flag when a test ends, however it does.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn a_store_settles_its_pair(kind: Kind) {
    let at_once = bytes(64 * PageSize::Base.bytes());
    let region = filled(builder(
        kind,
        patient(PAGES, PageSize::Base).at_once_bytes(at_once),
    ));
    region.migrate(.., "far", &deferred()).unwrap();
    let words = PageSize::Base.bytes() / 8;
    region.words()[1000 * words + 1].store(7, Ordering::Relaxed);
    assert_eq!(region.words()[1000 * words + 1].load(Ordering::Relaxed), 7);
    let by_store = || region.deferral().unwrap().settled.by_store;
    wait_until("the settler counts", || by_store() > 0);
    assert_eq!(by_store(), 64, "with those beside it");
    let usage = region.deferral().unwrap();
    assert_eq!(usage.pages, PAGES - 64);
    assert_eq!(region.tier_of(1000).unwrap(), "far");
    assert_eq!(region.tier_of(0).unwrap(), "near");
    region.settle(..).unwrap();
    assert_eq!(region.words()[1000 * words + 1].load(Ordering::Relaxed), 7);
}

fn threads_that_store_lose_nothing(kind: Kind) {
    under_stores(&filled(builder(
        kind,
        patient(PAGES / 2, PageSize::Base).at_once_bytes(bytes(256 << 10)),
    )));
}

fn huge_pages_under_stores(kind: Kind) {
    let deferral = patient(4, PageSize::Huge);
    under_stores(&filled(builder(kind, deferral).pages(8)));
}

/// Pairs side by side that go to different tiers settle together, each to its own.
fn pairs_of_two_requests_settle_together(kind: Kind) {
    let region = filled(builder(kind, patient(PAGES, PageSize::Base)));
    region.migrate(100..200, "far", &Options::new()).unwrap();
    region.migrate(0..100, "far", &deferred()).unwrap();
    region.migrate(100..200, "near", &deferred()).unwrap();
    region.migrate(200..300, "far", &deferred()).unwrap();
    let settlement = region.settle(..).unwrap();
    assert_eq!(settlement.counts.batches, 1);
    herd::sweep(region.words());
    assert_eq!(region.tier_of(99).unwrap(), "far");
    assert_eq!(region.tier_of(100).unwrap(), "near");
    assert_eq!(region.tier_of(200).unwrap(), "far");
}

/// Two threads load and store everywhere, while two others defer and settle, here and there.
fn under_stores(region: &Region) {
    let (stop, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let half = region.pages() / 2;
    std::thread::scope(|scope| {
        let _ended = Stop(&ended);
        let herd = Herd::graze(scope, region, 2, &stop);
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                region.settle(half / 2..half + half / 2).unwrap();
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        std::thread::scope(|scope| {
            for part in [0..half, half..region.pages()] {
                scope.spawn(move || {
                    for round in 0..30 {
                        let to = ["far", "near"][round % 2];
                        let options = if round % 5 == 4 {
                            Options::new()
                        } else {
                            deferred()
                        };
                        let report = region.migrate(part.clone(), to, &options).unwrap();
                        let stayed = report.stayed().next();
                        assert!(report.stopped.is_none(), "{stayed:?}");
                        for (_, failure) in report.stayed() {
                            assert!(failure.why.is_transient(), "{failure}");
                        }
                    }
                });
            }
        });
        assert!(herd.gather() > 0);
    });
    region.settle(..).unwrap();
    herd::sweep(region.words());
    let usage = region.deferral().unwrap();
    assert!(usage.settled.by_store > 0 && usage.pages == 0, "{usage:?}");
    assert_eq!(
        pages_in(region, "near") + pages_in(region, "far"),
        region.pages()
    );
}

fn never_more_than_the_limit(kind: Kind) {
    let limit = 1000;
    let region = filled(builder(kind, patient(limit, PageSize::Base)));
    let report = region.migrate(.., "far", &deferred()).unwrap();
    assert_eq!(report.deferred(), PAGES);
    let usage = region.deferral().unwrap();
    assert!(
        usage.most_bytes <= limit * PageSize::Base.bytes(),
        "{usage:?}"
    );
    assert!(usage.pages <= limit);
    assert_eq!(usage.settled.by_limit, (PAGES - usage.pages) as u64);
    region.settle(..).unwrap();
    assert_eq!(pages_in(&region, "far"), PAGES);
    herd::sweep(region.words());
}

/// Waits for something that a thread of the region does.
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "waited a minute: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn pairs_grow_old(kind: Kind) {
    let deferral = patient(PAGES, PageSize::Base).max_age(Duration::from_millis(50));
    let region = filled(builder(kind, deferral));
    region.migrate(.., "far", &deferred()).unwrap();
    let by_age = || region.deferral().unwrap().settled.by_age;
    wait_until("old pairs settle", || by_age() == PAGES as u64);
    assert_eq!(region.deferral().unwrap().pages, 0);
    assert_eq!(pages_in(&region, "far"), PAGES);
    herd::sweep(region.words());
}

fn no_pairs_under_pressure(kind: Kind) {
    let region = filled(builder(
        kind,
        patient(PAGES, PageSize::Base).keep_free_bytes(u64::MAX),
    ));
    let report = region.migrate(.., "far", &deferred()).unwrap();
    assert_eq!(
        (report.moved(), report.deferred()),
        (PAGES, 0),
        "they go at once"
    );
    assert!(region.deferral().unwrap().paused);
    herd::sweep(region.words());
}

fn another_request_settles_first(kind: Kind) {
    let region = filled(builder(kind, patient(PAGES, PageSize::Base)));
    region.migrate(.., "far", &deferred()).unwrap();
    // The destination becomes the source before anybody has settled it.
    let report = region.migrate(0..100, "near", &Options::new()).unwrap();
    assert_eq!(report.moved(), 100);
    let report = region.migrate(100..200, "near", &deferred()).unwrap();
    assert_eq!(report.deferred(), 100);
    let report = region.migrate(200..300, "far", &deferred()).unwrap();
    assert_eq!(report.already_there(), 100);
    let usage = region.deferral().unwrap();
    assert_eq!((usage.settled.by_request, usage.pages), (300, PAGES - 200));
    region.settle(..).unwrap();
    assert_eq!(
        (pages_in(&region, "near"), pages_in(&region, "far")),
        (200, PAGES - 200)
    );
    herd::sweep(region.words());
}

fn pins_settle_first(kind: Kind) {
    let region = filled(builder(kind, patient(PAGES, PageSize::Base)));
    region.migrate(.., "far", &deferred()).unwrap();
    let pin = region.pin(10..20).unwrap();
    assert_eq!(region.deferral().unwrap().settled.by_request, 10);
    assert_eq!(region.tier_of(10).unwrap(), "far");
    let report = region.migrate(0..20, "near", &deferred()).unwrap();
    assert_eq!(report.stayed().count(), 10, "pinned pages are not copied");
    drop(pin);
}

fn full_tiers_count_pairs(kind: Kind) {
    let page = PageSize::Base.bytes();
    let region = Region::builder()
        .tier((kind.tier)("near"))
        .tier((kind.tier)("far").capacity(200 * page))
        .pages(1000)
        .pins(Pins::Declared)
        .deferral(patient(PAGES, PageSize::Base));
    let region = filled(region);
    region.migrate(0..150, "far", &deferred()).unwrap();
    let full = |from: usize, to: usize| {
        let refused = region.migrate(from..to, "far", &deferred());
        matches!(refused, Err(RegionError::Full { used: 150, .. }))
    };
    assert!(full(200, 251), "what waits has its room");
    region.settle(..).unwrap();
    assert!(full(200, 251), "and keeps it");
    region.migrate(0..150, "near", &deferred()).unwrap();
    region.settle(..).unwrap();
    let report = region.migrate(200..400, "far", &deferred()).unwrap();
    assert_eq!(report.deferred(), 200, "all is free again");
}

fn a_region_that_ends_with_pairs(kind: Kind) {
    for _ in 0..3 {
        let region = filled(builder(kind, patient(PAGES, PageSize::Base)));
        region.migrate(.., "far", &deferred()).unwrap();
        drop(region);
    }
}

fn system_calls_that_store(kind: Kind) {
    let region = filled(builder(kind, patient(PAGES, PageSize::Base)));
    region.migrate(.., "far", &deferred()).unwrap();
    let zeros = std::fs::File::open("/dev/zero").unwrap();
    let page = PageSize::Base.bytes();
    // SAFETY: the region's words are its own memory, shared as bytes with the kernel only.
    let into = unsafe { std::slice::from_raw_parts_mut(region.as_ptr().add(5 * page), page) };
    assert_eq!(rustix::io::read(&zeros, into).unwrap(), page);
    let words = &region.words()[5 * page / 8..6 * page / 8];
    assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
    let by_store = || region.deferral().unwrap().settled.by_store;
    wait_until("the settler counts", || by_store() > 0);
    region.settle(..).unwrap();
    assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
}

fn refusals() {
    let region = Region::builder()
        .tier(Tier::memfd("near"))
        .tier(Tier::memfd("far"))
        .pages(4)
        .pins(Pins::Declared)
        .build()
        .unwrap();
    assert_eq!(
        region.migrate(.., "far", &deferred()).unwrap_err(),
        RegionError::NoDeferral
    );
    assert_eq!(region.settle(..).unwrap_err(), RegionError::NoDeferral);
    assert!(region.deferral().is_none());
    let anonymous = Region::builder()
        .tier(Tier::node("near", 0))
        .pages(4)
        .deferral(patient(4, PageSize::Base))
        .build();
    let line = anonymous.unwrap_err().to_string();
    assert!(
        line.contains("; cure: Builder::pins") && !line.contains('\n'),
        "{line}"
    );
    let moved_by_the_kernel = Region::builder()
        .tier(Tier::node("near", 0))
        .pages(4)
        .pins(Pins::Declared)
        .mechanism(Mechanism::MovePages)
        .deferral(patient(4, PageSize::Base))
        .build();
    let line = moved_by_the_kernel.unwrap_err().to_string();
    assert!(
        line.contains("moves the pages itself") && line.contains("; cure: "),
        "{line}"
    );
    let file = std::env::temp_dir().join(format!("transhume-deferral-{}", std::process::id()));
    let plain = Region::builder()
        .tier(Tier::file("near", &file))
        .pages(4)
        .pins(Pins::Declared)
        .deferral(patient(4, PageSize::Base))
        .build();
    let _ = std::fs::remove_file(&file);
    let line = plain.unwrap_err().to_string();
    assert!(
        line.contains("plain files") && line.contains("; cure: "),
        "{line}"
    );
}
