//! The switch with copiers of every kind.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Weak, mpsc};

use transhume_engine::CopyAnswer;

use super::*;
use crate::CopyJob;

const BYTES: usize = 64;

/// Makes `count` copies through `copier`, says what it answered, and checks what it confirmed.
fn copy(copier: &dyn Copier<CopyJob>, count: usize) -> Vec<CopyAnswer> {
    let from = vec![7_u8; count * BYTES];
    let mut to = vec![0_u8; count * BYTES];
    let target = to.as_mut_ptr();
    let job = |n: usize| {
        let (source, target) = (from[n * BYTES..].as_ptr(), target.wrapping_add(n * BYTES));
        // SAFETY: both are there until the jobs are gone, and nobody looks at them meanwhile.
        unsafe { CopyJob::new(source, target, BYTES) }
    };
    let jobs = (0..count).map(job).collect::<Vec<_>>();
    let mut answers = vec![CopyAnswer::Unconfirmed; count];
    copier.copy(&jobs, &mut answers);
    drop(jobs);
    for (answer, copy) in answers.iter().zip(to.chunks(BYTES)) {
        assert!(*answer != CopyAnswer::Copied || copy == [7; BYTES]);
    }
    answers
}

/// A copier that does as it is told.
struct Does<F>(&'static str, F);

impl<F: Fn(&[CopyJob], &mut [CopyAnswer]) + Sync> Copier<CopyJob> for Does<F> {
    fn name(&self) -> &str {
        self.0
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        (self.1)(jobs, answers);
    }
}

fn does<F>(name: &'static str, f: F) -> SharedCopier
where
    F: Fn(&[CopyJob], &mut [CopyAnswer]) + Send + Sync + 'static,
{
    Arc::new(Does(name, f))
}

fn tally_of(switch: &Switch, name: &str) -> Tally {
    let all = switch.statistics().into_iter();
    let mut found = all.filter(|copier| copier.name == name);
    let tally = found.next().map(|copier| copier.tally).unwrap_or_default();
    assert!(found.next().is_none(), "{name} has two accounts");
    tally
}

#[test]
fn other_reasons_are_left_to_memcpy() {
    let only = "demotion".parse().unwrap();
    let choice = Choice::named("threads:2:memcpy").unwrap().only(only);
    let switch = Arc::new(Switch::new(choice));
    assert_eq!(switch.in_use().only, only);
    for (reason, jobs) in Reason::ALL.into_iter().zip(1..) {
        let answers = copy(&switch.for_reason(reason), jobs);
        assert_eq!(answers, vec![CopyAnswer::Copied; jobs]);
    }
    let threads = tally_of(&switch, "threads:2:memcpy");
    assert_eq!((threads.batches, threads.copied), (1, 2));
    let memcpy = tally_of(&switch, "memcpy");
    assert_eq!((memcpy.batches, memcpy.copied), (3, 1 + 3 + 4));
    assert_eq!(memcpy.bytes, 8 * BYTES as u64);
    assert_eq!(
        threads.declined + threads.fell_back(),
        0,
        "it was not asked"
    );
}

#[test]
fn each_answer_is_counted_once() {
    let turns = [
        CopyAnswer::Declined,
        CopyAnswer::Failed,
        CopyAnswer::Failed,
        CopyAnswer::TimedOut,
        CopyAnswer::TimedOut,
        CopyAnswer::TimedOut,
        CopyAnswer::Unconfirmed,
    ];
    let unwilling = does("unwilling", move |jobs, answers| {
        let turns = turns.iter().cycle().copied();
        for ((_, answer), turn) in jobs.iter().zip(answers).zip(turns) {
            *answer = turn;
        }
    });
    let switch = Arc::new(Switch::new(unwilling));
    assert_eq!(copy(&switch.for_reason(Reason::UserCall), 14).len(), 14);
    // One that a request names is counted with the others.
    copy(&switch.beside(Arc::new(Memcpy)), 5);
    let tally = tally_of(&switch, "unwilling");
    let counts = (
        tally.declined,
        tally.failed,
        tally.timed_out,
        tally.unconfirmed,
    );
    assert_eq!(counts, (2, 4, 6, 2));
    assert_eq!((tally.jobs(), tally.fell_back(), tally.bytes), (14, 14, 0));
    assert_eq!(tally.bytes_per_s(), None);
    let memcpy = tally_of(&switch, "memcpy");
    assert_eq!(
        (memcpy.jobs(), memcpy.fell_back(), memcpy.copied),
        (5, 0, 5)
    );
    assert!(memcpy.busy > Duration::ZERO && memcpy.bytes_per_s().is_some());
}

#[test]
fn a_copier_that_panics_is_over_with_its_copy() {
    let panics = does("panics", |_, _| panic!("on purpose"));
    let switch = Arc::new(Switch::new(Arc::clone(&panics)));
    let copier = switch.for_reason(Reason::UserCall);
    for _ in 0..3 {
        let caught = catch_unwind(AssertUnwindSafe(|| copy(&copier, 5)));
        assert!(caught.is_err());
    }
    let tally = tally_of(&switch, "panics");
    assert_eq!((tally.batches, tally.panicked, tally.jobs()), (3, 15, 15));
    let before = switch.select(Choice::named("memcpy").unwrap()).unwrap();
    assert!(Arc::ptr_eq(&before.copier, &panics));
    assert_eq!(copy(&copier, 5), [CopyAnswer::Copied; 5]);
    // Its account is still there.
    assert_eq!(tally_of(&switch, "panics"), tally);
}

/// A copier that says when it was entered, and stays until it is let out.
fn stays(entered: mpsc::Sender<()>, out: mpsc::Receiver<()>) -> SharedCopier {
    let out = Mutex::new(out);
    does("stays", move |jobs, answers| {
        entered.send(()).unwrap();
        let _ = out.lock().unwrap().recv();
        Memcpy.copy(jobs, answers);
    })
}

#[test]
fn a_change_waits_for_copies_in_flight_and_holds_up_none() {
    let ((entered, in_it), (let_out, out)) = (mpsc::channel(), mpsc::channel());
    let switch = Arc::new(Switch::new(stays(entered, out)));
    let copier = switch.for_reason(Reason::UserCall);
    let changed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let staying = scope.spawn(|| copy(&copier, 3));
        in_it.recv().unwrap();
        let change = scope.spawn(|| {
            let before = switch.select(Arc::new(Memcpy) as SharedCopier).unwrap();
            changed.store(true, Ordering::Relaxed);
            before
        });
        while switch.in_use().name != "memcpy" {
            std::thread::yield_now();
        }
        // Whoever comes now does not wait, however long the other stays.
        for _ in 0..100 {
            assert_eq!(copy(&copier, 2), [CopyAnswer::Copied; 2]);
            assert_eq!(tally_of(&switch, "stays").jobs(), 0);
        }
        assert!(!changed.load(Ordering::Relaxed) && !change.is_finished());
        let_out.send(()).unwrap();
        assert_eq!(change.join().unwrap().copier.name(), "stays");
        assert_eq!(staying.join().unwrap(), [CopyAnswer::Copied; 3]);
    });
    assert_eq!(tally_of(&switch, "stays").copied, 3);
    assert_eq!(tally_of(&switch, "memcpy").copied, 200);
}

