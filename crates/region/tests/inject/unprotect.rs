//! Letting stores go fails half-way, of a page that a deferred request is about to come to.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use transhume_copy::{CopyJob, Memcpy};
use transhume_engine::{Copier, CopyAnswer};
use transhume_region::{Deferral, Options, Outcome};
use transhume_sys::inject::{self, Fault, Plan};
use transhume_sys::{Call, Errno};

use crate::{Kind, herd};

/// Which store the application is to make, and which it has made last.
#[derive(Default)]
struct Stores {
    wanted: AtomicU64,
    made: AtomicU64,
}

impl Stores {
    fn want(&self, number: u64) {
        self.wanted.store(number, Ordering::SeqCst);
    }

    fn is_made(&self, number: u64) -> bool {
        self.made.load(Ordering::SeqCst) >= number
    }

    /// The application: store after store, each when it is wanted.
    fn make(&self, word: &AtomicU64, value: impl Fn(u64) -> u64) {
        for number in [1, 2] {
            while self.wanted.load(Ordering::SeqCst) < number {
                std::thread::yield_now();
            }
            word.store(value(number), Ordering::SeqCst);
            self.made.store(number, Ordering::SeqCst);
        }
    }
}

/// Waits for a store to the second page when it has copied the first, and wants another one when it
/// has copied the second.
#[derive(Default)]
struct Between {
    stores: Stores,
    lists: AtomicUsize,
}

impl Copier<CopyJob> for Between {
    fn name(&self) -> &str {
        "between"
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        Memcpy.copy(jobs, answers);
        let list = self.lists.fetch_add(1, Ordering::SeqCst);
        let patience = match list {
            // It gets through, though the call that lets it go fails.
            0 => Duration::MAX,
            // Long enough for a store that nothing holds off.
            1 => Duration::from_millis(100),
            _ => return,
        };
        let number = list as u64 + 1;
        self.stores.want(number);
        let begun = Instant::now();
        while !self.stores.is_made(number) && begun.elapsed() < patience {
            std::thread::yield_now();
        }
    }
}

pub(crate) fn fails_half_way(kind: Kind) {
    let deferral = Deferral::new(NonZeroUsize::new(8 << 20).unwrap())
        .max_age(Duration::from_secs(3600))
        .keep_free_bytes(0);
    let region = kind.builder().deferral(deferral).build().unwrap();
    herd::fill(&region);
    let page = region.page_size().bytes();
    let index = page / size_of::<u64>();
    let word = &region.words()[index];
    let value = |number| (index as u64) << 32 | number;
    // The first call holds stores off from all pages. Those that let them go are made again and again,
    // so they fail until the request has come to the second page, which holds stores off anew.
    let armed = inject::arm(
        Call::UffdWriteProtect,
        Plan {
            skip: 1,
            times: 300,
            fault: Fault::Partial {
                bytes: page,
                errno: Errno::AGAIN,
            },
        },
    );
    let copier = Arc::new(Between::default());
    std::thread::scope(|scope| {
        scope.spawn(|| copier.stores.make(word, value));
        let options = Options::new()
            .copier(Arc::clone(&copier) as _)
            .limit_bytes(NonZeroUsize::new(page).unwrap())
            .deferred();
        let report = region.migrate(..4, "far", &options).unwrap();
        for folio in report.folios() {
            assert_eq!(folio.outcome, Outcome::Deferred, "{folio:?}");
        }
    });
    assert!(armed.fired() > 0, "a call failed");
    drop(armed);
    region.settle(..).unwrap();
    assert_eq!(word.load(Ordering::SeqCst), value(2), "a store was lost");
    assert_eq!(region.tier_of(1).unwrap(), "far");
    herd::sweep(region.words());
}
