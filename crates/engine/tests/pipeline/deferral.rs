//! Migration in two halves: while pairs wait, readers go on and both frames hold.

use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use proptest::prelude::*;
use transhume_engine::{
    ASYNC_PASSES, CopyAnswer, Deferral, Entry, Folio, Generation, Ledger, Mode, Outcome, Parked,
    Report, Request, Settlement, Step, Waiting, Why, defer, settle,
};

use crate::machine::{
    ALWAYS, Act, Call, FAR, Held, Machine, NEAR, ScriptedCopier, Tier, Trouble, What, base, fails,
    folio, panics,
};

fn pages(base_pages: u64) -> NonZeroU64 {
    NonZeroU64::new(base_pages).unwrap_or(NonZeroU64::MIN)
}

fn ledger(limit: u64) -> Ledger<Held> {
    Ledger::new(pages(limit), pages(limit))
}

fn defer_all(machine: &mut Machine, ledger: &mut Ledger<Held>) -> Report<Tier> {
    let request = Request::new(machine.folios(), FAR);
    machine.set_limit(512.max(ledger.at_once().get()));
    let report = defer(machine, &ScriptedCopier::good(), request, ledger);
    machine.let_programs_run(100);
    machine.check();
    report
}

fn settle_these(
    machine: &mut Machine,
    ledger: &mut Ledger<Held>,
    mut parked: Parked<Held>,
) -> Settlement {
    let settlement = settle(machine, &mut parked, ledger.at_once());
    assert!(parked.is_empty());
    ledger.note(&settlement);
    ledger.close(parked);
    settlement
}

fn settle_all(machine: &mut Machine, ledger: &mut Ledger<Held>) -> Settlement {
    let all = ledger.take(|_| true);
    let settlement = settle_these(machine, ledger, all);
    machine.let_programs_run(100);
    machine.check();
    settlement
}

#[test]
fn many_folios_are_switched_by_one_shootdown() {
    let mut machine = Machine::with_base_pages(2000);
    let mut ledger = ledger(4096);
    let report = defer_all(&mut machine, &mut ledger);
    assert_eq!((report.deferred(), report.moved()), (2000, 0));
    assert!(report.is_complete() && report.times.first_folio.is_none());
    assert_eq!((machine.tally.holds, machine.tally.shootdowns), (4, 0));
    assert_eq!((report.counts.holds, report.counts.rounds), (4, 0));
    assert_eq!((ledger.len(), ledger.base_pages()), (2000, 2000));
    assert_eq!(machine.tier_of(base(0)), NEAR);

    let settlement = settle_all(&mut machine, &mut ledger);
    assert_eq!(machine.flushed, [2000]);
    assert_eq!(settlement.shootdowns, Some(1));
    assert_eq!(
        (settlement.counts.batches, settlement.counts.rounds),
        (1, 1)
    );
    assert_eq!(settlement.outcomes.len(), 2000);
    for (folio, outcome) in settlement.outcomes {
        assert_eq!((outcome, machine.tier_of(folio)), (Outcome::Moved, FAR));
    }
    assert!(ledger.take_stayed().is_empty());
    assert_eq!(ledger.room(), 4096);
}

#[test]
fn a_pair_larger_than_what_is_settled_at_once_goes_alone() {
    let folios = [(base(0), NEAR), (folio(512, 9), NEAR), (base(1024), NEAR)];
    let mut machine = Machine::new(&folios);
    let mut ledger = Ledger::new(pages(1024), pages(4));
    machine.set_limit(512);
    let request = Request::new(machine.folios(), FAR);
    let report = defer(&mut machine, &ScriptedCopier::good(), request, &mut ledger);
    assert_eq!(report.deferred(), 3);

    let settlement = settle_all(&mut machine, &mut ledger);
    assert_eq!(machine.flushed, [1, 512, 1]);
    assert_eq!(settlement.counts.batches, 3);
    for (folio, outcome) in settlement.outcomes {
        assert_eq!((outcome, machine.tier_of(folio)), (Outcome::Moved, FAR));
    }
}

#[test]
fn a_flush_for_another_reason_settles_what_was_recorded_before() {
    let mut machine = Machine::with_base_pages(8);
    machine.lazy = true;
    let mut ledger = ledger(64);
    let first = Request::new((0..4).map(base).collect(), FAR);
    defer(&mut machine, &ScriptedCopier::good(), first, &mut ledger);
    machine.foreign_shootdown();
    let second = Request::new((4..8).map(base).collect(), FAR);
    defer(&mut machine, &ScriptedCopier::good(), second, &mut ledger);
    machine.let_programs_run(50);
    machine.check();
    settle_all(&mut machine, &mut ledger);
    assert_eq!(machine.flushed, [4], "only those that were recorded later");
    assert!((0..8).all(|page| machine.tier_of(base(page)) == FAR));
}

