//! The kernel's own accesses to pages under migration: system calls, io_uring, futexes, and the
//! eyes of a debugger.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use transhume_region::{Options, PageSize, Region, RegionError};

use crate::Case;
use crate::migrate::{two_memfds, two_nodes};
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case("kernel::pipes", &[Need::Move], || {
        pipes(&two_nodes(256).build().unwrap())
    }),
    Case("kernel::pipes_mapped", &[Need::Blind], || {
        pipes(&two_memfds(256).build().unwrap())
    }),
    Case(
        "kernel::direct_io",
        &[Need::Move, Need::DirectIo],
        direct_io,
    ),
    Case("kernel::io_uring", &[Need::Move, Need::IoUring], || {
        io_uring_reads(&two_nodes(256).build().unwrap());
    }),
    Case(
        "kernel::io_uring_mapped",
        &[Need::Blind, Need::IoUring],
        || {
            io_uring_reads(&two_memfds(256).build().unwrap());
        },
    ),
    Case("kernel::futex", &[Need::Move], || {
        futex(&two_nodes(64).build().unwrap())
    }),
    Case("kernel::futex_mapped", &[Need::Blind], || {
        futex(&two_memfds(64).build().unwrap())
    }),
    Case("kernel::debugger", &[Need::Move], || {
        debugger(&two_nodes(64).build().unwrap())
    }),
    Case("kernel::debugger_mapped", &[Need::Blind], || {
        debugger(&two_memfds(64).build().unwrap())
    }),
    Case("kernel::process_vm", &[Need::Move], || {
        process_vm(&two_nodes(64).build().unwrap())
    }),
    Case("kernel::signals", &[Need::Move], signals),
    Case(
        "kernel::a_thread_that_is_killed",
        &[Need::Move],
        a_killed_process,
    ),
];

const PAGE: usize = 4096;

/// Migrates the whole region back and forth while `work` runs; pages that stay must have a reason
/// that `excused` accepts.
pub(crate) fn while_migrating<T: Send>(
    region: &Region,
    excused: impl Fn(transhume_region::Why) -> bool + Sync,
    work: impl FnOnce() -> T + Send,
) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1.. {
                if done.load(Ordering::Relaxed) && round > 2 {
                    break;
                }
                let tier = region.tiers()[round % 2].name();
                match region.migrate(.., tier, &Options::new()) {
                    Ok(report) => {
                        for (folio, failure) in report.stayed() {
                            assert!(excused(failure.why), "{folio:?}: {failure}");
                        }
                    }
                    Err(refused) => assert!(matches!(refused, RegionError::Overlap { .. })),
                }
            }
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn never(_: transhume_region::Why) -> bool {
    false
}

fn page(region: &Region, index: usize) -> *mut u8 {
    region
        .as_ptr()
        .wrapping_add(index * region.page_size().bytes())
}

fn word(region: &Region, index: usize) -> &AtomicU64 {
    &region.words()[index * region.page_size().bytes() / 8]
}

/// write(2) from pages of the region, read(2) into others.
pub(crate) fn pipes(region: &Region) {
    let (reader, writer): (OwnedFd, OwnedFd) = rustix::pipe::pipe().unwrap();
    let half = region.pages() / 2;
    while_migrating(region, never, || {
        for round in 0..4000_usize {
            let (from, to) = (round * 7 % half, half + round * 11 % half);
            let value = 0xABCD_0000 + round as u64;
            word(region, from).store(value, Ordering::Relaxed);
            // SAFETY: both pages are the region's, and only reached by atomics and the kernel.
            let (wrote, read) = unsafe {
                (
                    libc::write(writer.as_raw_fd(), page(region, from).cast(), PAGE),
                    libc::read(reader.as_raw_fd(), page(region, to).cast(), PAGE),
                )
            };
            let error = io::Error::last_os_error();
            assert_eq!((wrote, read), (PAGE as isize, PAGE as isize), "{error}");
            assert_eq!(word(region, to).load(Ordering::Relaxed), value);
        }
    });
}

