//! Memory that the application has locked (`mlock`).

use std::sync::atomic::AtomicBool;

use transhume_region::{Options, Pins, Region};

use crate::Case;
use crate::herd::{self, Herd};
use crate::migrate::{two_memfds, two_nodes};
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case("locked::all_of_it", &[Need::Move], || {
        let region = two_nodes(512).build().unwrap();
        locked(&region, 0..512);
    }),
    Case("locked::a_part", &[Need::Move], || {
        let region = two_nodes(512).pins(Pins::Declared).build().unwrap();
        locked(&region, 100..300);
    }),
    Case("locked::mapped", &[Need::Blind], || {
        let region = two_memfds(512).build().unwrap();
        locked(&region, 0..512);
    }),
];

pub(crate) fn mlock(region: &Region, pages: std::ops::Range<usize>, lock: bool) {
    let start = region.as_ptr().wrapping_add(pages.start * 4096).cast();
    // SAFETY: locking changes nothing that a program can see.
    let failed = unsafe {
        if lock {
            libc::mlock(start, pages.len() * 4096)
        } else {
            libc::munlock(start, pages.len() * 4096)
        }
    };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
}

fn locked(region: &Region, pages: std::ops::Range<usize>) {
    herd::fill(region);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, region, 1, &stop);
        for round in 1..=6 {
            // Locked, unlocked, locked again, between migrations.
            mlock(region, pages.clone(), round % 3 != 0);
            let tier = region.tiers()[round % 2].name();
            let report = region.migrate(.., tier, &Options::new()).unwrap();
            assert!(
                report.is_complete(),
                "round {round}: {:?}",
                report.stayed().next()
            );
        }
        herd.gather();
    });
    herd::sweep(region.words());
}
