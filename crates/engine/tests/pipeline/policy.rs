//! Each rule of the policy by itself: passes, memory, duplicates, limits, copiers.

use std::num::NonZeroU64;
use std::time::Duration;

use transhume_engine::{
    ASYNC_PASSES, CopyAnswer, Failure, Folio, Limit, Mode, Order, Outcome, Reason, Report, Request,
    SYNC_ALONE_PASSES, SYNC_BATCH_PASSES, Step, Why,
};

use crate::machine::{
    ALWAYS, Act, Call, FAR, Machine, NEAR, ScriptedCopier, Tier, Trouble, base, fails, folio,
};

fn request(machine: &Machine, mode: Mode) -> Request<Tier> {
    Request {
        mode,
        ..Request::new(machine.folios(), FAR)
    }
}

fn limited(machine: &Machine, base_pages: u64) -> Request<Tier> {
    let mut request = request(machine, Mode::Async);
    request.limit.base_pages = NonZeroU64::new(base_pages).unwrap();
    request
}

fn outcomes(report: &Report<Tier>) -> Vec<Outcome> {
    report.folios().map(|one| one.outcome).collect()
}

fn stayed(step: Step, why: Why) -> Outcome {
    Outcome::Stayed(Failure::new(step, why))
}

/// Migrates `count` base pages with those troubles.
fn troubled(count: u64, mode: Mode, troubles: &[Trouble]) -> (Machine, Report<Tier>) {
    let mut machine = Machine::with_base_pages(count);
    machine.set_troubles(troubles);
    let request = request(&machine, mode);
    let report = machine.migrate(&ScriptedCopier::good(), request);
    (machine, report)
}

#[test]
fn a_whole_batch_takes_one_shootdown() {
    let (machine, report) = troubled(512, Mode::Async, &[]);
    assert!(report.is_complete());
    assert_eq!(report.moved(), 512);
    assert_eq!(report.counts.batches, 1);
    assert_eq!(report.counts.rounds, 1);
    assert_eq!(report.counts.copied_by_copier, 512);
    assert_eq!(report.counts.retries, 0);
    assert_eq!(report.counts.putbacks, 0);
    assert_eq!(machine.flushed, [512]);
    assert_eq!(machine.released, machine.folios());
    assert_eq!(report.stopped, None);
    assert_eq!(report.reason, Reason::UserCall);
    assert_eq!(report.to, FAR);
}

#[test]
fn an_empty_request_does_nothing() {
    let (_, report) = troubled(0, Mode::Sync, &[]);
    assert!(report.is_complete());
    assert_eq!(report.folios().len(), 0);
    assert_eq!(report.counts.batches, 0);
}

#[test]
fn at_most_the_limit_is_cut_off_at_once() {
    let mut machine = Machine::with_base_pages(100);
    let request = limited(&machine, 30);
    machine.migrate(&ScriptedCopier::good(), request);
    assert_eq!(machine.flushed, [30, 30, 30, 10]);
}

#[test]
fn what_is_cut_off_between_folios_counts() {
    // Every fourth page: with the three before it, save the first of a batch.
    let every_fourth: Vec<_> = (0..20).map(|n| (base(n * 4), NEAR)).collect();
    let mut machine = Machine::new(&every_fourth);
    machine.reach = 4;
    let request = limited(&machine, 30);
    machine.migrate(&ScriptedCopier::good(), request);
    assert_eq!(machine.flushed, [8, 8, 4]);
    let mut machine = Machine::new(&every_fourth);
    machine.reach = 3;
    let request = limited(&machine, 30);
    machine.migrate(&ScriptedCopier::good(), request);
    assert_eq!(machine.flushed, [20]);
}

#[test]
fn what_gains_by_one_batch_begins_it_if_it_has_room() {
    let flushed = |limit| {
        let folios: Vec<_> = (3..30).map(|page| (base(page), NEAR)).collect();
        let mut machine = Machine::new(&folios);
        machine.together = 8;
        let request = limited(&machine, limit);
        let report = machine.migrate(&ScriptedCopier::good(), request);
        assert!(report.is_complete());
        machine.flushed
    };
    // Pages 3 to 7 alone; 8 to 15, 16 to 23; from 24 on there are not eight, but there may be.
    assert_eq!(flushed(8), [5, 8, 8, 6]);
    assert_eq!(flushed(20), [13, 14]);
    // No batch has room for eight.
    assert_eq!(flushed(7), [7, 7, 7, 6]);
}

