//! The DSA copier over the software model: what it confirms is copied, and what it does not confirm
//! it has let go of, whatever the device does.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod child;

use std::num::NonZeroUsize;
use std::time::Duration;

use proptest::prelude::*;

use transhume_copy::dsa::{DsaOptions, Fault, Faults, ModelOptions, ModelQueue, QueueMode};
use transhume_copy::{CopyJob, Dsa, DsaModel};
use transhume_engine::{Copier, CopyAnswer};

const GUARD: u8 = 0xEE;
const POISON: u8 = 0xA5;
const MARGIN: usize = 64;
/// Longer than anything that is late is late by.
const LONG_AFTER: Duration = Duration::from_millis(60);

/// The memory of a list: sources, and destinations between guards.
struct List {
    sources: Vec<Vec<u8>>,
    targets: Vec<Vec<u8>>,
    answers: Vec<CopyAnswer>,
}

impl List {
    fn new(lengths: &[usize], seed: u64) -> Self {
        let mut word = seed.wrapping_mul(2).wrapping_add(1);
        let mut fill = |bytes: usize| {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(3);
            let first = usize::from(word.to_le_bytes()[7]);
            (0..bytes)
                .map(|at| ((at + first) % 251).to_le_bytes()[0])
                .collect()
        };
        Self {
            sources: lengths.iter().map(|&bytes| fill(bytes)).collect(),
            targets: lengths
                .iter()
                .map(|&bytes| vec![GUARD; bytes + 2 * MARGIN])
                .collect(),
            answers: vec![CopyAnswer::Unconfirmed; lengths.len()],
        }
    }

    /// Copies, and checks at once what was confirmed; what was not is overwritten.
    fn copy(&mut self, dsa: &Dsa) {
        let jobs = self
            .sources
            .iter()
            .zip(&mut self.targets)
            .map(|(source, target)| {
                let to = target[MARGIN..].as_mut_ptr();
                // SAFETY: separate vectors with room for it, not used otherwise while the job is.
                unsafe { CopyJob::new(source.as_ptr(), to, source.len()) }
            })
            .collect::<Vec<_>>();
        self.answers.fill(CopyAnswer::Unconfirmed);
        dsa.copy(&jobs, &mut self.answers);
        drop(jobs);
        for (n, answer) in self.answers.iter().enumerate() {
            let bytes = self.sources[n].len();
            if *answer == CopyAnswer::Copied {
                assert!(self.targets[n][MARGIN..][..bytes] == self.sources[n]);
            } else {
                self.targets[n][MARGIN..][..bytes].fill(POISON);
            }
        }
    }

    fn is_copied(&self) -> bool {
        self.answers
            .iter()
            .all(|&answer| answer == CopyAnswer::Copied)
    }

    /// What was confirmed is still there, what was not has not been written to, nor what lies around.
    fn check(&self) {
        for ((source, target), answer) in self.sources.iter().zip(&self.targets).zip(&self.answers)
        {
            let (before, rest) = target.split_at(MARGIN);
            let (bytes, after) = rest.split_at(source.len());
            assert!(before.iter().chain(after).all(|&byte| byte == GUARD));
            if *answer == CopyAnswer::Copied {
                assert!(bytes == source);
            } else {
                assert!(bytes.iter().all(|&byte| byte == POISON), "{answer:?}");
            }
        }
    }
}

fn queues() -> Vec<ModelQueue> {
    vec![
        ModelQueue {
            size: 3,
            max_transfer: 9000,
            max_batch: 5,
            ..ModelQueue::default()
        },
        ModelQueue {
            mode: QueueMode::Shared,
            size: 2,
            max_batch: 7,
            ..ModelQueue::default()
        },
        ModelQueue {
            max_batch: 1,
            ..ModelQueue::default()
        },
    ]
}

fn model(faults: Faults) -> DsaModel {
    DsaModel::start(&ModelOptions {
        queues: queues(),
        faults,
        ..ModelOptions::default()
    })
    .unwrap()
}

/// Waits for little, so that what hangs is soon given up.
fn impatient() -> DsaOptions {
    DsaOptions {
        floor: Duration::from_millis(3),
        ..DsaOptions::for_tests()
    }
}

fn lengths(seed: usize) -> Vec<usize> {
    (0..3 + seed % 30)
        .map(|n| (n * 7919 + seed * 104_729) % 20_000)
        .collect()
}

/// Copies lists of uneven jobs, and looks at them once more when all that is late has come.
fn copies(model: &DsaModel, options: DsaOptions, count: usize) -> Vec<List> {
    let dsa = Dsa::over_model(model, options);
    let mut lists = (0..count)
        .map(|n| List::new(&lengths(n), n as u64))
        .collect::<Vec<_>>();
    for list in &mut lists {
        list.copy(&dsa);
    }
    std::thread::sleep(LONG_AFTER);
    lists.iter().for_each(List::check);
    lists
}

