//! Who meets, and what must be so at the end.

use std::sync::Arc;

use crate::kernel::{Access, Machine, Trouble};
use crate::meet::{FAR, Joined, NEAR, Region, World};
use crate::mutants::{self, Mutant};
use crate::sync::{AtomicUsize, Ordering};
use crate::turnstile::Turnstile;

/// One meeting.
pub(crate) struct Meeting {
    pub(crate) name: &'static str,
    /// How often threads are interrupted, at most, in the orders that the quick check goes through. The
    /// long one goes one further.
    pub(crate) interruptions: usize,
    pub(crate) run: fn(World),
}

macro_rules! meetings {
    ($($name:ident: $interruptions:literal;)*) => {
        &[$(Meeting { name: stringify!($name), interruptions: $interruptions, run: $name }),*]
    };
}

pub(crate) const MEETINGS: &[Meeting] = meetings! {
    a_store_meets_a_migration: 3;
    two_stores_meet_a_migration: 2;
    a_load_meets_a_store_on_its_way: 2;
    there_and_back: 2;
    mapped_without_a_wake: 2;
    two_stores_mapped_without_a_wake: 2;
    given_back: 2;
    a_store_settles_a_pair: 2;
    a_load_meets_a_switch: 2;
    two_stores_to_a_pair: 1;
    two_settle_a_pair: 2;
    a_pair_that_is_given_back: 2;
    a_store_to_what_is_held_ahead: 2;
    a_store_settles_what_was_held_ahead: 1;
    letting_go_fails: 1;
    held_ahead_and_not_reached: 1;
    one_of_what_is_held_ahead_is_locked: 1;
    one_of_what_is_held_ahead_is_mapped_anew: 1;
    letting_a_run_go_fails: 1;
    the_ledger_is_full: 1;
    two_requests_for_a_page: 2;
    a_store_meets_a_mapping: 2;
    two_stores_meet_a_mapping: 1;
    a_store_settles_a_mapped_pair: 2;
    somebody_fetches_the_blind: 1;
    a_fork_meets_a_batch: 4;
};

pub(crate) fn a_store_meets_a_migration(world: World) {
    let region = Region::plain(world, 1);
    let app = region.thread(|thread| {
        thread.store(0, 0, 1);
        thread.expect(0, 0, 1);
    });
    region.migrate(0..1, FAR, 1);
    app.join();
    region.holds(0, [1, 0]);
    region.is_in(0, FAR);
}

pub(crate) fn two_stores_meet_a_migration(world: World) {
    let region = Region::plain(world, 1);
    let apps = [0, 1].map(|word| {
        region.thread(move |thread| {
            thread.store(0, word, 1);
            thread.expect(0, word, 1);
        })
    });
    region.migrate(0..1, FAR, 1);
    apps.into_iter().for_each(Joined::join);
    region.holds(0, [1, 1]);
    region.is_in(0, FAR);
}

pub(crate) fn a_load_meets_a_store_on_its_way(world: World) {
    let region = Region::plain(world, 1);
    let stores = region.thread(|thread| (1..=2).for_each(|version| thread.store(0, 0, version)));
    let loads = region.thread(|thread| {
        let (first, second) = (thread.load(0, 0), thread.load(0, 0));
        assert!(first <= second, "{first} and then the older {second}");
    });
    region.migrate(0..1, FAR, 1);
    stores.join();
    loads.join();
    region.holds(0, [2, 0]);
}

fn there_and_back(world: World) {
    let region = Region::plain(world, 2);
    let app = region.thread(|thread| {
        for (folio, version) in [(0, 1), (1, 1), (0, 2)] {
            thread.store(folio, 0, version);
            thread.expect(folio, 0, version);
        }
    });
    region.migrate(0..2, FAR, 2);
    region.migrate(0..2, NEAR, 1);
    app.join();
    region.holds(0, [2, 0]);
    region.holds(1, [1, 0]);
}

/// Who waits for a page is woken all the same: by the holder, to whom the fault was left, or because the
/// fault was read late.
pub(crate) fn mapped_without_a_wake(mut world: World) {
    world.trouble = Some(Trouble::MapsQuietly);
    a_store_meets_a_migration(world);
}

/// A page that is given back is zeros, or stays as it was if it was cut off just then.
fn given_back(world: World) {
    let region = Region::plain(world, 1);
    let app = region.thread(|thread| {
        thread.store(0, 0, 1);
        thread.give_back(0);
        assert!(thread.load(0, 0) <= 1);
        thread.store(0, 0, 2);
        thread.expect(0, 0, 2);
    });
    region.migrate(0..1, FAR, 1);
    app.join();
    region.holds(0, [2, 0]);
}

/// The same with two: each is woken.
pub(crate) fn two_stores_mapped_without_a_wake(mut world: World) {
    world.trouble = Some(Trouble::MapsQuietly);
    two_stores_meet_a_migration(world);
}

