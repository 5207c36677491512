//! The pairs of a region, and who settles them.

use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::time::Duration;

use transhume_engine::{
    Deferral as Defers, Entry, Failure, Folio, Generation, Ledger, Parked, Settlement, Waiting,
    settle,
};

use super::pressure::Pressure;
use super::{Bits, Deferral, DeferralUsage, Wants};
use crate::kernel::{HeldOff, limits};
use crate::runs::RunSet;
use crate::sync::{AtomicU64, Instant, Mutex, MutexGuard, Ordering};
use crate::{BASE_PAGE, SPARE_BYTES};

fn base_pages(bytes: usize) -> u64 {
    u64::try_from(bytes / BASE_PAGE).unwrap_or(u64::MAX)
}

fn bytes(base_pages: u64) -> usize {
    usize::try_from(base_pages).map_or(usize::MAX, |pages| pages.saturating_mul(BASE_PAGE))
}

/// What made it necessary to settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Asked,
    Store,
    Request,
    Limit,
    Age,
    Pressure,
}

/// See the [module](super).
#[derive(Debug)]
pub(crate) struct Pending<H> {
    /// Folios to which stores are held off. Set before the kernel is told so, cleared after it is
    /// told that they are free; so where it is set on a locked folio, nobody can store.
    pub(crate) held: Bits,
    /// Folios that are in the ledger, of all those that are locked.
    pub(crate) parked: Bits,
    /// Folios of which a page was given back while stores were held off from them: stores to what is
    /// there now are not. See [`fill_given_back`](super::Stores::fill_given_back).
    pub(super) gone: Bits,
    /// Folios that were pairs of the last request that named them and have stayed. The room that it
    /// took for them is free again, whether or not it has ended.
    pub(super) stayed: Bits,
    /// Held while something is put where a page was given back.
    pub(super) filling: Mutex<()>,
    pub(crate) wants: Wants,
    pub(crate) max_age: Duration,
    /// The clock of all sessions: pairs outlive them.
    pub(crate) epoch: Instant,
    at_once: NonZeroU64,
    ledger: Mutex<Ledger<H>>,
    /// Held while pairs are being settled, so that who wants a page that another settles waits for it.
    settling: Mutex<()>,
    pressure: Mutex<Pressure>,
    usage: Mutex<DeferralUsage>,
    /// Folios on which a store waits for an answer that the kernel would not take yet.
    pub(super) stores: Mutex<Vec<usize>>,
    most_held: AtomicU64,
}

/// A lock, with the handlers of signals held off: one that stored to a page that waits would wait for
/// the region's thread, which may need this lock.
#[derive(Debug)]
pub(super) struct Locked<'m, T> {
    guard: MutexGuard<'m, T>,
    _handlers: HeldOff,
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> Locked<'_, T> {
    let _handlers = HeldOff::begin();
    // What each protects is complete before anything that could panic.
    let guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
    Locked { guard, _handlers }
}

impl<H> Pending<H> {
    /// For a region of `pages` pages.
    pub(crate) fn new(deferral: &Deferral, pages: usize) -> Self {
        let at_least_one = |bytes: NonZeroUsize| {
            NonZeroU64::new(base_pages(bytes.get())).unwrap_or(NonZeroU64::MIN)
        };
        let limit = at_least_one(deferral.limit_bytes);
        let at_once = at_least_one(deferral.at_once_bytes).min(limit);
        Self {
            held: Bits::new(pages),
            parked: Bits::new(pages),
            gone: Bits::new(pages),
            stayed: Bits::new(pages),
            filling: Mutex::default(),
            wants: Wants::default(),
            max_age: deferral.max_age,
            epoch: Instant::now(),
            at_once,
            ledger: Mutex::new(Ledger::new(limit, at_once)),
            settling: Mutex::new(()),
            pressure: Mutex::new(Pressure::new(deferral.keep_free_bytes)),
            usage: Mutex::default(),
            stores: Mutex::default(),
            most_held: AtomicU64::new(0),
        }
    }

