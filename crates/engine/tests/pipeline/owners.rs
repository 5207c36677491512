//! Owners: asked before anything is cut off, in batches without waiting, and told in the end. That
//! it always is so is checked by the [witness](crate::witness) in all tests.

use transhume_engine::{
    ASYNC_PASSES, Failure, Folio, Mode, Outcome, Report, Request, SYNC_BATCH_PASSES, Step, Why,
};

use crate::machine::{
    ALWAYS, Call, FAR, Machine, NEAR, ScriptedCopier, Tier, Trouble, base, fails,
};
use crate::witness::Asked;

const VICTIM: u64 = 1;

fn refused(gone_by_waiting: bool) -> Trouble {
    Trouble {
        gone_by_waiting,
        ..fails(Call::Detach, base(VICTIM), Why::Busy, ALWAYS)
    }
}

fn migrate(machine: &mut Machine, mode: Mode, folios: Vec<Folio>) -> Report<Tier> {
    let request = Request {
        mode,
        ..Request::new(folios, FAR)
    };
    machine.migrate(&ScriptedCopier::good(), request)
}

/// Migrates three base pages, of which one is in trouble.
fn with_trouble(mode: Mode, trouble: Trouble) -> (Machine, Report<Tier>) {
    let mut machine = Machine::with_base_pages(3);
    machine.set_troubles(&[trouble]);
    let folios = machine.folios();
    let report = migrate(&mut machine, mode, folios);
    (machine, report)
}

fn asked(tried: u32, waited: u32, attached: u32) -> Asked {
    Asked {
        tried,
        waited,
        attached,
    }
}

#[test]
fn a_refused_folio_stays_and_is_never_cut_off() {
    let (machine, report) = with_trouble(Mode::Async, refused(false));
    let busy = Outcome::Stayed(Failure::new(Step::Unmap, Why::Busy));
    let outcomes: Vec<Outcome> = report.folios().map(|one| one.outcome).collect();
    assert_eq!(outcomes, [Outcome::Moved, busy, Outcome::Moved]);
    assert_eq!(machine.owner.asked(base(VICTIM)), asked(ASYNC_PASSES, 0, 0));
    assert_eq!(machine.owner.asked(base(0)), asked(1, 0, 1));
    assert_eq!(machine.flushed, [2], "one shootdown, of the other two");
    assert_eq!(report.counts.putbacks, u64::from(ASYNC_PASSES));
}

#[test]
fn the_owner_may_wait_when_its_folio_is_alone() {
    let (machine, report) = with_trouble(Mode::Sync, refused(true));
    assert!(report.is_complete());
    let asked_for = machine.owner.asked(base(VICTIM));
    assert_eq!(asked_for, asked(SYNC_BATCH_PASSES, 1, 1));
    assert_eq!(machine.owner.asked(base(2)), asked(1, 0, 1));
}

#[test]
fn each_step_that_fails_gives_the_folio_back() {
    for call in [Call::Unmap, Call::Shootdown, Call::CopyOnCpu, Call::Remap] {
        let mut machine = Machine::with_base_pages(3);
        let eligible = fails(Call::IsEligible, base(VICTIM), Why::Busy, ALWAYS);
        machine.set_troubles(&[eligible, fails(call, base(VICTIM), Why::Again, ALWAYS)]);
        let folios = machine.folios();
        let report = migrate(&mut machine, Mode::Async, folios);
        assert_eq!(report.moved(), 2);
        let asked_for = machine.owner.asked(base(VICTIM));
        assert_eq!(asked_for, asked(ASYNC_PASSES, 0, ASYNC_PASSES), "{call:?}");
    }
}

#[test]
fn nobody_is_asked_for_what_will_not_be_cut_off() {
    let mut machine = Machine::new(&[(base(0), FAR), (base(1), NEAR), (base(2), NEAR)]);
    machine.set_troubles(&[
        fails(Call::Lock, base(1), Why::Pinned, ALWAYS),
        fails(Call::Reserve, base(2), Why::NotPermitted, ALWAYS),
    ]);
    let folios = machine.folios();
    migrate(&mut machine, Mode::Sync, folios);
    for page in 0..3 {
        assert_eq!(machine.owner.asked(base(page)), Asked::default());
    }
}
