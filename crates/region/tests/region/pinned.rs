//! Frames that somebody else refers to: declared pins, registered buffers, vmsplice.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use transhume_region::{Mode, Options, RegionError, Step, Why};

use crate::Case;
use crate::herd;
use crate::migrate::{two_memfds, two_nodes};
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case("pinned::declared", &[Need::Blind], declared),
    Case(
        "pinned::a_pin_waits_for_a_migration",
        &[Need::Blind],
        a_pin_waits,
    ),
    Case(
        "pinned::registered_buffers",
        &[Need::Move, Need::IoUring],
        registered_buffers,
    ),
    Case("pinned::vmsplice", &[Need::Move], vmsplice),
];

fn declared() {
    let region = two_memfds(64).build().unwrap();
    herd::fill(&region);
    let pin = region.pin(vec![3, 4, 40]).unwrap();
    let second = region.pin(4).unwrap();
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    let stayed = report
        .stayed()
        .map(|(folio, failure)| (folio.page(), failure.why));
    let expected = [(3, Why::Pinned), (4, Why::Pinned), (40, Why::Pinned)];
    assert_eq!(stayed.collect::<Vec<_>>(), expected);
    drop(pin);
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    assert_eq!(
        report
            .stayed()
            .map(|(folio, _)| folio.page())
            .collect::<Vec<_>>(),
        [4]
    );
    drop(second);
    assert!(
        region
            .migrate(.., "far", &Options::new())
            .unwrap()
            .is_complete()
    );
    assert!(matches!(
        region.pin(64),
        Err(RegionError::OutsideRegion { page: 64, last: 63 })
    ));
    herd::sweep(region.words());
}

fn a_pin_waits() {
    let region = two_memfds(256).build().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1.. {
                let tier = region.tiers()[round % 2].name();
                region.migrate(.., tier, &Options::new()).unwrap();
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..100 {
            let pin = region.pin(10..20).unwrap();
            let tiers = || {
                (10..20)
                    .map(|page| region.tier_of(page).unwrap())
                    .collect::<Vec<_>>()
            };
            let before = tiers();
            std::thread::yield_now();
            assert_eq!(tiers(), before, "pinned pages stay");
            drop(pin);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Buffers registered with io_uring are pinned for long; the kernel says so and they stay.
fn registered_buffers() {
    let region = two_nodes(64).build().unwrap();
    herd::fill(&region);
    let ring = io_uring::IoUring::new(2).unwrap();
    let buffer = libc::iovec {
        iov_base: region.as_ptr().wrapping_add(8 * 4096).cast(),
        iov_len: 2 * 4096,
    };
    // SAFETY: the buffer is the region's memory, which outlives the registration.
    unsafe { ring.submitter().register_buffers(&[buffer]) }.unwrap();
    for mode in [Mode::Async, Mode::Sync] {
        let report = region
            .migrate(.., "far", &Options::new().mode(mode))
            .unwrap();
        let stayed = report.stayed().collect::<Vec<_>>();
        assert_eq!(
            stayed
                .iter()
                .map(|(folio, _)| folio.page())
                .collect::<Vec<_>>(),
            [8, 9]
        );
        for (_, failure) in stayed {
            assert_eq!((failure.step, failure.why), (Step::Shootdown, Why::Pinned));
            assert_eq!(failure.errno.map(|errno| errno.get()), Some(libc::EBUSY));
        }
    }
    ring.submitter().unregister_buffers().unwrap();
    // The kernel lets go of the pages a moment later.
    let gone = (0..1000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        region
            .migrate(.., "far", &Options::new())
            .unwrap()
            .is_complete()
    });
    assert!(gone);
    herd::sweep(region.words());
}

/// A page in a pipe moves, and its old frame, which the pipe still holds, is not used again.
fn vmsplice() {
    let region = two_nodes(64).build().unwrap();
    let page = &region.words()[7 * 512..8 * 512];
    page.iter()
        .for_each(|word| word.store(0x5EED, Ordering::Relaxed));
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let part = libc::iovec {
        iov_base: region.as_ptr().wrapping_add(7 * 4096).cast(),
        iov_len: 4096,
    };
    // SAFETY: the page is the region's, and is not stored to until the pipe has been read.
    let spliced = unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const part, 1, 0) };
    assert_eq!(spliced, 4096, "{}", std::io::Error::last_os_error());
    for round in 1..=20 {
        let tier = region.tiers()[round % 2].name();
        let report = region.migrate(.., tier, &Options::new()).unwrap();
        assert!(report.is_complete(), "{:?}", report.stayed().next());
        for word in region
            .words()
            .iter()
            .filter(|word| !page.as_ptr_range().contains(&(&raw const **word)))
        {
            word.store(round as u64, Ordering::Relaxed);
        }
    }
    let mut bytes = [0u8; 4096];
    assert_eq!(rustix::io::read(&reader, &mut bytes).unwrap(), 4096);
    assert!(bytes.chunks(8).all(|word| word == 0x5EED_u64.to_ne_bytes()));
    assert!(
        page.iter()
            .all(|word| word.load(Ordering::Relaxed) == 0x5EED)
    );
}
