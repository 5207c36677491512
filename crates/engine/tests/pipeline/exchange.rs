//! Exchanges, case by case: batches, failures at each step and side, locks, panics.

use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use transhume_engine::{
    ExchangeRequest, Failure, Folio, Isolated, Limit, Mode, Nonsense, PairOutcome,
    SYNC_BATCH_PASSES, Side, Step, Why, Work, exchange,
};

use crate::machine::{
    ALWAYS, Call, FAR, Machine, NEAR, PLANNED, ScriptedSwapper, SwapAct, Tier, Trouble, base,
    fails, folio, panics,
};

/// `pairs` base pages in [`NEAR`] and as many after them in [`FAR`].
fn machine(pairs: u64) -> Machine {
    let near = (0..pairs).map(|page| (base(page), NEAR));
    let far = (pairs..2 * pairs).map(|page| (base(page), FAR));
    Machine::new(&near.chain(far).collect::<Vec<_>>())
}

fn pairs(count: u64) -> Vec<(Folio, Folio)> {
    (0..count).map(|n| (base(n), base(count + n))).collect()
}

fn stayed(step: Step, why: Why, side: Side) -> PairOutcome {
    PairOutcome::Stayed(Failure::new(step, why), side)
}

fn outcomes(machine: &mut Machine, request: ExchangeRequest) -> Vec<PairOutcome> {
    let report = machine.exchange(&ScriptedSwapper::good(), request);
    report.pairs().map(|pair| pair.outcome).collect()
}

#[test]
fn pairs_trade_places_with_one_shootdown_and_no_frame() {
    let mut machine = machine(100);
    for tier in [NEAR, FAR] {
        machine.leave_room(tier, 0);
    }
    let report = machine.exchange(&ScriptedSwapper::good(), ExchangeRequest::new(pairs(100)));
    assert_eq!(report.exchanged(), 100);
    assert_eq!((report.counts.batches, report.counts.rounds), (1, 1));
    assert_eq!(machine.tier_of(base(0)), FAR);
    assert_eq!(machine.tier_of(base(199)), NEAR);
}

#[test]
fn the_limit_counts_both_of_each_pair() {
    let mut machine = machine(600);
    machine.exchange(&ScriptedSwapper::good(), ExchangeRequest::new(pairs(600)));
    let batches: Vec<usize> = machine.batches.iter().map(Vec::len).collect();
    assert_eq!(batches, [512, 512, 176]);
}

#[test]
fn a_pair_larger_than_the_limit_goes_alone() {
    let folios = [(0, NEAR), (1024, FAR), (512, NEAR), (1536, FAR)];
    let folios = folios.map(|(page, tier)| (folio(page, 9), tier));
    let request =
        ExchangeRequest::new(vec![(folios[0].0, folios[1].0), (folios[2].0, folios[3].0)]);
    let report = Machine::new(&folios).exchange(&ScriptedSwapper::good(), request.clone());
    assert_eq!((report.exchanged(), report.counts.batches), (2, 2));
    let limit = Limit {
        base_pages: NonZeroU64::new(2048).unwrap(),
        max_stall: None,
    };
    let request = ExchangeRequest { limit, ..request };
    let report = Machine::new(&folios).exchange(&ScriptedSwapper::good(), request);
    assert_eq!((report.exchanged(), report.counts.batches), (2, 1));
}

#[test]
fn batches_of_pairs_shrink_until_they_keep_the_longest_stall() {
    let near = (0..12).map(|n| (folio(2 * n, 1), NEAR));
    let far = (12..24).map(|n| (folio(2 * n, 1), FAR));
    let mut machine = Machine::new(&near.chain(far).collect::<Vec<_>>());
    machine.shootdown_cost = Duration::from_micros(10);
    machine.copy_cost = Duration::from_micros(10);
    let pairs = (0..12).map(|n| (folio(2 * n, 1), folio(2 * (12 + n), 1)));
    let mut request = ExchangeRequest::new(pairs.collect());
    request.limit.max_stall = Some(Duration::from_micros(40));
    let report = machine.exchange(&ScriptedSwapper::good(), request);
    assert_eq!(report.exchanged(), 12);
    // The first 16 base pages take 50 us; 11 would just fit.
    assert_eq!(report.times.longest_cut_off, Duration::from_micros(50));
    let pages = |batch: &Vec<Folio>| batch.iter().map(|folio| folio.base_pages()).sum::<u64>();
    let pages: Vec<u64> = machine.batches.iter().map(pages).collect();
    assert_eq!(pages, [16, 8, 8, 8, 8]);
}