    /// Whether a page of this locked folio was given back since stores are held off from it.
    pub(crate) fn was_given_back(&self, folio: usize) -> bool {
        self.gone.take(folio)
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.ledger).is_empty()
    }

    /// Whether the oldest pair has waited for long enough.
    pub(crate) fn is_due(&self) -> bool {
        let now = self.epoch.elapsed();
        let oldest = lock(&self.ledger).oldest();
        oldest.is_some_and(|oldest| now.saturating_sub(oldest) >= self.max_age)
    }

    /// Whether memory is short.
    pub(crate) fn is_pressed(&self) -> bool {
        lock(&self.pressure).is_high()
    }

    /// Memory that it takes beside the pairs' frames.
    pub(crate) fn bytes(&self) -> usize {
        let bits = [&self.held, &self.parked, &self.gone, &self.stayed];
        bits.map(Bits::bytes).iter().sum::<usize>() + lock(&self.ledger).bytes()
    }

    /// How many base pages are settled at a time: as many as by one shootdown, and where address space
    /// is limited no more than it has room for.
    pub(crate) fn at_once(&self) -> NonZeroU64 {
        let room = limits::address_space_left().map(|room| room.saturating_sub(SPARE_BYTES));
        let most = room.and_then(|room| NonZeroU64::new(base_pages(room)));
        most.map_or(self.at_once, |most| most.min(self.at_once))
    }

    /// Settles what `which` takes out of the ledger, again and again until it finds nothing, by the
    /// platforms that `open` makes. Each time others that are being settled have been before, and have
    /// their turn after.
    pub(crate) fn settle<P: Defers<Held = H>>(
        &self,
        cause: Cause,
        mut which: impl FnMut(&mut Ledger<H>) -> Parked<H>,
        open: impl Fn() -> P,
    ) -> Settlement {
        let mut all = Settlement::default();
        while let Some(some) = self.settle_once(cause, &mut which, &open) {
            all.add(some);
        }
        all
    }

    /// The same, once; `None` if nothing was found.
    pub(crate) fn settle_once<P: Defers<Held = H>>(
        &self,
        cause: Cause,
        which: impl FnOnce(&mut Ledger<H>) -> Parked<H>,
        open: impl FnOnce() -> P,
    ) -> Option<Settlement> {
        let _settling = lock(&self.settling);
        let mut taken = self.take_out(which);
        if taken.parked.is_empty() {
            return None;
        }
        let mut platform = open();
        Some(self.settle_parked(cause, &mut platform, &mut taken.parked))
    }

    fn take_out(&self, which: impl FnOnce(&mut Ledger<H>) -> Parked<H>) -> TakenOut<'_, H> {
        TakenOut {
            parked: which(&mut lock(&self.ledger)),
            ledger: &self.ledger,
        }
    }

    fn settle_parked<P: Defers<Held = H>>(
        &self,
        cause: Cause,
        platform: &mut P,
        parked: &mut Parked<H>,
    ) -> Settlement {
        let pages = parked.len();
        let settlement = settle(platform, parked, self.at_once());
        let stayed = {
            let mut ledger = lock(&self.ledger);
            ledger.note(&settlement);
            ledger.stayed()
        };
        let mut usage = lock(&self.usage);
        usage.stayed = stayed;
        let settled = &mut usage.settled;
        *match cause {
            Cause::Asked => &mut settled.asked,
            Cause::Store => &mut settled.by_store,
            Cause::Request => &mut settled.by_request,
            Cause::Limit => &mut settled.by_limit,
            Cause::Age => &mut settled.by_age,
            Cause::Pressure => &mut settled.by_pressure,
        } += pages as u64;
        if let Some(more) = settlement.shootdowns {
            usage.shootdowns = Some(usage.shootdowns.unwrap_or(0) + more);
        }
        usage.longest_cut_off = usage.longest_cut_off.max(settlement.times.longest_cut_off);
        settlement
    }

    /// Says whether anything waited.
    fn settle_all<P: Defers<Held = H>>(&self, cause: Cause, platform: &mut P) -> bool {
        let mut waited = false;
        loop {
            let _settling = lock(&self.settling);
            let mut some = self.take_out(|ledger| ledger.take_some(|_| true, self.at_once()));
            if some.parked.is_empty() {
                return waited;
            }
            waited = true;
            self.settle_parked(cause, platform, &mut some.parked);
        }
    }

    fn note_held(&self, ledger: &Ledger<H>) {
        self.most_held.fetch_max(ledger.held(), Ordering::Relaxed);
    }
}

