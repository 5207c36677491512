//! Pages migrate while application threads read and write them.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use transhume_copy::CopyJob;
use transhume_engine::{Copier, CopyAnswer};
use transhume_region::{Builder, Options, Outcome, PageSize, Pins, Region, RegionError, Tier};

use crate::Case;
use crate::herd::{self, Herd};
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case(
        "migrate::anonymous_base_pages",
        &[Need::Move],
        anonymous_base_pages,
    ),
    Case(
        "migrate::anonymous_undeclared_pins",
        &[Need::Move],
        anonymous_undeclared_pins,
    ),
    Case(
        "migrate::anonymous_huge_pages",
        &[Need::Move, Need::HugePages],
        anonymous_huge_pages,
    ),
    Case(
        "migrate::one_page_at_a_time",
        &[Need::Move],
        one_page_at_a_time,
    ),
    Case("migrate::scattered_pages", &[Need::Move], scattered_pages),
    Case("migrate::mapped_memfd", &[Need::Blind], mapped_memfd),
    Case(
        "migrate::mapped_memfd_huge",
        &[Need::Blind],
        mapped_memfd_huge,
    ),
    Case("migrate::mapped_file", &[Need::Blind], mapped_file),
    Case(
        "migrate::mapped_hugetlb",
        &[Need::Blind, Need::Hugetlb(24)],
        mapped_hugetlb,
    ),
    Case(
        "migrate::mapped_scattered_coalesces",
        &[Need::Blind],
        mapped_scattered_coalesces,
    ),
    Case(
        "migrate::several_migrators",
        &[Need::Move],
        several_migrators,
    ),
    Case(
        "migrate::several_migrators_mapped",
        &[Need::Blind],
        several_migrators_mapped,
    ),
    Case(
        "migrate::copiers_that_do_nothing",
        &[Need::Move],
        copiers_that_do_nothing,
    ),
    Case(
        "migrate::a_copier_that_panics",
        &[Need::Move],
        a_copier_that_panics,
    ),
    Case("migrate::three_tiers", &[Need::Move], three_tiers),
    Case(
        "migrate::memory_beside_the_pages",
        &[Need::Move],
        memory_beside_the_pages,
    ),
    Case(
        "migrate::given_back_pages_read_as_zeros",
        &[Need::Move],
        given_back_pages,
    ),
];

pub(crate) fn two_nodes(pages: usize) -> Builder {
    Region::builder()
        .tier(Tier::node("near", 0))
        .tier(Tier::node("far", 0))
        .pages(pages)
}

pub(crate) fn two_memfds(pages: usize) -> Builder {
    let builder = Region::builder()
        .tier(Tier::memfd("near"))
        .tier(Tier::memfd("far"));
    builder.pages(pages).pins(Pins::Declared)
}

/// Moves everything back and forth under two threads of an application.
pub(crate) fn back_and_forth(region: &Region, rounds: usize, options: &Options) {
    herd::fill(region);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, region, 2, &stop);
        for round in 1..=rounds {
            let tier = region.tiers()[round % 2].name();
            let report = region.migrate(.., tier, options).unwrap();
            assert!(report.is_complete(), "{:?}", report.stayed().next());
            assert_eq!(report.moved(), region.pages());
            assert!((0..region.pages()).all(|page| region.tier_of(page) == Ok(tier)));
            assert_eq!(report.counts.copied_by_copier, region.pages() as u64);
        }
        assert!(herd.gather() > 0);
    });
    herd::sweep(region.words());
}

fn anonymous_base_pages() {
    let region = two_nodes(4096).pins(Pins::Declared).build().unwrap();
    back_and_forth(&region, 20, &Options::new());
}

fn anonymous_undeclared_pins() {
    let region = two_nodes(2048).build().unwrap();
    back_and_forth(&region, 10, &Options::new());
}

fn anonymous_huge_pages() {
    let region = two_nodes(24)
        .page_size(PageSize::Huge)
        .pins(Pins::Declared)
        .build()
        .unwrap();
    back_and_forth(&region, 4, &Options::new());
    let limit = NonZeroUsize::new(16 * PageSize::Huge.bytes()).unwrap();
    back_and_forth(&region, 6, &Options::new().limit_bytes(limit));
    if region.notices().is_empty() {
        // They were huge at first, and an aligned huge page is never split.
        let start = region.as_ptr() as usize;
        assert_eq!(huge_bytes(start..start + region.len()), region.len());
    }
}

fn huge_bytes(range: std::ops::Range<usize>) -> usize {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    let mut found = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, _)) = first.split_once('-') {
            inside = usize::from_str_radix(start, 16).is_ok_and(|start| range.contains(&start));
        } else if inside && first == "AnonHugePages:" {
            found += words.next().unwrap().parse::<usize>().unwrap() << 10;
        }
    }
    found
}

