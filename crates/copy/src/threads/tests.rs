use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use super::*;

const KIB: usize = 1 << 10;

fn options(threads: usize) -> ThreadsOptions {
    ThreadsOptions {
        inner: Inner::Memcpy,
        min_bytes_per_thread: NonZeroUsize::MIN,
        ..ThreadsOptions::new(NonZeroUsize::new(threads).unwrap())
    }
}

fn threads(threads: usize, mover: impl Mover + 'static) -> Threads {
    Threads::with_mover(options(threads), Box::new(mover)).unwrap()
}

/// Copies lists of different jobs, and checks that what is confirmed was copied.
fn copy(threads: &Threads, lengths: &[usize]) -> Vec<CopyAnswer> {
    let fill = |(n, &bytes): (usize, &usize)| {
        (0..bytes)
            .map(|at| (at * 7 + n * 13 + 1).to_le_bytes()[0])
            .collect::<Vec<_>>()
    };
    let source = lengths.iter().enumerate().map(fill).collect::<Vec<_>>();
    let mut target = lengths.iter().map(|&n| vec![0; n]).collect::<Vec<_>>();
    let jobs = source.iter().zip(&mut target);
    // SAFETY: separate vectors, not used otherwise while the jobs are.
    let jobs = jobs
        .map(|(from, to)| unsafe { CopyJob::new(from.as_ptr(), to.as_mut_ptr(), to.len()) })
        .collect::<Vec<_>>();
    let mut answers = vec![CopyAnswer::Unconfirmed; jobs.len()];
    threads.copy(&jobs, &mut answers);
    for ((from, to), answer) in source.iter().zip(&target).zip(&answers) {
        assert!(*answer == CopyAnswer::Failed || from == to);
    }
    answers
}

/// Panics at one call in so many, on any thread.
struct Stumbling {
    every: usize,
    calls: AtomicUsize,
}

impl Mover for Stumbling {
    fn move_all(&self, jobs: &mut dyn Iterator<Item = CopyJob>) {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(
            !call.is_multiple_of(self.every),
            "a mover that panics, on purpose"
        );
        Memcpy.move_all(jobs);
    }
}

#[test]
fn what_a_thread_panics_at_is_failed_and_the_rest_is_copied() {
    let mover = Stumbling {
        every: 5,
        calls: AtomicUsize::new(0),
    };
    let threads = threads(3, mover);
    for _ in 0..20 {
        let answers = copy(&threads, &[256 * KIB; 64]);
        let failed = answers.iter().filter(|&&one| one == CopyAnswer::Failed);
        // 16 parts of 1 MiB, of which at least 3 and at most 4 fail.
        let failed = failed.count();
        assert!((12..=16).contains(&failed), "{failed}");
    }
}

#[test]
fn one_job_fails_with_any_of_its_parts() {
    let mover = Stumbling {
        every: 12,
        calls: AtomicUsize::new(0),
    };
    let threads = threads(3, mover);
    let answers = (0..6).map(|_| copy(&threads, &[2048 * KIB + 1])[0]);
    assert!(answers.collect::<Vec<_>>().contains(&CopyAnswer::Failed));
}

#[test]
fn a_panic_of_the_only_thread_is_no_panic_of_the_copier() {
    let mover = || Stumbling {
        every: 1,
        calls: AtomicUsize::new(0),
    };
    assert_eq!(copy(&threads(1, mover()), &[1, 2]), [CopyAnswer::Failed; 2]);
    let all = copy(&threads(4, mover()), &[256 * KIB; 8]);
    assert_eq!(all, [CopyAnswer::Failed; 8]);
}

/// Panics half way through one part for each of the pool's two threads; then wants to see all threads.
struct Shaken {
    caller: ThreadId,
    panics: AtomicUsize,
    met: Arc<Mutex<HashSet<ThreadId>>>,
}

/// Waits for what should come to pass; the test then sees that it did not.
fn wait_for(come: impl Fn() -> bool) {
    let began = Instant::now();
    while !come() && began.elapsed() < Duration::from_secs(20) {
        std::thread::yield_now();
    }
}

