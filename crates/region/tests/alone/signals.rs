//! Signal handlers that touch the region, on whatever thread they run.

use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use transhume_region::Region;

use crate::needs::Need;
use crate::{Case, anonymous, herd, mapped, to_and_fro};

pub(crate) const CASES: &[Case] = &[
    Case("signals::handlers_touch_anonymous", &[Need::Move], || {
        handlers_touch(&anonymous(512))
    }),
    Case("signals::handlers_touch_mapped", &[Need::Blind], || {
        handlers_touch(&mapped(512))
    }),
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

fn handlers_touch(region: &Region) {
    herd::fill(region);
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
    let handler: extern "C" fn(libc::c_int) = touch_all;
    // SAFETY: the handler only reads memory and counts.
    unsafe {
        libc::signal(libc::SIGALRM, handler as *const () as libc::sighandler_t);
        libc::setitimer(libc::ITIMER_REAL, &every(300), std::ptr::null_mut());
    }
    // The process has no other thread than this one and the region's own.
    while HANDLED.load(Ordering::SeqCst) < 300 {
        to_and_fro(region, 2);
    }
    // SAFETY: it stops the timer.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &every(0), std::ptr::null_mut()) };
    herd::sweep(region.words());
}
