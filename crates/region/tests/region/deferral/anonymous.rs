//! What only anonymous memory meets while its pages wait: forks, pages that are given back, locks.

use std::sync::atomic::{AtomicBool, Ordering};

use transhume_region::{Options, Outcome, PageSize, Pins, Region, Tier, Why};

use super::{ANONYMOUS, HUGE, Kind, Stop, builder, deferred, filled, pages_in, patient};
use crate::Case;
use crate::forks::{Ended, Fork, check_pages, in_child, number_pages};
use crate::herd::{self, Herd};
use crate::locked::mlock;
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case(
        "deferral::anonymous::a_child_sees_what_waits",
        &[Need::Protect],
        || a_child_sees_what_waits(ANONYMOUS, 512),
    ),
    Case(
        "deferral::anonymous::a_child_sees_huge_pages_that_wait",
        &[Need::Protect, Need::HugePages],
        || a_child_sees_what_waits(HUGE, 4),
    ),
    Case(
        "deferral::anonymous::what_is_given_back_reads_as_zeros",
        &[Need::Protect],
        || what_is_given_back_reads_as_zeros(ANONYMOUS, 512),
    ),
    Case(
        "deferral::anonymous::huge_pages_given_back_read_as_zeros",
        &[Need::Protect, Need::HugePages],
        || what_is_given_back_reads_as_zeros(HUGE, 4),
    ),
    Case(
        "deferral::anonymous::stores_to_what_was_given_back_stay",
        &[Need::Protect],
        || stores_to_what_was_given_back_stay(ANONYMOUS, 64),
    ),
    Case(
        "deferral::anonymous::stores_to_huge_pages_given_back_stay",
        &[Need::Protect, Need::HugePages],
        || stores_to_what_was_given_back_stay(HUGE, 4),
    ),
    Case(
        "deferral::anonymous::locked_before_they_wait",
        &[Need::Protect],
        || locked(true),
    ),
    Case(
        "deferral::anonymous::locked_while_they_wait",
        &[Need::Protect],
        || locked(false),
    ),
    Case(
        "deferral::anonymous::scattered_pages",
        &[Need::Protect],
        scattered,
    ),
    Case(
        "deferral::anonymous::frames_are_given_back",
        &[Need::Protect],
        frames_are_given_back,
    ),
];

fn region(kind: Kind, pages: usize) -> Region {
    let deferral = patient(pages, kind.page);
    builder(kind, deferral).pages(pages).build().unwrap()
}

/// Gives the whole memory of pages back to the kernel.
fn give_back(region: &Region, pages: std::ops::Range<usize>) {
    let page = region.page_size().bytes();
    let start = region.as_ptr().wrapping_add(pages.start * page).cast();
    // SAFETY: the region's words are atomics, which may change at any time.
    let failed = unsafe { libc::madvise(start, pages.len() * page, libc::MADV_DONTNEED) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
}

/// The child has the pages as they were, and may store to its own. The parent shares them then, and
/// the kernel does not move what is shared: they stay, are reported, and can be stored to.
fn a_child_sees_what_waits(kind: Kind, pages: usize) {
    let region = region(kind, pages);
    number_pages(&region);
    for fork in [Fork::Libc, Fork::Raw] {
        let report = region.migrate(.., "far", &deferred()).unwrap();
        assert_eq!(report.deferred(), pages, "{:?}", report.stayed().next());
        let child = || {
            let seen = check_pages(&region);
            region.words()[1].store(5, Ordering::Relaxed);
            seen
        };
        assert_eq!(in_child(fork, child), Ended::Exit(0));
        assert_eq!(region.words()[1].load(Ordering::Relaxed), 0);
        let settlement = region.settle(..).unwrap();
        let stayed = |outcome: &Outcome| matches!(outcome, Outcome::Stayed(failure) if failure.why == Why::Shared);
        assert!(settlement.outcomes.iter().all(|one| stayed(&one.1)));
        assert_eq!(region.take_stayed().len(), pages);
        assert_eq!(pages_in(&region, "near"), pages);
        assert_eq!(check_pages(&region), 0);
        // Stores make the pages the parent's own again.
        number_pages(&region);
        let report = region.migrate(.., "far", &deferred()).unwrap();
        assert_eq!(report.deferred(), pages);
        region.settle(..).unwrap();
        assert_eq!(pages_in(&region, "far"), pages);
        assert_eq!(check_pages(&region), 0);
        region.migrate(.., "near", &Options::new()).unwrap();
    }
}

fn what_is_given_back_reads_as_zeros(kind: Kind, pages: usize) {
    let region = filled({
        let deferral = patient(pages, kind.page);
        builder(kind, deferral).pages(pages)
    });
    let words = kind.page.bytes() / 8;
    region.migrate(.., "far", &deferred()).unwrap();
    // One that nobody looks at, one that is read, and one that is stored to.
    give_back(&region, 0..3);
    let zero = |page: usize| {
        let words = &region.words()[page * words..(page + 1) * words];
        assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
    };
    zero(2);
    region.words()[words - 1].store(9, Ordering::Relaxed);
    region.settle(..).unwrap();
    let stayed = region.take_stayed();
    assert_eq!(stayed.len(), 3, "{stayed:?}");
    assert_eq!(region.words()[words - 1].load(Ordering::Relaxed), 9);
    assert!(stayed.iter().all(|(_, failure)| failure.why == Why::Absent));
    (1..3).for_each(zero);
    assert_eq!(pages_in(&region, "far"), pages - 3);
    // All is as usual afterwards.
    herd::fill(&region);
    region.migrate(.., "near", &Options::new()).unwrap();
    herd::sweep(region.words());
}

/// One thread gives pages back and stores to them; what it stored is there however the pages are
/// copied, wait and are switched meanwhile.
fn stores_to_what_was_given_back_stay(kind: Kind, pages: usize) {
    let region = region(kind, pages);
    let words = kind.page.bytes() / 8;
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ended = Stop(&ended);
            for round in 0..60 {
                let to = ["far", "near"][round % 2];
                region.migrate(.., to, &deferred()).unwrap();
                if round % 3 == 0 {
                    region.settle(..).unwrap();
                }
            }
        });
        let mut round = 0;
        let mut stored = vec![0; pages];
        while !ended.load(Ordering::Relaxed) {
            round += 1;
            let page = round % pages;
            let both = [page * words + 3, (page + 1) * words - 2];
            let check = |stored: u64| {
                for word in both {
                    let seen = region.words()[word].load(Ordering::Relaxed);
                    assert_eq!(seen, stored, "page {page}");
                }
            };
            check(stored[page]);
            give_back(&region, page..page + 1);
            // Pages that were cut off just then have come back as they were.
            for word in both {
                region.words()[word].store(round as u64, Ordering::Relaxed);
            }
            check(round as u64);
            stored[page] = round as u64;
        }
    });
    region.settle(..).unwrap();
    let usage = region.usage();
    assert_eq!(
        usage.tiers.iter().map(|tier| tier.pages).sum::<usize>(),
        pages
    );
}