/// Nobody but the store makes it settle.
pub(crate) fn a_store_settles_a_pair(world: World) {
    let region = Region::deferring(world, 1, 1);
    let app = region.thread(|thread| {
        thread.store(0, 0, 1);
        thread.expect(0, 0, 1);
    });
    region.defer(0..1, FAR, 1);
    app.join();
    region.settle(1);
    region.holds(0, [1, 0]);
    region.is_in(0, FAR);
}

pub(crate) fn a_load_meets_a_switch(world: World) {
    let region = Region::deferring(world, 1, 1);
    region.machine.access(0, Access::Store(0, 1));
    let app = region.thread(|thread| {
        thread.expect(0, 0, 1);
        thread.expect(0, 0, 1);
    });
    region.defer(0..1, FAR, 1);
    region.settle(1);
    app.join();
    region.holds(0, [1, 0]);
    region.is_in(0, FAR);
}

fn two_stores_to_a_pair(world: World) {
    let region = Region::deferring(world, 2, 2);
    let apps = [0, 1].map(|word| {
        region.thread(move |thread| {
            thread.store(word, word, 1);
            thread.expect(word, word, 1);
        })
    });
    region.defer(0..2, FAR, 2);
    apps.into_iter().for_each(Joined::join);
    region.holds(0, [1, 0]);
    region.holds(1, [0, 1]);
}

/// Somebody asks for it while the region's thread settles it for a store.
pub(crate) fn two_settle_a_pair(world: World) {
    let region = Region::deferring(world, 1, 1);
    let app = region.thread(|thread| {
        thread.store(0, 0, 1);
        thread.store(0, 0, 2);
        thread.expect(0, 0, 2);
    });
    region.defer(0..1, FAR, 1);
    region.settle(1);
    app.join();
    region.holds(0, [2, 0]);
    region.is_in(0, FAR);
}

/// What is there afterwards is not protected, and the pair stays at its source.
pub(crate) fn a_pair_that_is_given_back(world: World) {
    let region = Region::deferring(world, 1, 1);
    let app = region.thread(|thread| {
        thread.give_back(0);
        thread.store(0, 0, 1);
        thread.store(0, 0, 2);
        thread.expect(0, 0, 2);
    });
    region.defer(0..1, FAR, 1);
    region.settle(1);
    app.join();
    region.holds(0, [2, 0]);
}

/// Stores are held off from two folios by one call, and the second has its turn later.
fn a_store_to_what_is_held_ahead(world: World) {
    let region = Region::deferring(world, 2, 2);
    let app = region.thread(|thread| {
        thread.store(1, 0, 1);
        thread.store(1, 0, 2);
    });
    region.defer(0..2, FAR, 1);
    region.settle(2);
    app.join();
    region.holds(1, [2, 0]);
}

/// The same, and nobody but the store makes the second settle: it is let go before its turn, or after.
pub(crate) fn a_store_settles_what_was_held_ahead(world: World) {
    let region = Region::deferring(world, 2, 2);
    let app = region.thread(|thread| {
        thread.store(1, 0, 1);
        thread.expect(1, 0, 1);
    });
    region.defer(0..2, FAR, 1);
    app.join();
    region.holds(1, [1, 0]);
}

pub(crate) fn letting_go_fails(mut world: World) {
    world.trouble = Some(Trouble::LetGoFails);
    a_store_to_what_is_held_ahead(world);
}

/// The second is pinned when its turn comes, so the request ends with stores held off from it.
pub(crate) fn held_ahead_and_not_reached(world: World) {
    let region = Region::deferring(world, 2, 2);
    region.pin(&[1]);
    let app = region.thread(|thread| {
        thread.store(1, 0, 1);
        thread.expect(1, 0, 1);
    });
    region.defer(0..2, FAR, 1);
    region.is_let_go(1..2);
    app.join();
    region.holds(1, [1, 0]);
    region.is_in(1, NEAR);
}

/// Of a run that is held ahead one folio is locked by somebody who does nothing about it. It is let go when
/// he has given it up, with those behind it.
pub(crate) fn one_of_what_is_held_ahead_is_locked(world: World) {
    const LOCKED: usize = 2;
    let region = Region::deferring(world, 4, 4);
    region.pin(&[1, 2, 3]);
    let core = Arc::clone(&region.kept.core);
    core.table.try_lock_for_fault(LOCKED).unwrap();
    let machine = Arc::clone(&region.machine);
    let other = loom::thread::spawn(move || {
        let before = machine.is_held_off(LOCKED);
        let after = machine.is_held_off(LOCKED);
        assert!(after || !before, "another has let stores go");
        let _ = core.table.unlock(LOCKED);
    });
    region.defer(0..4, FAR, 1);
    region.is_let_go(1..4);
    let calls = region.machine.let_go();
    assert!(calls <= 2, "{calls} calls");
    other.join().unwrap();
}

/// Of a run that is held ahead one folio moves meanwhile, and the kernel stops at its new mapping.
pub(crate) fn one_of_what_is_held_ahead_is_mapped_anew(mut world: World) {
    world.trouble = Some(Trouble::MapsUnregistered);
    let region = Arc::new(Region::mapped_deferring(world, 3));
    region.pin(&[2]);
    let other = {
        let region = Arc::clone(&region);
        loom::thread::spawn(move || drop(region.migrate(1..2, FAR, 1)))
    };
    region.defer(0..3, FAR, 1);
    region.is_let_go(2..3);
    other.join().unwrap();
    region.settle(3);
    region.is_let_go(0..3);
}

