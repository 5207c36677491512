//! While a folio is locked the engine allocates nothing and frees nothing (\[batch-deadlock\]).

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::num::NonZeroU64;
use std::time::Duration;

use transhume_engine::{
    Alone, Copier, CopyAnswer, Deferral, Entry, Exchange, ExchangeRequest, Failure, Folio,
    FolioOwner, Generation, Isolated, Ledger, Mode, Place, Platform, Refused, Request, Side, Step,
    SwapAnswer, Swapper, Wait, Waiting, Why, Work, defer, exchange, migrate, settle,
};

thread_local! {
    static LOCKED: Cell<usize> = const { Cell::new(0) };
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
    static WHILE_LOCKED: Cell<usize> = const { Cell::new(0) };
}

fn note() {
    ALLOCATED.set(ALLOCATED.get() + 1);
    if LOCKED.get() > 0 {
        WHILE_LOCKED.set(WHILE_LOCKED.get() + 1);
    }
}

struct Watched;

// SAFETY: Every call goes to the system's allocator as it came; the counters are thread-locals
// without destructor, which do not allocate.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: The caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        note();
        // SAFETY: The caller got `ptr` from `alloc` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static WATCHED: Watched = Watched;

/// A platform that allocates nothing itself; every third folio fails at some step.
struct Quiet {
    calls: u64,
}

impl Quiet {
    fn fails(&mut self) -> bool {
        self.calls += 1;
        self.calls.is_multiple_of(3)
    }

    fn fail_some<H>(&mut self, entries: &mut [Entry<H>], step: Step) {
        for entry in entries {
            if self.fails() {
                entry.fail(Failure::new(step, Why::Again));
            }
        }
    }

    fn hold(&mut self) -> Result<(), Failure> {
        if self.fails() {
            return Err(Failure::new(Step::Lock, Why::Busy));
        }
        LOCKED.set(LOCKED.get() + 1);
        Ok(())
    }
}

impl Platform for Quiet {
    type Tier = bool;
    type Held = ();
    type Gather = ();
    type Job = Folio;

    fn now(&self) -> Duration {
        Duration::from_nanos(self.calls)
    }

    fn owner(&self) -> Option<&dyn FolioOwner> {
        Some(&NotEveryFifth)
    }

    fn try_lock(&mut self, _folio: Folio) -> Result<(), Failure> {
        self.hold()
    }

    fn lock(&mut self, _folio: Folio, _alone: &Alone) -> Result<(), Failure> {
        self.hold()
    }

    fn is_in(&self, folio: Folio, (): &(), tier: bool) -> bool {
        (folio.page() % 7 == 3) == tier
    }

    fn reserve(&mut self, entries: &mut [Entry<()>], _to: bool, _wait: &Wait) {
        self.fail_some(entries, Step::Reserve);
    }

    fn unmap(
        &mut self,
        _folio: Folio,
        (): &mut (),
        (): &mut (),
        _wait: &Wait,
    ) -> Result<(), Failure> {
        if self.fails() {
            return Err(Failure::new(Step::Unmap, Why::Pinned));
        }
        Ok(())
    }

    fn shootdown(&mut self, (): (), entries: &mut [Entry<()>]) {
        self.fail_some(entries, Step::Shootdown);
    }

    fn job(&mut self, folio: Folio, (): &mut ()) -> Folio {
        folio
    }

    fn copy_on_cpu(&mut self, _folio: Folio, (): &mut ()) -> Result<(), Failure> {
        if self.fails() {
            return Err(Failure::new(Step::Copy, Why::CopyFailed));
        }
        Ok(())
    }

    fn remap(&mut self, entries: &mut [Entry<()>]) {
        self.fail_some(entries, Step::Remap);
    }

    fn putback(&mut self, _entries: &mut [Entry<()>]) {}

    fn release(&mut self, folios: &mut dyn Iterator<Item = (Folio, ())>, _at: Place) {
        for _ in folios {
            LOCKED.set(LOCKED.get() - 1);
        }
    }
}

impl Exchange for Quiet {
    type SwapJob = Folio;

    fn are_alike(&self, (): &(), (): &()) -> bool {
        self.calls.is_multiple_of(7)
    }

    fn pair(&mut self, a: &mut [Entry<()>], b: &mut [Entry<()>]) {
        self.fail_some(a, Step::Reserve);
        self.fail_some(b, Step::Reserve);
    }

    fn swap_job(&mut self, (): &mut (), (): &mut ()) -> Folio {
        Folio::base(self.calls % 1000).unwrap_or(FIRST)
    }

    fn swap_on_cpu(&mut self, (): &mut (), (): &mut ()) -> Result<(), (Side, Failure)> {
        if self.fails() {
            return Err((Side::B, Failure::new(Step::Copy, Why::CopyFailed)));
        }
        Ok(())
    }

    fn swap_back(&mut self, (): &mut (), (): &mut ()) {}

    fn follow(&mut self, (): &mut ()) {}
}

impl Deferral for Quiet {
    fn hold(&mut self, entries: &mut [Entry<()>], _ahead: &[Folio]) {
        self.fail_some(entries, Step::Unmap);
    }

    fn park(&mut self, entries: &mut [Entry<()>]) {
        self.fail_some(entries, Step::Remap);
    }

    fn take_up(&mut self, entries: &mut [Entry<()>]) {
        LOCKED.set(LOCKED.get() + entries.len());
        self.fail_some(entries, Step::Unmap);
    }
}

/// A ledger; nobody has to wait for what is in it, so it does not count as locked.
struct Parking(Ledger<()>);

