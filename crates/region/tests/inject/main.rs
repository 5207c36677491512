//! Every system call that a migration makes fails, at every step, in many ways: each folio ends in
//! one place, is reported truly, and loses no store.
//!
//! The stress run goes on with that, with forks and locked memory, for as many seconds as
//! `TRANSHUME_STRESS_SECONDS` says.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a test"
)]

mod balance;
mod exchange;
#[path = "../region/herd.rs"]
mod herd;
mod memory;
mod stress;
mod unlock;
mod unprotect;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use balance::Balance;
use libtest_mimic::{Arguments, Trial};
use transhume_region::{
    Builder, Deferral, Mechanism, Mode, Options, Outcome, PageSize, Pins, Place, Region, Tier,
    TierId,
};
use transhume_sys::inject::{self, Fault, Plan};
use transhume_sys::uffd::{Allowed, Features, probe};
use transhume_sys::{Call, Errno};

/// A kind of region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Pooled,
    Fresh,
    Huge,
    Memfd,
    Hugetlb,
    /// A file on a file system beside a memfd.
    File,
    /// Anonymous memory that the kernel moves.
    Kernel,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] = [
        Self::Pooled,
        Self::Fresh,
        Self::Huge,
        Self::Memfd,
        Self::Hugetlb,
        Self::File,
        Self::Kernel,
    ];

    pub(crate) fn region(self) -> Region {
        self.builder().build().unwrap()
    }

    pub(crate) fn builder(self) -> Builder {
        let near_and_far = |near, far| Region::builder().tier(near).tier(far);
        let anonymous = || near_and_far(Tier::node("near", 0), Tier::node("far", 0));
        match self {
            Self::Pooled => anonymous().pages(600).pins(Pins::Declared),
            Self::Fresh => anonymous().pages(600),
            Self::Huge => anonymous()
                .pages(4)
                .page_size(PageSize::Huge)
                .pins(Pins::Declared),
            // Between tiers of one node nothing has to move, whatever fails.
            Self::Kernel => near_and_far(Tier::node("near", 0), Tier::node("far", last_node()))
                .pages(600)
                .mechanism(Mechanism::MovePages),
            Self::Memfd => near_and_far(Tier::memfd("near"), Tier::memfd("far"))
                .pages(600)
                .pins(Pins::Declared),
            Self::Hugetlb => near_and_far(Tier::hugetlb("near"), Tier::hugetlb("far"))
                .pages(4)
                .page_size(PageSize::Huge)
                .pins(Pins::Declared),
            Self::File => near_and_far(Tier::memfd("near"), Tier::file("far", file()))
                .pages(300)
                .pins(Pins::Declared),
        }
    }

    pub(crate) fn is_mapped(self) -> bool {
        matches!(self, Self::Memfd | Self::Hugetlb | Self::File)
    }

    /// Whether its switches can wait.
    pub(crate) fn can_defer(self) -> bool {
        !matches!(self, Self::Fresh | Self::File | Self::Kernel)
    }

    fn needs(self) -> Features {
        match self {
            Self::Memfd | Self::Hugetlb | Self::File => Features::EVENT_REMAP,
            Self::Kernel => Features::empty(),
            _ => Features::MOVE,
        }
    }
}

/// Which pages a migration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    /// Every third, which are cut off with those between them.
    Scattered,
    /// All, to become huge pages.
    Collapsed,
    /// All, with the switch deferred, of which only some fit into the ledger.
    Deferred,
}

impl Which {
    fn pages(self, region: &Region) -> Vec<usize> {
        let step = if self == Self::Scattered { 3 } else { 1 };
        (0..region.pages()).step_by(step).collect()
    }

    pub(crate) fn builder(self, kind: Kind) -> Builder {
        let builder = kind.builder();
        match self {
            Self::All | Self::Scattered | Self::Collapsed => builder,
            Self::Deferred => builder.deferral(
                Deferral::new(NonZeroUsize::new(6 << 20).unwrap())
                    .at_once_bytes(NonZeroUsize::new(4 << 20).unwrap())
                    .max_age(Duration::from_millis(20))
                    .keep_free_bytes(0),
            ),
        }
    }