/// Direct I/O pins the pages: a page in flight stays where it is, and no byte is lost.
fn direct_io() {
    let region = two_nodes(64).build().unwrap();
    let file = crate::needs::direct_file().unwrap();
    let pinned = |why| {
        matches!(
            why,
            transhume_region::Why::Pinned | transhume_region::Why::Again
        )
    };
    while_migrating(&region, pinned, || {
        for round in 0..300_usize {
            let (from, to) = (round % 32, 32 + round * 5 % 32);
            word(&region, from).store(round as u64, Ordering::Relaxed);
            let offset = ((round % 64) * PAGE) as libc::off_t;
            // SAFETY: both pages are the region's, and only reached by atomics and the kernel.
            let (wrote, read) = unsafe {
                (
                    libc::pwrite(file.as_raw_fd(), page(&region, from).cast(), PAGE, offset),
                    libc::pread(file.as_raw_fd(), page(&region, to).cast(), PAGE, offset),
                )
            };
            let error = io::Error::last_os_error();
            assert_eq!((wrote, read), (PAGE as isize, PAGE as isize), "{error}");
            assert_eq!(word(&region, to).load(Ordering::Relaxed), round as u64);
        }
    });
}

fn io_uring_reads(region: &Region) {
    use io_uring::{IoUring, opcode, types};
    let (reader, writer): (OwnedFd, OwnedFd) = rustix::pipe::pipe().unwrap();
    let mut ring = IoUring::new(4).unwrap();
    while_migrating(region, never, || {
        for round in 0..1500_usize {
            let (from, to) = (round * 3 % 128, 128 + round * 5 % 128);
            word(region, from).store(round as u64, Ordering::Relaxed);
            let length = u32::try_from(PAGE).unwrap();
            let write =
                opcode::Write::new(types::Fd(writer.as_raw_fd()), page(region, from), length);
            let read = opcode::Read::new(types::Fd(reader.as_raw_fd()), page(region, to), length);
            let linked = [
                write.build().flags(io_uring::squeue::Flags::IO_LINK),
                read.build(),
            ];
            // SAFETY: the pages are the region's and live longer than the ring.
            unsafe { ring.submission().push_multiple(&linked) }.unwrap();
            ring.submit_and_wait(2).unwrap();
            let results = ring
                .completion()
                .map(|entry| entry.result())
                .collect::<Vec<_>>();
            assert_eq!(results, [4096, 4096]);
            assert_eq!(word(region, to).load(Ordering::Relaxed), round as u64);
        }
    });
}

/// Two threads hand a token to and fro by a private futex in the region: a lost wake-up ends in a
/// timeout.
fn futex(region: &Region) {
    fn futex_word(region: &Region) -> &AtomicU32 {
        // SAFETY: the word is aligned, the region's, and only used as this atomic.
        unsafe { AtomicU32::from_ptr(page(region, 20).cast()) }
    }
    fn hand_over(region: &Region, mine: u32, rounds: u32) {
        use rustix::thread::futex;
        let word = futex_word(region);
        let patience = Duration::from_secs(10).try_into().unwrap();
        for round in 0..rounds {
            let turn = 2 * round + mine;
            loop {
                let seen = word.load(Ordering::Acquire);
                if seen == turn {
                    break;
                }
                match futex::wait(word, futex::Flags::PRIVATE, seen, Some(&patience)) {
                    Ok(()) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                    Err(error) => panic!("a wake-up was lost: {error}"),
                }
            }
            word.store(turn + 1, Ordering::Release);
            futex::wake(word, futex::Flags::PRIVATE, 1).unwrap();
        }
    }
    while_migrating(region, never, || {
        std::thread::scope(|scope| {
            scope.spawn(|| hand_over(region, 0, 2000));
            scope.spawn(|| hand_over(region, 1, 2000));
        });
    });
    assert_eq!(futex_word(region).load(Ordering::Relaxed), 4000);
}