#[test]
fn what_is_cut_off_between_folios_takes_its_part_of_the_stall() {
    let every_fourth: Vec<_> = (0..1000).map(|n| (base(n * 4), NEAR)).collect();
    let mut machine = Machine::new(&every_fourth);
    machine.reach = 4;
    let request = with_stall(machine.folios(), 100, Duration::from_secs(1));
    machine.migrate(&ScriptedCopier::good(), request);
    assert_eq!(machine.flushed.iter().max(), Some(&25));
}

#[test]
fn a_folio_larger_than_the_limit_goes_alone() {
    let folios = [
        (base(0), NEAR),
        (base(1), NEAR),
        (folio(1024, 10), NEAR),
        (folio(2048, 9), NEAR),
        (base(2), NEAR),
    ];
    let mut machine = Machine::new(&folios);
    let request = Request::new(folios.map(|(folio, _)| folio).to_vec(), FAR);
    machine.migrate(&ScriptedCopier::good(), request);
    assert_eq!(machine.flushed, [2, 1024, 512, 1]);
}

#[test]
fn huge_folios_share_a_batch_where_the_limit_allows_it() {
    let folios: Vec<_> = (0..8).map(|n| (folio(n * 512, 9), NEAR)).collect();
    let mut machine = Machine::new(&folios);
    let request = limited(&machine, 2048);
    machine.migrate(&ScriptedCopier::good(), request);
    assert_eq!(machine.flushed, [2048, 2048]);
}

#[test]
fn async_tries_ten_times() {
    let (machine, report) = troubled(
        3,
        Mode::Async,
        &[fails(Call::Lock, base(1), Why::Busy, ALWAYS)],
    );
    assert_eq!(machine.asked(base(1)), (10, 0));
    assert_eq!(ASYNC_PASSES, 10);
    assert_eq!(
        machine.asked(base(0)),
        (1, 0),
        "the others are not tried again"
    );
    assert_eq!(report.counts.retries, 9);
    assert_eq!(
        outcomes(&report),
        [
            Outcome::Moved,
            stayed(Step::Lock, Why::Busy),
            Outcome::Moved
        ]
    );
    assert_eq!(report.stopped, None);
}

#[test]
fn a_lock_that_comes_free_in_the_tenth_pass_is_taken() {
    let (_, report) = troubled(1, Mode::Async, &[fails(Call::Lock, base(0), Why::Busy, 9)]);
    assert!(report.is_complete());
    assert_eq!(report.counts.retries, 9);
}

#[test]
fn sync_tries_three_times_together_and_seven_alone() {
    let troubles = [base(1), base(2)].map(|folio| fails(Call::Remap, folio, Why::Again, ALWAYS));
    let (machine, report) = troubled(4, Mode::Sync, &troubles);
    assert_eq!((SYNC_BATCH_PASSES, SYNC_ALONE_PASSES), (3, 7));
    for folio in [base(1), base(2)] {
        assert_eq!(machine.asked(folio), (3, 7));
    }
    let sizes: Vec<usize> = machine.batches.iter().map(Vec::len).collect();
    assert_eq!(sizes[..3], [4, 2, 2]);
    assert_eq!(sizes[3..], [1; 14]);
    assert_eq!(report.counts.putbacks, 20);
    assert_eq!(report.moved(), 2);
}

#[test]
fn sync_waits_for_a_lock_that_async_does_not_get() {
    let busy = Trouble {
        gone_by_waiting: true,
        ..fails(Call::Lock, base(1), Why::Busy, ALWAYS)
    };
    let (machine, report) = troubled(3, Mode::Sync, &[busy]);
    assert!(report.is_complete());
    assert_eq!(machine.asked(base(1)), (3, 1));
    let (_, report) = troubled(3, Mode::Async, &[busy]);
    assert_eq!(report.moved(), 2);
}