#[test]
fn a_failure_at_any_step_of_either_puts_both_back() {
    let steps = [
        (Call::Lock, Step::Lock),
        (Call::Pair, Step::Reserve),
        (Call::Unmap, Step::Unmap),
        (Call::Shootdown, Step::Shootdown),
    ];
    for (call, step) in steps {
        for (side, page) in [(Side::A, 2), (Side::B, 7)] {
            let mut machine = machine(5);
            machine.set_troubles(&[fails(call, base(page), Why::Absent, ALWAYS)]);
            let outcomes = outcomes(&mut machine, ExchangeRequest::new(pairs(5)));
            for (n, outcome) in outcomes.into_iter().enumerate() {
                if n == 2 {
                    assert_eq!(outcome, stayed(step, Why::Absent, side), "{call:?}");
                } else {
                    assert_eq!(outcome, PairOutcome::Exchanged);
                }
            }
        }
    }
}

#[test]
fn what_the_swapper_leaves_the_cpu_swaps() {
    let mut machine = machine(6);
    let swapper = ScriptedSwapper::new(&[SwapAct::Swap, SwapAct::Leave]);
    let report = machine.exchange(&swapper, ExchangeRequest::new(pairs(6)));
    let counts = report.counts;
    assert_eq!(
        (
            counts.swapped_by_swapper,
            counts.untouched,
            counts.swapped_by_cpu
        ),
        (3, 3, 3)
    );
    assert_eq!(report.exchanged(), 6);
}

#[test]
fn a_pair_of_which_one_is_not_eligible_is_swapped_by_the_cpu() {
    for page in [1, 4] {
        let mut machine = machine(3);
        machine.set_troubles(&[fails(Call::IsEligible, base(page), Why::Pinned, 1)]);
        let report = machine.exchange(&ScriptedSwapper::good(), ExchangeRequest::new(pairs(3)));
        assert_eq!(report.exchanged(), 3);
        let counts = report.counts;
        assert_eq!((counts.swapped_by_swapper, counts.swapped_by_cpu), (2, 1));
    }
}

#[test]
fn a_swap_that_fails_on_the_cpu_too_leaves_the_pair() {
    // The fault is told of the one that is in the way.
    for (page, side) in [(1, Side::A), (4, Side::B)] {
        let mut machine = machine(3);
        machine.set_troubles(&[fails(Call::CopyOnCpu, base(page), Why::CopyFailed, ALWAYS)]);
        let swapper = ScriptedSwapper::new(&[SwapAct::Leave]);
        let report = machine.exchange(&swapper, ExchangeRequest::new(pairs(3)));
        let outcomes: Vec<_> = report.pairs().map(|pair| pair.outcome).collect();
        assert_eq!(outcomes[1], stayed(Step::Copy, Why::CopyFailed, side));
        assert_eq!(report.exchanged(), 2);
        assert_eq!(
            report.counts.retries, 9,
            "a copy that failed is worth a try"
        );
    }
}

#[test]
fn a_pair_that_cannot_be_remapped_is_swapped_back() {
    let mut machine = machine(3);
    let both = |page| fails(Call::Remap, base(page), Why::System, ALWAYS);
    machine.set_troubles(&[both(1), both(4)]);
    // The machine asserts at each putback that the bytes are back, and at the end that all are right.
    let outcomes = outcomes(&mut machine, ExchangeRequest::new(pairs(3)));
    assert_eq!(outcomes[1], stayed(Step::Remap, Why::System, Side::A));
    assert_eq!(
        (outcomes[0], outcomes[2]),
        (PairOutcome::Exchanged, PairOutcome::Exchanged)
    );
    assert_eq!(machine.tally.putbacks, 2);
}

#[test]
fn where_one_has_arrived_the_other_follows() {
    for page in [1, 4] {
        let mut machine = machine(3);
        machine.set_troubles(&[fails(Call::Remap, base(page), Why::System, ALWAYS)]);
        let outcomes = outcomes(&mut machine, ExchangeRequest::new(pairs(3)));
        assert_eq!(outcomes, [PairOutcome::Exchanged; 3]);
        assert_eq!(machine.tally.putbacks, 0);
    }
}

