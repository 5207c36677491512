//! Pages of two tiers trade places while application threads read and write them.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use transhume_copy::swap::{Buffered, SwapJob, swapper_by_name};
use transhume_engine::{SwapAnswer, Swapper};
use transhume_region::{
    Builder, Mechanism, Mode, Nonsense, Options, PageSize, PairOutcome, Pins, Region, RegionError,
    Side, Tier, Why,
};

use crate::Case;
use crate::herd::{self, Herd};
use crate::migrate::{two_memfds, two_nodes};
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case("exchange::anonymous", &[Need::Move], || {
        back_and_forth(&full(2048, PageSize::Base, |name| Tier::node(name, 0)));
    }),
    Case(
        "exchange::anonymous_huge",
        &[Need::Move, Need::HugePages],
        || back_and_forth(&full(16, PageSize::Huge, |name| Tier::node(name, 0))),
    ),
    Case("exchange::memfd", &[Need::Blind], || {
        back_and_forth(&full(2048, PageSize::Base, Tier::memfd));
    }),
    Case("exchange::memfd_huge", &[Need::Blind], || {
        back_and_forth(&full(16, PageSize::Huge, Tier::memfd));
    }),
    Case(
        "exchange::hugetlb",
        &[Need::Blind, Need::Hugetlb(32)],
        || back_and_forth(&full(16, PageSize::Huge, Tier::hugetlb)),
    ),
    Case("exchange::scattered_lists", &[Need::Move], || {
        scattered_lists(&halves(two_nodes(600)));
    }),
    Case("exchange::scattered_lists_mapped", &[Need::Blind], || {
        scattered_lists(&halves(two_memfds(600)));
    }),
    Case("exchange::needs_no_frame", &[Need::Move], needs_no_frame),
    Case("exchange::several_at_once", &[Need::Move], || {
        several_at_once(&halves(two_nodes(2048)));
    }),
    Case("exchange::several_at_once_mapped", &[Need::Blind], || {
        several_at_once(&halves(two_memfds(2048)));
    }),
    Case(
        "exchange::threads_swap_huge_pages",
        &[Need::Move, Need::HugePages],
        threads_swap_huge_pages,
    ),
    Case(
        "exchange::what_the_swapper_leaves_is_swapped",
        &[Need::Move],
        what_the_swapper_leaves,
    ),
    Case(
        "exchange::a_swapper_that_panics",
        &[Need::Move],
        a_swapper_that_panics,
    ),
    Case("exchange::pinned", &[Need::Move], || {
        pinned(&halves(two_nodes(64)));
    }),
    Case("exchange::pinned_mapped", &[Need::Blind], || {
        pinned(&halves(two_memfds(64)));
    }),
    Case("exchange::locked", &[Need::Move], || {
        locked(&halves(two_nodes(512)));
    }),
    Case("exchange::locked_mapped", &[Need::Blind], || {
        locked(&halves(two_memfds(512)));
    }),
    Case("exchange::overlap", &[Need::Move], overlap),
    Case(
        "exchange::at_most_the_limit_is_cut_off",
        &[Need::Move],
        at_most_the_limit,
    ),
    Case("exchange::refusals", &[Need::Blind], refusals),
    Case("exchange::nonsense", &[Need::Blind], nonsense),
    Case("exchange::undeclared_pins", &[Need::Move], undeclared_pins),
    Case("exchange::by_the_kernel", &[], by_the_kernel),
];

