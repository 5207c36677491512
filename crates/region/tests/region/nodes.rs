//! Pages are on the node that their tier names, whatever has happened to them.
//!
//! All other tests make do with one node, and what is wrong with placement is not seen there.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use transhume_region::{Builder, Options, PageSize, Pins, Region, Tier};
use transhume_sys::numa::{self, PageStatus};

use crate::Case;
use crate::herd::{self, Herd};
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case(
        "nodes::pages_are_where_their_tier_is",
        &[Need::Move, Need::TwoNodes],
        || back_and_forth(&near_and_far(1500, PageSize::Base), 6),
    ),
    Case(
        "nodes::pages_of_declared_pins_too",
        &[Need::Move, Need::TwoNodes],
        || {
            let builder = near_and_far(1500, PageSize::Base).pins(Pins::Declared);
            back_and_forth(&builder, 6);
        },
    ),
    Case(
        "nodes::huge_pages_too",
        &[Need::Move, Need::TwoNodes, Need::HugePages],
        || {
            let huge = near_and_far(12, PageSize::Huge);
            back_and_forth(&huge, 4);
            back_and_forth(&huge.pins(Pins::Declared), 4);
        },
    ),
    Case(
        "nodes::a_region_can_begin_on_the_far_node",
        &[Need::Move, Need::TwoNodes],
        begins_far,
    ),
    Case(
        "nodes::pooled_frames_are_on_their_node",
        &[Need::Move, Need::TwoNodes],
        || pooled_frames(PageSize::Base, 512),
    ),
    Case(
        "nodes::pooled_huge_frames_are_on_their_node",
        &[Need::Move, Need::TwoNodes, Need::HugePages],
        || pooled_frames(PageSize::Huge, 8),
    ),
    Case(
        "nodes::copy_on_write_is_put_right",
        &[Need::Move, Need::TwoNodes],
        || copy_on_write(&near_and_far(256, PageSize::Base)),
    ),
    Case(
        "nodes::copy_on_write_of_huge_pages_is_put_right",
        &[Need::Move, Need::TwoNodes, Need::HugePages],
        || copy_on_write(&near_and_far(4, PageSize::Huge)),
    ),
    Case(
        "nodes::strayed_frames_are_not_destinations",
        &[Need::Move, Need::TwoNodes],
        strayed_frames,
    ),
    Case(
        "nodes::held_pages_of_a_parent_stay_on_the_node",
        &[Need::Move, Need::TwoNodes],
        held_while_shared,
    ),
    Case(
        "nodes::given_back_pages_come_back_on_the_node",
        &[Need::Move, Need::TwoNodes],
        given_back,
    ),
    Case(
        "nodes::the_kernel_does_not_balance_them",
        &[Need::Move, Need::TwoNodes, Need::Balancing],
        not_balanced,
    ),
];

fn near_and_far(pages: usize, page_size: PageSize) -> Builder {
    Region::builder()
        .tier(Tier::node("near", 0))
        .tier(Tier::node("far", 1))
        .pages(pages)
        .page_size(page_size)
}

/// The node of each base page of `range`.
fn nodes_of(range: Range<usize>) -> Vec<PageStatus> {
    let pages = range.step_by(4096).collect::<Vec<_>>();
    let mut status = vec![PageStatus::UNKNOWN; pages.len()];
    numa::query_pages(None, &pages, &mut status).unwrap();
    status
}

fn memory(region: &Region) -> Range<usize> {
    let start = region.as_ptr() as usize;
    start..start + region.len()
}

/// How many base pages are not on the node of the tier that `tier_of` says, with the first of them.
fn astray(region: &Region) -> Option<String> {
    let in_folio = region.page_size().bytes() / 4096;
    let nodes = nodes_of(memory(region));
    let wrong = |&(at, status): &(usize, &PageStatus)| {
        let tier = region.tier_of(at / in_folio).unwrap();
        status.node() != Some(u32::from(tier == "far"))
    };
    let mut wrong = nodes.iter().enumerate().filter(wrong);
    let (at, status) = wrong.next()?;
    let tier = region.tier_of(at / in_folio).unwrap();
    let count = wrong.count() + 1;
    Some(format!(
        "{count} of {} base pages are astray, the first is {at}: {status:?}, tier '{tier}'",
        nodes.len()
    ))
}

pub(crate) fn assert_in_place(region: &Region, when: &str) {
    let astray = astray(region);
    assert_eq!(astray, None, "{when}");
}

