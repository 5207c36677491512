//! The engine is right in every order of small scenes, and in many of larger ones.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::sync::Arc;

use transhume_model::{Case, Orders, Progress, Verdict, check};

/// Scenes whose orders are more than a test should try; `transhume check --exhaustive` tries them.
const LONG: [&str; 17] = [
    "batch",
    "sync",
    "deferred-store",
    "deferred-two",
    "deferred-flush",
    "deferred-unmap",
    "deferred-again",
    "deferred-exchange",
    "exchange-twice",
    "migrators",
    "failures",
    "deferred-failures",
    "spaces",
    "orders",
    "named-by-two",
    "panics",
    "panics-exchange",
];

fn clean(case: &'static Case, orders: Orders) -> Verdict {
    let verdict = check(case, None, orders, &Arc::new(Progress::default()));
    if let Some(violation) = &verdict.violation {
        panic!(
            "{}: {} (seed {})\n{}",
            case.name, violation.what, violation.seed, violation.timeline
        );
    }
    assert!(verdict.complete, "{}", case.name);
    verdict
}

#[test]
fn every_order_of_the_small_scenes_is_right() {
    for case in Case::ALL.iter().filter(|case| !LONG.contains(&case.name)) {
        let verdict = clean(case, Orders::Exhaustive);
        assert!(verdict.orders > 1, "{} has no orders to try", case.name);
    }
}

#[test]
fn a_thousand_orders_of_each_large_scene_are_right() {
    for case in Case::ALL {
        let count = 1000;
        let verdict = clean(case, Orders::Random { seed: 1, count });
        assert_eq!(verdict.orders, count);
    }
}

#[test]
fn a_check_can_be_ended() {
    let progress = Arc::new(Progress::default());
    progress.stop();
    let case = Case::by_name("batch").unwrap();
    let verdict = check(case, None, Orders::Exhaustive, &progress);
    assert_eq!((verdict.orders, progress.orders()), (0, 0));
    assert!(!verdict.complete && verdict.violation.is_none());
}