/// A region of which one half is in tier `near` and the other in `far`, both full.
fn full(pages: usize, page_size: PageSize, tier: fn(&'static str) -> Tier) -> Region {
    let half = pages / 2 * page_size.bytes();
    let region = Region::builder()
        .tier(tier("first").capacity(2 * half))
        .tier(tier("near").capacity(half))
        .tier(tier("far").capacity(half))
        .pages(pages)
        .page_size(page_size)
        .pins(Pins::Declared)
        .build()
        .unwrap();
    for (pages, tier) in [(0..pages / 2, "near"), (pages / 2..pages, "far")] {
        assert!(
            region
                .migrate(pages, tier, &Options::new())
                .unwrap()
                .is_complete()
        );
    }
    region
}

/// A region of two tiers of which the second half is in `far`.
pub(crate) fn halves(builder: Builder) -> Region {
    let region = builder.pins(Pins::Declared).build().unwrap();
    let far = region.pages() / 2..region.pages();
    assert!(
        region
            .migrate(far, "far", &Options::new())
            .unwrap()
            .is_complete()
    );
    region
}

fn tiers(region: &Region) -> Vec<String> {
    (0..region.pages())
        .map(|page| region.tier_of(page).unwrap().to_owned())
        .collect()
}

/// Under two threads of an application, as often as it takes to come back to the beginning.
fn back_and_forth(region: &Region) {
    herd::fill(region);
    let (half, pages) = (region.pages() / 2, region.pages());
    let before = region.usage();
    let stop = AtomicBool::new(false);
    let all = NonZeroUsize::new(region.len()).unwrap();
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, region, 2, &stop);
        for round in 0..8 {
            let options = match round % 4 {
                0 => Options::new(),
                1 => Options::new().limit_bytes(all),
                2 => Options::new().mode(Mode::Sync),
                _ => Options::new().limit_bytes(NonZeroUsize::MIN),
            };
            let was = tiers(region);
            let report = region.exchange(..half, half.., &options).unwrap();
            assert!(report.is_complete(), "{:?}", report.stayed().next());
            assert_eq!(report.exchanged(), half);
            let counts = report.counts;
            assert_eq!(counts.swapped_by_swapper, half as u64);
            let now = tiers(region);
            assert!((0..half).all(|n| now[n] == was[half + n] && now[half + n] == was[n]));
            if round % 4 == 1 {
                assert_eq!((counts.batches, counts.rounds), (1, 1), "all in one batch");
            }
        }
        assert!(herd.gather() > 0);
    });
    herd::sweep(region.words());
    let after = region.usage();
    assert_eq!(
        after.fresh_frames, before.fresh_frames,
        "no frame was taken"
    );
    assert_eq!(after.pooled_bytes, before.pooled_bytes, "and none was left");
    assert_eq!(after.moved, before.moved + 8 * pages as u64);
    // Both tiers are as full as they were, and no fuller.
    let refused = region.migrate(0, "far", &Options::new());
    if region.tier_of(0) != Ok("far") {
        assert!(
            matches!(refused, Err(RegionError::Full { .. })),
            "{refused:?}"
        );
    }
}

fn scattered_lists(region: &Region) {
    herd::fill(region);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, region, 2, &stop);
        for step in [1, 2, 3, 7, 64] {
            let a = (0..300).step_by(step).collect::<Vec<_>>();
            // The other way round.
            let b = (300..600).rev().take(a.len()).collect::<Vec<_>>();
            let was = tiers(region);
            let report = region.exchange(&a[..], &b[..], &Options::new()).unwrap();
            assert!(report.is_complete(), "{:?}", report.stayed().next());
            let now = tiers(region);
            for (page, now) in now.iter().enumerate() {
                let at = |list: &[usize]| list.iter().position(|&other| other == page);
                let from = match (at(&a), at(&b)) {
                    (Some(n), _) => b[n],
                    (_, Some(n)) => a[n],
                    _ => page,
                };
                assert_eq!(*now, was[from], "page {page}, step {step}");
            }
        }
        assert!(herd.gather() > 0);
    });
    herd::sweep(region.words());
}

/// Bytes of the process that are in memory, and the most that were since the last call.
fn resident() -> (usize, usize) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<usize>()
            .unwrap()
            << 10
    };
    let most = field("VmHWM:");
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    (field("VmRSS:"), most)
}

fn needs_no_frame() {
    const PAIRS: usize = 8192;
    let region = halves(two_nodes(2 * PAIRS));
    herd::fill(&region);
    let all = Options::new().limit_bytes(NonZeroUsize::new(region.len()).unwrap());
    region.exchange(..PAIRS, PAIRS.., &all).unwrap();
    let fresh = region.usage().fresh_frames;
    let (before, _) = resident();
    let report = region.exchange(..PAIRS, PAIRS.., &all).unwrap();
    let (_, most) = resident();
    assert_eq!((report.exchanged(), report.counts.batches), (PAIRS, 1));
    assert_eq!(region.usage().fresh_frames, fresh);
    // The kernel counts pages of a thread in tens. A frame for each pair would be 32 MiB.
    assert!(most < before + (4 << 20), "{before} bytes became {most}");
    herd::sweep(region.words());
}

fn several_at_once(region: &Region) {
    herd::fill(region);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, region, 1, &stop);
        let threads = (0..3_usize).map(|thread| {
            scope.spawn(move || {
                let a = thread * 300..(thread + 1) * 300;
                let b = 1024 + a.start..1024 + a.end;
                for round in 0..20 {
                    if thread == 2 {
                        // One that goes the long way, beside the exchanges of the others.
                        let tier = ["near", "far"][round % 2];
                        region.migrate(a.clone(), tier, &Options::new()).unwrap();
                        continue;
                    }
                    let report = region
                        .exchange(a.clone(), b.clone(), &Options::new())
                        .unwrap();
                    assert!(report.is_complete(), "{:?}", report.stayed().next());
                }
            })
        });
        threads
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert!(herd.gather() > 0);
    });
    herd::sweep(region.words());
}

