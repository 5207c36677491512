//! Where each folio of a region is, and who holds it.
//!
//! One byte of state and one of tier a folio. The state is a lock that threads take by
//! compare-and-swap and never sleep on while they hold another (\[batch-deadlock\]), a mark that a
//! fault was passed over while the folio was locked, and a count of declared pins.

use std::time::Duration;

use transhume_engine::FolioOwner;

use crate::owner::Owner;
use crate::sync::{AtomicU8, AtomicU64, AtomicUsize, Instant, Ordering, sleep};
use crate::tier::TierId;

const LOCKED: u8 = 1;
const FAULT_WAITS: u8 = 1 << 1;
const PIN: u8 = 1 << 2;
const PINS: u8 = !(LOCKED | FAULT_WAITS);

/// Why a lock was not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Somebody holds it.
    Locked,
    /// The application has declared that the kernel may hold the frame.
    Pinned,
}

/// Whether a fault was passed over while the folio was locked; its thread must be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Unlocked {
    /// Nobody waits that remap or putback has not woken.
    Quietly,
    /// A thread may wait for this folio.
    FaultWaits,
}

/// What to do about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultSeen {
    /// The folio is locked: whoever unlocks it wakes the thread.
    LeftToHolder,
    /// The folio is free: the page came back already, or there is none.
    Free,
}

/// The state of every folio of a region.
#[derive(Debug)]
pub(crate) struct FolioTable {
    state: Box<[AtomicU8]>,
    tier: Box<[AtomicU8]>,
    /// How many folios each tier has room taken for: those in it, those on their way to it, and
    /// those that have left it until their frames are free.
    taken: Box<[AtomicUsize]>,
    /// How many folios have moved.
    moved: AtomicU64,
    /// Who must let go of a folio before it is cut off.
    owner: Option<Owner>,
}

impl FolioTable {
    /// A table of `folios` folios, all in the first of `tiers` tiers and free.
    pub(crate) fn new(folios: usize, tiers: usize) -> Self {
        let table = Self {
            state: (0..folios).map(|_| AtomicU8::new(0)).collect(),
            tier: (0..folios).map(|_| AtomicU8::new(0)).collect(),
            taken: (0..tiers).map(|_| AtomicUsize::new(0)).collect(),
            moved: AtomicU64::new(0),
            owner: None,
        };
        table.taken[0].store(folios, Ordering::Relaxed);
        table
    }

    /// The same table of folios that have an owner.
    pub(crate) fn with_owner(mut self, owner: Option<Owner>) -> Self {
        self.owner = owner;
        self
    }

    /// The folios' owner, whom sessions name to the engine.
    pub(crate) fn owner(&self) -> Option<&dyn FolioOwner> {
        let owner = self.owner.as_ref()?;
        Some(owner)
    }

    pub(crate) fn len(&self) -> usize {
        self.state.len()
    }

    /// How many folios are in a tier.
    pub(crate) fn population(&self, tier: TierId) -> usize {
        let there = |other: &&AtomicU8| other.load(Ordering::Relaxed) == tier.0;
        self.tier.iter().filter(there).count()
    }

