//! Base pages that become huge pages on the way, and huge pages that cannot move whole.

use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use transhume_region::{
    KernelAccess, Mechanism, Mode, Options, PageSize, Pins, Region, RegionError, Report, Reshaped,
    Step, Tier, TierId, Why,
};

use crate::Case;
use crate::herd::{self, under_a_herd};
use crate::migrate::{two_memfds, two_nodes};
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case(
        "collapse::base_pages_arrive_as_huge_pages",
        &[Need::Move, Need::HugePages, Need::FreesTables],
        || {
            for pins in [Pins::Undeclared, Pins::Declared] {
                to_huge_pages_and_back(pins);
            }
        },
    ),
    Case(
        "collapse::a_request_that_is_not_aligned",
        &[Need::Move, Need::HugePages, Need::FreesTables],
        not_aligned,
    ),
    Case(
        "collapse::within_the_limit",
        &[Need::Move, Need::HugePages, Need::FreesTables],
        within_the_limit,
    ),
    Case(
        "collapse::a_page_that_stays",
        &[Need::Move, Need::HugePages, Need::FreesTables],
        a_page_that_stays,
    ),
    Case(
        "collapse::parts_move_later",
        &[Need::Move, Need::HugePages, Need::FreesTables],
        parts_move_later,
    ),
    Case(
        "collapse::locked_memory_is_left_as_it_is",
        &[Need::Move, Need::HugePages, Need::FreesTables],
        locked_memory,
    ),
    Case(
        "collapse::shared_pages_become_huge_pages_afterwards",
        &[Need::Move, Need::HugePages, Need::FreesTables],
        shared_pages,
    ),
    Case(
        "collapse::shootdowns",
        &[
            Need::Move,
            Need::HugePages,
            Need::FreesTables,
            Need::Counter,
        ],
        shootdowns,
    ),
    Case(
        "collapse::a_huge_page_that_the_kernel_has_split",
        &[Need::Move, Need::HugePages, Need::FreesTables],
        split_by_the_kernel,
    ),
    Case(
        "collapse::a_huge_page_of_which_a_part_is_pinned",
        &[Need::Move, Need::HugePages, Need::IoUring],
        a_part_is_pinned,
    ),
    Case("collapse::refused", &[Need::Move, Need::Blind], refused),
];

const HUGE: usize = 2 << 20;

fn collapsing() -> Options {
    Options::new().collapse()
}

/// All moves; says what became of huge pages.
fn migrate(
    region: &Region,
    pages: impl Into<transhume_region::Pages>,
    tier: &str,
    options: &Options,
) -> Report<TierId> {
    let report = region.migrate(pages, tier, options).unwrap();
    assert!(report.is_complete(), "{:?}", report.stayed().next());
    report
}

fn huge_pages(region: &Region) -> usize {
    region.usage().huge_bytes.unwrap() / HUGE
}

fn to_huge_pages_and_back(pins: Pins) {
    let region = &two_nodes(2048).pins(pins).build().unwrap();
    under_a_herd(region, 2, || {
        assert_eq!(huge_pages(region), 0);
        let report = migrate(region, .., "far", &collapsing());
        assert_eq!(report.reshaped.collapsed, 4);
        assert_eq!(huge_pages(region), 4);
        // What is huge already does not become so, and stays so.
        let fresh = region.usage().fresh_frames;
        let report = migrate(region, .., "near", &collapsing());
        assert_eq!(report.reshaped.collapsed, 0);
        assert_eq!(huge_pages(region), 4);
        let fresh = region.usage().fresh_frames - fresh;
        // A frame that was one huge page serves as one again.
        let most = if pins == Pins::Declared { 1024 } else { 2048 };
        assert!(fresh <= most, "{fresh}");
        let report = migrate(region, .., "far", &Options::new());
        assert_eq!(report.reshaped, Reshaped::default());
        for tier in ["near", "far", "near"] {
            migrate(region, .., tier, &Options::new().mode(Mode::Sync));
            migrate(
                region,
                (0..2048).step_by(3).collect::<Vec<_>>(),
                "far",
                &Options::new(),
            );
        }
        assert_eq!(huge_pages(region), 0);
    });
    let usage = region.usage();
    assert_eq!(usage.tiers[0].pages + usage.tiers[1].pages, 2048);
    assert!(
        usage.pooled_bytes <= region.len() / 64 + (4 << 20),
        "{usage:?}"
    );
}