/// The call for two folios fails when one of them is let go, while somebody stores to the other.
fn letting_a_run_go_fails(mut world: World) {
    world.trouble = Some(Trouble::LetGoFails);
    let region = Region::deferring(world, 3, 3);
    region.pin(&[1, 2]);
    let app = region.thread(|thread| {
        thread.store(2, 0, 1);
        thread.expect(2, 0, 1);
    });
    region.defer(0..3, FAR, 1);
    region.is_let_go(1..3);
    app.join();
    region.holds(2, [1, 0]);
}

/// The second batch settles the first, while somebody stores to it.
fn the_ledger_is_full(world: World) {
    let region = Region::deferring(world, 2, 1);
    let app = region.thread(|thread| {
        thread.store(0, 0, 1);
        thread.expect(0, 0, 1);
    });
    region.defer(0..2, FAR, 1);
    app.join();
    region.settle(2);
    region.holds(0, [1, 0]);
    region.is_in(0, FAR);
    region.is_in(1, FAR);
}

/// One leaves its switch for later, the other wants the page elsewhere: whoever comes first, the room is
/// where the page is.
fn two_requests_for_a_page(world: World) {
    let region = Arc::new(Region::deferring(world, 1, 1));
    region.machine.access(0, Access::Store(0, 1));
    let other = {
        let region = Arc::clone(&region);
        loom::thread::spawn(move || region.request(0, NEAR, false))
    };
    region.request(0, FAR, true);
    other.join().unwrap();
    region.settle(1);
    region.holds(0, [1, 0]);
    let tier = region.kept.core.table.tier(0);
    for one in [NEAR, FAR] {
        assert_eq!(region.room_taken(one), usize::from(one == tier));
    }
}

pub(crate) fn a_store_meets_a_mapping(world: World) {
    let region = Region::mapped(world, 1);
    let app = region.thread(|thread| {
        thread.store(0, 0, 1);
        thread.expect(0, 0, 1);
    });
    region.migrate(0..1, FAR, 1);
    app.join();
    region.holds(0, [1, 0]);
    region.is_in(0, FAR);
}

fn two_stores_meet_a_mapping(world: World) {
    let region = Region::mapped(world, 1);
    let apps = [0, 1].map(|word| {
        region.thread(move |thread| {
            thread.store(0, word, 1);
            thread.expect(0, word, 1);
        })
    });
    region.migrate(0..1, FAR, 1);
    apps.into_iter().for_each(Joined::join);
    region.holds(0, [1, 1]);
}

fn a_store_settles_a_mapped_pair(world: World) {
    let region = Region::mapped_deferring(world, 1);
    let app = region.thread(|thread| {
        thread.store(0, 0, 1);
        thread.expect(0, 0, 1);
    });
    region.defer(0..1, FAR, 1);
    app.join();
    region.settle(1);
    region.holds(0, [1, 0]);
    region.is_in(0, FAR);
}

/// As a thread does that locks all memory: it gets zeros, and nobody else sees them.
pub(crate) fn somebody_fetches_the_blind(world: World) {
    let region = Region::mapped(world, 1);
    region.machine.access(0, Access::Store(0, 1));
    let fetches = region.thread(|thread| {
        thread.expect(1, 0, 0);
        thread.expect(0, 0, 1);
    });
    region.migrate(0..1, FAR, 1);
    region.migrate(0..1, NEAR, 1);
    fetches.join();
    region.holds(0, [1, 0]);
}

/// No fork copies page tables while a batch is inside, and neither waits for the other for ever.
pub(crate) fn a_fork_meets_a_batch(world: World) {
    let machine = Machine::boot(0, world.mutant, None);
    let turnstile = Arc::new(Turnstile {
        inside: AtomicUsize::new(0),
        forking: AtomicUsize::new(0),
    });
    let cut_off = Arc::new(AtomicUsize::new(0));
    let forks = {
        let (turnstile, cut_off) = (Arc::clone(&turnstile), Arc::clone(&cut_off));
        loom::thread::spawn(move || {
            turnstile.before_fork();
            let holes = cut_off.load(Ordering::SeqCst);
            assert_eq!(holes, 0, "a child has holes");
            turnstile.after_fork();
        })
    };
    for _ in 0..2 {
        let inside = if machine.mutant == Some(Mutant::LooksThenEnters) {
            mutants::looks_then_enters(&turnstile);
            None
        } else {
            Some(turnstile.enter().unwrap())
        };
        cut_off.fetch_add(1, Ordering::SeqCst);
        cut_off.fetch_sub(1, Ordering::SeqCst);
        if inside.is_none() {
            turnstile.inside.fetch_sub(1, Ordering::SeqCst);
        }
        drop(inside);
    }
    forks.join().unwrap();
}