#[test]
fn there_is_never_more_than_the_limit() {
    for (limit, folios) in [(16, 100), (100, 100), (1, 3)] {
        let mut machine = Machine::with_base_pages(folios);
        let mut ledger = ledger(limit);
        let mut request = Request::new(machine.folios(), FAR);
        request.limit.base_pages = pages(8.min(limit));
        machine.set_limit(limit);
        let report = defer(&mut machine, &ScriptedCopier::good(), request, &mut ledger);
        assert_eq!(report.deferred() as u64, folios);
        assert!(machine.most_beside <= limit, "{}", machine.most_beside);
        machine.check();
        settle_all(&mut machine, &mut ledger);
        assert!((0..folios).all(|page| machine.tier_of(base(page)) == FAR));
        let switches = machine.tally.shootdowns;
        assert!(switches <= folios.div_ceil(limit - limit % 8.min(limit)));
    }
}

#[test]
fn without_memory_what_waits_settles_first() {
    let folios: Vec<_> = (0..16)
        .map(|page| (base(page), if page < 8 { NEAR } else { FAR }))
        .collect();
    let mut machine = Machine::new(&folios);
    machine.set_limit(512);
    machine.leave_room(FAR, 0);
    let mut ledger = ledger(64);
    let copier = ScriptedCopier::good();
    let away = Request::new((8..16).map(base).collect(), NEAR);
    defer(&mut machine, &copier, away, &mut ledger);
    // Their frames are the only ones there are.
    let there = Request::new((0..8).map(base).collect(), FAR);
    let report = defer(&mut machine, &copier, there, &mut ledger);
    assert_eq!((report.deferred(), report.stopped), (8, None));
    assert!((8..16).all(|page| machine.tier_of(base(page)) == NEAR));
    machine.check();
    // Nothing is left that would give any back.
    let more = Request::new((8..16).map(base).collect(), FAR);
    let report = defer(&mut machine, &copier, more, &mut ledger);
    assert_eq!(
        report.stopped.map(|failure| failure.why),
        Some(Why::NoMemory)
    );
    machine.check();
}

/// Takes no pairs, and has given up something when it is asked to for the first time.
struct UnderPressure {
    relieved: u32,
}

impl Waiting<Machine> for UnderPressure {
    fn make_room(&mut self, _machine: &mut Machine, _base_pages: u64) -> bool {
        false
    }

    fn relieve(&mut self, machine: &mut Machine) -> bool {
        machine.take_up(&mut []); // It has memory again.
        self.relieved += 1;
        self.relieved == 1
    }

    fn room(&self) -> u64 {
        0
    }

    fn record(
        &mut self,
        _entries: &mut dyn Iterator<Item = Entry<Held>>,
        _recorded: Generation,
        _since: Duration,
    ) {
        panic!("there is no room");
    }

    fn withdraw(&mut self, _base_pages: u64) {}
}

#[test]
fn what_was_not_cut_off_for_lack_of_memory_is_when_there_is_some() {
    let mut machine = Machine::with_base_pages(4);
    machine.set_limit(512);
    machine.set_troubles(&[fails(Call::Unmap, base(1), Why::NoMemory, 1)]);
    let mut pairs = UnderPressure { relieved: 0 };
    let request = Request::new(machine.folios(), FAR);
    let report = defer(&mut machine, &ScriptedCopier::good(), request, &mut pairs);
    assert_eq!((report.moved(), report.stopped), (4, None));
    // Pages 2 and 3 come after the one for which memory was lacking.
    assert_eq!((report.counts.retries, pairs.relieved), (3, 1));
    machine.check();
}

#[test]
fn a_hold_is_told_no_more_than_there_is_room_for() {
    let mut machine = Machine::with_base_pages(20);
    let mut ledger = ledger(12);
    let mut request = Request::new(machine.folios(), FAR);
    request.limit.base_pages = pages(8);
    machine.set_limit(64);
    let report = defer(&mut machine, &ScriptedCopier::good(), request, &mut ledger);
    assert_eq!(report.deferred(), 20);
    let names = |pages: std::ops::Range<u64>| pages.map(base).collect::<Vec<_>>();
    assert_eq!(machine.aheads, [names(8..12), names(16..20), vec![]]);
    machine.check();
    settle_all(&mut machine, &mut ledger);
}

#[test]
fn a_hold_is_told_what_comes_next() {
    let mut machine = Machine::with_base_pages(20);
    // A later pass tries it again, and comes to nothing else.
    machine.set_troubles(&[fails(Call::Hold, base(2), Why::Busy, 1)]);
    let mut ledger = ledger(64);
    let mut request = Request::new(machine.folios(), FAR);
    request.limit.base_pages = pages(8);
    machine.set_limit(64);
    let report = defer(&mut machine, &ScriptedCopier::good(), request, &mut ledger);
    assert_eq!((report.deferred(), report.counts.retries), (20, 1));
    let names = |from: u64| (from..20).map(base).collect::<Vec<_>>();
    assert_eq!(machine.aheads, [names(8), names(16), names(20), names(20)]);
    machine.check();
    settle_all(&mut machine, &mut ledger);
}