impl Mover for Shaken {
    fn move_all(&self, jobs: &mut dyn Iterator<Item = CopyJob>) {
        let here = std::thread::current().id();
        if here == self.caller {
            wait_for(|| self.panics.load(Ordering::Relaxed) >= 2);
        } else if self.panics.load(Ordering::Relaxed) < 2 {
            Memcpy.move_all(&mut jobs.take(1));
            let before = self.panics.fetch_add(1, Ordering::Relaxed);
            assert!(
                before >= 2,
                "a thread that panics with a part in hand, on purpose"
            );
        }
        self.met.lock().unwrap().insert(here);
        Memcpy.move_all(jobs);
        wait_for(|| self.met.lock().unwrap().len() >= 3);
    }
}

#[test]
fn threads_that_panicked_are_not_waited_for_and_copy_again() {
    let met = Arc::new(Mutex::new(HashSet::new()));
    let seen = Arc::clone(&met);
    let (answer, answers) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let shaken = Shaken {
            caller: std::thread::current().id(),
            panics: AtomicUsize::new(0),
            met,
        };
        let threads = threads(3, shaken);
        // 16 parts of 4 jobs, of which two are panicked at.
        let first = copy(&threads, &[256 * KIB; 64]);
        answer.send((first, copy(&threads, &[1536 * KIB]))).unwrap();
    });
    let (first, second) = answers.recv_timeout(Duration::from_secs(60)).unwrap();
    let failed = first
        .chunks(4)
        .filter(|part| *part == [CopyAnswer::Failed; 4]);
    assert_eq!(failed.count(), 2);
    let copied = first.iter().filter(|&&one| one == CopyAnswer::Copied);
    assert_eq!(copied.count(), 56);
    assert_eq!(second, [CopyAnswer::Copied]);
    assert_eq!(seen.lock().unwrap().len(), 3, "the threads live on");
}

/// Panics with something whose drop panics.
struct Rude;

struct Explosive;

impl Drop for Explosive {
    fn drop(&mut self) {
        panic!("a payload that panics, on purpose");
    }
}

impl Mover for Rude {
    fn move_all(&self, _: &mut dyn Iterator<Item = CopyJob>) {
        std::panic::panic_any(Explosive);
    }
}

#[test]
fn a_panic_with_an_explosive_payload_is_survived() {
    let threads = threads(2, Rude);
    for _ in 0..3 {
        assert_eq!(copy(&threads, &[256 * KIB; 4]), [CopyAnswer::Failed; 4]);
    }
}

/// Lets only the caller, or only others, get on.
struct Gate {
    caller: ThreadId,
    others: AtomicUsize,
    open: Arc<AtomicBool>,
}

impl Mover for Gate {
    fn move_all(&self, jobs: &mut dyn Iterator<Item = CopyJob>) {
        if std::thread::current().id() == self.caller {
            // Others are at a part each before the caller goes on.
            while self.others.load(Ordering::Relaxed) < 2 {
                std::thread::yield_now();
            }
        } else {
            self.others.fetch_add(1, Ordering::Relaxed);
            while !self.open.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
        }
        Memcpy.move_all(jobs);
    }
}

#[test]
fn the_caller_does_all_that_no_other_has_begun_and_waits_for_what_they_have() {
    let open = Arc::new(AtomicBool::new(false));
    let gate = Gate {
        caller: std::thread::current().id(),
        others: AtomicUsize::new(0),
        open: Arc::clone(&open),
    };
    let threads = threads(3, gate);
    let opener = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        open.store(true, Ordering::Relaxed);
    });
    // Two parts are held by the others; the caller copies all the rest meanwhile.
    let lengths = [1_000_000, 4095, 1, 0, 2 << 20, (2 << 20) + 1];
    assert_eq!(copy(&threads, &lengths), [CopyAnswer::Copied; 6]);
    opener.join().unwrap();
}

/// Says which threads copied.
struct Crowd {
    barrier: Barrier,
}

impl Mover for Crowd {
    fn move_all(&self, jobs: &mut dyn Iterator<Item = CopyJob>) {
        // Nobody gets through unless all threads take a part at the same time.
        self.barrier.wait();
        Memcpy.move_all(jobs);
    }
}

