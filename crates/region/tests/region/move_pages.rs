//! Pages that the kernel moves itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use transhume_region::{
    Builder, KernelAccess, Mechanism, Mode, Options, PageSize, Pins, Region, RegionError, Step,
    Tier, Why,
};

use crate::Case;
use crate::herd::{self, Herd};
use crate::needs::Need;
use crate::nodes::{Child, assert_in_place};

pub(crate) const CASES: &[Case] = &[
    Case("move_pages::tiers_of_one_node", &[], tiers_of_one_node),
    Case("move_pages::requests", &[], requests),
    Case(
        "move_pages::is_chosen_for_its_memory_only",
        &[],
        is_for_anonymous,
    ),
    Case("move_pages::base_pages", &[Need::TwoNodes], || {
        between_nodes(&near_and_far(1500, PageSize::Base));
    }),
    Case(
        "move_pages::huge_pages",
        &[Need::TwoNodes, Need::HugePages],
        || between_nodes(&near_and_far(8, PageSize::Huge)),
    ),
    Case(
        "move_pages::huge_pages_made_of_base_pages",
        &[Need::TwoNodes],
        made_of_base_pages,
    ),
    Case("move_pages::shared_pages", &[Need::TwoNodes], shared_pages),
    Case(
        "move_pages::given_back_pages",
        &[Need::TwoNodes],
        given_back,
    ),
    Case(
        "move_pages::pinned_pages",
        &[Need::TwoNodes, Need::IoUring],
        pinned,
    ),
    Case("move_pages::a_full_node", &[Need::TwoNodes], a_full_node),
    Case(
        "move_pages::without_a_userfaultfd",
        &[Need::TwoNodes, Need::Root],
        without_a_userfaultfd,
    ),
];

fn tiers(near: u32, far: u32) -> Builder {
    Region::builder()
        .tier(Tier::node("near", near))
        .tier(Tier::node("far", far))
        .mechanism(Mechanism::MovePages)
}

fn near_and_far(pages: usize, page_size: PageSize) -> Builder {
    tiers(0, 1).pages(pages).page_size(page_size)
}

/// Nothing has to move between them, and the kernel says so.
fn tiers_of_one_node() {
    for page_size in [PageSize::Base, PageSize::Huge] {
        let region = tiers(0, 0).pages(8).page_size(page_size).build().unwrap();
        assert_eq!(region.mechanism(), Mechanism::MovePages);
        assert_eq!(region.mechanism().to_string(), "move_pages(2)");
        to_and_fro(&region, |_| ());
        let usage = region.usage();
        assert_eq!((usage.mappings, usage.pooled_bytes), (1, 0));
    }
}

fn requests() {
    let region = tiers(0, 0).pages(64).build().unwrap();
    herd::fill(&region);
    assert!(matches!(
        region.migrate(.., "nowhere", &Options::new()),
        Err(RegionError::UnknownTier { .. })
    ));
    let pin = region.pin(7).unwrap();
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    let stayed = report
        .stayed()
        .map(|(folio, failure)| (folio.page(), failure.why));
    assert_eq!(stayed.collect::<Vec<_>>(), [(7, Why::Pinned)]);
    assert_eq!((report.moved(), region.usage().tiers[1].pages), (63, 63));
    drop(pin);
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    assert_eq!((report.moved(), report.already_there()), (1, 63));
    // A page that is not there has nothing to move.
    // SAFETY: the pages are the region's and only reached by atomics.
    let given = unsafe { libc::madvise(region.as_ptr().cast(), 2 * 4096, libc::MADV_DONTNEED) };
    assert_eq!(given, 0, "{}", std::io::Error::last_os_error());
    let report = region.migrate(.., "near", &Options::new()).unwrap();
    let stayed = report
        .stayed()
        .map(|(folio, failure)| (folio.page(), failure.step, failure.why));
    assert_eq!(
        stayed.collect::<Vec<_>>(),
        [(0, Step::Remap, Why::Absent), (1, Step::Remap, Why::Absent)]
    );
    assert_eq!(region.words()[0].load(Ordering::Relaxed), 0);
    assert_eq!(region.words()[1024].load(Ordering::Relaxed), 1024 << 32);

    let full = Region::builder()
        .tier(Tier::node("near", 0))
        .tier(Tier::node("far", 0).capacity(4 * 4096))
        .pages(8)
        .mechanism(Mechanism::MovePages)
        .build()
        .unwrap();
    let refused = full.migrate(2..7, "far", &Options::new()).unwrap_err();
    assert!(
        matches!(refused, RegionError::Full { asked: 5, .. }),
        "{refused}"
    );
    assert_eq!(full.usage().tiers[1].pages, 0);
    assert!(
        full.migrate(2..6, "far", &Options::new())
            .unwrap()
            .is_complete()
    );
}