#[test]
fn what_makes_no_sense_is_refused_pair_by_pair() {
    let mut folios: Vec<(Folio, Tier)> = (0..8).map(|page| (base(page), NEAR)).collect();
    folios.extend((8..16).map(|page| (base(page), FAR)));
    folios.extend([(folio(16, 4), NEAR), (folio(32, 4), FAR)]);
    let request = ExchangeRequest::new(vec![
        (base(0), base(8)),
        (base(1), base(1)),
        (base(2), folio(16, 4)),
        (base(3), base(8)),
        (base(0), base(9)),
        (base(4), base(5)),
        (base(6), base(4)),
        (folio(16, 4), folio(32, 4)),
        (base(17), base(10)),
    ]);
    let outcomes = outcomes(&mut Machine::new(&folios), request);
    let refused = PairOutcome::Refused;
    let expected = [
        PairOutcome::Exchanged,
        refused(Nonsense::WithItself),
        refused(Nonsense::UnequalOrders),
        refused(Nonsense::NamedTwice),
        refused(Nonsense::NamedTwice),
        PairOutcome::SameTier,
        refused(Nonsense::NamedTwice),
        PairOutcome::Exchanged,
        // A part of a larger one.
        refused(Nonsense::NamedTwice),
    ];
    assert_eq!(outcomes, expected);
}

#[test]
fn busy_pairs_are_tried_again() {
    let mut machine = machine(4);
    machine.set_troubles(&[
        fails(Call::Lock, base(1), Why::Busy, 3),
        fails(Call::Lock, base(6), Why::Busy, 5),
    ]);
    let report = machine.exchange(&ScriptedSwapper::good(), ExchangeRequest::new(pairs(4)));
    assert_eq!(report.exchanged(), 4);
    assert_eq!(report.counts.retries, 3 + 5);
}

#[test]
fn alone_either_of_a_pair_may_be_waited_for() {
    for page in [1, 5] {
        let mut machine = machine(4);
        machine.set_troubles(&[Trouble {
            gone_by_waiting: true,
            ..fails(Call::Lock, base(page), Why::Busy, ALWAYS)
        }]);
        let request = ExchangeRequest {
            mode: Mode::Sync,
            ..ExchangeRequest::new(pairs(4))
        };
        let report = machine.exchange(&ScriptedSwapper::good(), request.clone());
        assert_eq!(report.exchanged(), 4, "page {page}");
        let (_, waited) = machine.asked(base(page));
        assert_eq!(waited, 1);
    }
}

#[test]
fn both_busy_for_ever_is_no_deadlock() {
    let mut machine = machine(2);
    let waits = |page| Trouble {
        gone_by_waiting: true,
        ..fails(Call::Lock, base(page), Why::Busy, ALWAYS)
    };
    // Each is there for who waits, but not for who holds the other.
    machine.set_troubles(&[waits(0), waits(2)]);
    let request = ExchangeRequest {
        mode: Mode::Sync,
        ..ExchangeRequest::new(pairs(2))
    };
    let outcomes = outcomes(&mut machine, request);
    let PairOutcome::Stayed(failure, _) = outcomes[0] else {
        panic!("{outcomes:?}");
    };
    assert_eq!(failure, Failure::new(Step::Lock, Why::Busy));
    assert_eq!(outcomes[1], PairOutcome::Exchanged);
}

#[test]
fn without_memory_it_stops_and_says_so() {
    let mut machine = machine(600);
    machine.set_troubles(&[fails(Call::Unmap, base(3), Why::NoMemory, 1)]);
    let report = machine.exchange(&ScriptedSwapper::good(), ExchangeRequest::new(pairs(600)));
    assert_eq!(
        report.stopped,
        Some(Failure::new(Step::Unmap, Why::NoMemory))
    );
    assert_eq!(report.exchanged(), 0, "no second folio was cut off");
    let last = report.pairs().last().unwrap().outcome;
    assert_eq!(last, stayed(Step::Lock, Why::NotTried, Side::A));
}