#[test]
fn without_faults_all_is_copied() {
    let lists = copies(&model(Faults::default()), DsaOptions::for_tests(), 100);
    assert!(lists.iter().all(List::is_copied));
}

#[test]
fn faults_of_each_kind_alone() {
    for fault in Fault::ALL {
        let model = model(Faults::seeded(11).with(fault, 150));
        let lists = copies(&model, impatient(), 50);
        assert!(model.injected(fault) > 0, "{fault:?}");
        let has = |answer| {
            let mut answers = lists.iter().flat_map(|list| &list.answers);
            answers.any(|&other| other == answer)
        };
        match fault {
            Fault::Fails => assert!(has(CopyAnswer::Failed)),
            Fault::Hangs | Fault::Late | Fault::RecordsLate => assert!(has(CopyAnswer::TimedOut)),
            Fault::Refuses
            | Fault::Delays
            | Fault::Reorders
            | Fault::ReadFaults
            | Fault::WriteFaults
            | Fault::BatchFaults => assert!(!has(CopyAnswer::Failed)),
        }
    }
}

/// Page faults and whatever else does not harm the data end in copies that are confirmed, given time.
#[test]
fn harmless_faults_end_in_copies() {
    for fault in [
        Fault::Refuses,
        Fault::Delays,
        Fault::Reorders,
        Fault::ReadFaults,
        Fault::WriteFaults,
        Fault::BatchFaults,
    ] {
        // A queue that refused always would never be had.
        let often = if fault == Fault::Refuses { 700 } else { 1000 };
        let model = model(Faults::seeded(5).with(fault, often));
        let lists = copies(&model, DsaOptions::for_tests(), 20);
        // What has not got far within a few tries is copied by the CPU.
        assert!(model.injected(fault) > 20, "{fault:?}");
        assert!(lists.iter().all(List::is_copied), "{fault:?}");
    }
}

fn every_kind(seed: u64) -> Faults {
    Fault::ALL
        .into_iter()
        .fold(Faults::seeded(seed), |faults, fault| {
            let rare = matches!(fault, Fault::Hangs | Fault::Late | Fault::RecordsLate);
            faults.with(fault, if rare { 10 } else { 40 })
        })
}

#[test]
fn faults_of_every_kind_mixed() {
    for seed in 0..4 {
        let model = model(every_kind(seed));
        copies(&model, impatient(), 100);
    }
}

#[test]
fn several_callers_at_once() {
    for faults in [Faults::default(), every_kind(77)] {
        let model = model(faults);
        let options = DsaOptions {
            callers: NonZeroUsize::new(2).unwrap(),
            ..if faults == Faults::default() {
                DsaOptions::for_tests()
            } else {
                impatient()
            }
        };
        let dsa = Dsa::over_model(&model, options);
        std::thread::scope(|scope| {
            for caller in 0..4 {
                let dsa = &dsa;
                scope.spawn(move || {
                    let mut lists = (0..40)
                        .map(|n| List::new(&lengths(n + caller * 40), n as u64))
                        .collect::<Vec<_>>();
                    lists.iter_mut().for_each(|list| list.copy(dsa));
                    std::thread::sleep(LONG_AFTER);
                    for list in &lists {
                        list.check();
                        let declined = list
                            .answers
                            .iter()
                            .all(|&answer| answer == CopyAnswer::Declined);
                        // One of three or four at once finds no room, and none is half declined.
                        assert!(faults != Faults::default() || declined || list.is_copied());
                    }
                });
            }
        });
        // No slot was lost on the way.
        let mut list = List::new(&lengths(1), 1);
        list.copy(&dsa);
        list.check();
        assert!(!list.answers.contains(&CopyAnswer::Declined));
    }
}

#[test]
fn lists_too_small_to_gain_are_declined() {
    let model = model(Faults::default());
    let options = DsaOptions {
        floor: DsaOptions::for_tests().floor,
        ..DsaOptions::default()
    };
    let dsa = Dsa::over_model(&model, options);
    for (lengths, answer) in [
        (vec![4096; 511], CopyAnswer::Declined),
        (vec![4096; 512], CopyAnswer::Copied),
        (vec![2 << 20], CopyAnswer::Declined),
        (vec![2 << 20; 2], CopyAnswer::Copied),
    ] {
        let mut list = List::new(&lengths, 1);
        list.copy(&dsa);
        assert!(
            list.answers.iter().all(|&other| other == answer),
            "{answer:?}"
        );
    }
}

#[test]
fn a_wait_can_be_as_long_as_one_likes() {
    let options = DsaOptions {
        floor: Duration::MAX,
        slowest: std::num::NonZeroU64::MIN,
        ..DsaOptions::for_tests()
    };
    let lists = copies(&model(Faults::default()), options, 3);
    assert!(lists.iter().all(List::is_copied));
}