#[test]
fn it_never_waits_whatever_the_mode() {
    let mut machine = Machine::with_base_pages(3);
    machine.set_troubles(&[Trouble {
        gone_by_waiting: true,
        ..fails(Call::Lock, base(1), Why::Busy, ALWAYS)
    }]);
    let mut ledger = ledger(64);
    let request = Request {
        mode: Mode::Sync,
        ..Request::new(machine.folios(), FAR)
    };
    machine.set_limit(512);
    let report = defer(&mut machine, &ScriptedCopier::good(), request, &mut ledger);
    assert_eq!(report.deferred(), 2);
    assert_eq!(machine.asked(base(1)), (ASYNC_PASSES, 0));
    settle_all(&mut machine, &mut ledger);
}

#[test]
fn a_folio_that_never_finds_room_goes_at_once() {
    let mut machine = Machine::new(&[(folio(0, 9), NEAR), (base(600), NEAR)]);
    let mut ledger = ledger(100);
    let report = defer_all(&mut machine, &mut ledger);
    assert_eq!((report.moved(), report.deferred()), (1, 1));
    assert_eq!(machine.tier_of(folio(0, 9)), FAR);
}

#[test]
fn a_folio_named_twice_is_deferred_once() {
    let mut machine = Machine::with_base_pages(2);
    let mut ledger = ledger(64);
    let request = Request::new(vec![base(0), base(1), base(0)], FAR);
    machine.set_limit(512);
    let report = defer(&mut machine, &ScriptedCopier::good(), request, &mut ledger);
    assert_eq!((report.deferred(), ledger.len()), (3, 2));
    settle_all(&mut machine, &mut ledger);
}

#[test]
fn what_the_copier_does_not_confirm_the_cpu_copies_before_it_is_parked() {
    let mut machine = Machine::with_base_pages(3);
    let copier = ScriptedCopier::new(&[
        Act::Answer(CopyAnswer::Failed),
        Act::Answer(CopyAnswer::Copied),
        Act::Answer(CopyAnswer::TimedOut),
    ]);
    machine.set_limit(512);
    let mut ledger = ledger(8);
    let request = Request::new(machine.folios(), FAR);
    let report = defer(&mut machine, &copier, request, &mut ledger);
    assert_eq!(report.counts.copied_by_cpu, 2);
    assert_eq!(report.deferred(), 3);
    machine.check();
    settle_all(&mut machine, &mut ledger);
}

#[test]
fn what_cannot_be_switched_stays_and_is_remembered() {
    for call in [Call::TakeUp, Call::Unmap, Call::Shootdown, Call::Remap] {
        for lazy in [false, true] {
            let mut machine = Machine::with_base_pages(3);
            machine.lazy = lazy;
            let mut ledger = ledger(64);
            defer_all(&mut machine, &mut ledger);
            machine.set_troubles(&[fails(call, base(1), Why::System, 1)]);
            settle_all(&mut machine, &mut ledger);
            let stayed = ledger.take_stayed();
            assert_eq!(stayed.len(), 1);
            assert_eq!((stayed[0].0, stayed[0].1.why), (base(1), Why::System));
            assert_eq!(machine.tier_of(base(1)), NEAR);
            assert_eq!(machine.tier_of(base(2)), FAR);
        }
    }
}

#[test]
fn a_platform_that_panics_leaves_the_rest_in_hand() {
    for call in [
        Call::Hold,
        Call::Park,
        Call::TakeUp,
        Call::Shootdown,
        Call::Remap,
    ] {
        let mut machine = Machine::with_base_pages(40);
        let mut ledger = Ledger::new(pages(64), pages(8));
        let mut request = Request::new(machine.folios(), FAR);
        request.limit.base_pages = pages(8);
        machine.set_limit(8);
        machine.set_troubles(&[panics(call, base(20))]);
        let deferred = catch_unwind(AssertUnwindSafe(|| {
            defer(&mut machine, &ScriptedCopier::good(), request, &mut ledger)
        }));
        let early = matches!(call, Call::Hold | Call::Park);
        assert_eq!(deferred.is_err(), early);
        machine.check();
        assert_eq!(ledger.room() + ledger.base_pages(), 64, "a promise is lost");

        let mut all = ledger.take(|_| true);
        let settled = catch_unwind(AssertUnwindSafe(|| {
            settle(&mut machine, &mut all, ledger.at_once())
        }));
        assert_eq!(settled.is_err(), !early);
        assert_eq!(all.is_empty(), early);
        // Those that were not reached wait as before.
        ledger.close(all);
        assert_eq!(ledger.room() + ledger.base_pages(), 64);
        machine.check();
        settle_all(&mut machine, &mut ledger);
        assert_eq!(machine.parked(), 0);
    }
}