#[test]
fn a_copy_that_does_not_return_ends_no_more_than_its_own_batch() {
    const SHORT: Duration = Duration::from_millis(20);
    let ((entered, in_it), (let_out, out)) = (mpsc::channel(), mpsc::channel());
    let stuck = stays(entered, out);
    let gone: Weak<_> = Arc::downgrade(&stuck);
    let switch = Arc::new(Switch::new(stuck));
    let copier = switch.for_reason(Reason::UserCall);
    let other = |name| Choice::from(does(name, |jobs, answers| Memcpy.copy(jobs, answers)));
    std::thread::scope(|scope| {
        let staying = scope.spawn(|| copy(&copier, 1));
        in_it.recv().unwrap();
        let refused = switch.select_within(other("one"), SHORT).unwrap_err();
        let not_returned = SwitchError::NotReturned {
            old: "stays".to_owned(),
            new: "one".to_owned(),
        };
        assert_eq!(refused, not_returned);
        assert_eq!(switch.in_use().name, "one");
        let refused = switch.select_within(other("two"), SHORT).unwrap_err();
        assert_eq!(refused, SwitchError::Occupied);
        assert_eq!(switch.in_use().name, "one", "nothing was changed");
        assert_eq!(copy(&copier, 4), [CopyAnswer::Copied; 4]);
        let_out.send(()).unwrap();
        assert_eq!(staying.join().unwrap(), [CopyAnswer::Copied]);
        assert!(gone.upgrade().is_some());
        assert_eq!(switch.select(other("two")).unwrap().copier.name(), "one");
        assert!(gone.upgrade().is_none(), "what was left over is gone");
    });
}

#[test]
fn a_copier_can_neither_change_what_is_in_use_nor_copy_through_it() {
    let slot: Arc<Mutex<Weak<Switch>>> = Arc::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let circular = {
        let (slot, seen) = (Arc::clone(&slot), Arc::clone(&seen));
        does("circular", move |jobs, answers| {
            let switch = slot.lock().unwrap().upgrade().unwrap();
            let refused = switch.select(Arc::new(Memcpy) as SharedCopier);
            seen.lock().unwrap().push(refused.unwrap_err());
            switch.for_reason(Reason::UserCall).copy(jobs, answers);
            assert!(answers.iter().all(|&answer| answer == CopyAnswer::Declined));
        })
    };
    let switch = Arc::new(Switch::new(circular));
    *slot.lock().unwrap() = Arc::downgrade(&switch);
    let answers = copy(&switch.for_reason(Reason::UserCall), 3);
    assert_eq!(answers, [CopyAnswer::Declined; 3]);
    assert_eq!(*seen.lock().unwrap(), [SwitchError::InsideCopier]);
    assert_eq!(tally_of(&switch, "circular").declined, 3);
    // A request that names it is no better off, and one that names a switch copies through that.
    let other = Arc::new(Switch::default());
    let circular = switch.select(Arc::new(Memcpy) as SharedCopier).unwrap();
    *slot.lock().unwrap() = Arc::downgrade(&other);
    let beside = other.beside(circular.copier);
    assert_eq!(
        catch_unwind(AssertUnwindSafe(|| copy(&beside, 3))).ok(),
        None
    );
    assert_eq!(seen.lock().unwrap().len(), 2);
    let through = Arc::new(switch.for_reason(Reason::UserCall));
    assert_eq!(copy(&other.beside(through), 2), [CopyAnswer::Copied; 2]);
    assert_eq!(tally_of(&other, "switch").copied, 2);
    assert_eq!(tally_of(&switch, "memcpy").copied, 2);
    // The thread is out of it.
    switch.select(Arc::new(Memcpy) as SharedCopier).unwrap();
    assert_eq!(
        copy(&switch.for_reason(Reason::UserCall), 1),
        [CopyAnswer::Copied]
    );
}

