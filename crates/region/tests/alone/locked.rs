//! Memory that is locked while it migrates.

use std::sync::atomic::AtomicBool;

use transhume_region::Region;

use crate::herd::{self, Herd};
use crate::needs::Need;
use crate::{Case, anonymous, mapped, to_and_fro};

pub(crate) const CASES: &[Case] = &[
    Case("locked::mlockall_future_anonymous", &[Need::Move], || {
        future(anonymous)
    }),
    Case("locked::mlockall_future_mapped", &[Need::Blind], || {
        future(mapped)
    }),
    Case("locked::mlockall_current_anonymous", &[Need::Move], || {
        current(anonymous)
    }),
    Case("locked::mlockall_current_mapped", &[Need::Blind], || {
        current(mapped)
    }),
    Case(
        "locked::mlockall_again_and_again_mapped",
        &[Need::Blind],
        again_and_again,
    ),
    Case("locked::mlock_stays_anonymous", &[Need::Move], || {
        stays(&anonymous(256))
    }),
    Case("locked::mlock_stays_mapped", &[Need::Blind], || {
        stays(&mapped(256))
    }),
];

fn mlockall(flags: libc::c_int) {
    // SAFETY: locking changes nothing that a program can see.
    assert_eq!(unsafe { libc::mlockall(flags) }, 0);
}

/// Migrates while threads look that nothing is lost.
fn migrate(region: &Region, meanwhile: impl Fn()) {
    herd::fill(region);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, region, 1, &stop);
        to_and_fro(region, 4);
        meanwhile();
        to_and_fro(region, 4);
        assert!(herd.gather() > 0);
    });
    herd::sweep(region.words());
}

fn future(region: fn(usize) -> Region) {
    mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE);
    migrate(&region(1024), || ());
}

fn current(region: fn(usize) -> Region) {
    migrate(&region(1024), || mlockall(libc::MCL_CURRENT));
}

fn again_and_again() {
    let region = mapped(1024);
    herd::fill(&region);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, &region, 1, &stop);
        let migrator = scope.spawn(|| to_and_fro(&region, 40));
        while !migrator.is_finished() {
            mlockall(libc::MCL_CURRENT);
            // SAFETY: nothing that a program can see.
            unsafe { libc::munlockall() };
        }
        migrator.join().unwrap();
        assert!(herd.gather() > 0);
    });
    herd::sweep(region.words());
}

fn locked_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmLck:"));
    line.and_then(|line| line.split_whitespace().nth(1))
        .and_then(|kib| kib.parse().ok())
        .unwrap()
}

fn stays(region: &Region) {
    let half = region.len() / 2;
    // SAFETY: locking changes nothing that a program can see.
    assert_eq!(unsafe { libc::mlock(region.as_ptr().cast(), half) }, 0);
    let before = locked_kib();
    assert_eq!(before, half / 1024);
    to_and_fro(region, 3);
    assert_eq!(locked_kib(), before);
}