/// Pairs that have been taken out of the ledger. Those that are not settled, because something
/// panicked, go back to it.
struct TakenOut<'p, H> {
    parked: Parked<H>,
    ledger: &'p Mutex<Ledger<H>>,
}

impl<H> Drop for TakenOut<'_, H> {
    fn drop(&mut self) {
        lock(self.ledger).close(std::mem::take(&mut self.parked));
    }
}

/// What can be asked of pairs whichever their backing is.
pub(crate) trait AnyPending {
    /// What waits, and what has been settled.
    fn usage(&self) -> DeferralUsage;
    /// Which folios stayed, and why, since the last call.
    fn take_stayed(&self) -> Vec<(Folio, Failure)>;
    /// Whether a folio waits in the ledger.
    fn is_parked(&self, folio: usize) -> bool;
    /// A request for these folios begins, of which none waits.
    fn begin(&self, folios: &RunSet);
    /// Whether a folio of a request under way was a pair, and has stayed.
    fn has_stayed(&self, folio: usize) -> bool;
    /// The most base pages that may wait.
    fn limit(&self) -> NonZeroU64;
    /// Does something while nothing is being settled.
    fn while_none_settles(&self, work: &mut dyn FnMut());
}

impl<H> AnyPending for Pending<H> {
    fn usage(&self) -> DeferralUsage {
        let paused = self.is_pressed();
        let (pages, held) = {
            let ledger = lock(&self.ledger);
            (ledger.len(), ledger.held())
        };
        DeferralUsage {
            pages,
            bytes: bytes(held),
            most_bytes: bytes(self.most_held.load(Ordering::Relaxed)),
            paused,
            ..*lock(&self.usage)
        }
    }

    fn take_stayed(&self) -> Vec<(Folio, Failure)> {
        lock(&self.ledger).take_stayed()
    }

    fn is_parked(&self, folio: usize) -> bool {
        self.parked.is_set(folio)
    }

    fn begin(&self, folios: &RunSet) {
        folios
            .iter()
            .flatten()
            .for_each(|folio| self.stayed.clear(folio));
    }

    fn has_stayed(&self, folio: usize) -> bool {
        self.stayed.is_set(folio)
    }

    fn limit(&self) -> NonZeroU64 {
        lock(&self.ledger).limit()
    }

    fn while_none_settles(&self, work: &mut dyn FnMut()) {
        let _settling = lock(&self.settling);
        work();
    }
}

/// The region's ledger, as a request sees it.
#[derive(Debug)]
pub(crate) struct Desk<'p, H>(pub(crate) &'p Pending<H>);

impl<H, P: Defers<Held = H>> Waiting<P> for Desk<'_, H> {
    fn make_room(&mut self, platform: &mut P, base_pages: u64) -> bool {
        if self.0.is_pressed() {
            self.0.settle_all(Cause::Pressure, platform);
            return false;
        }
        let promise = || {
            let mut ledger = lock(&self.0.ledger);
            let promised = ledger.promise(base_pages);
            self.0.note_held(&ledger);
            promised
        };
        if promise() {
            return true;
        }
        self.0.settle_all(Cause::Limit, platform);
        promise()
    }

    fn relieve(&mut self, platform: &mut P) -> bool {
        self.0.settle_all(Cause::Limit, platform)
    }

    fn room(&self) -> u64 {
        lock(&self.0.ledger).room()
    }

    fn record(
        &mut self,
        entries: &mut dyn Iterator<Item = Entry<H>>,
        recorded: Generation,
        since: Duration,
    ) {
        let mut ledger = lock(&self.0.ledger);
        ledger.add(entries, recorded, since);
        drop(ledger);
        self.0.wants.look();
    }

    fn withdraw(&mut self, base_pages: u64) {
        lock(&self.0.ledger).withdraw(base_pages);
    }
}