    /// How many folios have moved since it was made, each as often as it did.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Takes room for `folios` more in a tier that holds `capacity`; arriving takes no more.
    ///
    /// # Errors
    ///
    /// How many have taken room already, if these do not fit; then none is taken.
    pub(crate) fn take_room(
        &self,
        tier: TierId,
        folios: usize,
        capacity: usize,
    ) -> Result<(), usize> {
        self.taken[tier.index()]
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                taken.checked_add(folios).filter(|&sum| sum <= capacity)
            })
            .map(drop)
    }

    /// Gives back the room of folios that have left a tier, or will not come.
    pub(crate) fn free_room(&self, tier: TierId, folios: usize) {
        self.taken[tier.index()].fetch_sub(folios, Ordering::Relaxed);
    }

    /// Memory that the table takes.
    pub(crate) fn bytes(&self) -> usize {
        self.state.len() + self.tier.len()
    }

    pub(crate) fn tier(&self, folio: usize) -> TierId {
        TierId(self.tier[folio].load(Ordering::Relaxed))
    }

    /// Records that a folio has come to a tier, where room was taken for it; its lock must be held.
    fn arrive(&self, folio: usize, tier: TierId) {
        self.tier[folio].store(tier.0, Ordering::Relaxed);
    }

    pub(crate) fn try_lock(&self, folio: usize) -> Result<(), Refused> {
        let mut seen = self.state[folio].load(Ordering::Relaxed);
        loop {
            if seen & PINS != 0 {
                return Err(Refused::Pinned);
            }
            if seen & LOCKED != 0 {
                return Err(Refused::Locked);
            }
            match self.state[folio].compare_exchange_weak(
                seen,
                seen | LOCKED,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
        }
    }

    /// Takes the lock to answer a fault, whether or not the folio is pinned: a pin keeps migrators
    /// away, and this keeps away those that begin when the pin is gone.
    pub(crate) fn try_lock_for_fault(&self, folio: usize) -> Result<(), Refused> {
        let before = self.state[folio].fetch_or(LOCKED, Ordering::Acquire);
        if before & LOCKED == 0 {
            Ok(())
        } else {
            Err(Refused::Locked)
        }
    }

    /// Takes the lock, and waits for it up to `patience`. Only for a thread that holds no other.
    pub(crate) fn lock(&self, folio: usize, patience: Duration) -> Result<(), Refused> {
        wait_for(patience, || self.try_lock(folio))
    }

    /// The same, and waits for it up to `patience`. Only for a thread that holds no other.
    pub(crate) fn lock_for_fault(&self, folio: usize, patience: Duration) -> Result<(), Refused> {
        wait_for(patience, || self.try_lock_for_fault(folio))
    }

    pub(crate) fn unlock(&self, folio: usize) -> Unlocked {
        let before = self.state[folio].fetch_and(!(LOCKED | FAULT_WAITS), Ordering::Release);
        debug_assert!(before & LOCKED != 0, "folio {folio} was not locked");
        if before & FAULT_WAITS == 0 {
            Unlocked::Quietly
        } else {
            Unlocked::FaultWaits
        }
    }

    /// A fault was read for this folio: leave it to the lock's holder, if there is one.
    pub(crate) fn see_fault(&self, folio: usize) -> FaultSeen {
        let mut seen = self.state[folio].load(Ordering::Relaxed);
        loop {
            if seen & LOCKED == 0 {
                return FaultSeen::Free;
            }
            match self.state[folio].compare_exchange_weak(
                seen,
                seen | FAULT_WAITS,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return FaultSeen::LeftToHolder,
                Err(now) => seen = now,
            }
        }
    }

    /// Whether a fault on the folio was left to the lock's holder.
    pub(crate) fn fault_waits(&self, folio: usize) -> bool {
        self.state[folio].load(Ordering::SeqCst) & FAULT_WAITS != 0
    }

    /// Adds a pin, waiting up to `patience` for a migration of the folio to end.
    pub(crate) fn pin(&self, folio: usize, patience: Duration) -> Result<(), Refused> {
        wait_for(patience, || self.try_pin(folio))
    }

    fn try_pin(&self, folio: usize) -> Result<(), Refused> {
        let mut seen = self.state[folio].load(Ordering::Relaxed);
        loop {
            if seen & LOCKED != 0 {
                return Err(Refused::Locked);
            }
            if seen & PINS == PINS {
                return Err(Refused::Pinned);
            }
            match self.state[folio].compare_exchange_weak(
                seen,
                seen + PIN,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
        }
    }

    /// Whether a pin keeps migrators away from it.
    pub(crate) fn is_pinned(&self, folio: usize) -> bool {
        self.state[folio].load(Ordering::Relaxed) & PINS != 0
    }

    pub(crate) fn unpin(&self, folio: usize) {
        let before = self.state[folio].fetch_sub(PIN, Ordering::Release);
        debug_assert!(before & PINS != 0, "folio {folio} was not pinned");
    }
}

/// Counts folios that have moved, and frees their room in the tiers that they have left when it is
/// dropped: when their frames are free too.
#[derive(Debug)]
pub(crate) struct Tally<'t> {
    table: &'t FolioTable,
    left: Option<(TierId, usize)>,
    /// Whether they have left room behind.
    room_is_left: bool,
}

impl<'t> Tally<'t> {
    pub(crate) fn new(table: &'t FolioTable) -> Self {
        Self {
            table,
            left: None,
            room_is_left: true,
        }
    }

    /// For folios that trade places: the room of each is its partner's now.
    pub(crate) fn of_exchange(table: &'t FolioTable) -> Self {
        let mut tally = Self::new(table);
        tally.room_is_left = false;
        tally
    }

    /// Records that a folio has moved.
    pub(crate) fn moved(&mut self, folio: usize, from: TierId, to: TierId) {
        self.table.arrive(folio, to);
        match &mut self.left {
            Some((same, count)) if *same == from => *count += 1,
            _ => {
                self.flush();
                self.left = Some((from, 1));
            }
        }
    }

