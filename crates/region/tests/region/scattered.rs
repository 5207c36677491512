//! Scattered pages, which are cut off together with what lies between them.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use transhume_copy::{CopyJob, Memcpy};
use transhume_engine::{Copier, CopyAnswer};
use transhume_region::{Neighbours, Options, Pins, Region, Why};
use transhume_sys::limits;
use transhume_sys::map::range_of_line;
use transhume_sys::pagemap::{Categories, PageRegion, Pagemap, ScanArgs};

use crate::Case;
use crate::herd::{self, Herd};
use crate::migrate::two_nodes;
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case("scattered::every_nth_page", &[Need::Move], || {
        for pins in [Pins::Undeclared, Pins::Declared] {
            every_nth(&two_nodes(2048).pins(pins).build().unwrap());
        }
    }),
    Case("scattered::runs_and_gaps", &[Need::Move], runs_and_gaps),
    Case(
        "scattered::neighbours_without_pages",
        &[Need::Move],
        neighbours_without_pages,
    ),
    Case(
        "scattered::neighbours_that_are_held",
        &[Need::Move],
        neighbours_that_are_held,
    ),
    Case(
        "scattered::neighbours_that_are_locked",
        &[Need::Move],
        neighbours_that_are_locked,
    ),
    Case(
        "scattered::neighbours_that_another_request_has",
        &[Need::Move],
        neighbours_that_another_request_has,
    ),
    Case(
        "scattered::within_the_limit",
        &[Need::Move],
        within_the_limit,
    ),
    Case(
        "scattered::by_a_moody_copier",
        &[Need::Move],
        by_a_moody_copier,
    ),
    Case(
        "scattered::over_slots_that_are_not_empty",
        &[Need::Move],
        over_slots_that_are_not_empty,
    ),
    Case(
        "scattered::in_small_batches",
        &[Need::Move],
        in_small_batches,
    ),
];

fn migrate(region: &Region, pages: &[usize], tier: &str, options: &Options) {
    let report = region.migrate(pages, tier, options).unwrap();
    assert!(report.is_complete(), "{:?}", report.stayed().next());
    for &page in pages {
        assert_eq!(region.tier_of(page), Ok(tier));
    }
}

/// Moves these pages to and fro under two threads of an application; the others stay.
fn to_and_fro(region: &Region, pages: &[usize], options: &Options) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, region, 2, &stop);
        for tier in ["far", "near", "far", "near"] {
            migrate(region, pages, tier, options);
            let far = region.usage().tiers[1].pages;
            assert_eq!(far, if tier == "far" { pages.len() } else { 0 });
        }
        herd.gather();
    });
    herd::sweep(region.words());
}

fn every_nth(region: &Region) {
    herd::fill(region);
    for n in [2, 3, 7, 8, 16, 40, 300] {
        let pages = (n / 2..region.pages()).step_by(n).collect::<Vec<_>>();
        to_and_fro(region, &pages, &Options::new());
    }
    assert_eq!(region.usage().mappings, 1);
}

fn runs_and_gaps() {
    let region = two_nodes(2048).build().unwrap();
    herd::fill(&region);
    // Runs of 1 to 9 pages with gaps of 1 to 12, over the ends of page tables.
    let (mut pages, mut page) = (Vec::new(), 0);
    for n in 0.. {
        let (run, gap) = (1 + n % 9, 1 + n * 5 % 12);
        if page + run > region.pages() {
            break;
        }
        pages.extend(page..page + run);
        page += run + gap;
    }
    to_and_fro(&region, &pages, &Options::new());
}