#[test]
fn one_large_job_is_shared_by_all_threads() {
    let crowd = Crowd {
        barrier: Barrier::new(4),
    };
    // Sixteen parts, four rounds.
    let answers = copy(&threads(4, crowd), &[2048 * KIB]);
    assert_eq!(answers, [CopyAnswer::Copied]);
}

/// Says on which CPU others than the caller copied.
struct Where {
    caller: ThreadId,
    others: Arc<AtomicUsize>,
}

impl Mover for Where {
    fn move_all(&self, jobs: &mut dyn Iterator<Item = CopyJob>) {
        if std::thread::current().id() == self.caller {
            while self.others.load(Ordering::Relaxed) == usize::MAX {
                std::thread::yield_now();
            }
        } else {
            let cpu = rustix::thread::sched_getcpu();
            self.others.store(cpu, Ordering::Relaxed);
        }
        Memcpy.move_all(jobs);
    }
}

#[test]
fn a_thread_makes_room_for_the_caller() {
    let cpus = Topology::here();
    let others = Arc::new(AtomicUsize::new(usize::MAX));
    let threads = threads(
        2,
        Where {
            caller: std::thread::current().id(),
            others: Arc::clone(&others),
        },
    );
    if cpus.len() < 2 {
        return;
    }
    for cpu in cpus.cpus().iter().chain(cpus.cpus()) {
        let mut set = rustix::thread::CpuSet::new();
        set.set(cpu.number);
        rustix::thread::sched_setaffinity(None, &set).unwrap();
        others.store(usize::MAX, Ordering::Relaxed);
        assert_eq!(copy(&threads, &[256 * KIB; 4]), [CopyAnswer::Copied; 4]);
        assert_ne!(others.load(Ordering::Relaxed), cpu.number);
    }
}

/// Refuses to copy on any but one thread.
struct Alone(ThreadId);

impl Mover for Alone {
    fn move_all(&self, jobs: &mut dyn Iterator<Item = CopyJob>) {
        assert_eq!(std::thread::current().id(), self.0);
        Memcpy.move_all(jobs);
    }
}

#[test]
fn small_lists_are_copied_by_the_caller() {
    let alone = Alone(std::thread::current().id());
    let options = ThreadsOptions {
        min_bytes_per_thread: NonZeroUsize::new(1 << 20).unwrap(),
        ..options(4)
    };
    let threads = Threads::with_mover(options, Box::new(alone)).unwrap();
    for lengths in [&[][..], &[0], &[0, 0], &[1], &[4096; 511], &[(2 << 20) - 1]] {
        let answers = copy(&threads, lengths);
        assert!(answers.iter().all(|&answer| answer == CopyAnswer::Copied));
    }
}

#[test]
fn a_child_of_a_fork_copies_alone() {
    let mut threads = threads(3, Alone(std::thread::current().id()));
    threads.pool.pretend_forked();
    assert_eq!(copy(&threads, &[1 << 20; 4]), [CopyAnswer::Copied; 4]);
    // The drop of it joins nobody.
}

#[test]
fn lengths_that_cannot_be_counted_are_not_added_up() {
    struct Nothing;
    impl Mover for Nothing {
        fn move_all(&self, jobs: &mut dyn Iterator<Item = CopyJob>) {
            jobs.for_each(drop);
        }
    }
    let (from, to) = (std::ptr::dangling(), std::ptr::dangling_mut());
    // SAFETY: the mover does not copy.
    let job = |()| unsafe { CopyJob::new(from, to, usize::MAX - 7) };
    let mut answers = [CopyAnswer::Unconfirmed; 3];
    threads(3, Nothing).copy(&[(); 3].map(job), &mut answers);
    assert_eq!(answers, [CopyAnswer::Copied; 3]);
}

#[test]
fn pools_come_and_go() {
    for n in 1..=8 {
        let threads = Threads::start(options(n)).unwrap();
        if n % 2 == 0 {
            assert_eq!(copy(&threads, &[1 << 20; 2]), [CopyAnswer::Copied; 2]);
        }
        assert_eq!(threads.name(), format!("threads:{n}:memcpy"));
    }
    let most = Threads::start(options(MOST_THREADS + 1)).unwrap_err();
    assert!(most.to_string().contains("too many"), "{most}");
}
