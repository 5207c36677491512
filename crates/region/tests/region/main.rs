//! The region as an application meets it: live migration, the kernel's own accesses, forks, locked
//! and pinned memory, refusals.
//!
//! What a case needs of the machine is looked for first. A case whose needs are not met is reported
//! as ignored, with the reason, and never as passed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::multiple_unsafe_ops_per_block,
    reason = "a test"
)]

#[path = "../../examples/buffer_pool.rs"]
#[allow(dead_code, reason = "its main")]
mod buffer_pool;
mod collapse;
mod copiers;
mod dax;
mod deferral;
mod dma;
mod exchange;
mod forks;
mod herd;
mod kernel;
mod locked;
mod migrate;
mod move_pages;
mod needs;
mod nodes;
mod owners;
mod pinned;
mod refusals;
mod scattered;
mod stalls;

use libtest_mimic::{Arguments, Trial};

use needs::Need;

/// One test: its name, what it needs, what it does.
struct Case(&'static str, &'static [Need], fn());

fn main() {
    let cases = [
        migrate::CASES,
        kernel::CASES,
        forks::CASES,
        locked::CASES,
        pinned::CASES,
        stalls::CASES,
        refusals::CASES,
        nodes::CASES,
        dax::CASES,
        dma::CASES,
        scattered::CASES,
        deferral::CASES,
        deferral::anonymous::CASES,
        deferral::troubles::CASES,
        move_pages::CASES,
        owners::CASES,
        exchange::CASES,
        copiers::CASES,
        collapse::CASES,
    ];
    let trials = cases.into_iter().flatten().map(trial).collect();
    let mut arguments = Arguments::from_args();
    // A fork in one case shares the pages of all others, which then stay for that reason.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(&Case(name, needs, run): &Case) -> Trial {
    let run = move || {
        run();
        Ok(())
    };
    match needs.iter().find_map(|need| need.missing()) {
        None => Trial::test(name, run),
        Some(reason) => Trial::test(format!("{name}: {reason}"), run).with_ignored_flag(true),
    }
}