/// What lies between may be holes: they stay holes, and read as zeros. A wanted one is absent.
fn neighbours_without_pages() {
    let region = two_nodes(1024).build().unwrap();
    herd::fill(&region);
    let is_wanted = |page: &usize| page % 4 == 1;
    for page in (0..1024).filter(|page| !is_wanted(page)) {
        // SAFETY: the page is the region's and only reached by atomics.
        let given = unsafe {
            libc::madvise(
                region.as_ptr().add(page * 4096).cast(),
                4096,
                libc::MADV_DONTNEED,
            )
        };
        assert_eq!(given, 0, "{}", std::io::Error::last_os_error());
    }
    let wanted = (0..1024).filter(is_wanted).collect::<Vec<_>>();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // One thread meets the holes while they are cut off too.
        let reader = scope.spawn(|| {
            let mut page = 0;
            while !stop.load(Ordering::Relaxed) {
                page = (page + 4) % 1024;
                assert_eq!(region.words()[page * 512].load(Ordering::Relaxed), 0);
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        for tier in ["far", "near", "far", "near", "far"] {
            migrate(&region, &wanted, tier, &Options::new());
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    // SAFETY: as above.
    let given =
        unsafe { libc::madvise(region.as_ptr().add(4096).cast(), 4096, libc::MADV_DONTNEED) };
    assert_eq!(given, 0, "{}", std::io::Error::last_os_error());
    let report = region
        .migrate(&wanted[..], "near", &Options::new())
        .unwrap();
    let stayed = report
        .stayed()
        .map(|(folio, failure)| (folio.page(), failure.why));
    assert_eq!(stayed.collect::<Vec<_>>(), [(1, Why::Absent)]);
    region.words()[512].store(512 << 32, Ordering::Relaxed);
    for page in 0..1024 {
        let expected = if is_wanted(&page) {
            (page as u64 * 512) << 32
        } else {
            0
        };
        assert_eq!(region.words()[page * 512].load(Ordering::Relaxed), expected);
    }
}

/// Neighbours that are declared pinned, and such as the kernel finds pinned, stay where they are.
fn neighbours_that_are_held() {
    let region = two_nodes(512).build().unwrap();
    herd::fill(&region);
    let pages = (0..512).step_by(2).collect::<Vec<_>>();
    let pin = region.pin((1..512).step_by(6).collect::<Vec<_>>()).unwrap();
    let ring = io_uring::IoUring::new(2).unwrap();
    let buffer = libc::iovec {
        iov_base: region.as_ptr().wrapping_add(101 * 4096).cast(),
        iov_len: 4096,
    };
    // SAFETY: the buffer is the region's memory, which outlives the registration.
    unsafe { ring.submitter().register_buffers(&[buffer]) }.unwrap();
    to_and_fro(&region, &pages, &Options::new());
    drop(pin);
    // One that is wanted itself stays, and is the only one.
    let around = (90..110).filter(|page| page % 4 == 1);
    let report = region
        .migrate(around.collect::<Vec<_>>(), "far", &Options::new())
        .unwrap();
    let stayed = report
        .stayed()
        .map(|(folio, failure)| (folio.page(), failure.why));
    assert_eq!(stayed.collect::<Vec<_>>(), [(101, Why::Pinned)]);
    herd::sweep(region.words());
}

fn neighbours_that_are_locked() {
    let region = two_nodes(512).build().unwrap();
    herd::fill(&region);
    for (start, pages) in [(100, 1), (200, 50), (311, 3)] {
        let from = region.as_ptr().wrapping_add(start * 4096).cast();
        // SAFETY: locking changes nothing that a program can see.
        let failed = unsafe { libc::mlock(from, pages * 4096) };
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    }
    let pages = (1..512).step_by(3).collect::<Vec<_>>();
    to_and_fro(&region, &pages, &Options::new());
}

/// Two requests, each for the pages between the other's: none is left behind as busy.
fn neighbours_that_another_request_has() {
    let region = two_nodes(512).build().unwrap();
    herd::fill(&region);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, &region, 1, &stop);
        std::thread::scope(|scope| {
            for first in 0..2 {
                let region = &region;
                scope.spawn(move || {
                    // Few pages a request, so that one can begin and end in another's batch.
                    let mine = (first..512).step_by(2).collect::<Vec<_>>();
                    for round in 0..300 {
                        let part = if first == 0 {
                            &mine[..]
                        } else {
                            &mine[round % 250..][..4]
                        };
                        for tier in ["far", "near"] {
                            migrate(region, part, tier, &Options::new());
                        }
                    }
                });
            }
        });
        herd.gather();
    });
    herd::sweep(region.words());
}

fn in_small_batches() {
    let region = two_nodes(1024).build().unwrap();
    herd::fill(&region);
    let pages = (0..1024).step_by(5).collect::<Vec<_>>();
    let bytes = |pages: usize| NonZeroUsize::new(pages * 4096).unwrap();
    for limit in [1, 5, 6, 7, 60, 2000] {
        to_and_fro(&region, &pages, &Options::new().limit_bytes(bytes(limit)));
    }
    let max_stall = Duration::from_micros(300);
    to_and_fro(&region, &pages, &Options::new().max_stall(max_stall));
}

/// Copies nothing, and asks the kernel meanwhile how much of the region is cut off.
struct Counting {
    memory: Range<usize>,
    most: AtomicUsize,
    /// Whether more was cut off than was to be copied.
    neighbours: AtomicBool,
}

impl Copier<CopyJob> for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn copy(&self, jobs: &[CopyJob], _answers: &mut [CopyAnswer]) {
        let args = ScanArgs {
            any_of: Categories::PRESENT,
            report: Categories::PRESENT,
            ..ScanArgs::default()
        };
        let mut found = vec![PageRegion::default(); 4096];
        let scan = Pagemap::open_self()
            .and_then(|pagemap| pagemap.scan(self.memory.clone(), &args, &mut found));
        let present = found[..scan.unwrap().regions]
            .iter()
            .map(|region| region.range().len() / 4096);
        let absent = self.memory.len() / 4096 - present.sum::<usize>();
        self.most.fetch_max(absent, Ordering::Relaxed);
        if absent > jobs.len() {
            self.neighbours.store(true, Ordering::Relaxed);
        }
    }
}