/// A copier that nobody may use once it was taken out.
struct Watched {
    taken_out: AtomicBool,
    name: String,
}

impl Copier<CopyJob> for Watched {
    fn name(&self) -> &str {
        &self.name
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        assert!(!self.taken_out.load(Ordering::SeqCst));
        Memcpy.copy(jobs, answers);
        std::thread::yield_now();
        assert!(
            !self.taken_out.load(Ordering::SeqCst),
            "taken out while it copied"
        );
    }
}

#[test]
fn a_thousand_changes_while_threads_copy() {
    const CHANGES: usize = 1000;
    const COPIERS: usize = 4;
    let watched = |n: usize| {
        Arc::new(Watched {
            taken_out: AtomicBool::new(false),
            // Few names, so that accounts are used again.
            name: format!("watched-{}", n % 3),
        })
    };
    let mut now = watched(0);
    let switch = Arc::new(Switch::new(Arc::clone(&now) as SharedCopier));
    let (stop, jobs) = (AtomicBool::new(false), AtomicU64::new(0));
    let begin = Barrier::new(1 + COPIERS);
    std::thread::scope(|scope| {
        for n in 1..=COPIERS {
            let (switch, stop, jobs, begin) = (&switch, &stop, &jobs, &begin);
            scope.spawn(move || {
                let copier = switch.for_reason(Reason::Promotion);
                begin.wait();
                while !stop.load(Ordering::Relaxed) {
                    let answers = copy(&copier, n);
                    assert!(answers.iter().all(|&answer| answer == CopyAnswer::Copied));
                    jobs.fetch_add(n as u64, Ordering::Relaxed);
                }
            });
        }
        begin.wait();
        for n in 1..=CHANGES {
            let next = watched(n);
            let before = switch.select(Arc::clone(&next) as SharedCopier).unwrap();
            assert!(Arc::ptr_eq(
                &before.copier,
                &(Arc::clone(&now) as SharedCopier)
            ));
            now.taken_out.store(true, Ordering::SeqCst);
            drop(before);
            assert_eq!(Arc::strong_count(&now), 1, "nobody has it any more");
            now = next;
        }
        stop.store(true, Ordering::Relaxed);
    });
    let statistics = switch.statistics();
    assert_eq!(statistics.len(), 1 + 3);
    let sum =
        |figure: fn(&Tally) -> u64| statistics.iter().map(|one| figure(&one.tally)).sum::<u64>();
    let jobs = jobs.into_inner();
    assert_eq!((sum(Tally::jobs), sum(|tally| tally.copied)), (jobs, jobs));
    assert_eq!(sum(|tally| tally.bytes), jobs * BYTES as u64);
}

/// The copy that another thread is at will never return in the child.
#[test]
fn a_child_copies_and_changes_nothing() {
    let ((entered, in_it), (let_out, out)) = (mpsc::channel(), mpsc::channel());
    let switch = Arc::new(Switch::new(stays(entered, out)));
    let copier = switch.for_reason(Reason::UserCall);
    std::thread::scope(|scope| {
        scope.spawn(|| copy(&copier, 1));
        in_it.recv().unwrap();
        let plain = switch.beside(Arc::new(Memcpy));
        let (from, mut to) = ([5_u8; 16], [0_u8; 16]);
        let (source, target) = (from.as_ptr(), to.as_mut_ptr());
        let choice = Choice::from(Arc::new(Memcpy) as SharedCopier);
        // SAFETY: the child only copies, looks at numbers, and ends by _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: nobody else has these bytes, and nobody looks at them meanwhile.
            let jobs = [unsafe { CopyJob::new(source, target, 16) }];
            let mut answers = [CopyAnswer::Unconfirmed];
            plain.copy(&jobs, &mut answers);
            let refused = switch
                .select(choice)
                .is_err_and(|why| why == SwitchError::Forked);
            let as_it_was = switch.chosen.with(|chosen| chosen.account.name == "stays");
            let right = refused && as_it_was && answers == [CopyAnswer::Copied];
            // SAFETY: it ends the child.
            unsafe { libc::_exit(i32::from(!right)) }
        }
        assert!(child > 0);
        let mut status = 0;
        // SAFETY: the child is ours.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        let_out.send(()).unwrap();
        assert_eq!(status, 0);
    });
}