fn one_page_at_a_time() {
    let region = two_nodes(512).pins(Pins::Declared).build().unwrap();
    let limit = NonZeroUsize::new(PageSize::Base.bytes()).unwrap();
    back_and_forth(&region, 6, &Options::new().limit_bytes(limit));
}

fn scattered_pages() {
    let region = two_nodes(1024).build().unwrap();
    herd::fill(&region);
    let stop = AtomicBool::new(false);
    let third = (0..1024).step_by(3).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, &region, 2, &stop);
        for tier in ["far", "near", "far"] {
            let report = region
                .migrate(third.as_slice(), tier, &Options::new())
                .unwrap();
            assert_eq!((report.moved(), report.is_complete()), (third.len(), true));
        }
        herd.gather();
    });
    for page in 0..1024 {
        let tier = if page % 3 == 0 { "far" } else { "near" };
        assert_eq!(region.tier_of(page), Ok(tier));
    }
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    assert_eq!(report.already_there(), third.len());
    herd::sweep(region.words());
}

fn mapped_memfd() {
    let region = two_memfds(2048).build().unwrap();
    back_and_forth(&region, 10, &Options::new());
    assert_eq!(region.usage().mappings, 1);
}

fn mapped_memfd_huge() {
    let region = two_memfds(8).page_size(PageSize::Huge).build().unwrap();
    back_and_forth(&region, 4, &Options::new());
}

struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str) -> Self {
        let name = format!("transhume-{name}-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn mapped_file() {
    let file = TempFile::new("mapped-file");
    let builder = Region::builder()
        .tier(Tier::memfd("near"))
        .tier(Tier::file("far", &file.0));
    let region = builder.pages(1024).pins(Pins::Declared).build().unwrap();
    back_and_forth(&region, 5, &Options::new());
    let again = Region::builder()
        .tier(Tier::file("x", &file.0))
        .pages(1)
        .pins(Pins::Declared)
        .build();
    assert!(
        again
            .unwrap_err()
            .to_string()
            .contains("in use by another region")
    );
    drop(region);
    assert_eq!(
        std::fs::metadata(&file.0).unwrap().len(),
        0,
        "the file is left empty"
    );
}

fn mapped_hugetlb() {
    let builder = Region::builder()
        .tier(Tier::hugetlb("near"))
        .tier(Tier::hugetlb("far"));
    let region = builder
        .pages(8)
        .page_size(PageSize::Huge)
        .pins(Pins::Declared)
        .build()
        .unwrap();
    back_and_forth(&region, 4, &Options::new());
    let limit = NonZeroUsize::new(8 * PageSize::Huge.bytes()).unwrap();
    back_and_forth(&region, 4, &Options::new().limit_bytes(limit));
}

fn mapped_scattered_coalesces() {
    let region = two_memfds(512).build().unwrap();
    herd::fill(&region);
    let even = (0..512).step_by(2).collect::<Vec<_>>();
    assert!(
        region
            .migrate(even, "far", &Options::new())
            .unwrap()
            .is_complete()
    );
    assert_eq!(region.usage().mappings, 512);
    assert!(
        region
            .migrate(.., "far", &Options::new())
            .unwrap()
            .is_complete()
    );
    assert_eq!(region.usage().mappings, 1);
    herd::sweep(region.words());
}

fn several_migrators() {
    migrate_from_several_threads(&two_nodes(2048).pins(Pins::Declared).build().unwrap());
}

fn several_migrators_mapped() {
    migrate_from_several_threads(&two_memfds(2048).build().unwrap());
}

/// Disjoint parts move at once; a request that overlaps another is refused whole.
fn migrate_from_several_threads(region: &Region) {
    herd::fill(region);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, region, 1, &stop);
        let part = region.pages() / 4;
        let refused = AtomicUsize::new(0);
        // Asks until nobody else moves these pages.
        let migrate = |pages: Range<usize>, tier: &str| loop {
            match region.migrate(pages.clone(), tier, &Options::new()) {
                Ok(report) => break report,
                Err(RegionError::Overlap { page }) => {
                    assert!(pages.contains(&page));
                    refused.fetch_add(1, Ordering::Relaxed);
                    std::thread::yield_now();
                }
                Err(other) => panic!("{other}"),
            }
        };
        std::thread::scope(|scope| {
            for n in 0..3 {
                let migrate = &migrate;
                scope.spawn(move || {
                    for round in 1..=16 {
                        let tier = region.tiers()[round % 2].name();
                        let report = migrate(n * part..(n + 2) * part, tier);
                        assert!(report.is_complete(), "{:?}", report.stayed().next());
                    }
                });
            }
        });
        assert!(refused.into_inner() > 0, "their parts overlap");
        herd.gather();
    });
    herd::sweep(region.words());
}