/// Whatever lies between counts against the limit, by the kernel's own account.
fn within_the_limit() {
    for (limit, step) in [
        (512, 2),
        (512, 8),
        (512, 13),
        (100, 3),
        (10, 4),
        (3, 2),
        (1, 2),
    ] {
        let region = two_nodes(2048).build().unwrap();
        herd::fill(&region);
        let start = region.as_ptr() as usize;
        let counting = Arc::new(Counting {
            memory: start..start + region.len(),
            most: AtomicUsize::new(0),
            neighbours: AtomicBool::new(false),
        });
        let pages = (0..2048).step_by(step).collect::<Vec<_>>();
        let mut options = Options::new().copier(counting.clone());
        if limit != 512 {
            options = options.limit_bytes(NonZeroUsize::new(limit * 4096).unwrap());
        }
        migrate(&region, &pages, "far", &options);
        let most = counting.most.load(Ordering::Relaxed);
        assert!(most <= limit, "{most} pages, the limit is {limit}");
        assert!(most > limit / 2, "{most} pages, the limit is {limit}");
        if limits::kernel_release().is_at_least(6, 18) && limit > step {
            assert!(
                counting.neighbours.load(Ordering::Relaxed),
                "{limit} {step}"
            );
        }
        counting.neighbours.store(false, Ordering::Relaxed);
        migrate(
            &region,
            &pages,
            "near",
            &options.neighbours(Neighbours::Left),
        );
        assert!(!counting.neighbours.load(Ordering::Relaxed));
        herd::sweep(region.words());
    }
}

/// Fails every second job, declines others, and at last panics.
struct Moody(AtomicUsize);

impl Copier<CopyJob> for Moody {
    fn name(&self) -> &'static str {
        "moody"
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        let turn = self.0.fetch_add(1, Ordering::Relaxed);
        assert!(turn < 3, "a copier that panics, on purpose");
        Memcpy.copy(jobs, answers);
        for answer in answers.iter_mut().skip(turn).step_by(2) {
            *answer = [CopyAnswer::Failed, CopyAnswer::Declined][turn % 2];
        }
    }
}

fn by_a_moody_copier() {
    let region = two_nodes(2048).build().unwrap();
    herd::fill(&region);
    let pages = (0..2048).step_by(4).collect::<Vec<_>>();
    let options = Options::new().copier(Arc::new(Moody(AtomicUsize::new(0))));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, &region, 1, &stop);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = region.migrate(&pages[..], "far", &options);
        }));
        assert!(panicked.is_err());
        // Three batches have gone, the fourth is back.
        let far = region.usage().tiers[1].pages;
        assert!(far > 0 && far < pages.len(), "{far}");
        let report = region.migrate(.., "far", &Options::new()).unwrap();
        assert!(report.is_complete(), "{:?}", report.stayed().next());
        assert_eq!(report.already_there(), far);
        herd.gather();
    });
    herd::sweep(region.words());
}

/// Mappings in which who touches a page waits for it, other than the region.
fn slots(region: &Region) -> Vec<Range<usize>> {
    let (mut found, mut last) = (Vec::new(), 0..0);
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        if let Some(range) = range_of_line(line) {
            last = range;
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && flags.split_whitespace().any(|flag| flag == "um")
            && !last.contains(&region.as_ptr().addr())
        {
            found.push(last.clone());
        }
    }
    found
}

/// A stray load finds zeros in an empty slot, over which no page can move.
fn over_slots_that_are_not_empty() {
    let region = two_nodes(512).build().unwrap();
    herd::fill(&region);
    let pages = (0..512).step_by(4).collect::<Vec<_>>();
    migrate(&region, &pages, "far", &Options::new());
    let slots = slots(&region);
    assert!(!slots.is_empty());
    for slot in slots.into_iter().flat_map(|slots| slots.step_by(4096)) {
        let stray = std::ptr::with_exposed_provenance::<u8>(slot);
        // SAFETY: the mapping can be read, and nobody stores there meanwhile.
        assert_eq!(unsafe { stray.read_volatile() }, 0);
    }
    to_and_fro(&region, &pages, &Options::new());
}
