//! The counters of shootdowns. Counts are checked, never times.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use transhume_sys::advise;
use transhume_sys::shootdown::{Counter, InterruptCounter, ShootdownCounter, Source};

use crate::common::{Needs, Pages, Suite, all, eventually};

pub(crate) fn add(suite: &mut Suite) {
    suite.test(
        "shootdown::one_flush_is_one_request",
        all([counter(), cpus()]),
        one_request,
    );
    suite.test(
        "shootdown::off_and_on",
        all([counter(), cpus()]),
        off_and_on,
    );
    suite.test(
        "shootdown::of_process_and_machine",
        all([counter(), cpus()]),
        wider,
    );
    suite.test("shootdown::arrivals", all([arrivals(), cpus()]), arrive);
    suite.test("shootdown::the_best_says_what_it_is", arrivals(), the_best);
}

fn counter() -> Needs {
    ShootdownCounter::open_for_this_thread()
        .map(drop)
        .map_err(|error| error.to_string())
}

fn arrivals() -> Needs {
    InterruptCounter::open()
        .map(drop)
        .map_err(|error| error.to_string())
}

fn cpus() -> Needs {
    match usable_cpus().len() {
        0 | 1 => Err("this process may use one CPU only".to_owned()),
        _ => Ok(()),
    }
}

fn usable_cpus() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect()
}

fn pin_to(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).unwrap();
}

/// Gives up a page that a thread on another CPU is touching, whenever `attempt` asks for it, and
/// repeats that until `attempt` is content. The counter is opened by the thread that flushes.
///
/// The other thread may be off its CPU at that moment, and then nothing has to be sent; so this
/// may take several tries.
fn flushes<C>(
    open: impl FnOnce() -> C + Send,
    mut attempt: impl FnMut(&C, &mut dyn FnMut()) -> bool + Send,
) {
    std::thread::scope(|scope| {
        // A thread of its own, whose pinning ends with it.
        scope.spawn(move || {
            let cpus = usable_cpus();
            pin_to(cpus[0]);
            let counter = open();
            let pages = Pages::new(1);
            let (stop, touches) = (AtomicBool::new(false), AtomicU64::new(0));
            let (pages, stop, touches) = (&pages, &stop, &touches);
            std::thread::scope(|scope| {
                let other = cpus[1];
                scope.spawn(move || {
                    pin_to(other);
                    while !stop.load(Ordering::Relaxed) {
                        pages.write(0, 1);
                        touches.fetch_add(1, Ordering::Relaxed);
                    }
                });
                let mut flush = || {
                    let before = touches.load(Ordering::Relaxed);
                    eventually("a touch", || touches.load(Ordering::Relaxed) > before + 100);
                    // SAFETY: the test's own page.
                    unsafe { advise::dont_need(pages.all()) }.unwrap();
                };
                // A panic must not leave the other thread running, for it would be waited for.
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    eventually("a flush that was sent", || attempt(&counter, &mut flush));
                }));
                stop.store(true, Ordering::Relaxed);
                result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            });
        });
    });
}

fn one_request() {
    let open = || ShootdownCounter::open_for_this_thread().unwrap();
    flushes(open, |counter, flush| {
        let before = counter.read().unwrap();
        flush();
        let count = counter.read().unwrap() - before;
        assert!(count <= 1, "{count} requests for one page");
        count == 1
    });
}

fn off_and_on() {
    let open = || ShootdownCounter::open_for_this_thread().unwrap();
    flushes(open, |counter, flush| {
        counter.disable().unwrap();
        let before = counter.read().unwrap();
        flush();
        assert_eq!(counter.read().unwrap(), before);
        counter.enable().unwrap();
        flush();
        counter.read().unwrap() > before
    });
}

fn wider() {
    let open = || {
        [
            ShootdownCounter::open_for_this_thread().unwrap(),
            ShootdownCounter::open_for_threads(&[rustix::thread::gettid()]).unwrap(),
            ShootdownCounter::open_for_this_process().unwrap(),
            ShootdownCounter::open_for_system().unwrap(),
        ]
    };
    flushes(open, |counters, flush| {
        let read = || counters.each_ref().map(|counter| counter.read().unwrap());
        let before = read();
        flush();
        let after = read();
        let [thread, threads, process, system]: [u64; 4] =
            std::array::from_fn(|index| after[index] - before[index]);
        assert_eq!(thread, threads);
        assert!(
            process >= thread && system >= thread,
            "{thread} {process} {system}"
        );
        thread == 1
    });
    let nobody = transhume_sys::Pid::from_raw(i32::MAX).unwrap();
    let error = ShootdownCounter::open_for_threads(&[nobody]).unwrap_err();
    assert!(error.to_string().contains("perf_event_open"), "{error}");
}

fn arrive() {
    let open = || InterruptCounter::open().unwrap();
    flushes(open, |counter, flush| {
        let before = counter.read().unwrap();
        flush();
        counter.read().unwrap() > before
    });
}

fn the_best() {
    let best = Counter::best_for_this_thread().unwrap();
    match best.source() {
        Source::Requests => assert!(best.because().is_none() && counter().is_ok()),
        Source::Arrivals => assert!(best.because().is_some() && counter().is_err()),
    }
    best.read().unwrap();
}