fn threads_swap_huge_pages() {
    let region = halves(two_nodes(8).page_size(PageSize::Huge));
    herd::fill(&region);
    let stop = AtomicBool::new(false);
    let limit = NonZeroUsize::new(region.len()).unwrap();
    let swapper = swapper_by_name("threads:3", None).unwrap();
    let options = Options::new().limit_bytes(limit).swapper(swapper);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, &region, 1, &stop);
        for _ in 0..10 {
            let report = region.exchange(..4, 4.., &options).unwrap();
            assert_eq!(report.exchanged(), 4);
            assert_eq!(report.counts.swapped_by_swapper, 4);
        }
        herd.gather();
    });
    herd::sweep(region.words());
}

/// Swaps every other pair.
struct EveryOther;

impl Swapper<SwapJob> for EveryOther {
    fn name(&self) -> &'static str {
        "every other"
    }

    fn swap(&self, pairs: &[SwapJob], answers: &mut [SwapAnswer]) {
        for (pair, answer) in pairs.chunks(1).zip(answers.chunks_mut(1)).step_by(2) {
            Buffered.swap(pair, answer);
        }
    }
}

fn what_the_swapper_leaves() {
    let region = halves(two_nodes(128));
    herd::fill(&region);
    let options = Options::new().swapper(Arc::new(EveryOther));
    let report = region.exchange(..64, 64.., &options).unwrap();
    assert_eq!(report.exchanged(), 64);
    let counts = report.counts;
    assert_eq!((counts.swapped_by_swapper, counts.swapped_by_cpu), (32, 32));
    herd::sweep(region.words());
}

/// Swaps some pairs, and then panics.
struct Panics(AtomicUsize);

impl Swapper<SwapJob> for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }

    fn swap(&self, pairs: &[SwapJob], answers: &mut [SwapAnswer]) {
        let some = self.0.fetch_add(7, Ordering::Relaxed) % pairs.len();
        Buffered.swap(&pairs[..some], &mut answers[..some]);
        std::panic::resume_unwind(Box::new("planned"));
    }
}

fn a_swapper_that_panics() {
    let region = halves(two_nodes(512));
    herd::fill(&region);
    let stop = AtomicBool::new(false);
    let options = Options::new().swapper(Arc::new(Panics(AtomicUsize::new(0))));
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, &region, 1, &stop);
        let was = tiers(&region);
        for _ in 0..20 {
            let panic = AssertUnwindSafe(|| region.exchange(..256, 256.., &options));
            assert!(catch_unwind(panic).is_err());
            assert_eq!(tiers(&region), was);
        }
        let report = region.exchange(..256, 256.., &Options::new()).unwrap();
        assert_eq!(report.exchanged(), 256);
        herd.gather();
    });
    herd::sweep(region.words());
}

fn pinned(region: &Region) {
    herd::fill(region);
    let held = region.pin(vec![3, 40]).unwrap();
    let report = region.exchange(..32, 32.., &Options::new()).unwrap();
    let stayed = report.stayed().map(|pair| match pair.outcome {
        PairOutcome::Stayed(failure, side) => (pair.a.page(), failure.why, side),
        other => panic!("{other:?}"),
    });
    let expected = [(3, Why::Pinned, Side::A), (8, Why::Pinned, Side::B)];
    assert_eq!(stayed.collect::<Vec<_>>(), expected);
    assert_eq!(report.exchanged(), 30);
    assert_eq!(
        (region.tier_of(35), region.tier_of(36)),
        (Ok("far"), Ok("near"))
    );
    drop(held);
    let report = region
        .exchange(vec![3, 8], vec![35, 40], &Options::new())
        .unwrap();
    assert_eq!(report.exchanged(), 2);
    herd::sweep(region.words());
}

fn mlock(region: &Region, page: usize, pages: usize) {
    let start = region.as_ptr().wrapping_add(page * 4096).cast();
    // SAFETY: locking changes nothing that a program can see.
    let failed = unsafe { libc::mlock(start, pages * 4096) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
}

fn locked(region: &Region) {
    herd::fill(region);
    // Some pairs are locked, and of some only one page, of either side.
    mlock(region, 50, 100);
    mlock(region, 256 + 100, 100);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, region, 1, &stop);
        for _ in 0..5 {
            let report = region.exchange(..256, 256.., &Options::new()).unwrap();
            assert!(report.is_complete(), "{:?}", report.stayed().next());
            assert_eq!(report.exchanged(), 256);
        }
        herd.gather();
    });
    herd::sweep(region.words());
}

/// Waits, with pages cut off, until it is told to go on.
struct Waits {
    reached: Mutex<Sender<()>>,
    go_on: Mutex<Receiver<()>>,
}

impl Swapper<SwapJob> for Waits {
    fn name(&self) -> &'static str {
        "waits"
    }

    fn swap(&self, _pairs: &[SwapJob], _answers: &mut [SwapAnswer]) {
        self.reached.lock().unwrap().send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
    }
}