#[test]
fn what_waiting_cures_is_retried_in_sync_only() {
    let shared = Trouble {
        gone_by_waiting: true,
        ..fails(Call::Unmap, base(0), Why::Shared, ALWAYS)
    };
    let (machine, report) = troubled(2, Mode::Sync, &[shared]);
    assert!(report.is_complete());
    assert_eq!(machine.asked(base(0)), (3, 1));
    let (machine, report) = troubled(2, Mode::Async, &[shared]);
    assert_eq!(machine.asked(base(0)), (1, 0));
    assert_eq!(outcomes(&report)[0], stayed(Step::Unmap, Why::Shared));
}

#[test]
fn only_what_may_pass_is_tried_again() {
    let causes = [
        (Why::Busy, true),
        (Why::Again, true),
        (Why::Pinned, true),
        (Why::CopyFailed, true),
        (Why::Shared, false),
        (Why::Absent, false),
        (Why::NotPermitted, false),
        (Why::Unsupported, false),
        (Why::System, false),
    ];
    for (why, again) in causes {
        for (call, step) in [
            (Call::Lock, Step::Lock),
            (Call::Reserve, Step::Reserve),
            (Call::Unmap, Step::Unmap),
            (Call::Shootdown, Step::Shootdown),
            (Call::Remap, Step::Remap),
        ] {
            let (machine, report) = troubled(3, Mode::Async, &[fails(call, base(1), why, ALWAYS)]);
            assert_eq!(
                machine.asked(base(1)).0,
                if again { 10 } else { 1 },
                "{why}"
            );
            assert_eq!(outcomes(&report)[1], stayed(step, why));
            assert_eq!(report.moved(), 2);
        }
    }
}

#[test]
fn without_memory_what_is_cut_off_is_finished_and_then_it_stops() {
    for (call, step, moved) in [
        (Call::Lock, Step::Lock, [true; 3]),
        (Call::Reserve, Step::Reserve, [true; 3]),
        // Those behind it are not cut off any more.
        (Call::Unmap, Step::Unmap, [true, false, false]),
        (Call::Shootdown, Step::Shootdown, [true; 3]),
        (Call::CopyOnCpu, Step::Copy, [true; 3]),
        (Call::Remap, Step::Remap, [true; 3]),
    ] {
        for mode in [Mode::Async, Mode::Sync] {
            let mut machine = Machine::with_base_pages(8);
            machine.set_troubles(&[
                fails(call, base(1), Why::NoMemory, 1),
                fails(Call::Lock, base(0), Why::Busy, 1),
            ]);
            let copier = ScriptedCopier::new(&[Act::Answer(CopyAnswer::Declined)]);
            let mut request = limited(&machine, 4);
            request.mode = mode;
            let report = machine.migrate(&copier, request);

            assert_eq!(report.stopped, Some(Failure::new(step, Why::NoMemory)));
            assert_eq!(machine.batches.len(), 1);
            let outcomes = outcomes(&report);
            assert_eq!(outcomes[0], stayed(Step::Lock, Why::Busy));
            assert_eq!(outcomes[1], stayed(step, Why::NoMemory));
            for (n, moved) in [2, 3].into_iter().zip(&moved[1..]) {
                let expected = if *moved {
                    Outcome::Moved
                } else {
                    stayed(Step::Unmap, Why::NotTried)
                };
                assert_eq!(outcomes[n], expected);
            }
            assert_eq!(outcomes[4..], [stayed(Step::Lock, Why::NotTried); 4]);
        }
    }
}

#[test]
fn the_first_lack_of_memory_is_why_it_stopped() {
    let troubles = [
        fails(Call::Remap, base(0), Why::NoMemory, 1),
        fails(Call::Reserve, base(2), Why::NoMemory, 1),
    ];
    let (_, report) = troubled(3, Mode::Async, &troubles);
    let first = Failure::new(Step::Reserve, Why::NoMemory);
    assert_eq!(report.stopped, Some(first));
    assert_eq!(report.moved(), 1);
}