/// Reads and writes as a debugger does them: `/proc/PID/mem` takes the way of `PTRACE_POKEDATA`.
/// The kernel cannot wait on that way, and says so for a page that is cut off just then; the
/// debugger asks again. What it reads and writes is right.
fn debugger(region: &Region) {
    let memory = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/proc/self/mem")
        .unwrap();
    while_migrating(region, never, || {
        for round in 0..3000_u64 {
            let index = round as usize * 5 % region.pages();
            let address = page(region, index) as u64 + 8;
            until_it_is_there(|| memory.write_all_at(&round.to_ne_bytes(), address));
            let seen = &region.words()[index * 512 + 1];
            assert_eq!(seen.load(Ordering::Relaxed), round, "page {index}");
            seen.store(!round, Ordering::Relaxed);
            let mut back = [0; 8];
            until_it_is_there(|| memory.read_exact_at(&mut back, address));
            assert_eq!(u64::from_ne_bytes(back), !round, "page {index}");
        }
    });
}

fn until_it_is_there(mut access: impl FnMut() -> io::Result<()>) {
    while let Err(error) = access() {
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    }
}

/// The calls with which one process reads and writes another's memory.
fn process_vm(region: &Region) {
    let own = libc::pid_t::try_from(std::process::id()).unwrap();
    let pinned = |why| {
        matches!(
            why,
            transhume_region::Why::Pinned | transhume_region::Why::Again
        )
    };
    while_migrating(region, pinned, || {
        for round in 0..2000_u64 {
            let index = round as usize * 5 % region.pages();
            let mut value = round;
            let local = libc::iovec {
                iov_base: (&raw mut value).cast(),
                iov_len: 8,
            };
            let remote = libc::iovec {
                iov_base: page(region, index).cast(),
                iov_len: 8,
            };
            // SAFETY: the value and the page are ours to read and write.
            let wrote = unsafe { libc::process_vm_writev(own, &local, 1, &remote, 1, 0) };
            assert_eq!(wrote, 8);
            assert_eq!(word(region, index).load(Ordering::Relaxed), round);
        }
    });
}

/// A signal that arrives while a thread waits for a page is handled, and the thread goes on.
fn signals() {
    static HANDLED: AtomicU32 = AtomicU32::new(0);
    extern "C" fn handle(_: libc::c_int) {
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
    let region = two_nodes(512).build().unwrap();
    // SAFETY: the handler only touches an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as extern "C" fn(libc::c_int) as usize;
        assert_eq!(
            libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut()),
            0
        );
    }
    let stop = AtomicBool::new(false);
    while_migrating(&region, never, || {
        std::thread::scope(|scope| {
            let (send, receive) = std::sync::mpsc::channel();
            let worker = scope.spawn({
                let (region, stop) = (&region, &stop);
                move || {
                    // SAFETY: it only names the calling thread.
                    send.send(unsafe { libc::pthread_self() }).unwrap();
                    let mut stores = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        for index in 0..region.pages() {
                            let before = word(region, index).fetch_add(1, Ordering::Relaxed);
                            assert_eq!(before, stores);
                        }
                        stores += 1;
                    }
                }
            });
            let thread = receive.recv().unwrap();
            for _ in 0..500 {
                // SAFETY: the thread runs until `stop` is set.
                assert_eq!(unsafe { libc::pthread_kill(thread, libc::SIGUSR1) }, 0);
                std::thread::sleep(Duration::from_micros(200));
            }
            stop.store(true, Ordering::Relaxed);
            worker.join().unwrap();
        });
    });
    assert!(HANDLED.load(Ordering::Relaxed) > 0);
}

/// A process that is killed in the middle of everything, with threads that wait for pages, ends.
fn a_killed_process() {
    for delay in [5, 20, 40] {
        // SAFETY: the child only uses its own memory, makes its region and threads itself, and
        // never returns from here.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let region = two_nodes(1024).page_size(PageSize::Base).build().unwrap();
            std::thread::scope(|scope| {
                for thread in 0..2 {
                    let words = region.words();
                    scope.spawn(move || {
                        for n in (thread..).step_by(2) {
                            words[n * 512 % words.len()].fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                for round in 1.. {
                    let _ = region.migrate(.., region.tiers()[round % 2].name(), &Options::new());
                }
            });
        }
        std::thread::sleep(Duration::from_millis(delay));
        let mut status = 0;
        // SAFETY: the child is ours.
        let waited = unsafe {
            assert_eq!(libc::kill(child, libc::SIGKILL), 0);
            libc::waitpid(child, &raw mut status, 0)
        };
        assert_eq!((waited, libc::WTERMSIG(status)), (child, libc::SIGKILL));
    }
}