fn locked(before: bool) {
    let region = filled(builder(ANONYMOUS, patient(512, PageSize::Base)).pages(512));
    if before {
        mlock(&region, 100..300, true);
    }
    // The first request finds out by a refusal how the memory is locked.
    region.migrate(.., "far", &Options::new()).unwrap();
    let report = region.migrate(.., "near", &deferred()).unwrap();
    assert_eq!(report.deferred(), 512, "{:?}", report.stayed().next());
    // Locking stores to the pages, and so settles them; unlocking does not.
    mlock(&region, 100..300, !before);
    region.settle(..).unwrap();
    assert_eq!(region.take_stayed(), []);
    assert_eq!(pages_in(&region, "near"), 512);
    herd::sweep(region.words());
    mlock(&region, 100..300, false);
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    assert!(report.is_complete(), "{:?}", report.stayed().next());
    herd::sweep(region.words());
}

/// Pages with others between them, under stores, with neighbours taken by requests that do not wait.
fn scattered() {
    let region = filled(builder(ANONYMOUS, patient(2048, PageSize::Base)).pages(2048));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, &region, 2, &stop);
        for round in 0..20 {
            let to = ["far", "near"][round % 2];
            let every = |n: usize| (0..2048).step_by(n).collect::<Vec<_>>();
            region.migrate(&every(3)[..], to, &deferred()).unwrap();
            let report = region.migrate(&every(8)[..], to, &Options::new()).unwrap();
            assert_eq!(report.deferred(), 0);
        }
        assert!(herd.gather() > 0);
    });
    region.settle(..).unwrap();
    herd::sweep(region.words());
}

/// What waits holds a frame a page, and no more; afterwards the pools are as they may be.
fn frames_are_given_back() {
    let page = PageSize::Base.bytes();
    let limit = 1024;
    let pool = 64 * page;
    let region = Region::builder()
        .tier(Tier::node("near", 0))
        .tier(Tier::node("far", 0))
        .pages(4096)
        .pins(Pins::Declared)
        .pool_bytes(pool)
        .deferral(patient(limit, PageSize::Base));
    let region = filled(region);
    for round in 0..6 {
        let to = ["far", "near"][round % 2];
        let report = region.migrate(.., to, &deferred()).unwrap();
        assert_eq!(report.deferred(), 4096);
        let deferral = region.deferral().unwrap();
        assert!(deferral.most_bytes <= limit * page, "{deferral:?}");
        let usage = region.usage();
        assert!(usage.pooled_bytes <= pool, "{usage:?}");
        region.settle(..).unwrap();
        let usage = region.usage();
        assert!(usage.pooled_bytes <= pool, "{usage:?}");
    }
    herd::sweep(region.words());
}
