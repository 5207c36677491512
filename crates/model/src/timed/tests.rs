//! Time adds up: what a plan takes is what its costs say, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use super::{BadPlan, CopyBy, NoPrediction, Plan, Prediction, predict};
use crate::costs::Costs;

/// Round numbers, so that sums can be made by hand.
fn costs() -> Costs {
    Costs {
        request_ns: 0.0,
        named_ns: 0.0,
        call_ns: 1_000.0,
        folio_ns: 100.0,
        entry_ns: 50.0,
        ipi_ns: 4_000.0,
        far_ipi_ns: 6_000.0,
        next_ipi_ns: 10.0,
        handler_ns: 500.0,
        wake_ns: 2_000.0,
        waker_ns: 0.0,
        access_ns: 100.0,
        // A base page in 400 ns.
        copy_rate: 10.24e9,
        away_ns: 0.0,
        complex_limit: None,
        copy_limit: 20.48e9,
        thread_ns: 0.0,
        splits_folios: true,
        channel_rate: Some(5.12e9),
        channels_limit: 40.96e9,
        channel_ns: 0.0,
        link_limit: None,
        remaps_by_call: false,
        flushes_per_table: false,
    }
}

fn plan() -> Plan {
    Plan {
        batch: 512,
        ..Plan::of(1024, 0)
    }
}

fn with_programs(count: usize) -> Plan {
    Plan {
        cpus: count + 1,
        programs: count,
        ..plan()
    }
}

fn run(plan: &Plan, costs: &Costs) -> Prediction {
    predict(plan, costs).unwrap()
}

#[test]
fn without_programs_a_migration_takes_the_sum_of_its_steps() {
    let told = run(&plan(), &costs());
    let page = 100 + 2 * 50 + 400;
    assert_eq!(told.total, Duration::from_nanos(1024 * page + 2 * 1_000));
    assert_eq!(told.copy, Duration::from_nanos(1024 * 400));
    // The batch is there when its last page is.
    assert_eq!(
        told.first_folio,
        Some(Duration::from_nanos(512 * page + 1_000))
    );
    assert_eq!((told.moved, told.bytes), (1024, 4 << 20));
    assert_eq!((told.shootdowns, told.interrupts), (2, 0));
    assert_eq!((told.lost, told.accesses), (Duration::ZERO, 0.0));
}

#[test]
fn without_a_price_on_calls_and_shootdowns_batch_size_does_not_matter() {
    let free = Costs {
        call_ns: 0.0,
        ipi_ns: 0.0,
        far_ipi_ns: 0.0,
        next_ipi_ns: 0.0,
        ..costs()
    };
    let total = |batch| {
        let plan = Plan {
            batch,
            ..with_programs(3)
        };
        run(&plan, &free).total
    };
    let one = total(1);
    for batch in [8, 64, 512, 1024] {
        assert_eq!(total(batch), one, "{batch} a batch");
    }
    let dear = |batch| {
        run(
            &Plan {
                batch,
                ..with_programs(3)
            },
            &costs(),
        )
        .total
    };
    assert!(dear(1) > 5 * dear(512));
}

#[test]
fn requests_follow_each_other() {
    let dear = Costs {
        request_ns: 50_000.0,
        named_ns: 10.0,
        ..costs()
    };
    let total = |request: u32| {
        let plan = Plan {
            request: request as usize,
            ..plan()
        };
        let told = run(&plan, &dear);
        assert_eq!(told.moved, 1024);
        let first = 50_000 + 10 * request + 600 * request.min(512) + 1_000;
        assert_eq!(
            told.first_folio,
            Some(Duration::from_nanos(u64::from(first)))
        );
        (told.total.as_nanos(), told.shootdowns)
    };
    let (one, eight) = (total(1024), total(128));
    assert_eq!(
        eight.0 - one.0,
        7 * 50_000 + 6 * 1_000,
        "eight batches are no longer two"
    );
    assert_eq!((one.1, eight.1), (2, 8));
}

#[test]
fn half_of_a_call_is_over_when_its_first_page_is_cut_off() {
    let one = Plan { batch: 1, ..plan() };
    // The other half, the copy and the entry.
    assert_eq!(
        run(&one, &costs()).longest_cut_off,
        Duration::from_nanos(500 + 400 + 50)
    );
}

#[test]
fn huge_folios_that_are_flushed_one_by_one_are_cut_off_one_by_one() {
    let costs = Costs {
        flushes_per_table: true,
        ..costs()
    };
    let huge = |batch| Plan {
        folios: 2,
        order: 9,
        batch,
        ..plan()
    };
    let alone = run(&huge(1), &costs).longest_cut_off;
    let copy = Duration::from_nanos(512 * 400);
    // The first of two waits for the call of the second too, and for its copy.
    let second = Duration::from_nanos(500 + 50 + 500) + copy;
    assert_eq!(run(&huge(2), &costs).longest_cut_off, alone + second);
}