/// Moves everything to and fro under two threads of an application, and then every third page.
fn back_and_forth(builder: &Builder, rounds: usize) {
    let region = builder.clone().build().unwrap();
    assert_in_place(&region, "at first");
    herd::fill(&region);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, &region, 2, &stop);
        let batch = NonZeroUsize::new(4 * region.page_size().bytes()).unwrap();
        for round in 1..=rounds {
            let tier = region.tiers()[round % 2].name();
            // In batches of the usual size and in small ones.
            let options = match round {
                3 | 4 => Options::new().limit_bytes(batch),
                _ => Options::new(),
            };
            let report = region.migrate(.., tier, &options).unwrap();
            assert!(report.is_complete(), "{:?}", report.stayed().next());
            assert_in_place(&region, &format!("round {round}, to '{tier}'"));
        }
        let third = (0..region.pages()).step_by(3).collect::<Vec<_>>();
        for tier in ["far", "near", "far"] {
            let report = region
                .migrate(third.as_slice(), tier, &Options::new())
                .unwrap();
            assert!(report.is_complete(), "{:?}", report.stayed().next());
            assert_in_place(&region, &format!("every third, to '{tier}'"));
        }
        herd.gather();
    });
    herd::sweep(region.words());
    assert_in_place(&region, "in the end");
}

fn begins_far() {
    let region = Region::builder()
        .tier(Tier::node("far", 1))
        .tier(Tier::node("near", 0))
        .pages(600)
        .build()
        .unwrap();
    herd::fill(&region);
    assert_in_place(&region, "at first");
    let report = region.migrate(0..300, "near", &Options::new()).unwrap();
    assert!(report.is_complete(), "{:?}", report.stayed().next());
    assert_in_place(&region, "half moved");
}

/// Mappings of this process that are bound to a node, by the kernel's own account, with the pages
/// that they have on each node.
fn bound_mappings() -> Vec<(u32, [usize; 2], String)> {
    let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
    let on = |line: &str, node: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(node)?.parse::<usize>().ok())
            .unwrap_or(0)
    };
    maps.lines()
        .filter_map(|line| {
            let policy = line.split_whitespace().nth(1)?;
            let node = policy.strip_prefix("bind:")?.parse().ok()?;
            Some((node, [on(line, "N0="), on(line, "N1=")], line.to_owned()))
        })
        .collect()
}

/// The frames that wait in the pools, fresh ones and those that pages have left, are on the node of
/// their pool.
fn pooled_frames(page_size: PageSize, pages: usize) {
    let pool = 64 * page_size.bytes().min(64 << 10);
    let region = near_and_far(pages, page_size)
        .pins(Pins::Declared)
        .pool_bytes(pool)
        .build()
        .unwrap();
    herd::fill(&region);
    for round in 1..=5 {
        let tier = region.tiers()[round % 2].name();
        let report = region.migrate(.., tier, &Options::new()).unwrap();
        assert!(report.is_complete(), "{:?}", report.stayed().next());
        let until = Instant::now() + Duration::from_secs(5);
        while region.usage().pooled_bytes < pool && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        let waiting = region.usage().pooled_bytes;
        assert!(waiting > 0, "no frame waits in the pools");
        // The region's own memory is among these if it is bound to something; it is looked at below.
        let own = format!("{:x} ", region.as_ptr() as usize);
        let mut seen = 0;
        for (node, pages_on, line) in bound_mappings() {
            if line.starts_with(&own) {
                continue;
            }
            let other = pages_on[1 - node as usize];
            assert_eq!(other, 0, "round {round}: frames of node {node}: {line}");
            seen += pages_on[node as usize];
        }
        assert!(
            seen * 4096 >= waiting,
            "round {round}: {waiting} bytes wait and {seen} pages are seen"
        );
    }
    assert_in_place(&region, "in the end");
}

/// A child that lives, and shares its parent's pages, until this is dropped.
pub(crate) struct Child {
    pid: libc::pid_t,
}

impl Child {
    pub(crate) fn fork() -> Self {
        // SAFETY: the child waits to be killed and runs nothing else.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            loop {
                // SAFETY: it waits for a signal.
                unsafe { libc::pause() };
            }
        }
        assert!(pid > 0, "{}", io::Error::last_os_error());
        Self { pid }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the child is ours and not yet waited for.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // SAFETY: as before.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// A store to a page that a child shares makes a new page, on whatever node the kernel chooses. The