impl Waiting<Quiet> for Parking {
    fn make_room(&mut self, platform: &mut Quiet, base_pages: u64) -> bool {
        self.0.make_room(platform, base_pages)
    }

    fn relieve(&mut self, platform: &mut Quiet) -> bool {
        self.0.relieve(platform)
    }

    fn room(&self) -> u64 {
        self.0.room()
    }

    fn record(
        &mut self,
        entries: &mut dyn Iterator<Item = Entry<()>>,
        recorded: Generation,
        since: Duration,
    ) {
        let before = self.0.len();
        self.0.add(entries, recorded, since);
        LOCKED.set(LOCKED.get() - (self.0.len() - before));
    }

    fn withdraw(&mut self, base_pages: u64) {
        self.0.withdraw(base_pages);
    }
}

const FIRST: Folio = match Folio::base(0) {
    Some(folio) => folio,
    None => panic!("0 is a page"),
};

struct NotEveryFifth;

impl FolioOwner for NotEveryFifth {
    fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
        if folio.page().is_multiple_of(5) {
            return Err(Refused);
        }
        Ok(())
    }

    fn attach(&self, _folio: Folio, _at: Place) {}
}

struct EverySecond;

impl Swapper<Folio> for EverySecond {
    fn name(&self) -> &str {
        "every second"
    }

    fn swap(&self, _pairs: &[Folio], answers: &mut [SwapAnswer]) {
        for answer in answers.iter_mut().step_by(2) {
            *answer = SwapAnswer::Swapped;
        }
    }
}

impl Copier<Folio> for EverySecond {
    fn name(&self) -> &str {
        "every second"
    }

    fn copy(&self, _jobs: &[Folio], answers: &mut [CopyAnswer]) {
        for answer in answers.iter_mut().step_by(2) {
            *answer = CopyAnswer::Copied;
        }
    }
}

#[test]
fn nothing_is_allocated_while_a_folio_is_locked() {
    for mode in [Mode::Async, Mode::Sync] {
        let folios: Vec<Folio> = (0..2000).filter_map(Folio::base).collect();
        let request = Request {
            mode,
            ..Request::new(folios, true)
        };
        let before = ALLOCATED.get();
        let report = migrate(&mut Quiet { calls: 0 }, &EverySecond, request);
        assert!(ALLOCATED.get() > before, "the watch sees what is allocated");
        assert!(report.moved() > 0 && report.already_there() > 0 && report.stayed().count() > 0);
        assert!(report.counts.copied_by_copier > 0 && report.counts.copied_by_cpu > 0);
        assert_eq!(report.shootdowns, None, "this platform has no such counter");
        assert_eq!(LOCKED.get(), 0);
        assert_eq!(WHILE_LOCKED.get(), 0);
    }
}

#[test]
fn nor_while_one_is_locked_alone() {
    let mut quiet = Quiet { calls: 0 };
    for page in 0..50 {
        let mut work = Work::with_capacity(0);
        let folio = Folio::base(page).unwrap();
        let before = ALLOCATED.get();
        let alone = Isolated::alone(&mut quiet, &mut work, 0, folio, true);
        assert!(ALLOCATED.get() > before);
        alone
            .unmap()
            .shootdown()
            .copy(&EverySecond)
            .remap()
            .finish();
        assert_eq!(work.take_ended().count(), 1);
    }
    assert_eq!(LOCKED.get(), 0);
    assert_eq!(WHILE_LOCKED.get(), 0);
}

#[test]
fn nor_while_pairs_are_locked() {
    for mode in [Mode::Async, Mode::Sync] {
        let folios = |pages: std::ops::Range<u64>| pages.filter_map(Folio::base);
        let pairs = folios(0..2000).zip(folios(2000..4000)).collect();
        let request = ExchangeRequest {
            mode,
            ..ExchangeRequest::new(pairs)
        };
        let before = ALLOCATED.get();
        let report = exchange(&mut Quiet { calls: 0 }, &EverySecond, request);
        assert!(ALLOCATED.get() > before);
        assert!(report.exchanged() > 0 && report.stayed().count() > 0);
        assert!(report.counts.swapped_by_swapper > 0 && report.counts.swapped_by_cpu > 0);
        assert_eq!(LOCKED.get(), 0);
        assert_eq!(WHILE_LOCKED.get(), 0);
    }
}

#[test]
fn nor_while_pairs_are_recorded_and_switched() {
    let (limit, at_once) = (NonZeroU64::new(700).unwrap(), NonZeroU64::new(100).unwrap());
    let mut parking = Parking(Ledger::new(limit, at_once));
    let mut quiet = Quiet { calls: 0 };
    let request = Request::new((0..2000).filter_map(Folio::base).collect(), true);
    let before = ALLOCATED.get();
    let report = defer(&mut quiet, &EverySecond, request, &mut parking);
    assert!(ALLOCATED.get() > before);
    assert!(report.deferred() > 0 && report.stayed().count() > 0);
    assert!(parking.0.stayed() > 0, "it had to make room");
    assert_eq!((LOCKED.get(), WHILE_LOCKED.get()), (0, 0));

    let waiting = parking.0.len();
    let mut all = parking.0.take(|_| true);
    let settlement = settle(&mut quiet, &mut all, at_once);
    assert_eq!(settlement.outcomes.len(), waiting);
    // No shootdown for another reason flushes for this platform, so each batch has one.
    let counts = settlement.counts;
    assert!(counts.rounds > 0 && counts.rounds == counts.batches);
    assert_eq!((LOCKED.get(), WHILE_LOCKED.get()), (0, 0));
}