/// Declines, fails and forgets by turns.
struct Unwilling;

impl Copier<CopyJob> for Unwilling {
    fn name(&self) -> &'static str {
        "unwilling"
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        assert_eq!(jobs.len(), answers.len());
        let turns = [
            CopyAnswer::Declined,
            CopyAnswer::Failed,
            CopyAnswer::Unconfirmed,
        ];
        answers
            .iter_mut()
            .zip(turns.iter().cycle())
            .for_each(|(answer, turn)| *answer = *turn);
    }
}

fn copiers_that_do_nothing() {
    for region in [
        two_nodes(600).build().unwrap(),
        two_memfds(600).build().unwrap(),
    ] {
        herd::fill(&region);
        let options = Options::new().copier(Arc::new(Unwilling));
        let report = region.migrate(.., "far", &options).unwrap();
        assert!(report.is_complete());
        assert_eq!(
            (report.counts.copied_by_copier, report.counts.copied_by_cpu),
            (0, 600)
        );
        herd::sweep(region.words());
    }
}

struct Panicking(AtomicBool);

impl Copier<CopyJob> for Panicking {
    fn name(&self) -> &'static str {
        "panicking"
    }

    fn copy(&self, _jobs: &[CopyJob], _answers: &mut [CopyAnswer]) {
        assert!(
            self.0.load(Ordering::Relaxed),
            "a copier that panics, on purpose"
        );
    }
}

fn a_copier_that_panics() {
    for region in [
        two_nodes(64).build().unwrap(),
        two_memfds(64).build().unwrap(),
    ] {
        herd::fill(&region);
        let options = Options::new().copier(Arc::new(Panicking(AtomicBool::new(false))));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = region.migrate(.., "far", &options);
        }));
        assert!(panicked.is_err());
        herd::sweep(region.words());
        assert!((0..64).all(|page| region.tier_of(page) == Ok("near")));
        assert!(
            region
                .migrate(.., "far", &Options::new())
                .unwrap()
                .is_complete()
        );
        herd::sweep(region.words());
    }
}

fn three_tiers() {
    let builder = two_nodes(96).tier(Tier::node("small", 0).capacity(32 * 4096));
    let region = builder.build().unwrap();
    herd::fill(&region);
    let options = Options::new();
    assert!(
        region
            .migrate(0..32, "small", &options)
            .unwrap()
            .is_complete()
    );
    match region.migrate(32..33, "small", &options) {
        Err(RegionError::Full {
            capacity: 32,
            used: 32,
            asked: 1,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    let report = region.migrate(0..64, "far", &options).unwrap();
    assert!(report.folios().all(|folio| folio.outcome == Outcome::Moved));
    let tiers = region.usage().tiers;
    assert_eq!(
        tiers.iter().map(|tier| tier.pages).collect::<Vec<_>>(),
        [32, 64, 0]
    );
    herd::sweep(region.words());
}

fn memory_beside_the_pages() {
    for pins in [Pins::Declared, Pins::Undeclared] {
        let region = two_nodes(16_384).pins(pins).build().unwrap();
        for tier in ["far", "near"] {
            assert!(
                region
                    .migrate(.., tier, &Options::new())
                    .unwrap()
                    .is_complete()
            );
        }
        let beside = region.usage().overhead_bytes;
        assert!(
            beside * 100 < region.len(),
            "{beside} bytes beside {}",
            region.len()
        );
    }
}

fn given_back_pages() {
    let region = two_nodes(16).build().unwrap();
    herd::fill(&region);
    let page = region.as_ptr().wrapping_add(3 * 4096);
    // SAFETY: the page is the region's and only reached by atomics.
    let given = unsafe { libc::madvise(page.cast(), 4096, libc::MADV_DONTNEED) };
    assert_eq!(given, 0);
    // The first load waits for the region's thread to answer its fault.
    assert!(
        region.words()[3 * 512..4 * 512]
            .iter()
            .all(|word| word.load(Ordering::Relaxed) == 0)
    );
    herd::sweep(&region.words()[..1]);
    region.words()[3 * 512].store(9, Ordering::Relaxed);
    assert!(
        region
            .migrate(.., "far", &Options::new())
            .unwrap()
            .is_complete()
    );
    assert_eq!(region.words()[3 * 512].load(Ordering::Relaxed), 9);
}
