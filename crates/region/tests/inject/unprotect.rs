//! Stores are held off from a page that a deferred request is about to come to, and the calls that do
//! so, or let them go, fail half-way.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use transhume_copy::{CopyJob, Memcpy};
use transhume_engine::{Copier, CopyAnswer};
use transhume_region::owner::{Alone, FolioOwner, Place, Refused};
use transhume_region::{Builder, Deferral, Folio, Mode, Options, Outcome};
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

fn builder(kind: Kind) -> Builder {
    let deferral = Deferral::new(NonZeroUsize::new(8 << 20).unwrap())
        .max_age(Duration::from_secs(3600))
        .keep_free_bytes(0);
    kind.builder().deferral(deferral)
}

pub(crate) fn fails_half_way(kind: Kind) {
    let region = builder(kind).build().unwrap();
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

/// An owner that waits for a store to the page that it is to let go of, as for a latch that the thread
/// which stores has.
#[derive(Default)]
struct Waits {
    asked: AtomicBool,
    stored: AtomicBool,
    in_vain: AtomicBool,
}

impl FolioOwner for Waits {
    fn try_detach(&self, _folio: Folio) -> Result<(), Refused> {
        Err(Refused)
    }

    fn detach(&self, _folio: Folio, _alone: &Alone) -> Result<(), Refused> {
        self.asked.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        while !self.stored.load(Ordering::SeqCst) {
            if begun.elapsed() > Duration::from_secs(10) {
                self.in_vain.store(true, Ordering::SeqCst);
                return Err(Refused);
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    fn attach(&self, _folio: Folio, _at: Place) {}
}

/// Stores may be held off from a page that is not known to be so. After the request they are not.
pub(crate) fn holding_fails_half_way(kind: Kind) {
    let owner = Arc::new(Waits::default());
    let region = builder(kind).owner(Arc::clone(&owner) as _);
    let region = region.build().unwrap();
    herd::fill(&region);
    let page = region.page_size().bytes();
    {
        // The request does not come to it.
        let _pin = region.pin(1).unwrap();
        let fault = Fault::Partial {
            bytes: 4 * page,
            errno: Errno::BUSY,
        };
        let armed = inject::arm(Call::UffdWriteProtect, Plan::once(fault));
        let options = Options::new()
            .limit_bytes(NonZeroUsize::new(page).unwrap())
            .deferred();
        let report = region.migrate(..4, "far", &options).unwrap();
        assert_eq!((report.deferred(), armed.fired()), (3, 1));
    }
    region.settle(..).unwrap();
    let index = page / size_of::<u64>();
    let value = (index as u64) << 32 | 1;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !owner.asked.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            region.words()[index].store(value, Ordering::SeqCst);
            owner.stored.store(true, Ordering::SeqCst);
        });
        let options = Options::new().mode(Mode::Sync);
        let report = region.migrate(1, "far", &options).unwrap();
        assert_eq!(report.moved(), 1, "{:?}", report.stayed().next());
    });
    assert!(!owner.in_vain.load(Ordering::SeqCst), "the store waited");
    assert_eq!(region.words()[index].load(Ordering::SeqCst), value);
    herd::sweep(region.words());
}
