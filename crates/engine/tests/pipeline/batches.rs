//! Batches by hand: what is put down early is put back, at whatever step.

use transhume_engine::{Failure, Isolated, Outcome, Step, Why, Work};

use crate::machine::{Call, FAR, Machine, ScriptedCopier, base, fails};

const FOLIOS: u64 = 4;

/// Opens a batch of which one folio each is lost at lock and at reserve, walks it that far and
/// drops it; says what became of the rest.
fn dropped_at(step: Step) -> (Machine, Vec<(usize, Outcome)>) {
    let mut machine = Machine::with_base_pages(FOLIOS + 2);
    machine.set_troubles(&[
        fails(Call::Lock, base(FOLIOS), Why::Busy, 1),
        fails(Call::Reserve, base(FOLIOS + 1), Why::Again, 1),
    ]);
    let mut work = Work::with_capacity(0);
    let folios: Vec<_> = machine.folios().into_iter().enumerate().collect();
    let copier = ScriptedCopier::good();

    let isolated = Isolated::gather(&mut machine, &mut work, &folios, FAR);
    assert_eq!(isolated.len(), 4);
    assert!(!isolated.is_empty());
    assert_eq!(format!("{isolated:?}"), "Isolated(4)");
    match step {
        Step::Lock | Step::Reserve => drop(isolated),
        Step::Unmap => drop(isolated.unmap()),
        Step::Shootdown => drop(isolated.unmap().shootdown()),
        Step::Copy => drop(isolated.unmap().shootdown().copy(&copier)),
        Step::Remap => drop(isolated.unmap().shootdown().copy(&copier).remap()),
    }
    machine.check();
    let mut ended: Vec<_> = work.take_ended().collect();
    ended.sort_unstable_by_key(|(index, _)| *index);
    assert_eq!(work.take_ended().count(), 0);
    assert_eq!(
        ended.split_off(4),
        [
            (4, Outcome::Stayed(Failure::new(Step::Lock, Why::Busy))),
            (5, Outcome::Stayed(Failure::new(Step::Reserve, Why::Again))),
        ]
    );
    assert_eq!(
        ended.iter().map(|(index, _)| *index).collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    assert_eq!(work.counts().putbacks, machine.tally.putbacks);
    assert!(format!("{work:?}").contains("putbacks"));
    (machine, ended)
}

#[test]
fn a_batch_put_down_early_puts_every_folio_back() {
    for step in [Step::Reserve, Step::Unmap, Step::Shootdown, Step::Copy] {
        let (machine, ended) = dropped_at(step);
        for (_, outcome) in ended {
            let abandoned = Failure::new(step, Why::Abandoned);
            assert_eq!(outcome, Outcome::Stayed(abandoned));
        }
        assert_eq!(machine.tally.putbacks, 5);
        // In the order of the request, after the one that found no frame.
        assert_eq!(machine.released, [5, 0, 1, 2, 3].map(base));
    }
}

#[test]
fn a_remapped_batch_put_down_is_finished() {
    let (machine, ended) = dropped_at(Step::Remap);
    for (_, outcome) in ended {
        assert_eq!(outcome, Outcome::Moved);
    }
    assert_eq!(machine.tally.putbacks, 1);
    assert!((0..FOLIOS).all(|page| machine.tier_of(base(page)) == FAR));
}

#[test]
fn finish_says_how_many_moved() {
    let mut machine = Machine::with_base_pages(3);
    machine.set_troubles(&[fails(Call::Remap, base(1), Why::Again, 1)]);
    let mut work = Work::with_capacity(8);
    let folios: Vec<_> = machine.folios().into_iter().enumerate().collect();
    let remapped = Isolated::gather(&mut machine, &mut work, &folios, FAR)
        .unmap()
        .shootdown()
        .copy(&ScriptedCopier::good())
        .remap();
    assert_eq!(remapped.len(), 2);
    assert_eq!(remapped.finish(), 2);
    machine.check();
    assert_eq!(work.take_ended().count(), 3);
}

#[test]
fn what_failed_first_is_what_is_recorded() {
    let mut machine = Machine::with_base_pages(1);
    machine.set_troubles(&[fails(Call::Shootdown, base(0), Why::Pinned, 1)]);
    let mut work = Work::with_capacity(1);
    let flushed = Isolated::gather(&mut machine, &mut work, &[(7, base(0))], FAR)
        .unmap()
        .shootdown();
    assert!(flushed.is_empty());
    drop(flushed);
    machine.check();
    let ended: Vec<_> = work.take_ended().collect();
    let pinned = Failure::new(Step::Shootdown, Why::Pinned);
    assert_eq!(ended, [(7, Outcome::Stayed(pinned))]);
}

#[test]
fn an_empty_batch_asks_nothing_of_the_machine() {
    let mut machine = Machine::with_base_pages(1);
    machine.set_troubles(&[fails(Call::Lock, base(0), Why::Busy, 1)]);
    let mut work = Work::with_capacity(1);
    let moved = Isolated::alone(&mut machine, &mut work, 0, base(0), FAR)
        .unmap()
        .shootdown()
        .copy(&ScriptedCopier::good())
        .remap()
        .finish();
    assert_eq!(moved, 0);
    assert_eq!(machine.tally.shootdowns, 0);
    assert_eq!(work.counts().rounds, 0);
    machine.check();
}

#[test]
fn a_folio_alone_is_put_back_too() {
    let mut machine = Machine::with_base_pages(1);
    let mut work = Work::with_capacity(1);
    drop(Isolated::alone(&mut machine, &mut work, 0, base(0), FAR).unmap());
    machine.check();
    assert_eq!(machine.asked(base(0)), (0, 1));
    assert_eq!(work.take_ended().count(), 1);
}