#[test]
fn rounds_go_there_and_back() {
    let one = run(&plan(), &costs());
    for rounds in [2, 3] {
        let told = run(&Plan { rounds, ..plan() }, &costs());
        let times = u32::try_from(rounds).unwrap();
        assert_eq!(told.total, one.total * times);
        assert_eq!(told.moved, one.moved * rounds);
        assert_eq!(told.shootdowns, one.shootdowns * u64::from(times));
        assert_eq!(told.first_folio, one.first_folio);
    }
}

#[test]
fn shootdowns_are_one_a_batch_and_two_where_mapping_flushes() {
    for (batch, calls) in [(1, 1024), (8, 128), (512, 2), (1024, 1)] {
        let plan = Plan { batch, ..plan() };
        assert_eq!(run(&plan, &costs()).shootdowns, calls);
        let twice = Costs {
            remaps_by_call: true,
            ..costs()
        };
        assert_eq!(run(&plan, &twice).shootdowns, 2 * calls);
    }
    // Each page table has a shootdown of its own there, however large the batch.
    let by_table = Costs {
        flushes_per_table: true,
        ..costs()
    };
    let batch = 1024;
    assert_eq!(run(&Plan { batch, ..plan() }, &by_table).shootdowns, 2);
    let huge = Plan {
        folios: 16,
        order: 9,
        batch: 16,
        ..plan()
    };
    assert_eq!(run(&huge, &costs()).shootdowns, 1);
    assert_eq!(run(&huge, &by_table).shootdowns, 16);
}

#[test]
fn threads_are_bounded_by_what_memory_gives() {
    let copy = |copier, folios, limit| {
        let plan = Plan {
            cpus: 16,
            copier,
            folios,
            batch: folios,
            order: 9,
            ..plan()
        };
        let costs = Costs {
            link_limit: limit,
            ..costs()
        };
        let plan = Plan {
            nodes: if limit.is_some() { 2 } else { 1 },
            ..plan
        };
        let told = run(&plan, &costs);
        told.bytes as f64 / told.copy.as_secs_f64() / 1e9
    };
    let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-3;
    for folios in [1, 16] {
        assert!(near(copy(CopyBy::Threads(1), folios, None), 10.24));
        assert!(near(copy(CopyBy::Threads(2), folios, None), 20.48));
        for threads in [4, 8, 16] {
            let rate = copy(CopyBy::Threads(threads), folios, None);
            assert!(near(rate, 20.48), "{threads} threads: {rate}");
        }
        assert!(near(copy(CopyBy::Threads(8), folios, Some(8e9)), 8.0));
        assert!(near(copy(CopyBy::Channels(4), folios, None), 20.48));
        assert!(near(copy(CopyBy::Channels(16), folios, None), 40.96));
    }
}

#[test]
fn a_folio_that_is_not_shared_has_one_thread() {
    let whole = Costs {
        splits_folios: false,
        ..costs()
    };
    let copy = |folios, costs: &Costs| {
        let plan = Plan {
            cpus: 8,
            copier: CopyBy::Threads(2),
            folios,
            batch: folios,
            order: 9,
            ..plan()
        };
        run(&plan, costs).copy
    };
    assert_eq!(copy(1, &whole), 2 * copy(1, &costs()));
    assert_eq!(copy(3, &whole), 2 * copy(1, &whole), "two and one");
    assert_eq!(copy(4, &whole), copy(4, &costs()));
}

#[test]
fn interrupts_go_to_who_is_at_work_and_delay_them() {
    // Pages of which one is cut off at a time are hardly ever met.
    let plan = |programs| Plan {
        cpus: 256,
        programs,
        folios: 256,
        batch: 1,
        ..plan()
    };
    let costs = Costs {
        access_ns: 100_000.0,
        ..costs()
    };
    let asleep = run(&plan(0), &costs);
    let busy = run(&plan(255), &costs);
    assert_eq!(asleep.interrupts, 0);
    assert_eq!(busy.shootdowns, asleep.shootdowns);
    assert!(busy.interrupts > 255 * 250, "{}", busy.interrupts);
    assert!(busy.interrupts <= 255 * 256, "{}", busy.interrupts);
    assert!(busy.lost > Duration::from_nanos(500) * u32::try_from(busy.interrupts).unwrap());
    // Each shootdown takes as long as the last of 255 CPUs.
    let more = (busy.total - asleep.total).as_secs_f64() * 1e9 / 256.0;
    assert!((4_000.0..=4_000.0 + 254.0 * 10.0).contains(&more), "{more}");
}

#[test]
fn a_farther_node_answers_later() {
    let plan = |nodes| Plan {
        nodes,
        batch: 1,
        folios: 128,
        ..with_programs(3)
    };
    let (near, far) = (run(&plan(1), &costs()), run(&plan(2), &costs()));
    assert!(far.total > near.total);
}

#[test]
fn who_meets_a_page_that_is_cut_off_waits_until_it_is_back() {
    let plan = with_programs(2);
    let told = run(&plan, &costs());
    let wake = Duration::from_nanos(2_000);
    assert!(told.longest_stall > wake && told.longest_stall <= told.longest_cut_off + wake);
    // With half of memory cut off nearly all of the time they hardly run.
    assert!(told.lost > told.total);
    let single = run(&Plan { batch: 1, ..plan }, &costs());
    assert!(single.longest_stall < told.longest_stall / 10);
}

