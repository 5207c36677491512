//! What is wrong with the region, its surroundings or the kernel in some worlds, and that the checker
//! must find.

use std::ops::Range;

use transhume_engine::Entry;
use transhume_sys::uffd::{Protection, Waiters};

use crate::BASE_PAGE;
use crate::deferral::Stores;
use crate::failure::wake;
use crate::faults;
use crate::kernel::{START, Uffd};
use crate::meet::World;
use crate::memory::Held;
use crate::orders;
use crate::runs::RunSet;
use crate::sync::{Ordering, fence, sleep};
use crate::table::{FaultSeen, FolioTable};
use crate::turnstile::Turnstile;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Who was left to the holder of a folio is woken before the page is mapped.
    WakesBeforeItMaps,
    /// A fault that is read when the page is there is not answered.
    DropsLateFaults,
    /// Stores are let go, and nobody is woken for that.
    LetsGoAndWakesNobody,
    /// A folio from which stores may have been let go is taken for held, because the call failed.
    TakesTornForHeld,
    /// Stores to a run are let go where only some of it could be locked.
    LetsGoWhatOthersHaveLocked,
    /// What others have locked at the end of a request is left to them.
    LeavesWhatOthersHaveLocked,
    /// A run of which one folio was mapped anew is taken for free, because the call said so of that one.
    TakesOneMappedAnewForAll,
    /// Who waits for a notification lets go of the lock between looking and waiting.
    WaitsLate,
    /// Who parks a folio does not look whether a store was left to him.
    ParksBlindly,
    /// The two looks of who parks and of who leaves a store to him are in no order.
    NoFence,
    /// One of those who wait for a page is woken.
    WakesOne,
    /// What is cut off counts as held from stores, so that a fault on it is taken for one on a page that
    /// was given back.
    CutsOffWhatIsHeld,
    /// Who waits at the blind is woken before the page is mapped over it.
    WakesBeforeItMapsOver,
    /// The keeper waits for who lays the blind, who waits for the keeper.
    WaitsForWhoWaits,
    /// A batch looks whether a fork is under way before it is inside, and not after.
    LooksThenEnters,
}

/// A mutant, and where it is found.
pub(crate) struct Wrong {
    pub(crate) mutant: Mutant,
    pub(crate) meeting: fn(World),
    pub(crate) interruptions: usize,
    /// What the oracle says.
    pub(crate) finds: &'static str,
}

const fn wrong(
    mutant: Mutant,
    meeting: fn(World),
    interruptions: usize,
    finds: &'static str,
) -> Wrong {
    Wrong {
        mutant,
        meeting,
        interruptions,
        finds,
    }
}

const LOST_WAKE_UP: &str = "deadlock";
const LOST_STORE: &str = "is lost";

pub(crate) const MUTANTS: &[Wrong] = &[
    wrong(
        Mutant::WakesBeforeItMaps,
        orders::mapped_without_a_wake,
        2,
        LOST_WAKE_UP,
    ),
    wrong(
        Mutant::DropsLateFaults,
        orders::mapped_without_a_wake,
        2,
        LOST_WAKE_UP,
    ),
    wrong(
        Mutant::LetsGoAndWakesNobody,
        orders::a_store_settles_what_was_held_ahead,
        2,
        LOST_WAKE_UP,
    ),
    wrong(
        Mutant::TakesTornForHeld,
        orders::letting_go_fails,
        2,
        LOST_STORE,
    ),
    wrong(
        Mutant::LetsGoWhatOthersHaveLocked,
        orders::one_of_what_is_held_ahead_is_locked,
        2,
        "another has let stores go",
    ),
    wrong(
        Mutant::LeavesWhatOthersHaveLocked,
        orders::one_of_what_is_held_ahead_is_locked,
        1,
        "are held off",
    ),
    wrong(
        Mutant::TakesOneMappedAnewForAll,
        orders::one_of_what_is_held_ahead_is_mapped_anew,
        1,
        "are held off",
    ),
    wrong(
        Mutant::WaitsLate,
        orders::a_store_settles_a_pair,
        2,
        LOST_WAKE_UP,
    ),
    wrong(
        Mutant::ParksBlindly,
        orders::a_store_settles_a_pair,
        2,
        LOST_WAKE_UP,
    ),
    wrong(
        Mutant::NoFence,
        orders::a_store_settles_a_pair,
        2,
        LOST_WAKE_UP,
    ),
    wrong(
        Mutant::WakesOne,
        orders::two_stores_mapped_without_a_wake,
        2,
        LOST_WAKE_UP,
    ),
    wrong(
        Mutant::CutsOffWhatIsHeld,
        orders::a_load_meets_a_switch,
        2,
        "a page over a page",
    ),
    wrong(
        Mutant::WakesBeforeItMapsOver,
        orders::a_store_meets_a_mapping,
        2,
        LOST_WAKE_UP,
    ),
    wrong(
        Mutant::WaitsForWhoWaits,
        orders::somebody_fetches_the_blind,
        2,
        LOST_WAKE_UP,
    ),
    wrong(
        Mutant::LooksThenEnters,
        orders::a_fork_meets_a_batch,
        3,
        "a child has holes",
    ),
];

