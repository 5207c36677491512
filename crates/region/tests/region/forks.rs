//! Forks while pages migrate: a child never reads what was not there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use transhume_region::{Options, PageSize, Pins, Region, RegionError};

use crate::Case;
use crate::exchange::halves;
use crate::herd::{self, Herd};
use crate::kernel::while_migrating;
use crate::migrate::{two_memfds, two_nodes};
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case(
        "forks::a_child_sees_its_parents_pages",
        &[Need::Move],
        a_child_sees_its_parents_pages,
    ),
    Case(
        "forks::of_huge_pages",
        &[Need::Move, Need::HugePages],
        huge_pages,
    ),
    Case(
        "forks::a_raw_clone_never_reads_zeros",
        &[Need::Move],
        a_raw_clone_never_reads_zeros,
    ),
    Case(
        "forks::shared_pages_move_afterwards",
        &[Need::Move],
        shared_pages_move_afterwards,
    ),
    Case(
        "forks::while_pages_are_exchanged",
        &[Need::Move],
        while_pages_are_exchanged,
    ),
    Case(
        "forks::shared_pages_are_exchanged_afterwards",
        &[Need::Move],
        shared_pages_are_exchanged_afterwards,
    ),
    Case(
        "forks::a_child_cannot_migrate",
        &[Need::Move],
        a_child_cannot_migrate,
    ),
    Case(
        "forks::a_mapped_region_is_not_inherited",
        &[Need::Blind],
        mapped_is_not_inherited,
    ),
];

