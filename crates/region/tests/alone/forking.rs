//! Forks that themselves wait for what a migration's caller holds.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use transhume_region::{Options, Region};

use crate::needs::Need;
use crate::{Case, anonymous, herd, mapped};

pub(crate) const CASES: &[Case] = &[
    Case(
        "forking::a_lock_of_the_program_anonymous",
        &[Need::Move],
        || lock_of_the_program(&anonymous(512)),
    ),
    Case(
        "forking::a_lock_of_the_program_mapped",
        &[Need::Blind],
        || lock_of_the_program(&mapped(512)),
    ),
];

static LOCK: AtomicBool = AtomicBool::new(false);

extern "C" fn take() {
    while LOCK.swap(true, Ordering::SeqCst) {
        std::thread::sleep(Duration::from_micros(50));
    }
}

extern "C" fn give() {
    LOCK.store(false, Ordering::SeqCst);
}

/// A program takes its lock before it forks, as its `pthread_atfork` handlers say, and around its
/// migrations too.
fn lock_of_the_program(region: &Region) {
    // SAFETY: the handlers only touch an atomic and sleep.
    let failed = unsafe { libc::pthread_atfork(Some(take), Some(give), Some(give)) };
    assert_eq!(failed, 0);
    herd::fill(region);
    let (forks, moved) = (AtomicU64::new(0), Mutex::new(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                // SAFETY: the child ends at once.
                let child = unsafe { libc::fork() };
                if child == 0 {
                    // SAFETY: it ends the child.
                    unsafe { libc::_exit(0) };
                }
                // SAFETY: the child is ours.
                unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
                forks.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        for round in 0..2000 {
            take();
            let tier = ["far", "near"][round % 2];
            let report = region.migrate(.., tier, &Options::new());
            give();
            *moved.lock().unwrap() += report.unwrap().moved();
            if forks.load(Ordering::SeqCst) >= 50 && *moved.lock().unwrap() > 5000 {
                break;
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        done.store(true, Ordering::SeqCst);
    });
    assert!(forks.into_inner() >= 50);
    assert!(moved.into_inner().unwrap() > 5000);
    herd::sweep(region.words());
}