#[test]
fn a_call_wakes_who_waits_once_and_waking_costs_the_waker() {
    let total = |remaps_by_call, waker_ns| {
        let costs = Costs {
            remaps_by_call,
            waker_ns,
            ..costs()
        };
        let plan = Plan {
            folios: 512,
            ..with_programs(8)
        };
        run(&plan, &costs).total.as_nanos()
    };
    // All eight meet a page that is cut off long before the copies end, and wait for the one call.
    assert_eq!(total(true, 3_000.0) - total(true, 0.0), 8 * 3_000);
    // Page by page who was woken first meets another page that is not back.
    assert!(total(false, 3_000.0) - total(false, 0.0) > 8 * 3_000);
}

#[test]
fn an_exchange_moves_both_sides_and_copies_each() {
    let plan = Plan {
        folios: 64,
        order: 9,
        batch: 8,
        exchange: true,
        ..plan()
    };
    let told = run(&plan, &costs());
    assert_eq!((told.moved, told.bytes), (128, 128 << 21));
    assert_eq!(told.shootdowns, 8);
    assert_eq!(told.copy, Duration::from_nanos(128 * 512 * 400));
    let two = Plan {
        cpus: 4,
        copier: CopyBy::Threads(2),
        ..plan.clone()
    };
    assert_eq!(run(&two, &costs()).copy, told.copy / 2);
    let four = Plan {
        copier: CopyBy::Threads(4),
        ..two.clone()
    };
    assert_eq!(
        run(&four, &costs()).copy,
        told.copy / 2,
        "memory gives no more"
    );
    let by_device = Plan {
        copier: CopyBy::Channels(2),
        ..plan
    };
    let refused = predict(&by_device, &costs());
    assert_eq!(refused, Err(NoPrediction::Plan(BadPlan::Exchange)));
}

#[test]
fn deferred_switches_send_fewer_interrupts_where_many_wait() {
    let plan = |batch, deferred| Plan {
        batch,
        deferred,
        ..with_programs(3)
    };
    // Holding stores off is a shootdown a batch, and each settlement one.
    let at_once = Costs {
        remaps_by_call: true,
        ..costs()
    };
    let now = run(&plan(8, None), &at_once);
    let later = run(&plan(8, Some(1024)), &at_once);
    assert_eq!(now.shootdowns, 2 * 128);
    assert_eq!(later.shootdowns, 128 + 2);
    assert!(later.interrupts < now.interrupts);
    assert_eq!(later.moved, 1024);
    let half = run(&plan(8, Some(512)), &at_once);
    assert_eq!(half.shootdowns, 128 + 2 * 2);
    // The price is one long wait.
    assert!(later.longest_cut_off > now.longest_cut_off);
}

#[test]
fn the_same_question_has_the_same_answer() {
    let plan = Plan {
        copier: CopyBy::Threads(3),
        batch: 64,
        ..with_programs(5)
    };
    assert_eq!(run(&plan, &costs()), run(&plan, &costs()));
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |plan: Plan| match predict(&plan, &costs()) {
        Err(NoPrediction::Plan(why)) => why,
        other => unreachable!("{other:?}"),
    };
    let base = plan;
    assert_eq!(
        refused(Plan {
            cpus: 257,
            ..base()
        }),
        BadPlan::Cpus(257)
    );
    assert_eq!(refused(Plan { nodes: 2, ..base() }), BadPlan::Nodes(2, 1));
    assert_eq!(
        refused(Plan {
            programs: 1,
            ..base()
        }),
        BadPlan::Programs(1, 0)
    );
    assert_eq!(
        refused(Plan {
            folios: 0,
            ..base()
        }),
        BadPlan::Folios(0, 4)
    );
    let huge = Plan {
        folios: 513,
        order: 9,
        ..base()
    };
    assert_eq!(refused(huge), BadPlan::Folios(513, 2048));
    assert_eq!(refused(Plan { batch: 0, ..base() }), BadPlan::Nothing);
    let deferred = Plan {
        deferred: Some(8),
        ..base()
    };
    assert_eq!(refused(deferred), BadPlan::Waiting(8, 512));
    let threads = CopyBy::Threads(2);
    assert_eq!(
        refused(Plan {
            copier: threads,
            ..base()
        }),
        BadPlan::Threads(2, 1)
    );
    let none = Costs {
        channel_rate: None,
        ..costs()
    };
    let channels = Plan {
        copier: CopyBy::Channels(4),
        ..base()
    };
    assert!(predict(&channels, &none).is_err() && predict(&channels, &costs()).is_ok());
    let endless = Costs {
        access_ns: 0.0,
        ..costs()
    };
    let nothing = Costs {
        copy_rate: f64::NAN,
        ..costs()
    };
    for costs in [endless, nothing] {
        assert!(matches!(
            predict(&base(), &costs),
            Err(NoPrediction::Cost(_))
        ));
    }
}