/// [`faults::unlock`], too soon.
pub(crate) fn wakes_before_it_maps(
    table: &FolioTable,
    uffd: &Uffd,
    folio: usize,
    bytes: Range<usize>,
    map: impl FnOnce(),
) {
    if table.fault_waits(folio) {
        wake(uffd, bytes);
    }
    map();
    let _ = table.unlock(folio);
}

/// [`faults::answer`] for stores, with one of two things wrong: nobody is woken when stores are let go, or
/// the folio counts as held if that call failed. Then it is tried again, as it was.
pub(crate) fn answers_wrongly(
    stores: &Stores<'_, Held>,
    table: &FolioTable,
    mutant: Mutant,
) -> bool {
    let mut left = stores.answer(table);
    let _ = faults::answer_events(stores.uffd, None::<Stores<'_, Held>>, table, |address| {
        let folio = (address - START) / BASE_PAGE;
        let bytes = address..address + BASE_PAGE;
        while table.see_fault(folio) == FaultSeen::Free {
            if table.try_lock_for_fault(folio).is_err() {
                continue;
            }
            let unprotect = Protection::Unprotect(Waiters::LeaveAsleep);
            let let_go = stores.uffd.write_protect(bytes.clone(), unprotect);
            if let_go.is_ok() || mutant != Mutant::TakesTornForHeld {
                stores.are_free(&(folio..folio + 1));
            }
            let _ = table.unlock(folio);
            if mutant != Mutant::LetsGoAndWakesNobody {
                wake(stores.uffd, bytes);
            }
            if let_go.is_err() {
                stores.see(address);
                left = true;
            }
            return;
        }
        fence(Ordering::SeqCst);
        if stores.pending.parked.is_set(folio) {
            stores.pending.wants.store(folio);
        }
    });
    left
}

/// [`Stores::let_ahead_go`] with one of three things wrong: the call is for all of a run, whoever has it
/// locked; or what is locked is left to others; or what the call says of one folio is taken for what it
/// says of all.
pub(crate) fn lets_ahead_go_wrongly(
    stores: &Stores<'_, Held>,
    table: &FolioTable,
    held_ahead: &RunSet,
    mutant: Mutant,
) {
    for run in held_ahead.iter() {
        let locked = run.clone();
        let locked = locked.filter(|&folio| table.try_lock_for_fault(folio).is_ok());
        let locked = locked.collect::<Vec<_>>();
        match mutant {
            Mutant::LetsGoWhatOthersHaveLocked => stores.let_go(&run),
            Mutant::LeavesWhatOthersHaveLocked => {
                let each = locked.iter();
                each.for_each(|&folio| stores.let_go(&(folio..folio + 1)));
            }
            _ => {
                let bytes = START + run.start * BASE_PAGE..START + run.end * BASE_PAGE;
                let unprotect = Protection::Unprotect(Waiters::Wake);
                let _ = stores.uffd.write_protect(bytes, unprotect);
                stores.are_free(&run);
            }
        }
        for folio in locked {
            let bytes = START + folio * BASE_PAGE..START + (folio + 1) * BASE_PAGE;
            faults::unlock(table, stores.uffd, folio, bytes);
        }
    }
}

/// [`Stores::park`] without the look for a store that was left to the folio's holder before.
pub(crate) fn parks_blindly(stores: &Stores<'_, Held>, entries: &mut [Entry<Held>]) {
    for entry in entries {
        stores.pending.parked.set(entry.held.index);
        entry.held.marks.parked = true;
    }
}

/// [`Turnstile::enter`] in the wrong order.
pub(crate) fn looks_then_enters(turnstile: &Turnstile) {
    while turnstile.forking.load(Ordering::SeqCst) != 0 {
        sleep(std::time::Duration::ZERO);
    }
    turnstile.inside.fetch_add(1, Ordering::SeqCst);
}
