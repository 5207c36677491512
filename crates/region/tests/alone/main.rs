//! What changes a whole process: locked memory, limits, signals, forks that wait. Each case runs in
//! a process of its own, which must end well and in time.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::multiple_unsafe_ops_per_block,
    reason = "a test"
)]

mod forking;
#[path = "../region/herd.rs"]
mod herd;
mod huge_pages;
mod limits;
mod locked;
#[path = "../region/needs.rs"]
#[allow(dead_code, reason = "these cases need less")]
mod needs;
mod signals;

use std::num::NonZeroUsize;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use transhume_region::{Builder, Deferral, Options, PageSize, Pins, Region, Report, Tier, TierId};

use needs::Need;

/// Names the case that a process is for.
const CASE: &str = "TRANSHUME_ALONE";

/// Longer than any case takes: what is waited for is a process that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

struct Case(&'static str, &'static [Need], fn());

fn main() {
    let cases = [
        locked::CASES,
        signals::CASES,
        limits::CASES,
        forking::CASES,
        huge_pages::CASES,
    ];
    let cases = || cases.iter().copied().flatten();
    if let Ok(name) = std::env::var(CASE) {
        let case = cases().find(|case| case.0 == name);
        return (case.unwrap().2)();
    }
    let trials = cases().map(trial).collect();
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(&Case(name, needs, _): &Case) -> Trial {
    match needs.iter().find_map(|need| need.missing()) {
        None => Trial::test(name, move || run_alone(name).map_err(Into::into)),
        Some(reason) => Trial::test(format!("{name}: {reason}"), || Ok(())).with_ignored_flag(true),
    }
}

fn run_alone(name: &str) -> Result<(), String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(CASE, name)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        match child.try_wait().unwrap() {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(ended(status)),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    Err(format!("it hangs: nothing for {PATIENCE:?}"))
}

fn ended(status: ExitStatus) -> String {
    format!("the process ended with {status}")
}

pub(crate) fn anonymous(pages: usize) -> Region {
    nodes(pages).build().unwrap()
}

pub(crate) fn nodes(pages: usize) -> Builder {
    let builder = Region::builder()
        .tier(Tier::node("near", 0))
        .tier(Tier::node("far", 0));
    builder.pages(pages).pins(Pins::Declared)
}

pub(crate) fn mapped(pages: usize) -> Region {
    memfds(pages).build().unwrap()
}

pub(crate) fn memfds(pages: usize) -> Builder {
    let builder = Region::builder()
        .tier(Tier::memfd("near"))
        .tier(Tier::memfd("far"));
    builder.pages(pages).pins(Pins::Declared)
}

/// A region of so many base pages, all of which may wait.
pub(crate) fn deferring(builder: Builder, pages: usize) -> Region {
    let limit = NonZeroUsize::new(pages * PageSize::Base.bytes()).unwrap();
    let deferral = Deferral::new(limit).keep_free_bytes(0);
    builder.deferral(deferral).build().unwrap()
}

/// Moves all pages to and fro so many times.
pub(crate) fn to_and_fro(region: &Region, times: usize) {
    for n in 0..times {
        let tier = ["far", "near"][n % 2];
        let report = region.migrate(.., tier, &Options::new()).unwrap();
        assert!(report.is_complete(), "to {tier}: {}", reasons(&report));
    }
}

pub(crate) fn reasons(report: &Report<TierId>) -> String {
    let first = report.stayed().next();
    format!(
        "{} moved, {} stayed: {first:?}",
        report.moved(),
        report.stayed().count()
    )
}
