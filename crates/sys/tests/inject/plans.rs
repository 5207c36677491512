//! Which calls a plan spoils.

use transhume_sys::inject::{Call, Fault, Plan, arm, calls};
use transhume_sys::shootdown::{Counter, InterruptCounter, Source};
use transhume_sys::uffd::{Access, Allowed, Features, OpenError, Uffd};
use transhume_sys::{Errno, map};

use crate::common::{Pages, Suite, uffd_with};

pub(crate) fn add(suite: &mut Suite) {
    suite.test("plans::calls_are_counted", Ok(()), calls_are_counted);
    suite.test("plans::skip_and_times", Ok(()), skip_and_times);
    suite.test("plans::end_with_their_guard", Ok(()), end_with_their_guard);
    suite.test("plans::of_other_calls", Ok(()), of_other_calls);
    suite.test("plans::the_oldest_decides", Ok(()), the_oldest_decides);
    suite.test("plans::hold_for_all_threads", Ok(()), hold_for_all_threads);
    suite.test(
        "plans::ways_to_a_userfaultfd",
        every_way(),
        ways_to_a_userfaultfd,
    );
    suite.test(
        "plans::no_userfaultfd_at_all",
        Ok(()),
        no_userfaultfd_at_all,
    );
    let row = InterruptCounter::open()
        .map(drop)
        .map_err(|error| error.to_string());
    suite.test(
        "plans::the_second_best_counter",
        row,
        the_second_best_counter,
    );
}

fn every_way() -> Result<(), String> {
    uffd_with(Features::empty())?;
    for allowed in [Allowed::DEVICE, Allowed::SYSCALL] {
        Uffd::open(Features::empty(), allowed).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// A call that works on any machine.
fn resize() -> Result<(), Errno> {
    let file = map::memfd(c"plans", map::MemfdPages::Shmem).unwrap();
    map::resize(file, 4096).map_err(|error| error.errno)
}

const SPOILED: Result<(), Errno> = Err(Errno::NFILE);

fn calls_are_counted() {
    let before = calls(Call::Ftruncate);
    resize().unwrap();
    assert_eq!(calls(Call::Ftruncate), before + 1);
    let _armed = arm(Call::Ftruncate, Plan::always(Fault::Errno(Errno::NFILE)));
    assert_eq!(resize(), SPOILED);
    assert_eq!(calls(Call::Ftruncate), before + 2);
}

fn skip_and_times() {
    let plan = Plan {
        skip: 2,
        times: 3,
        fault: Fault::Errno(Errno::NFILE),
    };
    let armed = arm(Call::Ftruncate, plan);
    let results: Vec<_> = (0..8).map(|_| resize().is_ok()).collect();
    assert_eq!(results, [true, true, false, false, false, true, true, true]);
    assert_eq!(armed.fired(), 3);
}

fn end_with_their_guard() {
    let armed = arm(Call::Ftruncate, Plan::always(Fault::Errno(Errno::NFILE)));
    assert_eq!(resize(), SPOILED);
    drop(armed);
    assert_eq!(resize(), Ok(()));
}

fn of_other_calls() {
    let _armed = arm(Call::Fallocate, Plan::always(Fault::Errno(Errno::NFILE)));
    assert_eq!(resize(), Ok(()));
}

fn the_oldest_decides() {
    let first = arm(Call::Ftruncate, Plan::once(Fault::Errno(Errno::NFILE)));
    let second = arm(
        Call::Ftruncate,
        Plan {
            skip: 1,
            ..Plan::once(Fault::Errno(Errno::MFILE))
        },
    );
    assert_eq!(resize(), SPOILED);
    assert_eq!(resize(), Err(Errno::MFILE));
    assert_eq!(resize(), Ok(()));
    assert_eq!((first.fired(), second.fired()), (1, 1));
}

fn hold_for_all_threads() {
    const THREADS: u64 = 8;
    let armed = arm(
        Call::Ftruncate,
        Plan {
            times: 5,
            ..Plan::once(Fault::Errno(Errno::NFILE))
        },
    );
    let failed: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| resize().is_err()))
            .collect();
        threads
            .into_iter()
            .map(|thread| usize::from(thread.join().unwrap()))
            .sum()
    });
    assert_eq!((failed, armed.fired()), (5, 5));
}

fn ways_to_a_userfaultfd() {
    let refused = |times| Plan {
        times,
        ..Plan::once(Fault::Errno(Errno::PERM))
    };
    for (times, access) in [(1, Access::Syscall), (2, Access::UserModeOnly)] {
        let _armed = arm(Call::UffdOpen, refused(times));
        let uffd = Uffd::open(Features::empty(), Allowed::all()).unwrap();
        assert_eq!(uffd.access(), access);
    }
    let _armed = arm(Call::UffdApi, Plan::once(Fault::Errno(Errno::PERM)));
    match Uffd::open(Features::EVENT_FORK, Allowed::all()) {
        Err(OpenError::Handshake {
            wanted: Features::EVENT_FORK,
            errno: Errno::PERM,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
}

fn no_userfaultfd_at_all() {
    let _armed = arm(Call::UffdOpen, Plan::always(Fault::Errno(Errno::NOSYS)));
    let error = Uffd::open(Features::empty(), Allowed::all()).unwrap_err();
    let OpenError::Unavailable(refusals) = &error else {
        panic!("{error}")
    };
    assert_eq!(refusals.device, Some(Errno::NOSYS));
    assert_eq!(refusals.user_mode_only, Some(Errno::NOSYS));
    assert!(error.to_string().contains("/dev/userfaultfd: "), "{error}");
    drop(Pages::new(1));
}

fn the_second_best_counter() {
    let _armed = arm(
        Call::PerfEventOpen,
        Plan::always(Fault::Errno(Errno::ACCESS)),
    );
    let counter = Counter::best_for_this_thread().unwrap();
    assert_eq!(counter.source(), Source::Arrivals);
    assert_eq!(counter.source().to_string(), "/proc/interrupts");
    assert!(counter.because().is_some());
    counter.read().unwrap();
}
