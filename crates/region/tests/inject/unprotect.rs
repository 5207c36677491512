//! Stores are held off from a page that a deferred request is about to come to, and the calls that do
//! so, or let them go, fail half-way.

use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use transhume_copy::{CopyJob, Memcpy};
use transhume_engine::{Copier, CopyAnswer};
use transhume_region::owner::{Alone, FolioOwner, Place, Refused};
use transhume_region::{Builder, Deferral, Folio, Mode, Options, Outcome, Region};
use transhume_sys::inject::{self, Fault, Plan};
use transhume_sys::{Call, Errno};

use crate::{Kind, herd};

const BASE_PAGE: usize = 4096;

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

pub(crate) fn builder(kind: Kind) -> Builder {
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

/// How many base pages are locked at a time when stores are let go at the end of a request.
const AT_A_TIME: usize = 512;

/// The folios of a region from which stores are held off, by the page map.
fn held_off(region: &Region) -> Vec<usize> {
    const HELD_OFF: u64 = 1 << 57;
    let pages = File::open("/proc/self/pagemap").unwrap();
    let is_held = |folio: &usize| {
        let address = region.as_ptr().addr() + folio * region.page_size().bytes();
        let mut entry = [0; 8];
        pages
            .read_exact_at(&mut entry, (address / BASE_PAGE * 8) as u64)
            .unwrap();
        u64::from_ne_bytes(entry) & HELD_OFF != 0
    };
    (0..region.pages()).filter(is_held).collect()
}

/// A request that holds stores off all folios by its first call, and comes only to the first of them;
/// says how many calls it made for stores.
fn comes_to_the_first_only(region: &Region) -> u64 {
    let page = region.page_size().bytes();
    let _pin = region.pin(1..).unwrap();
    let options = Options::new()
        .limit_bytes(NonZeroUsize::new(page).unwrap())
        .deferred();
    let before = inject::calls(Call::UffdWriteProtect);
    let report = region.migrate(.., "far", &options).unwrap();
    assert_eq!(report.deferred(), 1);
    inject::calls(Call::UffdWriteProtect) - before
}

/// Stores to many folios are let go by few calls.
pub(crate) fn lets_runs_go(kind: Kind) {
    let region = builder(kind).build().unwrap();
    herd::fill(&region);
    let calls = comes_to_the_first_only(&region);
    let held_ahead = region.pages() - 1;
    println!("{kind:?}: {held_ahead} folios, {calls} calls");
    let at_a_time = AT_A_TIME * BASE_PAGE / region.page_size().bytes();
    let runs = held_ahead.div_ceil(at_a_time) as u64;
    assert_eq!(calls, 1 + runs, "one to hold stores off");
    assert_eq!(held_off(&region), [0]);
    region.settle(..).unwrap();
    herd::sweep(region.words());
}

/// The call for the second run fails half-way, again and again; or says that it met memory in which
/// stores cannot be held off, as it would where one folio was mapped anew.
pub(crate) fn letting_the_second_run_go_fails(kind: Kind) {
    let region = builder(kind).build().unwrap();
    herd::fill(&region);
    for errno in [Errno::AGAIN, Errno::NOMEM, Errno::NOENT] {
        let armed = inject::arm(
            Call::UffdWriteProtect,
            Plan {
                skip: 2,
                times: 3,
                fault: Fault::Partial {
                    bytes: region.page_size().bytes(),
                    errno,
                },
            },
        );
        comes_to_the_first_only(&region);
        assert!(armed.fired() > 0, "a call failed");
        drop(armed);
        assert_eq!(held_off(&region), [0], "{errno:?}");
        region.settle(..).unwrap();
        let report = region.migrate(0, "near", &Options::new()).unwrap();
        assert_eq!(report.moved(), 1);
    }
    herd::sweep(region.words());
}

/// Stores are let go by few calls also to what is put back: here because holding them off failed for all.
pub(crate) fn puts_runs_back(kind: Kind) {
    let region = builder(kind).build().unwrap();
    herd::fill(&region);
    let calls = calls_with_a_putback(&region, 0..region.pages(), "far");
    // Anonymous memory goes by page tables.
    let batches = if kind.is_mapped() {
        1
    } else {
        region.pages().div_ceil(AT_A_TIME) as u64
    };
    assert_eq!(calls, 2 + batches, "one to let stores go");
    herd::sweep(region.words());
}

/// Also where the slots of neighbours are not neighbours.
pub(crate) fn puts_runs_with_scattered_slots_back(kind: Kind) {
    let region = builder(kind).build().unwrap();
    herd::fill(&region);
    let half = region.pages() / 2;
    let report = region.migrate(half.., "far", &Options::new()).unwrap();
    assert!(report.is_complete());
    // Each gets the slot of its partner.
    let partners = (half..2 * half).rev().collect::<Vec<_>>();
    let report = region.exchange(..half, partners, &Options::new());
    assert!(report.unwrap().is_complete());
    assert!(region.usage().mappings > half);
    let calls = calls_with_a_putback(&region, 0..half, "near");
    assert_eq!(calls, 3, "one to let stores go");
    herd::sweep(region.words());
}

/// How many calls for stores a request for pages makes of which the first one fails.
fn calls_with_a_putback(region: &Region, pages: Range<usize>, tier: &str) -> u64 {
    let fault = Fault::Partial {
        bytes: pages.len() / 2 * region.page_size().bytes(),
        errno: Errno::BUSY,
    };
    let armed = inject::arm(Call::UffdWriteProtect, Plan::once(fault));
    let options = Options::new()
        .limit_bytes(NonZeroUsize::new(region.len()).unwrap())
        .deferred();
    let before = inject::calls(Call::UffdWriteProtect);
    let report = region.migrate(pages.clone(), tier, &options).unwrap();
    let calls = inject::calls(Call::UffdWriteProtect) - before;
    assert_eq!((report.deferred(), armed.fired()), (pages.len(), 1));
    drop(armed);
    region.settle(..).unwrap();
    calls
}
