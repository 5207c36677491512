//! No handler of the application runs on a copy thread: it could touch a page that the thread is to
//! copy.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use transhume_copy::{Threads, ThreadsOptions};

fn blocked(task: &Path) -> Option<u64> {
    let status = fs::read_to_string(task.join("status")).ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    u64::from_str_radix(mask?.trim(), 16).ok()
}

/// What the copy threads that are there have blocked.
fn of_copy_threads() -> Vec<u64> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let of = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        name.starts_with("transhume-cp-")
            .then(|| blocked(&task.path()))?
    };
    tasks.filter_map(of).collect()
}

#[test]
fn copy_threads_run_no_handlers_and_their_starter_still_does() {
    let here = Path::new("/proc/thread-self");
    let before = blocked(here).unwrap();
    let threads = Threads::start(ThreadsOptions::new(NonZeroUsize::new(3).unwrap())).unwrap();
    assert_eq!(blocked(here).unwrap(), before);
    // A thread names itself, some time after it was started.
    let began = Instant::now();
    while of_copy_threads().len() < 2 && began.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let masks = of_copy_threads();
    assert_eq!(masks.len(), 2);
    for mask in masks {
        let has = |signal: libc::c_int| mask & (1 << (signal - 1)) != 0;
        let asynchronous = [
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGALRM,
            libc::SIGPROF,
            libc::SIGCHLD,
            libc::SIGRTMIN(),
            libc::SIGRTMAX(),
        ];
        assert!(asynchronous.into_iter().all(has), "{mask:016x}");
        // The C library's own, which changes the user of all threads, is not held off.
        assert!(
            ![libc::SIGSEGV, libc::SIGBUS, 33].into_iter().any(has),
            "{mask:016x}"
        );
    }
    drop(threads);
}