/// The batches begin where huge pages do.
fn not_aligned() {
    let region = two_nodes(2600).build().unwrap();
    under_a_herd(&region, 2, || {
        let report = migrate(&region, 100..2590, "far", &collapsing());
        assert_eq!(report.reshaped.collapsed, 4, "from page 512 to 2559");
        assert_eq!(report.counts.batches, 6);
        assert_eq!(huge_pages(&region), 4);
        // Without three pages of the second.
        let pages = (0..2600).filter(|page| !(600..603).contains(page));
        migrate(&region, .., "near", &Options::new());
        let before = huge_pages(&region);
        let report = migrate(&region, pages.collect::<Vec<_>>(), "far", &collapsing());
        assert!(report.reshaped.collapsed <= 4);
        assert!(huge_pages(&region) >= 4, "{before}");
        assert_eq!(region.usage().tiers[0].pages, 3);
    });
}

fn within_the_limit() {
    let region = two_nodes(2048).build().unwrap();
    let bytes = |bytes| NonZeroUsize::new(bytes).unwrap();
    under_a_herd(&region, 2, || {
        let little = collapsing().limit_bytes(bytes(HUGE - 4096));
        assert_eq!(migrate(&region, .., "far", &little).reshaped.collapsed, 0);
        let hasty = collapsing().max_stall(Duration::from_nanos(1));
        assert_eq!(migrate(&region, .., "near", &hasty).reshaped.collapsed, 0);
        let two = collapsing().limit_bytes(bytes(2 * HUGE + 4096));
        let report = migrate(&region, 1.., "far", &two);
        assert_eq!(report.reshaped.collapsed, 3);
        // 511 and a huge page; two huge pages.
        assert_eq!(report.counts.batches, 2);
    });
}

fn a_page_that_stays() {
    let region = two_nodes(1536).build().unwrap();
    under_a_herd(&region, 2, || {
        let pin = region.pin(700).unwrap();
        let report = region.migrate(.., "far", &collapsing()).unwrap();
        let stayed = report.stayed().map(|(folio, why)| (folio.page(), why.why));
        assert_eq!(stayed.collect::<Vec<_>>(), [(700, Why::Pinned)]);
        assert_eq!(report.moved(), 1535);
        assert_eq!(report.reshaped.collapsed, 2);
        assert_eq!(huge_pages(&region), 2);
        drop(pin);
        migrate(&region, .., "near", &Options::new());
        // One that is there already is as one that stays.
        migrate(&region, 3, "far", &Options::new());
        let report = migrate(&region, .., "far", &collapsing());
        assert!(report.reshaped.collapsed <= 2);
        assert_eq!(report.already_there(), 1);
    });
}

/// The kernel splits the huge page for them.
fn parts_move_later() {
    for pins in [Pins::Undeclared, Pins::Declared] {
        let region = two_nodes(2048).pins(pins).build().unwrap();
        under_a_herd(&region, 2, || {
            migrate(&region, .., "far", &collapsing());
            assert_eq!(huge_pages(&region), 4);
            migrate(&region, 5, "near", &Options::new());
            assert_eq!(huge_pages(&region), 3);
            migrate(&region, 1000..1030, "near", &Options::new());
            assert_eq!(huge_pages(&region), 1);
            let scattered = (1536..2048).step_by(7).collect::<Vec<_>>();
            migrate(&region, scattered, "near", &Options::new());
            assert_eq!(huge_pages(&region), 0);
            migrate(&region, .., "near", &Options::new());
            let report = migrate(&region, .., "far", &collapsing());
            assert_eq!(report.reshaped.collapsed, 4);
            if pins == Pins::Declared {
                migrate(&region, ..1024, "near", &Options::new());
                let report = region.exchange(10..20, 1500..1510, &Options::new());
                assert!(report.unwrap().is_complete());
            }
        });
    }
}

fn locked_memory() {
    let region = two_nodes(1536).build().unwrap();
    under_a_herd(&region, 2, || {
        // SAFETY: locking changes nothing that a program can see.
        let failed = unsafe { libc::mlock(region.as_ptr().wrapping_add(600 * 4096).cast(), 4096) };
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
        let report = migrate(&region, .., "far", &collapsing());
        assert_eq!(report.reshaped.collapsed, 2);
    });
}

fn shared_pages() {
    let region = two_nodes(1024).build().unwrap();
    under_a_herd(&region, 2, || {
        let mut ends = [0; 2];
        // SAFETY: the array has room for two.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        // SAFETY: the child waits for the end of a pipe, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: as above.
            unsafe {
                libc::close(ends[1]);
                libc::read(ends[0], ends.as_mut_ptr().cast(), 1);
                libc::_exit(0);
            }
        }
        // Pages that threads have stored to since are ours; the others are made so.
        let report = migrate(&region, .., "far", &collapsing());
        assert_eq!(report.moved(), 1024);
        // SAFETY: the ends are this function's, and the child its own.
        unsafe {
            libc::close(ends[0]);
            libc::close(ends[1]);
            libc::waitpid(child, ends.as_mut_ptr(), 0);
        }
        migrate(&region, .., "near", &Options::new());
        migrate(&region, .., "far", &collapsing());
        assert_eq!(huge_pages(&region), 2);
    });
}

