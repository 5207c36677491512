//! The pairs of a region, and who settles them.

use std::num::NonZeroU64;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use transhume_engine::{
    Deferral as Defers, Entry, Failure, Folio, Generation, Ledger, Parked, Settlement, Waiting,
    settle,
};

use transhume_sys::signals::HeldOff;

use super::pressure::Pressure;
use super::{Bits, Deferral, DeferralUsage, Wants};
use crate::tier::PageSize;

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
    /// there now are not. See [`given_back`](super::stores).
    pub(super) gone: Bits,
    /// Held while something is put where a page was given back.
    pub(super) filling: Mutex<()>,
    pub(crate) wants: Wants,
    pub(crate) max_age: Duration,
    /// The clock of all sessions: pairs outlive them.
    pub(crate) epoch: Instant,
    at_once: NonZeroU64,
    page: usize,
    ledger: Mutex<Ledger<H>>,
    /// Held while pairs are being settled, so that who wants a page that another settles waits for it.
    settling: Mutex<()>,
    pressure: Mutex<Pressure>,
    usage: Mutex<DeferralUsage>,
    /// Folios on which a store waits for an answer that the kernel would not take yet.
    pub(super) stores: Mutex<Vec<usize>>,
    most_pages: AtomicUsize,
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
    pub(crate) fn new(deferral: &Deferral, page_size: PageSize, pages: usize) -> Self {
        let base_pages = |bytes: usize| {
            let base = u64::try_from(bytes / crate::BASE_PAGE).unwrap_or(u64::MAX);
            NonZeroU64::new(base).unwrap_or(NonZeroU64::MIN)
        };
        let limit = base_pages(deferral.limit_bytes.get());
        let at_once = base_pages(deferral.at_once_bytes.get()).min(limit);
        Self {
            held: Bits::new(pages),
            parked: Bits::new(pages),
            gone: Bits::new(pages),
            filling: Mutex::default(),
            wants: Wants::default(),
            max_age: deferral.max_age,
            epoch: Instant::now(),
            at_once,
            page: page_size.bytes(),
            ledger: Mutex::new(Ledger::new(limit, at_once)),
            settling: Mutex::new(()),
            pressure: Mutex::new(Pressure::new(deferral.keep_free_bytes)),
            usage: Mutex::default(),
            stores: Mutex::default(),
            most_pages: AtomicUsize::new(0),
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
        self.held.bytes() + self.parked.bytes() + self.gone.bytes() + lock(&self.ledger).bytes()
    }

    /// Settles what `which` takes out of the ledger, by the platform that `open` makes; not before
    /// others that are being settled have been.
    pub(crate) fn settle<P: Defers<Held = H>>(
        &self,
        cause: Cause,
        which: impl FnOnce(&mut Ledger<H>) -> Parked<H>,
        open: impl FnOnce() -> P,
    ) -> Settlement {
        let _settling = lock(&self.settling);
        let mut parked = which(&mut lock(&self.ledger));
        if parked.is_empty() {
            return Settlement::default();
        }
        let mut platform = open();
        self.settle_parked(cause, &mut platform, &mut parked)
    }

    fn settle_parked<P: Defers<Held = H>>(
        &self,
        cause: Cause,
        platform: &mut P,
        parked: &mut Parked<H>,
    ) -> Settlement {
        let pages = parked.len();
        let settlement = settle(platform, parked, self.at_once);
        let before = {
            let mut ledger = lock(&self.ledger);
            ledger.note(&settlement);
            ledger.stayed()
        };
        let mut usage = lock(&self.usage);
        usage.stayed = before;
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

    fn settle_all<P: Defers<Held = H>>(&self, cause: Cause, platform: &mut P) {
        let _settling = lock(&self.settling);
        let mut all = lock(&self.ledger).take(|_| true);
        if !all.is_empty() {
            self.settle_parked(cause, platform, &mut all);
        }
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
}

impl<H> AnyPending for Pending<H> {
    fn usage(&self) -> DeferralUsage {
        let paused = self.is_pressed();
        let pages = lock(&self.ledger).len();
        DeferralUsage {
            pages,
            bytes: pages * self.page,
            most_bytes: self.most_pages.load(Ordering::Relaxed) * self.page,
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
        if lock(&self.0.ledger).promise(base_pages) {
            return true;
        }
        self.0.settle_all(Cause::Limit, platform);
        lock(&self.0.ledger).promise(base_pages)
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
        self.0.most_pages.fetch_max(ledger.len(), Ordering::Relaxed);
        drop(ledger);
        self.0.wants.look();
    }

    fn withdraw(&mut self, base_pages: u64) {
        lock(&self.0.ledger).withdraw(base_pages);
    }
}
