//! Signal handlers that touch the region, on whatever thread they run.

use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use transhume_region::{Options, Region};

use crate::needs::Need;
use crate::{Case, anonymous, deferring, herd, mapped, memfds, nodes, to_and_fro};

pub(crate) const CASES: &[Case] = &[
    Case("signals::handlers_touch_anonymous", &[Need::Move], || {
        handlers_touch(&anonymous(512))
    }),
    Case("signals::handlers_touch_mapped", &[Need::Blind], || {
        handlers_touch(&mapped(512))
    }),
    Case(
        "signals::handlers_store_to_deferred_mapped",
        &[Need::Stores],
        || handlers_store(&deferring(memfds(512), 512)),
    ),
    Case(
        "signals::handlers_store_to_deferred_anonymous",
        &[Need::Protect],
        || handlers_store(&deferring(nodes(512), 512)),
    ),
];

static WORDS: AtomicPtr<u64> = AtomicPtr::new(std::ptr::null_mut());
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn touch_all(_signal: libc::c_int) {
    let words = WORDS.load(Ordering::SeqCst);
    for page in 0..512 {
        // SAFETY: the region lives as long as the timer runs, and has so many pages.
        unsafe { words.add(page * 512).read_volatile() };
    }
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn store_to_one(_signal: libc::c_int) {
    let words = WORDS.load(Ordering::SeqCst);
    let handled = HANDLED.fetch_add(1, Ordering::SeqCst);
    let page = handled as usize * 5 % 512;
    // SAFETY: the region lives as long as the timer runs, and has so many pages.
    unsafe { words.add(page * 512 + 1).write_volatile(handled) };
}

/// Handlers store to pages that this thread is about to leave as pairs.
fn handlers_store(region: &Region) {
    while_handlers_run(region, store_to_one, || {
        for tier in ["far", "near"] {
            let report = region.migrate(.., tier, &Options::new().deferred());
            assert_eq!(report.unwrap().deferred(), 512);
        }
    });
}

fn handlers_touch(region: &Region) {
    herd::fill(region);
    while_handlers_run(region, touch_all, || to_and_fro(region, 2));
    herd::sweep(region.words());
}

fn while_handlers_run(region: &Region, handler: extern "C" fn(libc::c_int), work: impl Fn()) {
    WORDS.store(region.as_ptr().cast(), Ordering::SeqCst);
    let every = |micros| libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: micros,
        },
        it_value: libc::timeval {
            tv_sec: 0,
            tv_usec: micros,
        },
    };
    // SAFETY: the handler only reads and writes memory, and counts.
    unsafe {
        libc::signal(libc::SIGALRM, handler as *const () as libc::sighandler_t);
        libc::setitimer(libc::ITIMER_REAL, &every(300), std::ptr::null_mut());
    }
    // The process has no other thread than this one and the region's own.
    while HANDLED.load(Ordering::SeqCst) < 300 {
        work();
    }
    // SAFETY: it stops the timer.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &every(0), std::ptr::null_mut()) };
}