#[test]
fn a_list_of_more_parts_than_there_is_room_for() {
    let tiny = ModelQueue {
        max_transfer: 100,
        ..ModelQueue::default()
    };
    let model = DsaModel::start(&ModelOptions {
        queues: vec![tiny, tiny],
        ..ModelOptions::default()
    })
    .unwrap();
    let dsa = Dsa::over_model(&model, DsaOptions::for_tests());
    // One job that spans waves, with jobs without bytes around it.
    for lengths in [vec![0, 300_000, 0, 7, 0], vec![50; 3000], vec![0; 2000]] {
        let mut list = List::new(&lengths, 4);
        list.copy(&dsa);
        assert!(list.is_copied());
        list.check();
    }
}

#[test]
fn a_job_that_spans_waves_is_confirmed_whole_or_not() {
    let model = DsaModel::start(&ModelOptions {
        queues: vec![ModelQueue {
            max_transfer: 100,
            ..ModelQueue::default()
        }],
        faults: Faults::seeded(6).with(Fault::Fails, 1),
        ..ModelOptions::default()
    })
    .unwrap();
    let dsa = Dsa::over_model(&model, DsaOptions::for_tests());
    let mut failed = 0;
    for n in 0..20 {
        let mut list = List::new(&[300_000, 100], n);
        list.copy(&dsa);
        list.check();
        failed += usize::from(list.answers[0] == CopyAnswer::Failed);
    }
    assert!(failed > 0);
}

#[test]
fn a_queue_has_all_its_room_again_after_what_hung() {
    let model = DsaModel::start(&ModelOptions {
        queues: vec![ModelQueue {
            size: 2,
            ..ModelQueue::default()
        }],
        faults: Faults::seeded(8).with(Fault::Hangs, 300),
        ..ModelOptions::default()
    })
    .unwrap();
    let options = DsaOptions {
        floor: Duration::from_millis(10),
        ..DsaOptions::for_tests()
    };
    let lists = copies(&model, options, 60);
    assert!(model.injected(Fault::Hangs) > 5);
    assert!(lists[40..].iter().any(List::is_copied));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any queues and any jobs: each byte is copied once, and none beside.
    #[test]
    fn any_shapes(
        queues in proptest::collection::vec(
            (any::<bool>(), 1..9_u32, 1..200_000_u32, 0..12_u32), 1..5),
        lengths in proptest::collection::vec(0..70_000_usize, 0..40),
        seed in any::<u64>(),
    ) {
        let queue = |&(shared, size, max_transfer, max_batch): &(bool, u32, u32, u32)| ModelQueue {
            mode: if shared { QueueMode::Shared } else { QueueMode::Dedicated },
            size,
            max_transfer: max_transfer.max(400),
            max_batch,
        };
        let model = DsaModel::start(&ModelOptions {
            queues: queues.iter().map(queue).collect(),
            faults: Faults::seeded(seed)
                .with(Fault::Reorders, 500)
                .with(Fault::Delays, 20)
                .with(Fault::ReadFaults, 50),
            ..ModelOptions::default()
        })
        .unwrap();
        let dsa = Dsa::over_model(&model, DsaOptions::for_tests());
        let mut list = List::new(&lengths, seed);
        list.copy(&dsa);
        prop_assert!(list.is_copied());
        list.check();
    }
}

#[test]
fn it_can_be_dropped_idle_and_after_what_hangs() {
    drop(model(Faults::default()));
    let hangs = model(Faults::seeded(1).with(Fault::Hangs, 1000));
    let dsa = Dsa::over_model(&hangs, impatient());
    drop(hangs);
    let mut list = List::new(&[5000; 20], 1);
    list.copy(&dsa);
    assert!(list.answers.contains(&CopyAnswer::TimedOut));
    drop(dsa);
    list.check();
}

#[test]
fn the_child_of_a_fork_declines_and_ends() {
    let model = model(Faults::default());
    let dsa = Dsa::over_model(&model, DsaOptions::for_tests());
    let mut list = List::new(&lengths(9), 9);
    list.copy(&dsa);
    assert!(list.is_copied());
    // SAFETY: the child declines a list, drops the copier and ends; of these only drops come near
    // the allocator, which the C library keeps usable after a fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        list.copy(&dsa);
        let declined = list
            .answers
            .iter()
            .all(|&answer| answer == CopyAnswer::Declined);
        drop(dsa);
        drop(model);
        // SAFETY: it ends without running anything that belongs to the parent.
        unsafe { libc::_exit(if declined { 0 } else { 1 }) }
    }
    child::must_end_well(child);
    list.copy(&dsa);
    assert!(list.is_copied(), "the parent goes on");
}
