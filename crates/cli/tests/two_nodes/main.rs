//! `transhume move` between two nodes, with processes that check their own memory.
//!
//! `tests/two-node/run` runs these in a guest with two nodes. The program under test is the one that
//! `TRANSHUME_BIN` names, else the one that Cargo has built.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod herd;
mod limits;
mod lives;
mod moves;
mod program;
mod reasons;
mod room;

use libtest_mimic::{Arguments, Trial};
use transhume_sys::numa::nodes_with_memory;
use transhume_sys::shootdown::ShootdownCounter;

/// A test: its name and what it does. It needs memory on nodes 0 and 1 and some on 2, and root.
type Case = (&'static str, fn());

fn main() {
    if let Some(life) = std::env::args().nth(1).and_then(|name| lives::life(&name)) {
        return life();
    }
    let missing = missing();
    // The first counter and the last change the kernel's code while it runs, which QEMU does not always
    // bear; those between change nothing.
    let _kept = ShootdownCounter::open_for_this_thread();
    let cases = [
        moves::CASES,
        limits::CASES,
        reasons::CASES,
        room::CASES,
        lives::CASES,
    ]
    .concat();
    let trials = cases.into_iter().map(|(name, run)| match &missing {
        None => Trial::test(name, move || {
            run();
            Ok(())
        }),
        Some(why) => Trial::test(format!("{name}: {why}"), || Ok(())).with_ignored_flag(true),
    });
    let mut arguments = Arguments::from_args();
    // They all want the same memory, CPUs and counters.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn missing() -> Option<String> {
    match nodes_with_memory() {
        Err(error) => Some(error.to_string()),
        Ok(nodes) if nodes != [0, 1, 2] => Some(format!("there is memory on nodes {nodes:?}")),
        Ok(_) if !rustix::process::geteuid().is_root() => Some("not root".to_owned()),
        Ok(_) => None,
    }
}
