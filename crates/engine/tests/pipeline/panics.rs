//! A platform or a copier that panics: every folio is put back, no lock stays, and the panic goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};

use transhume_engine::{CopyAnswer, Failure, Isolated, Outcome, Request, Step, Why, Work, migrate};

use crate::machine::{Act, Call, FAR, Machine, NEAR, PLANNED, ScriptedCopier, base, fails, panics};

const CALLS: [Call; 13] = [
    Call::Lock,
    Call::Tier,
    Call::Reserve,
    Call::Detach,
    Call::Unmap,
    Call::Shootdown,
    Call::IsEligible,
    Call::Job,
    Call::CopyOnCpu,
    Call::Remap,
    Call::Putback,
    Call::Attach,
    Call::Release,
];

/// Runs a batch of all folios to its end, and expects the planned panic on the way.
fn run_into_panic(machine: &mut Machine, copier: &ScriptedCopier) -> Vec<(usize, Outcome)> {
    let mut work = Work::with_capacity(0);
    let folios: Vec<_> = machine.folios().into_iter().enumerate().collect();
    let panic = catch_unwind(AssertUnwindSafe(|| {
        Isolated::gather(machine, &mut work, &folios, FAR)
            .unmap()
            .shootdown()
            .copy(copier)
            .remap()
            .finish()
    }))
    .unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&PLANNED));
    machine.check();
    let mut ended: Vec<_> = work.take_ended().collect();
    ended.sort_unstable_by_key(|(index, _)| *index);

    // The same work serves the next batch as if nothing had been.
    let left: Vec<_> = folios
        .into_iter()
        .filter(|(_, folio)| machine.tier_of(*folio) != FAR)
        .collect();
    machine.set_troubles(&[]);
    let next = Isolated::gather(machine, &mut work, &left, FAR)
        .unmap()
        .shootdown()
        .copy(&ScriptedCopier::good())
        .remap()
        .finish();
    assert_eq!(next, left.len());
    machine.check();
    ended
}

#[test]
fn a_copier_that_panics_costs_nothing_but_the_batch() {
    let mut machine = Machine::with_base_pages(5);
    let copier = ScriptedCopier::new(&[
        Act::Answer(CopyAnswer::Copied),
        Act::Answer(CopyAnswer::Copied),
        Act::Panic,
    ]);
    let ended = run_into_panic(&mut machine, &copier);
    let abandoned = Outcome::Stayed(Failure::new(Step::Copy, Why::Abandoned));
    assert_eq!(ended, [0, 1, 2, 3, 4].map(|index| (index, abandoned)));
    assert_eq!(machine.tally.putbacks, 5);
}

#[test]
fn a_platform_that_panics_anywhere_leaves_no_folio_behind() {
    for call in CALLS {
        for victim in 0..6 {
            let mut machine = Machine::with_base_pages(6);
            machine.set_troubles(&[
                panics(call, base(victim)),
                // Some leave early, at each step, so that there is something to put back.
                fails(Call::Reserve, base(0), Why::Busy, 1),
                fails(Call::Unmap, base(1), Why::Busy, 1),
                fails(Call::Shootdown, base(2), Why::Busy, 1),
                fails(Call::CopyOnCpu, base(3), Why::Busy, 1),
                fails(Call::Remap, base(4), Why::Busy, 1),
            ]);
            let reached = match call {
                Call::Detach | Call::Unmap | Call::Attach => victim >= 1,
                Call::Shootdown => victim >= 2,
                Call::IsEligible | Call::Job | Call::CopyOnCpu => victim >= 3,
                Call::Remap => victim >= 4,
                Call::Putback => victim < 5,
                _ => true,
            };
            if !reached {
                continue;
            }
            let copier = ScriptedCopier::new(&[Act::Answer(CopyAnswer::Declined)]);
            let ended = run_into_panic(&mut machine, &copier);
            let indices: Vec<usize> = ended.iter().map(|(index, _)| *index).collect();
            let locked = match call {
                // Those behind it in the request were never asked for.
                Call::Lock => (0..usize::try_from(victim).unwrap()).collect(),
                Call::Tier => (0..=usize::try_from(victim).unwrap()).collect(),
                _ => vec![0, 1, 2, 3, 4, 5],
            };
            assert_eq!(indices, locked, "{call:?} of {victim}");
            if matches!(call, Call::Lock | Call::Tier) {
                assert_eq!(machine.tally.putbacks, 0, "there was nothing to put back");
            }
        }
    }
}

#[test]
fn a_panic_while_others_are_put_back_does_not_take_back_what_arrived() {
    for call in [Call::Putback, Call::Attach, Call::Release] {
        let mut machine = Machine::with_base_pages(3);
        machine.set_troubles(&[
            fails(Call::Remap, base(1), Why::Again, 1),
            panics(call, base(1)),
        ]);
        let ended = run_into_panic(&mut machine, &ScriptedCopier::good());
        let again = Outcome::Stayed(Failure::new(Step::Remap, Why::Again));
        assert_eq!(
            ended,
            [(0, Outcome::Moved), (1, again), (2, Outcome::Moved)]
        );
    }
}

#[test]
fn a_panic_before_a_folio_is_released_leaves_no_lock() {
    // Each is let go alone: there already, out of its batch, or at its end.
    for (from, troubles) in [
        (FAR, vec![]),
        (NEAR, vec![fails(Call::Unmap, base(0), Why::Busy, 1)]),
        (NEAR, vec![]),
    ] {
        let mut machine = Machine::new(&[(base(0), from), (base(1), NEAR)]);
        machine.set_troubles(&troubles);
        machine.release_panics = true;
        run_into_panic(&mut machine, &ScriptedCopier::good());
    }
}

#[test]
fn a_panic_goes_through_migrate() {
    let mut machine = Machine::with_base_pages(4);
    machine.set_troubles(&[panics(Call::Remap, base(2))]);
    let request = Request::new(machine.folios(), FAR);
    let panic = catch_unwind(AssertUnwindSafe(|| {
        migrate(&mut machine, &ScriptedCopier::good(), request)
    }))
    .unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&PLANNED));
    machine.check();
}