fn overlap() {
    let region = halves(two_nodes(64));
    herd::fill(&region);
    let (reached, has_reached) = channel();
    let (go_on, may_go_on) = channel();
    let waits = Waits {
        reached: Mutex::new(reached),
        go_on: Mutex::new(may_go_on),
    };
    let options = Options::new().swapper(Arc::new(waits));
    std::thread::scope(|scope| {
        let exchange = scope.spawn(|| region.exchange(..8, 32..40, &options).unwrap());
        has_reached.recv().unwrap();
        let page = |page| Err(RegionError::Overlap { page });
        let migrate = region.migrate(36..50, "near", &Options::new());
        assert_eq!(migrate.map(drop), page(36));
        let other = region.exchange(vec![20, 5], vec![50, 51], &Options::new());
        assert_eq!(other.map(drop), page(5));
        let beside = region.exchange(vec![20, 21], vec![50, 51], &Options::new());
        assert_eq!(beside.unwrap().exchanged(), 2);
        go_on.send(()).unwrap();
        assert_eq!(exchange.join().unwrap().exchanged(), 8);
    });
    assert!(region.migrate(36..50, "near", &Options::new()).is_ok());
    herd::sweep(region.words());
}

/// Notes how many pairs it is handed at a time.
struct Notes(Mutex<Vec<usize>>);

impl Swapper<SwapJob> for Notes {
    fn name(&self) -> &'static str {
        "notes"
    }

    fn swap(&self, pairs: &[SwapJob], _answers: &mut [SwapAnswer]) {
        self.0.lock().unwrap().push(pairs.len());
    }
}

fn at_most_the_limit() {
    let region = halves(two_nodes(1200));
    let notes = Arc::new(Notes(Mutex::default()));
    let options = || Options::new().swapper(notes.clone());
    region.exchange(..600, 600.., &options()).unwrap();
    assert_eq!(
        *notes.0.lock().unwrap(),
        [256, 256, 88],
        "both pages of a pair count"
    );
    notes.0.lock().unwrap().clear();
    let ten = NonZeroUsize::new(10 * 4096).unwrap();
    region
        .exchange(..7, 600..607, &options().limit_bytes(ten))
        .unwrap();
    assert_eq!(*notes.0.lock().unwrap(), [5, 2]);
}

fn refusals() {
    let region = halves(two_memfds(16));
    let refused = |a: Vec<usize>, b: Vec<usize>| {
        let report = region.exchange(a, b, &Options::new());
        report.map(drop).unwrap_err().to_string()
    };
    assert_eq!(
        refused(vec![1, 2], vec![9]),
        "an exchange needs two lists of one length, and these have 2 and 1 pages"
    );
    assert!(refused(vec![1], vec![16]).contains("page 16 is outside the region"));
    assert!(refused(vec![], vec![]).contains("names no page"));
}

fn nonsense() {
    let region = halves(two_memfds(16));
    herd::fill(&region);
    let a = vec![1, 2, 3, 1, 5, 6];
    let b = vec![9, 2, 10, 11, 4, 10];
    let report = region.exchange(a, b, &Options::new()).unwrap();
    let outcomes = report.pairs().map(|pair| pair.outcome).collect::<Vec<_>>();
    let expected = [
        PairOutcome::Exchanged,
        PairOutcome::Refused(Nonsense::WithItself),
        PairOutcome::Exchanged,
        PairOutcome::Refused(Nonsense::NamedTwice),
        PairOutcome::SameTier,
        PairOutcome::Refused(Nonsense::NamedTwice),
    ];
    assert_eq!(outcomes, expected);
    assert_eq!(
        (region.tier_of(1), region.tier_of(10), region.tier_of(6)),
        (Ok("far"), Ok("near"), Ok("near"))
    );
    herd::sweep(region.words());
}

fn undeclared_pins() {
    let region = two_nodes(16).build().unwrap();
    region.migrate(8.., "far", &Options::new()).unwrap();
    let refused = region.exchange(..8, 8.., &Options::new()).unwrap_err();
    assert_eq!(refused, RegionError::ExchangeUndeclared);
    let line = refused.to_string();
    assert!(line.contains("cure: Builder::pins(Pins::Declared)") && !line.contains('\n'));
}

fn by_the_kernel() {
    let region = Region::builder()
        .tier(Tier::node("near", 0))
        .tier(Tier::node("far", 0))
        .pages(16)
        .mechanism(Mechanism::MovePages)
        .build();
    let refused = region.unwrap().exchange(..8, 8.., &Options::new());
    assert_eq!(
        refused.map(drop).unwrap_err().to_string(),
        "move_pages(2) cannot exchange pages; it moves them one way, through free memory"
    );
}