/// next request for the tier where the page should be puts that right.
fn copy_on_write(builder: &Builder) {
    let region = builder.clone().build().unwrap();
    herd::fill(&region);
    let half = region.pages() / 2;
    let report = region.migrate(..half, "far", &Options::new()).unwrap();
    assert!(report.is_complete(), "{:?}", report.stayed().next());
    assert_in_place(&region, "before the fork");
    let child = Child::fork();
    for word in region.words().iter().step_by(512) {
        word.fetch_add(1, Ordering::Relaxed);
    }
    drop(child);
    let strayed = astray(&region);
    for (pages, tier) in [(0..half, "far"), (half..region.pages(), "near")] {
        let report = region.migrate(pages, tier, &Options::new()).unwrap();
        assert!(report.is_complete(), "{:?}", report.stayed().next());
    }
    assert_in_place(&region, &format!("in the end; before that, {strayed:?}"));
}

/// Whatever the kernel placed elsewhere by itself, a migration that says it is complete has put every
/// page on the node of its tier: the frame that a strayed page leaves is not one of its tier's node.
fn strayed_frames() {
    for (pool, part) in [(64, 64), (256, 64), (256, 256), (1024, 256), (1024, 32)] {
        let region = near_and_far(256, PageSize::Base)
            .pins(Pins::Declared)
            .pool_bytes(pool * 4096)
            .build()
            .unwrap();
        herd::fill(&region);
        let migrate = |pages: Range<usize>, tier| {
            let report = region.migrate(pages, tier, &Options::new()).unwrap();
            assert!(report.is_complete(), "{:?}", report.stayed().next());
        };
        migrate(0..256, "far");
        let child = Child::fork();
        for word in region.words().iter().step_by(512) {
            word.fetch_add(1, Ordering::Relaxed);
        }
        drop(child);
        for start in (0..256).step_by(part) {
            migrate(start..start + part, "near");
            migrate(start..start + part, "far");
        }
        assert_in_place(
            &region,
            &format!("a pool of {pool} and {part} pages at a time, to 'near' and to 'far'"),
        );
        for tier in ["near", "far", "near", "far"] {
            migrate(0..256, tier);
            assert_in_place(&region, &format!("a pool of {pool}, all to '{tier}'"));
        }
    }
}

/// Pages that a child shares are not touched by requests that have nothing to do with them, or that
/// must leave them because they are held.
fn held_while_shared() {
    let region = near_and_far(64, PageSize::Base).build().unwrap();
    herd::fill(&region);
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    assert!(report.is_complete(), "{:?}", report.stayed().next());
    let child = Child::fork();
    // To the tier where they are: nothing is to be done, and nothing may change place.
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    assert_eq!(report.already_there(), 64);
    assert_in_place(&region, "after a request that had nothing to do");
    // The others are made the parent's own and move.
    let pin = region.pin(0..8).unwrap();
    let report = region.migrate(.., "near", &Options::new()).unwrap();
    drop(pin);
    drop(child);
    assert_eq!(report.moved(), 56);
    for page in 0..8 {
        assert_eq!(region.tier_of(page), Ok("far"));
    }
    assert_in_place(&region, "after a request that left some pages");
}

/// A page that the program gave back comes back as zeros in the tier that it was in.
fn given_back() {
    let region = near_and_far(64, PageSize::Base).build().unwrap();
    herd::fill(&region);
    let report = region.migrate(0..32, "far", &Options::new()).unwrap();
    assert!(report.is_complete(), "{:?}", report.stayed().next());
    // SAFETY: the pages are the region's and only reached by atomics.
    let given = unsafe { libc::madvise(region.as_ptr().cast(), region.len(), libc::MADV_DONTNEED) };
    assert_eq!(given, 0, "{}", io::Error::last_os_error());
    for word in region.words().iter().step_by(512) {
        assert_eq!(word.load(Ordering::Relaxed), 0);
        word.store(1, Ordering::Relaxed);
    }
    assert_in_place(&region, "after a store to each");
}

/// While nothing migrates, threads on the near node's CPUs use pages of the far one. The kernel's own
/// balancing would bring those near.
fn not_balanced() {
    for page_size in [PageSize::Base, PageSize::Huge] {
        let pages = (16 << 20) / page_size.bytes();
        let region = near_and_far(pages, page_size).build().unwrap();
        herd::fill(&region);
        let report = region.migrate(.., "far", &Options::new()).unwrap();
        assert!(report.is_complete(), "{:?}", report.stayed().next());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let herd = Herd::graze(scope, &region, 2, &stop);
            // Longer than it takes the kernel to begin, a second, and to look at everything.
            std::thread::sleep(Duration::from_secs(6));
            herd.gather();
        });
        assert_in_place(&region, &format!("after 6 s, pages of {page_size}"));
    }
}