fn is_for_anonymous() {
    let refused = |builder: Builder| builder.build().unwrap_err().to_string();
    let memfd = Region::builder()
        .tier(Tier::memfd("m"))
        .pages(4)
        .pins(Pins::Declared);
    let line = refused(memfd.mechanism(Mechanism::MovePages));
    assert_eq!(line, "move_pages(2) does not move mapped memory");
    let line = refused(tiers(0, 0).pages(4).mechanism(Mechanism::Blind));
    assert_eq!(line, "userfaultfd blind does not move anonymous memory");
}

fn between_nodes(builder: &Builder) {
    let region = builder.clone().build().unwrap();
    to_and_fro(&region, |when| assert_in_place(&region, when));
}

/// To and fro under an application, then scattered pages.
fn to_and_fro(region: &Region, check: impl Fn(&str)) {
    herd::fill(region);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, region, 2, &stop);
        let options = [
            Options::new(),
            Options::new().mode(Mode::Sync),
            Options::new().max_stall(Duration::from_millis(1)),
        ];
        for (round, options) in (1..=6).zip(options.iter().cycle()) {
            let tier = region.tiers()[round % 2].name();
            let report = region.migrate(.., tier, options).unwrap();
            assert!(report.is_complete(), "{:?}", report.stayed().next());
            assert_eq!(report.moved(), region.pages());
            assert!((0..region.pages()).all(|page| region.tier_of(page) == Ok(tier)));
            check(&format!("round {round}"));
        }
        let third = (0..region.pages()).step_by(3).collect::<Vec<_>>();
        for tier in ["far", "near", "far"] {
            let report = region.migrate(&third[..], tier, &Options::new()).unwrap();
            assert!(report.is_complete(), "{:?}", report.stayed().next());
            check(&format!("every third, to '{tier}'"));
        }
        herd.gather();
    });
    herd::sweep(region.words());
}

/// What goes with the head is not all there is of such pages.
fn made_of_base_pages() {
    let region = near_and_far(4, PageSize::Huge).build().unwrap();
    let memory = region.as_ptr().cast::<libc::c_void>();
    // Half of them have no huge page at all, and of the others one base page is another's.
    let half = region.len() / 2;
    for (from, bytes, advice) in [
        (0, half, libc::MADV_NOHUGEPAGE),
        (0, half, libc::MADV_DONTNEED),
        (half, 4096, libc::MADV_DONTNEED),
        (half + (2 << 20) + (1 << 20), 4096, libc::MADV_DONTNEED),
    ] {
        // SAFETY: the pages are the region's and only reached by atomics.
        let failed = unsafe { libc::madvise(memory.wrapping_byte_add(from), bytes, advice) };
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    }
    to_and_fro(&region, |when| assert_in_place(&region, when));
}

/// Pages that a child shares stay; copies of them that the kernel placed elsewhere are put right.
fn shared_pages() {
    let region = near_and_far(128, PageSize::Base).build().unwrap();
    herd::fill(&region);
    let child = Child::fork();
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    let whys = report.stayed().map(|(_, failure)| failure.why);
    assert_eq!(whys.collect::<Vec<_>>(), [Why::Shared; 128]);
    assert_in_place(&region, "while shared");
    drop(child);
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    assert!(report.is_complete(), "{:?}", report.stayed().next());
    let child = Child::fork();
    for word in region.words().iter().step_by(512) {
        word.fetch_add(1, Ordering::Relaxed);
    }
    drop(child);
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    assert!(report.is_complete(), "{:?}", report.stayed().next());
    assert_in_place(&region, "after copies on write");
}

