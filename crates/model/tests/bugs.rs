//! Each bug that the field is known to have made is found, and its order can be seen again.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::sync::Arc;

use transhume_model::{Bug, Case, Orders, Progress, Seed, Violation, check, replay};

fn find(bug: Bug, orders: Orders) -> Option<Violation> {
    let case = Case::by_name(bug.case()).unwrap();
    check(case, Some(bug), orders, &Arc::new(Progress::default())).violation
}

/// What is seen of a bug, one way or another.
fn signs(bug: Bug) -> &'static [&'static str] {
    const REACHED: &str = "by an old translation";
    const LOST: &str = "a store is lost";
    const FOREIGN: &str = "which was never stored there";
    match bug {
        Bug::SleepsOnLatch => &["deadlock"],
        Bug::FaultTakesReference => &["only a fault that waits for it"],
        Bug::CopierNotAwaited => &["after it was taken away"],
        Bug::CopyBeforeShootdown | Bug::CopyUsedAgain | Bug::ReferenceDroppedInBetween => {
            &[LOST, FOREIGN]
        }
        Bug::LastDescriptorOnly | Bug::RemainderLost => &[LOST, FOREIGN],
        Bug::UnmappedWhileDeferred => &[LOST, FOREIGN, "is stored to while its pair waits"],
        _ => &[REACHED],
    }
}

fn fits(bug: Bug, what: &str) -> bool {
    signs(bug).iter().any(|sign| what.contains(sign))
}

/// The order of the violation, made again from what is printed of it.
fn again(bug: Bug, violation: &Violation) -> (Option<String>, String) {
    let seed: Seed = violation.seed.to_string().parse().unwrap();
    assert_eq!(seed, violation.seed);
    let case = Case::by_name(bug.case()).unwrap();
    let (what, timeline) = replay(case, Some(bug), &seed).unwrap();
    (what, timeline.to_string())
}

#[test]
fn each_is_found_among_all_orders() {
    let mut fit_without = 0;
    for bug in Bug::ALL {
        let found = find(bug, Orders::Exhaustive);
        let violation = found.unwrap_or_else(|| unreachable!("{} is not found", bug.name()));
        let seen = (Some(violation.what.clone()), violation.timeline.to_string());
        assert_eq!(again(bug, &violation), seen, "{}", bug.name());
        assert!(violation.timeline.len() > 4, "{}", bug.name());
        assert!(
            fits(bug, &violation.what),
            "{}: {}",
            bug.name(),
            violation.what
        );
        // Without the bug nothing is wrong with that order, where there is such an order.
        let case = Case::by_name(bug.case()).unwrap();
        if let Ok((what, _)) = replay(case, None, &violation.seed) {
            assert_eq!(what, None, "{}", bug.name());
            fit_without += 1;
        }
    }
    assert!(fit_without > 0);
}

/// What is said of other decisions would be taken for what is said of these.
#[test]
fn decisions_that_do_not_fit_are_refused() {
    let said = |case: &str, seed: &str| {
        let case = Case::by_name(case).unwrap();
        let seen = replay(case, None, &seed.parse().unwrap());
        seen.map(|(what, _)| what)
            .map_err(|no_fit| no_fit.to_string())
    };
    let at = |n, of| {
        Err(format!(
            "the seed does not fit this scene: its decision {n} of {of} cannot be made there"
        ))
    };
    assert_eq!(said("pins", "xzzzzzzz"), at(1, 7));
    assert_eq!(said("pins", "x11z"), at(3, 3));
    // More decisions than the order has.
    let violation = find(Bug::ReferenceDroppedInBetween, Orders::Exhaustive).unwrap();
    let bug = Some(Bug::ReferenceDroppedInBetween);
    let case = Case::by_name("pins").unwrap();
    let more: Seed = format!("{}1", violation.seed).parse().unwrap();
    assert_eq!(replay(case, bug, &more).unwrap().0, Some(violation.what));
    let ones = format!("x{}", "1".repeat(400));
    assert!(said("pins", &ones).is_err());
    // Fewer are made, and then whoever is first goes first.
    assert_eq!(said("pins", "x"), Ok(None));
    assert_eq!(said("pins", "x11"), Ok(None));
    assert_eq!(said("pins", "7"), Ok(None));
}