#[test]
fn a_full_tier_takes_what_fits() {
    let mut machine = Machine::with_base_pages(10);
    machine.leave_room(FAR, 7);
    let request = limited(&machine, 4);
    let report = machine.migrate(&ScriptedCopier::good(), request);
    assert_eq!(report.moved(), 7);
    assert_eq!(
        report.stopped,
        Some(Failure::new(Step::Reserve, Why::NoMemory))
    );
    assert_eq!(
        outcomes(&report)[7..],
        [
            stayed(Step::Reserve, Why::NoMemory),
            stayed(Step::Lock, Why::NotTried),
            stayed(Step::Lock, Why::NotTried)
        ]
    );
}

#[test]
fn what_is_there_already_is_left_alone() {
    let folios = [(base(0), FAR), (base(1), NEAR), (base(2), FAR)];
    for mode in [Mode::Async, Mode::Sync] {
        let mut machine = Machine::new(&folios);
        machine.leave_room(FAR, 1);
        let request = request(&machine, mode);
        let report = machine.migrate(&ScriptedCopier::good(), request);
        assert_eq!(
            outcomes(&report),
            [Outcome::AlreadyThere, Outcome::Moved, Outcome::AlreadyThere]
        );
        assert_eq!(report.already_there(), 2);
        assert!(report.is_complete());
        assert_eq!(machine.flushed, [1]);
    }
}

#[test]
fn what_is_there_is_found_out_alone_too() {
    let mut machine = Machine::new(&[(base(0), FAR)]);
    machine.set_troubles(&[fails(Call::Lock, base(0), Why::Busy, 3)]);
    let request = request(&machine, Mode::Sync);
    let report = machine.migrate(&ScriptedCopier::good(), request);
    assert_eq!(outcomes(&report), [Outcome::AlreadyThere]);
    assert_eq!(machine.asked(base(0)), (3, 1));
    assert_eq!(report.counts.rounds, 0);
}

#[test]
fn a_folio_named_three_times_moves_once() {
    let mut machine = Machine::with_base_pages(2);
    let request = Request::new(vec![base(0), base(0), base(1), base(0)], FAR);
    let report = machine.migrate(&ScriptedCopier::good(), request);
    assert_eq!(
        outcomes(&report),
        [
            Outcome::Moved,
            Outcome::AlreadyThere,
            Outcome::Moved,
            Outcome::AlreadyThere
        ]
    );
}

#[test]
fn a_second_name_is_there_even_if_its_turn_never_came_again() {
    let mut machine = Machine::with_base_pages(4);
    machine.leave_room(FAR, 1);
    let folios = [0, 0, 1, 2, 0, 2].map(base).to_vec();
    let mut request = Request::new(folios, FAR);
    request.limit.base_pages = NonZeroU64::new(3).unwrap();
    let report = machine.migrate(&ScriptedCopier::good(), request);
    assert_eq!(
        outcomes(&report),
        [
            Outcome::Moved,
            Outcome::AlreadyThere,
            stayed(Step::Reserve, Why::NoMemory),
            stayed(Step::Lock, Why::NotTried),
            Outcome::AlreadyThere,
            stayed(Step::Lock, Why::NotTried),
        ]
    );

    // Moved in the last pass, in which its other name was busy once more.
    let mut machine = Machine::with_base_pages(1);
    machine.set_troubles(&[fails(Call::Remap, base(0), Why::Again, 9)]);
    let report = machine.migrate(
        &ScriptedCopier::good(),
        Request::new(vec![base(0), base(0)], FAR),
    );
    assert_eq!(outcomes(&report), [Outcome::Moved, Outcome::AlreadyThere]);
}

#[test]
fn the_cpu_copies_what_the_copier_did_not_confirm() {
    let mut machine = Machine::with_base_pages(11);
    machine.set_troubles(&[fails(Call::IsEligible, base(10), Why::Pinned, 1)]);
    let copier = ScriptedCopier::new(&[
        Act::Answer(CopyAnswer::Copied),
        Act::Answer(CopyAnswer::Declined),
        Act::Answer(CopyAnswer::Failed),
        Act::Answer(CopyAnswer::TimedOut),
        Act::Answer(CopyAnswer::Unconfirmed),
    ]);
    let request = request(&machine, Mode::Async);
    let report = machine.migrate(&copier, request);
    assert!(report.is_complete());
    let counts = report.counts;
    assert_eq!(
        [
            counts.copied_by_copier,
            counts.declined,
            counts.copy_failures,
            counts.timed_out,
            counts.unconfirmed,
            counts.copied_by_cpu
        ],
        [2, 2, 2, 2, 2, 9],
        "the one that is not eligible is no job, but is copied"
    );
}