    fn options(self, mode: Mode) -> Options {
        let options = Options::new().mode(mode);
        match self {
            Self::Deferred => options.deferred(),
            Self::Collapsed => options.collapse(),
            Self::All | Self::Scattered => options,
        }
    }
}

fn main() {
    let mut trials = Vec::new();
    for kind in Kind::ALL {
        for mode in [Mode::Async, Mode::Sync] {
            for which in [
                Which::All,
                Which::Scattered,
                Which::Collapsed,
                Which::Deferred,
            ] {
                if which == Which::Deferred && (mode == Mode::Sync || !kind.can_defer()) {
                    continue;
                }
                if which == Which::Collapsed
                    && !matches!(kind, Kind::Pooled | Kind::Fresh | Kind::Huge)
                {
                    continue;
                }
                if which == Which::Scattered && !matches!(kind, Kind::Pooled | Kind::Fresh) {
                    continue;
                }
                let name = format!("inject::{kind:?}_{mode:?}_{which:?}").to_lowercase();
                trials.push(trial(name, missing(kind), move || {
                    every_call_fails(kind, mode, which)
                }));
            }
        }
    }
    for kind in exchange::KINDS {
        for mode in [Mode::Async, Mode::Sync] {
            let name = format!("inject::{kind:?}_{mode:?}_exchange").to_lowercase();
            trials.push(trial(name, missing(kind), move || {
                exchange::every_call_fails(kind, mode)
            }));
        }
    }
    for kind in [Kind::Pooled, Kind::Huge] {
        let name = format!("inject::{kind:?}_unlock").to_lowercase();
        trials.push(trial(name, missing(kind), move || unlock::fails(kind)));
    }
    for kind in [Kind::Pooled, Kind::Fresh] {
        let name = format!("inject::{kind:?}_lock_slots").to_lowercase();
        trials.push(trial(name, missing(kind), move || {
            unlock::slots_go_by_runs(kind)
        }));
    }
    let name = "inject::lock_slots_of_pairs".to_owned();
    trials.push(trial(name, missing(Kind::Pooled), || {
        unlock::slots_of_pairs_go_by_runs(Kind::Pooled)
    }));
    let name = "inject::lock_slots_of_waiting".to_owned();
    trials.push(trial(name, missing(Kind::Pooled), || {
        unlock::slots_of_waiting_pages_go_by_runs(Kind::Pooled)
    }));
    for kind in [Kind::Memfd, Kind::File] {
        let name = format!("inject::{kind:?}_lock_again").to_lowercase();
        trials.push(trial(name, missing(kind), move || {
            unlock::runs_are_locked_again(kind)
        }));
    }
    for kind in [Kind::Memfd, Kind::File] {
        let name = format!("inject::{kind:?}_memory_by_runs").to_lowercase();
        trials.push(trial(name, missing(kind), move || {
            memory::is_given_back_by_runs(kind)
        }));
        let name = format!("inject::{kind:?}_memory_not_for_pinned").to_lowercase();
        trials.push(trial(name, missing(kind), move || {
            memory::is_not_got_for_pinned_pages(kind)
        }));
        let name = format!("inject::{kind:?}_memory_before_waiting").to_lowercase();
        trials.push(trial(name, missing(kind), move || {
            memory::is_got_before_a_pin_is_waited_for(kind)
        }));
        let name = format!("inject::{kind:?}_memory_for_next_pass").to_lowercase();
        trials.push(trial(name, missing(kind), move || {
            memory::serves_the_next_pass(kind)
        }));
    }
    for kind in Kind::ALL.into_iter().filter(|kind| kind.can_defer()) {
        let name = format!("inject::{kind:?}_unprotect").to_lowercase();
        trials.push(trial(name, missing(kind), move || {
            unprotect::fails_half_way(kind)
        }));
        let name = format!("inject::{kind:?}_protect").to_lowercase();
        trials.push(trial(name, missing(kind), move || {
            unprotect::holding_fails_half_way(kind)
        }));
        let name = format!("inject::{kind:?}_unprotect_runs").to_lowercase();
        trials.push(trial(name, missing(kind), move || {
            unprotect::lets_runs_go(kind)
        }));
        let name = format!("inject::{kind:?}_unprotect_put_back").to_lowercase();
        trials.push(trial(name, missing(kind), move || {
            unprotect::puts_runs_back(kind)
        }));
        if kind.is_mapped() {
            let name = format!("inject::{kind:?}_unprotect_put_back_scattered").to_lowercase();
            trials.push(trial(name, missing(kind), move || {
                unprotect::puts_runs_with_scattered_slots_back(kind)
            }));
        }
        let name = format!("inject::{kind:?}_unprotect_second_run").to_lowercase();
        trials.push(trial(name, missing(kind), move || {
            unprotect::letting_the_second_run_go_fails(kind)
        }));
    }
    let seconds = std::env::var("TRANSHUME_STRESS_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let asked = match seconds {
        None => Some("set TRANSHUME_STRESS_SECONDS".to_owned()),
        Some(_) => missing(Kind::Pooled),
    };
    let seconds = Duration::from_secs(seconds.unwrap_or(0));
    trials.push(trial("stress".to_owned(), asked, move || {
        stress::run(seconds)
    }));
    let mut arguments = Arguments::from_args();
    // Faults are armed for the whole process.
    arguments.test_threads = Some(1);
    let conclusion = libtest_mimic::run(&arguments, trials);
    let _ = std::fs::remove_file(file());
    conclusion.exit();
}