/// What happens between and after the two halves.
#[derive(Clone, Copy, Debug)]
enum Event {
    Defer(u64, u64, Tier),
    Store(u64),
    ForeignShootdown,
    SettleSome(u64),
    SettleAll,
    Run,
}

const FOLIOS: u64 = 24;

fn event() -> impl Strategy<Value = Event> {
    let tier = prop_oneof![Just(NEAR), Just(FAR)];
    prop_oneof![
        4 => (0..FOLIOS, 1..=FOLIOS, tier).prop_map(|(from, count, to)| Event::Defer(from, count, to)),
        2 => (0..FOLIOS).prop_map(Event::Store),
        1 => Just(Event::ForeignShootdown),
        1 => (0..FOLIOS).prop_map(Event::SettleSome),
        1 => Just(Event::SettleAll),
        2 => Just(Event::Run),
    ]
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let call = prop::sample::select(vec![
        Call::Lock,
        Call::Reserve,
        Call::Hold,
        Call::Park,
        Call::TakeUp,
        Call::Unmap,
        Call::Shootdown,
        Call::IsEligible,
        Call::CopyOnCpu,
        Call::Remap,
    ]);
    let why = prop::sample::select(vec![Why::Busy, Why::Pinned, Why::System]);
    let times = prop_oneof![1..4_u32, Just(ALWAYS)];
    (call, 0..FOLIOS, why, times).prop_map(|(call, page, why, times)| Trouble {
        what: What::Fail(why),
        ..fails(call, base(page), why, times)
    })
}

fn script() -> impl Strategy<Value = Vec<Act>> {
    let answer = prop::sample::select(vec![
        CopyAnswer::Copied,
        CopyAnswer::Declined,
        CopyAnswer::Failed,
        CopyAnswer::TimedOut,
        CopyAnswer::Unconfirmed,
    ]);
    prop::collection::vec(answer.prop_map(Act::Answer), 1..6)
}

proptest! {
    #[test]
    fn nothing_is_lost_whatever_happens(
        events in prop::collection::vec(event(), 1..40),
        troubles in prop::collection::vec(trouble(), 0..6),
        script in script(),
        limit in 1..40_u64,
        at_once in 1..40_u64,
        lazy in any::<bool>(),
    ) {
        let mut machine = Machine::with_base_pages(FOLIOS);
        machine.lazy = lazy;
        machine.set_troubles(&troubles);
        machine.set_limit(at_once.max(8));
        let copier = ScriptedCopier::new(&script);
        let mut ledger = Ledger::new(pages(limit), pages(at_once));
        for event in events {
            match event {
                Event::Defer(from, count, to) => {
                    let wanted: Vec<Folio> = (from..FOLIOS.min(from + count)).map(base).collect();
                    // A folio that is to migrate again settles first.
                    let again = ledger.take(|folio| wanted.contains(&folio));
                    settle_these(&mut machine, &mut ledger, again);
                    let mut request = Request::new(wanted, to);
                    request.limit.base_pages = pages(8);
                    let report = defer(&mut machine, &copier, request, &mut ledger);
                    prop_assert!(report.stopped.is_none());
                    for one in report.folios() {
                        let there = machine.tier_of(one.folio) == to;
                        match one.outcome {
                            Outcome::Moved | Outcome::AlreadyThere => prop_assert!(there),
                            Outcome::Deferred => {}
                            Outcome::Stayed(failure) => {
                                prop_assert!(!there || failure.step == Step::Lock);
                            }
                        }
                    }
                }
                Event::Store(page) => {
                    let run = ledger.take_run(base(page), ledger.at_once());
                    settle_these(&mut machine, &mut ledger, run);
                    machine.store_to(base(page));
                }
                Event::ForeignShootdown => machine.foreign_shootdown(),
                Event::SettleSome(page) => {
                    let most = ledger.at_once();
                    let some = ledger.take_some(|folio| folio.page() < page, most);
                    settle_these(&mut machine, &mut ledger, some);
                }
                Event::SettleAll => {
                    let all = ledger.take(|_| true);
                    settle_these(&mut machine, &mut ledger, all);
                }
                Event::Run => machine.let_programs_run(10),
            }
            machine.check();
            prop_assert!(machine.most_beside <= limit.max(8));
            prop_assert_eq!(ledger.room() + ledger.base_pages(), limit);
        }
        let all = ledger.take(|_| true);
        settle_these(&mut machine, &mut ledger, all);
        machine.check();
        prop_assert_eq!(machine.parked(), 0);
        prop_assert_eq!(ledger.held(), 0);
    }
}