#[test]
fn a_panic_anywhere_leaves_every_pair_whole() {
    const CALLS: [Call; 13] = [
        Call::Lock,
        Call::Pair,
        Call::Unmap,
        Call::Shootdown,
        Call::IsEligible,
        Call::SwapJob,
        Call::CopyOnCpu,
        Call::Remap,
        Call::SwapBack,
        Call::Follow,
        Call::Putback,
        Call::Release,
        Call::Reserve,
    ];
    let mut reached = 0;
    for call in CALLS {
        for victim in 0..12 {
            let mut machine = machine(6);
            machine.set_troubles(&[
                panics(call, base(victim)),
                fails(Call::Pair, base(0), Why::Busy, 1),
                fails(Call::Unmap, base(7), Why::Busy, 1),
                fails(Call::Shootdown, base(2), Why::Busy, 1),
                fails(Call::Remap, base(3), Why::Busy, 1),
                fails(Call::Remap, base(9), Why::Busy, 1),
                // These two must follow their partners.
                fails(Call::Remap, base(10), Why::Busy, 1),
                fails(Call::Remap, base(11), Why::Busy, 1),
            ]);
            let swapper = ScriptedSwapper::new(&[SwapAct::Swap, SwapAct::Swap, SwapAct::Leave]);
            let request = ExchangeRequest::new(pairs(6));
            machine.expect_pairs(&request);
            let run = AssertUnwindSafe(|| exchange(&mut machine, &swapper, request.clone()));
            match catch_unwind(run) {
                Ok(report) => assert_eq!(report.exchanged(), 6),
                Err(panic) => {
                    assert_eq!(panic.downcast_ref(), Some(&PLANNED));
                    reached += 1;
                }
            }
            machine.check();
        }
    }
    assert!(reached > 90, "{reached} of the panics were met");
}

#[test]
fn a_panic_before_a_folio_is_released_leaves_no_lock() {
    let busy = [fails(Call::Lock, base(6), Why::Busy, 1)];
    let busy_in_batches = [fails(Call::Lock, base(0), Why::Busy, SYNC_BATCH_PASSES)];
    for (mode, folios, troubles) in [
        // The second of the first pair is busy, or has nothing to gain.
        (Mode::Async, pairs(6), &busy[..]),
        (Mode::Async, vec![(base(0), base(1))], &[]),
        (Mode::Sync, vec![(base(0), base(1))], &busy_in_batches),
        (Mode::Async, pairs(6), &[]),
    ] {
        let mut machine = machine(6);
        machine.set_troubles(troubles);
        machine.release_panics = true;
        let request = ExchangeRequest {
            mode,
            ..ExchangeRequest::new(folios)
        };
        machine.expect_pairs(&request);
        let run = AssertUnwindSafe(|| exchange(&mut machine, &ScriptedSwapper::good(), request));
        let panic = catch_unwind(run).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&PLANNED));
        machine.check();
    }
}

#[test]
fn a_swapper_that_panics_has_its_swaps_undone() {
    for swapped in 0..4 {
        let mut script = vec![SwapAct::Swap; swapped];
        script.extend([SwapAct::Leave, SwapAct::Panic]);
        let mut machine = machine(6);
        let mut work = Work::with_capacity(0);
        let request = ExchangeRequest::new(pairs(6));
        machine.expect_pairs(&request);
        let numbered: Vec<_> = request.pairs.into_iter().enumerate().collect();
        let panic = catch_unwind(AssertUnwindSafe(|| {
            Isolated::pairs(&mut machine, &mut work, &numbered)
                .unmap()
                .shootdown()
                .swap(&ScriptedSwapper::new(&script))
                .remap()
                .finish()
        }));
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&PLANNED));
        machine.check();
        assert_eq!(machine.tier_of(base(0)), NEAR);
        assert_eq!(work.take_ended().count(), 12);
        // The same work serves the next batch.
        let moved = Isolated::pairs(&mut machine, &mut work, &numbered)
            .unmap()
            .shootdown()
            .swap(&ScriptedSwapper::good())
            .remap()
            .finish();
        assert_eq!(moved, 12);
        machine.check();
    }
}

#[test]
fn a_batch_that_is_put_down_swaps_back() {
    let mut machine = machine(3);
    let mut work = Work::with_capacity(0);
    let request = ExchangeRequest::new(pairs(3));
    machine.expect_pairs(&request);
    let numbered: Vec<_> = request.pairs.into_iter().enumerate().collect();
    let swapped = Isolated::pairs(&mut machine, &mut work, &numbered)
        .unmap()
        .shootdown()
        .swap(&ScriptedSwapper::good());
    assert_eq!(swapped.len(), 6);
    drop(swapped);
    machine.check();
    assert_eq!(machine.tally.putbacks, 6);
    assert_eq!(machine.tier_of(base(0)), NEAR);
}
