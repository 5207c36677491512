//! Limits that are met in the middle of a migration.

use std::num::NonZeroUsize;
use std::sync::atomic::AtomicBool;

use transhume_region::{Options, Pins, Region, RegionError, Tier, Why};

use crate::herd::{self, Herd};
use crate::needs::Need;
use crate::{Case, mapped, reasons};

pub(crate) const CASES: &[Case] = &[
    Case("limits::address_space", &[Need::Blind], address_space),
    Case("limits::scattered_slots", &[Need::Blind], scattered_slots),
];

fn status_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1))
        .and_then(|kib| kib.parse().ok())
        .unwrap()
}

/// A cut needs address space for the blind; where there is none, nothing is cut off.
fn address_space() {
    let region = mapped(4096);
    herd::fill(&region);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, &region, 1, &stop);
        let bytes = (status_kib("VmData:") + 8192) << 10;
        let limit = libc::rlimit {
            rlim_cur: bytes,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: it sets a limit of this process, which is for this case alone.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_DATA, &limit) }, 0);
        // All pages in one batch, twice as much as there is room for.
        let at_once = Options::new().limit_bytes(NonZeroUsize::new(region.len()).unwrap());
        let report = region.migrate(.., "far", &at_once).unwrap();
        assert_eq!(report.moved(), 0, "{}", reasons(&report));
        assert!(
            report
                .stayed()
                .all(|(_, failure)| failure.why == Why::NoMemory)
        );
        let limit = libc::rlimit {
            rlim_cur: libc::RLIM_INFINITY,
            ..limit
        };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_DATA, &limit) }, 0);
        let report = region.migrate(.., "far", &Options::new()).unwrap();
        assert!(report.is_complete(), "{}", reasons(&report));
        assert!(herd.gather() > 0);
    });
    herd::sweep(region.words());
}

/// One run of pages can land in as many pieces as it has pages; when mappings come to their end,
/// pages stay, and forks and migrations go on.
fn scattered_slots() {
    const NEAR: usize = 66_000;
    const FAR: usize = 44_000;
    let mappings = || {
        std::fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .count()
    };
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let limit = limit.trim().parse::<usize>().unwrap();
    if limit > 2 * FAR {
        // With so many mappings the limit is not met.
        return;
    }
    let region = Region::builder()
        .tier(Tier::memfd("near").capacity(NEAR * 4096))
        .tier(Tier::memfd("far").capacity(FAR * 4096))
        .pages(NEAR)
        .pins(Pins::Declared)
        .build()
        .unwrap();
    herd::fill(&region);
    // Every second page of the first FAR: each becomes a mapping, and every second slot is taken.
    let evens = (0..FAR).step_by(2).collect::<Vec<_>>();
    let mut refused = false;
    for some in evens.chunks(1000) {
        match region.migrate(some, "far", &Options::new()) {
            Ok(report) => assert!(report.is_complete(), "{}", reasons(&report)),
            Err(RegionError::TooManyMappings { .. }) => refused = true,
            Err(other) => panic!("{other}"),
        }
        assert!(mappings() < limit);
    }
    // One run, whose slots lie apart.
    match region.migrate(FAR..NEAR, "far", &Options::new()) {
        Ok(report) => {
            refused |= report
                .stayed()
                .any(|(_, failure)| failure.why == Why::NoMemory);
        }
        Err(RegionError::TooManyMappings { .. }) => refused = true,
        Err(other) => panic!("{other}"),
    }
    assert!(refused, "{} mappings of {limit}", mappings());
    let counted = region.usage().mappings;
    assert!(
        counted <= mappings() && mappings() < limit,
        "{counted} counted"
    );
    // SAFETY: the child ends at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: it ends the child.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: the child is ours.
    let waited = unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    assert_eq!(waited, child);
    herd::sweep(region.words());
}