#[test]
fn a_copied_mark_does_not_survive_a_retry() {
    // The copier copies it the first time and never again; the programs store to it in between.
    let mut machine = Machine::with_base_pages(1);
    machine.set_troubles(&[fails(Call::Remap, base(0), Why::Pinned, 1)]);
    let copier = ScriptedCopier::new(&[
        Act::Answer(CopyAnswer::Copied),
        Act::Answer(CopyAnswer::Declined),
    ]);
    let request = request(&machine, Mode::Async);
    let report = machine.migrate(&copier, request);
    assert!(report.is_complete());
    assert_eq!(report.counts.copied_by_copier, 1);
    assert_eq!(report.counts.copied_by_cpu, 1);
}

#[test]
fn a_failure_puts_back_that_folio_alone() {
    let troubles = [
        fails(Call::Reserve, base(1), Why::System, 1),
        fails(Call::Unmap, base(2), Why::NotPermitted, 1),
        fails(Call::Shootdown, base(3), Why::Absent, 1),
        fails(Call::Remap, base(4), Why::Unsupported, 1),
    ];
    let (machine, report) = troubled(6, Mode::Async, &troubles);
    assert_eq!(
        outcomes(&report),
        [
            Outcome::Moved,
            stayed(Step::Reserve, Why::System),
            stayed(Step::Unmap, Why::NotPermitted),
            stayed(Step::Shootdown, Why::Absent),
            stayed(Step::Remap, Why::Unsupported),
            Outcome::Moved,
        ]
    );
    assert_eq!(report.counts.putbacks, 4);
    assert_eq!(machine.flushed, [4]);
    let stayed: Vec<Folio> = report.stayed().map(|(folio, _)| folio).collect();
    assert_eq!(stayed, [1, 2, 3, 4].map(base));
    assert!(!report.is_complete());
}

#[test]
fn a_retry_keeps_the_order_of_the_request() {
    let troubles = [
        fails(Call::Remap, base(0), Why::Again, 1),
        fails(Call::Lock, base(2), Why::Busy, 1),
        fails(Call::Unmap, base(1), Why::Again, 1),
    ];
    let (machine, _) = troubled(3, Mode::Async, &troubles);
    assert_eq!(machine.batches[1], [0, 1, 2].map(base));
}

#[test]
fn times_are_those_of_the_platforms_clock() {
    let mut machine = Machine::with_base_pages(6);
    machine.shootdown_cost = Duration::from_micros(100);
    machine.copy_cost = Duration::from_micros(1);
    machine.release_cost = Duration::from_micros(1000);
    let request = limited(&machine, 4);
    let copier = ScriptedCopier::new(&[Act::Answer(CopyAnswer::Declined)]);
    let times = machine.migrate(&copier, request).times;
    // Offering a page to the copier costs as much as copying it on the CPU.
    assert_eq!(times.longest_cut_off, Duration::from_micros(108));
    assert_eq!(times.first_folio, Some(Duration::from_micros(1108)));
    assert_eq!(times.copy, Duration::from_micros(12));
    assert_eq!(times.total, Duration::from_micros(2212));
}

fn with_stall(folios: Vec<Folio>, base_pages: u64, max_stall: Duration) -> Request<Tier> {
    Request {
        limit: Limit {
            base_pages: NonZeroU64::new(base_pages).unwrap(),
            max_stall: Some(max_stall),
        },
        ..Request::new(folios, FAR)
    }
}