/// Runs `child` in a fork, by libc's call or past it; says how it ended.
pub(crate) fn in_child(how: Fork, child: impl FnOnce() -> i32) -> Ended {
    // SAFETY: the child reads memory, and ends by _exit without running anything of its parent's.
    let pid = unsafe {
        match how {
            Fork::Libc => libc::fork(),
            Fork::Raw => {
                let pid = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
                libc::pid_t::try_from(pid).unwrap()
            }
        }
    };
    if pid == 0 {
        let code = child();
        // SAFETY: it ends the child.
        unsafe { libc::_exit(code) }
    }
    assert!(pid > 0, "{}", std::io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: the child is ours.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    if libc::WIFSIGNALED(status) {
        Ended::Signal(libc::WTERMSIG(status))
    } else {
        Ended::Exit(libc::WEXITSTATUS(status))
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Fork {
    Libc,
    Raw,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Exit(i32),
    Signal(i32),
}

/// In a child: 0 if every page holds its number.
pub(crate) fn check_pages(region: &Region) -> i32 {
    let step = region.page_size().bytes() / 8;
    let wrong = |(page, word): (usize, &std::sync::atomic::AtomicU64)| {
        word.load(Ordering::Relaxed) != page as u64 + 1
    };
    i32::from(region.words().iter().step_by(step).enumerate().any(wrong))
}

pub(crate) fn number_pages(region: &Region) {
    let step = region.page_size().bytes() / 8;
    for (page, word) in region.words().iter().step_by(step).enumerate() {
        word.store(page as u64 + 1, Ordering::Relaxed);
    }
}

fn fork_and_check(region: &Region, forks: usize) {
    number_pages(region);
    while_migrating(
        region,
        |_| true,
        || {
            for _ in 0..forks {
                assert_eq!(in_child(Fork::Libc, || check_pages(region)), Ended::Exit(0));
                std::thread::sleep(Duration::from_millis(1));
            }
        },
    );
    assert_eq!(check_pages(region), 0);
}

fn a_child_sees_its_parents_pages() {
    fork_and_check(&two_nodes(1024).build().unwrap(), 30);
    fork_and_check(&two_nodes(1024).pins(Pins::Declared).build().unwrap(), 30);
}

fn huge_pages() {
    fork_and_check(&two_nodes(8).page_size(PageSize::Huge).build().unwrap(), 10);
}

/// A raw clone does not wait at the gate. Its child has all pages or no region at all.
fn a_raw_clone_never_reads_zeros() {
    let region = two_nodes(1024).build().unwrap();
    number_pages(&region);
    while_migrating(
        &region,
        |_| true,
        || {
            for _ in 0..60 {
                match in_child(Fork::Raw, || check_pages(&region)) {
                    Ended::Exit(0) | Ended::Signal(libc::SIGSEGV) => {}
                    other => panic!("{other:?}"),
                }
            }
        },
    );
    assert_eq!(check_pages(&region), 0);
}

fn while_pages_are_exchanged() {
    let region = halves(two_nodes(1024));
    number_pages(&region);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let exchange = scope.spawn(|| {
            let mut exchanged = 0;
            while !done.load(Ordering::Relaxed) {
                let report = region.exchange(..512, 512.., &Options::new()).unwrap();
                exchanged += report.exchanged();
            }
            exchanged
        });
        for how in [Fork::Libc, Fork::Raw].into_iter().cycle().take(40) {
            match (how, in_child(how, || check_pages(&region))) {
                (_, Ended::Exit(0)) | (Fork::Raw, Ended::Signal(libc::SIGSEGV)) => {}
                (_, other) => panic!("{other:?}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        done.store(true, Ordering::Relaxed);
        assert!(exchange.join().unwrap() > 0);
    });
    assert_eq!(check_pages(&region), 0);
}

/// Pages that a living child shares become the parent's own and move.
fn shared_pages_move_afterwards() {
    let region = two_nodes(256).build().unwrap();
    move_shared(&region, || {
        let report = region.migrate(.., "far", &Options::new()).unwrap();
        assert!(report.is_complete(), "{:?}", report.stayed().next());
        assert!(report.counts.retries > 0, "they were shared at first");
    });
}

/// And so do those of an exchange, which must not store to the frames that the child has.
fn shared_pages_are_exchanged_afterwards() {
    let region = halves(two_nodes(256));
    move_shared(&region, || {
        let report = region.exchange(..128, 128.., &Options::new()).unwrap();
        assert_eq!(report.exchanged(), 128, "{:?}", report.stayed().next());
        assert!(report.counts.retries > 0, "they were shared at first");
    });
}

fn move_shared(region: &Region, work: impl FnOnce()) {
    number_pages(region);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    // SAFETY: the child waits for its pipe to close, checks memory and ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(writer);
        let _ = rustix::io::read(&reader, &mut [0u8; 1]);
        let code = check_pages(region);
        // SAFETY: it ends the child.
        unsafe { libc::_exit(code) }
    }
    work();
    for word in region.words().iter().step_by(512) {
        word.fetch_add(1, Ordering::Relaxed);
    }
    drop(writer);
    let mut status = 0;
    // SAFETY: the child is ours.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(
        (libc::WIFEXITED(status), libc::WEXITSTATUS(status)),
        (true, 0)
    );
}

fn a_child_cannot_migrate() {
    let region = two_nodes(8).build().unwrap();
    let refused = || {
        let migrate = region.migrate(.., "far", &Options::new());
        let pin = region.pin(..);
        i32::from(migrate.err() != Some(RegionError::Forked) || pin.is_ok())
    };
    assert_eq!(in_child(Fork::Libc, refused), Ended::Exit(0));
    assert!(
        region
            .migrate(.., "far", &Options::new())
            .unwrap()
            .is_complete()
    );
}

fn mapped_is_not_inherited() {
    let region = two_memfds(64).build().unwrap();
    herd::fill(&region);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, &region, 1, &stop);
        for round in 1..=20 {
            let tier = region.tiers()[round % 2].name();
            assert!(
                region
                    .migrate(.., tier, &Options::new())
                    .unwrap()
                    .is_complete()
            );
            let ended = in_child(Fork::Libc, || check_pages(&region));
            assert_eq!(ended, Ended::Signal(libc::SIGSEGV));
        }
        herd.gather();
    });
    herd::sweep(region.words());
}