    fn flush(&mut self) {
        if let Some((from, count)) = self.left.take() {
            if self.room_is_left {
                self.table.free_room(from, count);
            }
            self.table.moved.fetch_add(count as u64, Ordering::Relaxed);
        }
    }
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Tries until it succeeds or `patience` has passed: batches are short, so it sleeps little.
fn wait_for(
    patience: Duration,
    mut attempt: impl FnMut() -> Result<(), Refused>,
) -> Result<(), Refused> {
    const NAP: Duration = Duration::from_micros(50);
    let Err(mut refused) = attempt() else {
        return Ok(());
    };
    let until = Instant::now() + patience;
    while Instant::now() < until {
        sleep(NAP);
        match attempt() {
            Ok(()) => return Ok(()),
            Err(again) => refused = again,
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> FolioTable {
        FolioTable::new(4, 2)
    }

    #[test]
    fn a_lock_is_held_once() {
        let table = table();
        assert_eq!(table.try_lock(1), Ok(()));
        assert_eq!(table.try_lock(1), Err(Refused::Locked));
        assert_eq!(
            table.lock(1, Duration::from_millis(1)),
            Err(Refused::Locked)
        );
        assert_eq!(table.try_lock(2), Ok(()));
        assert_eq!(table.unlock(1), Unlocked::Quietly);
        assert_eq!(table.try_lock(1), Ok(()));
    }

    #[test]
    fn a_fault_on_a_locked_folio_is_told_to_the_holder_once() {
        let table = table();
        assert_eq!(table.see_fault(0), FaultSeen::Free);
        table.try_lock(0).unwrap();
        assert_eq!(table.see_fault(0), FaultSeen::LeftToHolder);
        assert_eq!(table.unlock(0), Unlocked::FaultWaits);
        table.try_lock(0).unwrap();
        assert_eq!(table.unlock(0), Unlocked::Quietly);
    }

    #[test]
    fn pins_keep_a_folio_and_count() {
        let table = table();
        table.pin(3, Duration::ZERO).unwrap();
        table.pin(3, Duration::ZERO).unwrap();
        table.unpin(3);
        assert_eq!(table.try_lock(3), Err(Refused::Pinned));
        assert_eq!(table.try_lock_for_fault(3), Ok(()));
        assert_eq!(table.try_lock_for_fault(3), Err(Refused::Locked));
        assert_eq!(
            table.lock_for_fault(3, Duration::from_millis(1)),
            Err(Refused::Locked)
        );
        table.unpin(3);
        assert_eq!(table.try_lock(3), Err(Refused::Locked));
        assert_eq!(table.unlock(3), Unlocked::Quietly);
        assert_eq!(table.try_lock(3), Ok(()));
        assert_eq!(table.pin(3, Duration::ZERO), Err(Refused::Locked));
    }

    #[test]
    fn room_is_free_when_all_have_left() {
        let (table, near, far) = (table(), TierId(0), TierId(1));
        assert_eq!(table.take_room(far, 3, 2), Err(0));
        assert_eq!(table.take_room(far, 2, 2), Ok(()));
        let mut tally = Tally::new(&table);
        tally.moved(1, near, far);
        tally.moved(2, near, far);
        assert_eq!((table.tier(0), table.tier(2)), (near, far));
        assert_eq!((table.population(near), table.population(far)), (2, 2));
        assert_eq!(
            table.take_room(near, 1, 4),
            Err(4),
            "their frames are not free"
        );
        assert_eq!(
            table.take_room(far, 1, 2),
            Err(2),
            "those that arrive count once"
        );
        drop(tally);
        assert_eq!(table.take_room(near, 2, 4), Ok(()));
    }

    #[test]
    fn who_trades_places_leaves_no_room() {
        let (table, near, far) = (table(), TierId(0), TierId(1));
        assert_eq!(table.take_room(far, 1, 1), Ok(()));
        Tally::new(&table).moved(1, near, far);
        let mut tally = Tally::of_exchange(&table);
        tally.moved(0, near, far);
        tally.moved(1, far, near);
        drop(tally);
        assert_eq!((table.tier(0), table.tier(1)), (far, near));
        assert_eq!(table.take_room(far, 1, 1), Err(1));
        assert_eq!(table.take_room(near, 2, 4), Err(3));
        assert_eq!(table.moved(), 3);
    }

    #[test]
    fn pins_do_not_overflow_into_the_lock() {
        let table = table();
        for _ in 0..63 {
            table.pin(0, Duration::ZERO).unwrap();
        }
        assert_eq!(table.pin(0, Duration::ZERO), Err(Refused::Pinned));
        for _ in 0..63 {
            table.unpin(0);
        }
        assert_eq!(table.try_lock(0), Ok(()));
    }
}
