//! While a list is copied by DSA nothing is allocated and nothing is freed (\[batch-deadlock\]).

#![allow(clippy::unwrap_used, reason = "a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use transhume_copy::dsa::{DsaOptions, Fault, Faults, ModelOptions};
use transhume_copy::{CopyJob, Dsa, DsaModel};
use transhume_engine::{Copier, CopyAnswer};

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

struct Watched;

// SAFETY: every call goes to the system's allocator as it came; the counter is a thread-local
// without destructor, which does not allocate.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller got `ptr` from `alloc` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static WATCHED: Watched = Watched;

#[test]
fn a_list_is_copied_without_the_allocator() {
    let every = Fault::ALL
        .into_iter()
        .fold(Faults::seeded(3), |faults, fault| faults.with(fault, 50));
    for faults in [Faults::default(), every] {
        let model = DsaModel::start(&ModelOptions {
            faults,
            ..ModelOptions::default()
        })
        .unwrap();
        let dsa = Dsa::over_model(
            &model,
            DsaOptions {
                floor: Duration::from_millis(3),
                ..DsaOptions::for_tests()
            },
        );
        let source = vec![7_u8; 200 * 5000];
        let mut target = vec![0_u8; source.len()];
        let (from, to) = (source.as_ptr(), target.as_mut_ptr());
        let job = |n: usize| {
            // SAFETY: two vectors, not used otherwise while the job is.
            unsafe { CopyJob::new(from.wrapping_add(n * 5000), to.wrapping_add(n * 5000), 5000) }
        };
        let jobs = (0..200).map(job).collect::<Vec<_>>();
        let mut answers = vec![CopyAnswer::Unconfirmed; jobs.len()];
        // The first use of a lock or of a thread's name may allocate.
        dsa.copy(&jobs, &mut answers);
        let before = CALLS.get();
        for _ in 0..50 {
            dsa.copy(&jobs, &mut answers);
        }
        assert_eq!(CALLS.get(), before);
    }
}