#[test]
fn batches_shrink_until_they_keep_the_longest_stall() {
    let mut machine = Machine::with_base_pages(1000);
    machine.shootdown_cost = Duration::from_micros(10);
    machine.copy_cost = Duration::from_micros(10);
    // The first batch, of 16, takes 170 us; 9 pages would just fit.
    let request = with_stall(machine.folios(), 512, Duration::from_micros(100));
    let report = machine.migrate(&ScriptedCopier::good(), request);
    assert!(report.is_complete());
    assert_eq!(machine.flushed[..2], [16, 8]);
    assert!(machine.flushed[1..].iter().all(|pages| *pages <= 9));
}

#[test]
fn batches_grow_to_the_limit_while_they_keep_the_stall() {
    let mut machine = Machine::with_base_pages(4000);
    let request = with_stall(machine.folios(), 100, Duration::from_secs(1));
    machine.migrate(&ScriptedCopier::good(), request);
    assert_eq!(machine.flushed[..3], [16, 19, 22]);
    assert_eq!(machine.flushed.iter().max(), Some(&100));
}

#[test]
fn batches_of_larger_folios_grow_too() {
    for order in [2, 3, 9] {
        let size = Order::new(order).unwrap().base_pages();
        let folios: Vec<_> = (0..100).map(|n| (folio(n * size, order), NEAR)).collect();
        let mut machine = Machine::new(&folios);
        let request = with_stall(machine.folios(), 4 * size, Duration::from_secs(1));
        machine.migrate(&ScriptedCopier::good(), request);
        assert_eq!(machine.flushed.iter().max(), Some(&(4 * size)), "{order}");
    }
}

#[test]
fn only_what_was_cut_off_teaches_how_much_to_cut_off() {
    // In the first pass one folio in 16 is cut off, quickly; a full batch of 16 just fits.
    let mut machine = Machine::with_base_pages(160);
    let busy: Vec<_> = (0..160)
        .filter(|page| page % 16 != 0)
        .map(|page| fails(Call::Lock, base(page), Why::Busy, 1))
        .collect();
    machine.set_troubles(&busy);
    machine.shootdown_cost = Duration::ZERO;
    machine.copy_cost = Duration::from_micros(10);
    let max_stall = Duration::from_micros(170);
    let request = with_stall(machine.folios(), 512, max_stall);
    let report = machine.migrate(&ScriptedCopier::good(), request);
    assert!(report.is_complete());
    assert!(report.times.longest_cut_off <= max_stall);
}

#[test]
fn a_batch_of_which_nothing_was_cut_off_teaches_nothing() {
    let mut machine = Machine::with_base_pages(64);
    let busy: Vec<_> = (0..16)
        .map(|page| fails(Call::Unmap, base(page), Why::Pinned, 1))
        .collect();
    machine.set_troubles(&busy);
    let request = with_stall(machine.folios(), 16, Duration::from_micros(30));
    let report = machine.migrate(&ScriptedCopier::good(), request);
    assert!(report.is_complete());
    assert_eq!(machine.flushed, [16; 4]);
}

#[test]
fn nor_does_one_of_which_all_fail_in_the_shootdown() {
    // There the platform cuts off and invalidates in one call, which took longer than is wanted.
    let mut machine = Machine::with_base_pages(32);
    let busy: Vec<_> = (0..16)
        .map(|page| fails(Call::Shootdown, base(page), Why::Pinned, 1))
        .collect();
    machine.set_troubles(&busy);
    machine.shootdown_cost = Duration::from_micros(10);
    let request = with_stall(machine.folios(), 16, Duration::from_micros(9));
    let report = machine.migrate(&ScriptedCopier::good(), request);
    assert!(report.is_complete());
    assert_eq!(machine.flushed[..2], [16; 2]);
}

#[test]
fn a_folio_that_would_not_let_go_was_not_cut_off() {
    let mut machine = Machine::with_base_pages(1);
    machine.unmap_cost = Duration::from_millis(1);
    machine.set_troubles(&[fails(Call::Unmap, base(0), Why::NotPermitted, 1)]);
    let request = request(&machine, Mode::Async);
    let times = machine.migrate(&ScriptedCopier::good(), request).times;
    assert_eq!(times.total, Duration::from_millis(1));
    assert_eq!(times.longest_cut_off, Duration::ZERO);
}