#[test]
fn each_is_found_by_chance() {
    for bug in Bug::ALL {
        let orders = Orders::Random {
            seed: 1,
            count: 100_000,
        };
        let found = find(bug, orders);
        let violation = found.unwrap_or_else(|| unreachable!("{} is not found", bug.name()));
        let seen = (Some(violation.what.clone()), violation.timeline.to_string());
        assert_eq!(again(bug, &violation), seen, "{}", bug.name());
        assert!(
            fits(bug, &violation.what),
            "{}: {}",
            bug.name(),
            violation.what
        );
    }
}

#[test]
fn names_are_told_from_each_other() {
    let names: BTreeSet<_> = Bug::ALL.into_iter().map(Bug::name).collect();
    assert_eq!(names.len(), Bug::ALL.len());
    for bug in Bug::ALL {
        assert_eq!(Bug::by_name(bug.name()), Some(bug));
    }
    assert_eq!(Bug::by_name("no-such-bug"), None);
    let names: BTreeSet<_> = Case::ALL.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), Case::ALL.len());
    assert!(Case::by_name("no-such-case").is_none());
}

#[test]
fn what_is_no_seed_is_refused() {
    for text in ["", "y01", "x0-1", "xA", "1.5", "-1", "99999999999999999999"] {
        let refused = text.parse::<Seed>().unwrap_err();
        assert!(refused.to_string().contains("is no seed"), "{text}");
    }
    assert_eq!("7".parse::<Seed>().unwrap(), Seed::Number(7));
    assert_eq!("x0z".parse::<Seed>().unwrap().to_string(), "x0z");
}

#[test]
fn a_timeline_has_a_column_for_each_who_acts() {
    let violation = find(Bug::SleepsOnLatch, Orders::Exhaustive).unwrap();
    assert!(violation.what.starts_with("deadlock"), "{}", violation.what);
    let shown = violation.timeline.to_string();
    let head = shown.lines().next().unwrap();
    assert!(
        head.contains("migrator to 1") && head.contains("journal"),
        "{shown}"
    );
    assert!(
        shown.lines().any(|line| line.ends_with("latches page 1")),
        "{shown}"
    );
}

/// Who waits for whom is what some bugs are about.
#[test]
fn nobody_is_taken_for_another() {
    let violation = find(Bug::CpuLostInFlush, Orders::Exhaustive).unwrap();
    let shown = violation.timeline.to_string();
    let head = shown.lines().next().unwrap();
    assert!(
        head.contains("migrator to 1 (1)") && head.contains("migrator to 1 (2)"),
        "{shown}"
    );
    // Who sends a shootdown is who waits for it, and each is told from the other.
    let column = |what: &str| shown.lines().find_map(|line| line.find(what));
    for number in 0..2 {
        let sent = column(&format!("sends a shootdown: number {number}")).unwrap();
        let awaited = column(&format!("shootdown {number} is acknowledged")).unwrap();
        assert_eq!(sent, awaited, "{shown}");
    }
    assert_ne!(column("number 0"), column("number 1"), "{shown}");
}

#[test]
fn a_timeline_fits_and_has_answers() {
    for (name, width) in [
        ("migrators", 80),
        ("owners", 80),
        ("panics", 60),
        ("deferred-exit", 40),
    ] {
        let case = Case::by_name(name).unwrap();
        for seed in 1..20 {
            let (_, timeline) = replay(case, None, &Seed::Number(seed)).unwrap();
            let shown = timeline.in_width(width);
            for line in shown.lines() {
                assert!(line.chars().count() <= width, "{name} {seed}: {line}");
                assert!(!line.ends_with("may panic"), "{name} {seed}: {line}");
            }
            let wide = timeline.in_width(400);
            assert!(
                wide.lines()
                    .all(|line| !line.ends_with("who refers to frame 0?")),
                "{name} {seed}: {wide}"
            );
        }
    }
}