/// Three for a huge page: out, the page table, in; and one more where the pool gives frames back.
fn shootdowns() {
    let region = two_nodes(2048).pins(Pins::Declared).build().unwrap();
    under_a_herd(&region, 2, || {
        // The first request tries whether the kernel can.
        migrate(&region, ..512, "far", &collapsing());
        let report = migrate(&region, 512.., "far", &collapsing());
        assert_eq!(report.reshaped.collapsed, 3);
        let shootdowns = report.shootdowns.unwrap();
        assert!(shootdowns <= 12, "{shootdowns} for three huge pages");
    });
}

/// Locks a part of each huge page for a moment, by which the kernel splits it.
fn split(region: &Region) {
    for page in 0..region.pages() {
        let part = region.as_ptr().wrapping_add(page * HUGE + 8192).cast();
        // SAFETY: locking changes nothing that a program can see.
        let failed = unsafe { libc::mlock(part, 4096) | libc::munlock(part, 4096) };
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    }
}

fn split_by_the_kernel() {
    let region = two_nodes(4).page_size(PageSize::Huge).build().unwrap();
    under_a_herd(&region, 2, || {
        assert_eq!(huge_pages(&region), 4);
        let report = migrate(&region, .., "far", &Options::new());
        assert_eq!(report.reshaped, Reshaped::default());
        assert_eq!(huge_pages(&region), 4);
        split(&region);
        assert_eq!(huge_pages(&region), 0);
        let report = migrate(&region, .., "near", &Options::new());
        assert_eq!(report.reshaped, Reshaped::default());
        assert_eq!(huge_pages(&region), 0, "it stays so");
        let report = migrate(&region, .., "far", &collapsing());
        let collapsed = Reshaped {
            collapsed: 4,
            split: 0,
        };
        assert_eq!(report.reshaped, collapsed);
        assert_eq!(huge_pages(&region), 4);
    });
}

/// All of the folio stays, since the kernel does not say which part is pinned.
fn a_part_is_pinned() {
    let region = two_nodes(3).page_size(PageSize::Huge).build().unwrap();
    herd::fill(&region);
    let ring = io_uring::IoUring::new(2).unwrap();
    let buffer = libc::iovec {
        iov_base: region.as_ptr().wrapping_add(HUGE + 7 * 4096).cast(),
        iov_len: 4096,
    };
    // SAFETY: the buffer is the region's memory, which outlives the registration.
    unsafe { ring.submitter().register_buffers(&[buffer]) }.unwrap();
    for options in [Options::new(), Options::new().whole(), collapsing()] {
        for mode in [Mode::Async, Mode::Sync] {
            let options = options.clone().mode(mode);
            let report = region.migrate(.., "far", &options).unwrap();
            let stayed = report.stayed().collect::<Vec<_>>();
            let (folio, failure) = stayed[0];
            assert_eq!((folio.page(), stayed.len()), (512, 1));
            assert_eq!((failure.step, failure.why), (Step::Shootdown, Why::Pinned));
            assert_eq!(report.reshaped, Reshaped::default());
            assert_eq!(region.tier_of(1), Ok("near"));
            assert_eq!(huge_pages(&region), 3, "{options:?}");
            migrate(&region, vec![0, 2], "near", &Options::new());
        }
    }
    herd::sweep(region.words());
}

fn refused() {
    let mapped = two_memfds(1024).build().unwrap();
    let moved_by_the_kernel = Region::builder()
        .tier(Tier::node("near", 0))
        .tier(Tier::node("far", 0))
        .pages(1024)
        .kernel_access(KernelAccess::Never)
        .mechanism(Mechanism::MovePages)
        .build()
        .unwrap();
    for region in [&mapped, &moved_by_the_kernel] {
        for options in [collapsing(), Options::new().whole()] {
            let refused = region.migrate(.., "far", &options);
            assert!(
                matches!(refused, Err(RegionError::NoHugePages { .. })),
                "{refused:?}"
            );
            assert_eq!(region.usage().tiers[0].pages, 1024);
            // The word is not touched by a request that is refused.
            assert_eq!(region.words()[0].load(Ordering::Relaxed), 0);
        }
    }
}