fn given_back() {
    let region = near_and_far(64, PageSize::Base).build().unwrap();
    herd::fill(&region);
    // SAFETY: the pages are the region's and only reached by atomics.
    let given = unsafe { libc::madvise(region.as_ptr().cast(), 8 * 4096, libc::MADV_DONTNEED) };
    assert_eq!(given, 0, "{}", std::io::Error::last_os_error());
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    assert_eq!((report.moved(), report.stayed().count()), (56, 8));
    for word in region.words().iter().step_by(512) {
        word.store(1, Ordering::Relaxed);
    }
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    assert_eq!(report.moved(), 8);
    assert_in_place(&region, "after the second request");
}

fn pinned() {
    let region = near_and_far(64, PageSize::Base).build().unwrap();
    herd::fill(&region);
    let ring = io_uring::IoUring::new(2).unwrap();
    let buffer = libc::iovec {
        iov_base: region.as_ptr().wrapping_add(8 * 4096).cast(),
        iov_len: 4096,
    };
    // SAFETY: the buffer is the region's memory, which outlives the registration.
    unsafe { ring.submitter().register_buffers(&[buffer]) }.unwrap();
    // The kernel may move a page to where pins for long are allowed before it pins it.
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    let stayed = report
        .stayed()
        .map(|(folio, failure)| (folio.page(), failure.why));
    assert_eq!(stayed.collect::<Vec<_>>(), [(8, Why::Pinned)]);
    ring.submitter().unregister_buffers().unwrap();
    let gone = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        let report = region.migrate(.., "far", &Options::new()).unwrap();
        report.is_complete()
    });
    assert!(gone);
    herd::sweep(region.words());
    assert_in_place(&region, "in the end");
}

/// When the target has no memory the request stops, says so, and nothing is lost.
fn a_full_node() {
    let free = free_pages(1);
    let near = free_pages(0);
    // More than the far node has, if the near one can hold it.
    let pages = free + free / 8;
    if pages + (64 << 8) > near {
        return println!("node 0 has no room for more than node 1 has");
    }
    let region = near_and_far(pages, PageSize::Base).build().unwrap();
    herd::fill(&region);
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    assert!(report.moved() > 0);
    assert!(!report.is_complete());
    assert_eq!(
        report.stopped.map(|failure| failure.why),
        Some(Why::NoMemory)
    );
    assert_in_place(&region, "with a full node");
    herd::sweep(region.words());
}

fn free_pages(node: u32) -> usize {
    let path = format!("/sys/devices/system/node/node{node}/meminfo");
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|line| line.contains("MemFree:")).unwrap();
    let kib = line.split_whitespace().rev().nth(1).unwrap();
    kib.parse::<usize>().unwrap() / 4
}

/// Where there is no userfaultfd for the kernel's faults the region does with this, and says why.
fn without_a_userfaultfd() {
    let handle = std::thread::spawn(|| {
        // Of this thread only: it becomes one without privileges.
        // SAFETY: the numbers are valid, and the raw call changes this thread alone.
        let failed = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
        let region = Region::builder()
            .tier(Tier::node("near", 0))
            .tier(Tier::node("far", 1))
            .pages(64)
            .kernel_access(KernelAccess::Expected)
            .build()
            .unwrap();
        assert_eq!(region.mechanism(), Mechanism::MovePages);
        let notice = region.notices()[0].to_string();
        assert!(notice.contains("move_pages(2)"), "{notice}");
        assert!(notice.contains("cure: "), "{notice}");
        herd::fill(&region);
        let report = region.migrate(.., "far", &Options::new()).unwrap();
        assert!(report.is_complete(), "{:?}", report.stayed().next());
        herd::sweep(region.words());
    });
    handle.join().unwrap();
}