/// A file that a region may have; each region empties it when it ends.
fn file() -> std::path::PathBuf {
    let name = format!("transhume-inject-{}", std::process::id());
    std::env::temp_dir().join(name)
}

/// The last of the first two nodes that have memory.
fn last_node() -> u32 {
    let nodes = transhume_sys::numa::nodes_with_memory().unwrap_or_default();
    u32::from(nodes.starts_with(&[0, 1]))
}

pub(crate) fn missing(kind: Kind) -> Option<String> {
    const HUGE_PAGES: usize = 8;
    let free =
        transhume_sys::limits::hugetlb_pool(PageSize::Huge.bytes()).map_or(0, |pool| pool.free);
    if kind == Kind::Hugetlb && free < HUGE_PAGES {
        return Some(format!(
            "needs {HUGE_PAGES} free huge pages, there are {free} (sysctl vm.nr_hugepages)"
        ));
    }
    if kind == Kind::Kernel {
        // It is for machines without a userfaultfd.
        return None;
    }
    match probe(Allowed::ALL_FAULTS) {
        Err(error) => Some(error.to_string()),
        Ok(probe) if probe.features.contains(kind.needs()) => None,
        Ok(_) => Some(format!("this kernel has no {:?}", kind.needs())),
    }
}

fn trial(name: String, missing: Option<String>, run: impl FnOnce() + Send + 'static) -> Trial {
    match missing {
        Some(reason) => Trial::test(format!("{name}: {reason}"), || Ok(())).with_ignored_flag(true),
        None => Trial::test(name, move || {
            let _watchdog = Watchdog::start(Duration::from_secs(600));
            run();
            Ok(())
        }),
    }
}

/// Ends the process when something waits for ever.
struct Watchdog {
    _ended: std::sync::mpsc::Sender<()>,
}

impl Watchdog {
    fn start(patience: Duration) -> Self {
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            if receive.recv_timeout(patience) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("nothing has ended for {patience:?}");
                std::process::abort();
            }
        });
        Self { _ended: send }
    }
}

/// Checks what a migration says against where the pages are.
pub(crate) fn check(region: &Region, report: &transhume_region::Report<TierId>, tier: &str) {
    let moved = region
        .usage()
        .tiers
        .iter()
        .map(|tier| tier.pages)
        .sum::<usize>();
    assert_eq!(moved, region.pages());
    for folio in report.folios() {
        let page = (folio.folio.page() / folio.folio.base_pages()) as usize;
        let there = region.tier_of(page).unwrap() == tier;
        match folio.outcome {
            // It may have been left where it was when it settled.
            Outcome::Deferred => {}
            Outcome::Moved | Outcome::AlreadyThere => assert!(there, "{folio:?}"),
            Outcome::Stayed(_) => assert!(!there, "{folio:?}"),
        }
    }
}

