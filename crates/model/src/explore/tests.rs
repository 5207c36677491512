//! The reduced search meets every end that all orders have, each in fewer runs.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use transhume_engine::{Limit, Mode};

use super::{Exhaustive, Recorded};
use crate::actor::locked;
use crate::check::{Tally, run};
use crate::platform::Kind;
use crate::roles::{Role, load, store};
use crate::setup::{Setup, to_1};

/// How many orders there are, and all ends.
fn ends(setup: &Setup, search: Exhaustive) -> (u64, BTreeSet<String>) {
    let strategy = Arc::new(Mutex::new(Recorded::new(search)));
    let tally = Arc::new(Mutex::new(Tally::of_ends()));
    run(setup.clone(), None, &strategy, &tally, &Arc::default());
    let tally = std::mem::take(&mut *locked(&tally));
    assert_eq!(tally.violation, None);
    (tally.orders, tally.ends.unwrap_or_default())
}

fn compare(setup: &Setup, least_ends: usize) {
    let (all, all_ends) = ends(setup, Exhaustive::naive());
    let (some, some_ends) = ends(setup, Exhaustive::default());
    assert_eq!(some_ends, all_ends);
    assert!(all_ends.len() >= least_ends, "{all_ends:?}");
    assert!(some < all, "{some} of {all}");
}

#[test]
fn a_batch_ends_as_in_all_orders() {
    let scene = Setup::new(1, 1)
        .program(&[store(0)])
        .with(to_1(&[0]).role());
    compare(&scene, 1);
}

#[test]
fn two_programs_end_as_in_all_orders() {
    let scene = Setup::new(1, 1)
        .program(&[store(0), load(0)])
        .program(&[store(0)])
        .with(Role::Lock { page: 0 });
    compare(&scene, 2);
}

#[test]
fn requests_that_meet_end_as_in_all_orders() {
    let scene = Setup::new(1, 1)
        .free(&[1, 2])
        .with(to_1(&[0]).role())
        .with(Role::Pin { space: 0, page: 0 });
    compare(&scene, 2);
}

#[test]
fn a_pair_that_waits_ends_as_in_all_orders() {
    let scene = Setup::new(1, 1)
        .program(&[store(0)])
        .with(to_1(&[0]).deferred().role());
    compare(&scene, 1);
    compare(&scene.lazy(), 1);
}

#[test]
fn a_flush_for_another_reason_ends_as_in_all_orders() {
    let scene = Setup::new(1, 1)
        .lazy()
        .with(to_1(&[0]).deferred().role())
        .with(Role::Flush { space: 0 })
        .with(Role::Settle { times: 1 });
    compare(&scene, 1);
}

#[test]
#[ignore = "721,806 orders"]
fn a_batch_and_two_programs_end_as_in_all_orders() {
    let scene = Setup::new(1, 1)
        .program(&[store(0)])
        .program(&[load(0)])
        .with(to_1(&[0]).role());
    compare(&scene, 2);
}

#[test]
fn pieces_of_a_device_end_as_in_all_orders() {
    let scene = Setup::new(1, 3)
        .device(2)
        .program(&[store(0).of_word(2)])
        .with(to_1(&[0]).by(Kind::Device).role());
    compare(&scene, 1);
}

#[test]
fn an_exchange_ends_as_in_all_orders() {
    let pairs = Role::Exchange {
        pairs: vec![(0, 1)],
        mode: Mode::Async,
        limit: Limit::default(),
    };
    let scene = Setup::new(1, 1).folio(1, 0, 1, &[0]).free(&[]);
    compare(&scene.program(&[store(0)]).with(pairs), 1);
}

#[test]
fn the_end_of_a_process_is_as_in_all_orders() {
    let scene = Setup::new(1, 1)
        .folio(0, 0, 0, &[0, 1])
        .patient()
        .program(&[load(0)])
        .with(to_1(&[0]).role())
        .with(Role::Exit { space: 0 });
    compare(&scene, 2);
}

#[test]
fn panics_and_what_is_answered_end_as_in_all_orders() {
    let scene = Setup::new(1, 1)
        .with(to_1(&[0]).role())
        .panics()
        .failures(1)
        .with(Role::Lock { page: 0 });
    compare(&scene, 2);
    let scene = Setup::new(1, 2)
        .device(1)
        .failures(1)
        .program(&[store(0).of_word(1)])
        .with(to_1(&[0]).by(Kind::Device).role());
    compare(&scene, 1);
}

#[test]
fn failures_are_tried_at_every_call() {
    let scene = Setup::new(1, 1).failures(1).with(to_1(&[0]).role());
    let (orders, all) = ends(&scene, Exhaustive::default());
    // One without a failure, and one for each call that can fail; where there is no memory it stays.
    assert_eq!(orders, 8);
    assert_eq!(all.len(), 2, "{all:?}");
    // Five calls with ten reasons each, seven ways of a copier, one to say that somebody refers to the frame.
    let (orders, all) = ends(&scene.any_answer(), Exhaustive::default());
    assert_eq!(orders, 1 + 5 * 10 + 7 + 1);
    assert_eq!(all.len(), 2, "{all:?}");
}

#[test]
fn every_call_panics_once() {
    let scene = Setup::new(1, 1).with(to_1(&[0]).role()).panics();
    let (orders, ends) = ends(&scene, Exhaustive::default());
    // One without a panic and one for each place; the second request may find that the first has moved it.
    assert_eq!((orders, ends.len()), (1 + 14, 2), "{ends:?}");
}
