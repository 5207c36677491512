//! Everything at once, for as long as one likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use transhume_region::{Mechanism, Mode, Options, Region, RegionError};
use transhume_sys::inject::{self, Fault, Plan};
use transhume_sys::{Call, Errno};

use crate::balance::Balance;
use crate::herd::{self, Herd};
use crate::{Kind, Which, missing};

/// Numbers without a pattern, the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

pub(crate) fn run(time: Duration) {
    let until = Instant::now() + time;
    let mut rounds = 0;
    while Instant::now() + Duration::from_secs(1) < until {
        for kind in Kind::ALL
            .into_iter()
            .filter(|&kind| missing(kind).is_none())
        {
            if Instant::now() + Duration::from_secs(1) > until {
                break;
            }
            let owner = Balance::new();
            let defers = kind.can_defer() && rounds % 3 != 2;
            let which = if defers { Which::Deferred } else { Which::All };
            let mut builder = which.builder(kind);
            if rounds % 2 == 1 {
                builder = builder.owner(Arc::clone(&owner) as _);
            }
            let region = builder.build().unwrap();
            round(
                &region,
                kind,
                rounds,
                (until - Instant::now().min(until)).min(Duration::from_secs(5)),
            );
            owner.times();
            rounds += 1;
        }
    }
    println!("{rounds} rounds");
}

fn round(region: &Region, kind: Kind, seed: u64, time: Duration) {
    herd::fill(region);
    let stop = AtomicBool::new(false);
    let until = Instant::now() + time;
    let moved = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, region, 2, &stop);
        // Alone it cuts scattered pages off with what lies between them.
        let migrators = (0..1 + seed / Kind::ALL.len() as u64 % 2).map(|n| {
            let moved = &moved;
            scope.spawn(move || migrate(region, seed * 2 + n + 1, until, moved))
        });
        let migrators = migrators.collect::<Vec<_>>();
        let disturber = scope.spawn(move || disturb(region, kind, seed + 77, until));
        migrators
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        disturber.join().unwrap();
        herd.gather();
    });
    let report = region
        .migrate(.., "near", &Options::new().mode(Mode::Sync))
        .unwrap();
    assert!(report.is_complete(), "{:?}", report.stayed().next());
    herd::sweep(region.words());
    assert!(moved.into_inner() > 0);
}

fn migrate(region: &Region, seed: u64, until: Instant, moved: &AtomicU64) {
    let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ seed);
    let pages = region.pages();
    while Instant::now() < until {
        let mut options = Options::new().mode(random.of(&[Mode::Async, Mode::Sync]));
        if random.below(4) == 0 {
            options = options.max_stall(Duration::from_micros(200));
        }
        if region.deferral().is_some() && random.below(2) == 0 {
            options = options.deferred();
        }
        if random.below(3) == 0 {
            options = options.copier(Arc::new(transhume_copy::Memcpy));
        }
        if random.below(4) == 0 && region.mechanism() == Mechanism::Move {
            options = options.collapse();
        }
        let tier = region.tiers()[random.below(2)].name();
        let start = random.below(pages);
        let end = (start + 1 + random.below(pages)).min(pages);
        if random.below(4) == 0 {
            let some = (start..end).step_by(1 + random.below(3));
            let others = (0..pages).rev().filter(|page| !(start..end).contains(page));
            let (a, b): (Vec<_>, Vec<_>) = some.zip(others).unzip();
            match region.exchange(a, b, &options) {
                Ok(report) => moved.fetch_add(2 * report.exchanged() as u64, Ordering::Relaxed),
                Err(
                    RegionError::Overlap { .. }
                    | RegionError::NoPages
                    | RegionError::ExchangeUndeclared
                    | RegionError::NoExchange(_),
                ) => 0,
                Err(other) => panic!("{other}"),
            };
            continue;
        }
        let report = if random.below(3) == 0 {
            let step = 2 + random.below(8);
            region.migrate(
                (start..end).step_by(step).collect::<Vec<_>>(),
                tier,
                &options,
            )
        } else {
            region.migrate(start..end, tier, &options)
        };
        match report {
            Ok(report) => {
                moved.fetch_add(report.moved() as u64, Ordering::Relaxed);
            }
            Err(RegionError::Overlap { .. } | RegionError::Full { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
}

/// Faults, pins, locked memory and forks.
fn disturb(region: &Region, kind: Kind, seed: u64, until: Instant) {
    let mut random = Random(0xD1B5_4A32_D192_ED03 ^ seed);
    let calls = [
        Call::UffdMove,
        Call::UffdCopy,
        Call::UffdWake,
        Call::UffdWriteProtect,
        Call::Mremap,
        Call::MmapFixed,
        Call::Madvise,
        Call::MadviseDontNeed,
        Call::MadvisePopulate,
        Call::PunchHole,
        Call::ProcessMadvise,
    ];
    let errnos = [
        Errno::AGAIN,
        Errno::NOMEM,
        Errno::BUSY,
        Errno::INVAL,
        Errno::INTR,
    ];
    let start = region.as_ptr().cast();
    while Instant::now() < until {
        match random.below(4) {
            0 => {
                let fault = Fault::Errno(random.of(&errnos));
                let plan = Plan {
                    skip: random.below(20) as u64,
                    times: 1,
                    fault,
                };
                let _armed = inject::arm(random.of(&calls), plan);
                std::thread::sleep(Duration::from_millis(2));
            }
            1 => {
                let page = random.below(region.pages());
                if let Ok(pin) = region.pin(page) {
                    let before = region.tier_of(page).unwrap();
                    std::thread::sleep(Duration::from_millis(1));
                    assert_eq!(region.tier_of(page).unwrap(), before);
                    drop(pin);
                }
            }
            2 if !kind.is_mapped() => {
                // SAFETY: locking changes nothing that a program can see.
                unsafe { libc::mlock(start, region.len() / 2) };
                std::thread::sleep(Duration::from_millis(3));
                // SAFETY: as above.
                unsafe { libc::munlock(start, region.len()) };
            }
            3 if !kind.is_mapped() => fork(region),
            _ => std::thread::yield_now(),
        }
    }
}

/// A child looks at all pages and finds nothing that was never stored there.
fn fork(region: &Region) {
    // SAFETY: the child reads memory and ends by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let used = region.words().iter().enumerate().step_by(64);
        let wrong = used
            .into_iter()
            .any(|(n, word)| word.load(Ordering::Relaxed) >> 32 != n as u64);
        // SAFETY: it ends the child.
        unsafe { libc::_exit(i32::from(wrong)) }
    }
    let mut status = 0;
    // SAFETY: the child is ours.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    // Calls that failed may have left the region hidden from children for a batch.
    let hidden = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV;
    let right = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
    assert!(hidden || right, "a child ended with {status:#x}");
}