/// Which calls a whole migration makes, found out by counting.
fn calls_of(region: &Region, which: Which) -> Vec<Call> {
    let pages = which.pages(region);
    let before = Call::ALL
        .iter()
        .map(|&call| inject::calls(call))
        .collect::<Vec<_>>();
    for tier in ["far", "near"] {
        assert!(
            region
                .migrate(&pages[..], tier, &which.options(Mode::Async))
                .unwrap()
                .is_complete()
        );
    }
    let made = Call::ALL
        .iter()
        .zip(before)
        .filter(|&(&call, before)| inject::calls(call) > before);
    made.map(|(&call, _)| call).collect()
}

fn every_call_fails(kind: Kind, mode: Mode, which: Which) {
    let calls = {
        let region = which.builder(kind).build().unwrap();
        calls_of(&region, which)
    };
    assert!(!calls.is_empty());
    let mut fired = 0;
    let owner = Balance::new();
    let owned = || {
        let builder = which.builder(kind).owner(Arc::clone(&owner) as _);
        builder.build().unwrap()
    };
    if which != Which::Scattered {
        fired += these_calls_fail(&owned(), &owner, &calls, mode, which);
    } else {
        // A region of which the kernel has once refused to cut off scattered pages together does not
        // try that again, so that each call gets a region of its own.
        for call in &calls {
            fired += these_calls_fail(&owned(), &owner, std::slice::from_ref(call), mode, which);
        }
    }
    assert!(owner.times() > fired || kind == Kind::Kernel);
    assert!(fired > calls.len() as u64, "the faults were met");
    println!(
        "{kind:?} {mode:?} {which:?}: {} calls, {fired} faults met",
        calls.len()
    );
}

/// What calls can do instead of what they should, over pages of `page` bytes.
pub(crate) fn faults(page: usize) -> Vec<Fault> {
    let errnos = [
        Errno::AGAIN,
        Errno::NOMEM,
        Errno::BUSY,
        Errno::INVAL,
        Errno::PERM,
        Errno::INTR,
    ];
    let mut faults = errnos.map(Fault::Errno).to_vec();
    for bytes in [page * 3, page * 2 + 4096, 4096] {
        faults.push(Fault::Partial {
            bytes,
            errno: Errno::BUSY,
        });
    }
    for bytes in [page * 3, 4096] {
        faults.push(Fault::Uncounted { bytes });
    }
    faults
}

/// No mapping is left behind and no frame.
pub(crate) fn mappings_and_frames(region: &Region) {
    let usage = region.usage();
    // Mappings of hugetlb do not merge.
    let merge = usage.tiers[0].place != Place::Hugetlb;
    let most = if merge { 1 } else { region.pages() };
    assert!(usage.mappings <= most, "{usage:?}");
    // A batch that was interrupted leaves no frames behind.
    assert!(
        usage.pooled_bytes <= region.len() / 64 + (4 << 20),
        "{usage:?}"
    );
}

/// Says how many of the faults were met.
fn these_calls_fail(
    region: &Region,
    owner: &Balance,
    calls: &[Call],
    mode: Mode,
    which: Which,
) -> u64 {
    let faults = faults(region.page_size().bytes());
    let pages = which.pages(region);
    let mut fired = 0;
    let mut round = 0;
    herd::under_a_herd(region, 1, || {
        for &call in calls {
            for &fault in &faults {
                for (skip, times) in [(0, 1), (1, 1), (0, 3), (2, 2)] {
                    round += 1;
                    let tier = region.tiers()[round % 2].name();
                    let armed = inject::arm(call, Plan { skip, times, fault });
                    let report = region
                        .migrate(&pages[..], tier, &which.options(mode))
                        .unwrap();
                    if which == Which::Deferred {
                        region.settle(..).unwrap();
                    }
                    fired += u64::from(armed.fired() > 0);
                    drop(armed);
                    check(region, &report, tier);
                    owner.times();
                    // Nothing is left locked or lost: what stayed can go now, and all the others.
                    let report = region
                        .migrate(.., tier, &Options::new().mode(Mode::Sync))
                        .unwrap();
                    let left = report.stayed().next();
                    assert!(
                        left.is_none(),
                        "after {call:?} {fault:?} {skip} {times}: {left:?}"
                    );
                    check(region, &report, tier);
                }
            }
        }
    });
    mappings_and_frames(region);
    fired
}
