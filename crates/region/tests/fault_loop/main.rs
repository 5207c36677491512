//! The fault loop in the orders in which its threads can meet: the region's own files, on the locks and
//! atomics of a model checker, against a model of the kernel.
//!
//! What the oracles are: every thread ends, so no wake-up is lost; what a thread has stored is there
//! when it looks again, and at the end; nobody loads what nobody stored.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

macro_rules! of_the_region {
    ($($name:ident = $path:literal),* $(,)?) => {$(
        #[allow(dead_code, unused_imports, unreachable_pub, reason = "not all of it is run here")]
        #[path = $path]
        mod $name;
    )*};
}

of_the_region! {
    claims = "../../src/claims.rs",
    deferral = "../../src/deferral/mod.rs",
    failure = "../../src/failure.rs",
    faults = "../../src/faults.rs",
    filled = "../../src/mapped/blind/filled.rs",
    keeper = "../../src/keeper.rs",
    kept = "../../src/kept.rs",
    runs = "../../src/runs.rs",
    table = "../../src/table.rs",
    tier = "../../src/tier.rs",
    turnstile = "../../src/gate/turnstile.rs",
    units = "../../src/units.rs",
}

mod bell;
mod kernel;
mod meet;
mod memory;
mod mutants;
mod orders;
mod owner;
mod sync;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};

use meet::World;
use mutants::{MUTANTS, Wrong};
use orders::{MEETINGS, Meeting};
use units::{BASE_PAGE, SPARE_BYTES, TABLE_BYTES, folio_at, index_of};

/// By which this program runs one mutant, of the number that follows, and ends at the first panic: after
/// it the checker cannot go on.
const FIND: &str = "--find";

/// How long the long check of one meeting goes on, if it does not come to its end.
const LONGEST: Duration = Duration::from_mins(2);

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(FIND) {
        let number = arguments.next().and_then(|number| number.parse().ok());
        return find(&MUTANTS[number.unwrap_or(usize::MAX)]);
    }
    let quick = MEETINGS.iter().map(|meeting| {
        let name = meeting.name.to_owned();
        Trial::test(name, || explored(meeting, meeting.interruptions, None))
    });
    let long = MEETINGS.iter().map(|meeting| {
        let name = format!("long::{}", meeting.name);
        let work = || explored(meeting, meeting.interruptions + 1, Some(LONGEST));
        Trial::test(name, work).with_ignored_flag(true)
    });
    let found = MUTANTS.iter().enumerate().map(|(number, wrong)| {
        Trial::test(format!("mutant::{:?}", wrong.mutant), move || {
            found(number, wrong)
        })
    });
    let trials = quick.chain(found).chain(long).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn explored(
    meeting: &Meeting,
    interruptions: usize,
    most: Option<Duration>,
) -> Result<(), libtest_mimic::Failed> {
    let (orders, began, run) = (Arc::new(AtomicUsize::new(0)), Instant::now(), meeting.run);
    explore(interruptions, most, &orders, move || run(World::default()));
    let orders = orders.load(Ordering::Relaxed);
    let all = if most.is_some_and(|most| began.elapsed() >= most) {
        "not all"
    } else {
        "all"
    };
    let name = meeting.name;
    println!("{name}: {orders} orders, {all} with up to {interruptions} interruptions");
    if orders > 1 {
        Ok(())
    } else {
        Err("nobody met".into())
    }
}

/// Goes through the orders in which threads are interrupted no more often than that, all together.
fn explore(
    interruptions: usize,
    most: Option<Duration>,
    orders: &Arc<AtomicUsize>,
    run: impl Fn() + Sync + Send + 'static,
) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(interruptions);
    model.max_duration = most;
    model.max_branches = 20_000;
    let orders = Arc::clone(orders);
    model.check(move || {
        orders.fetch_add(1, Ordering::Relaxed);
        run();
    });
}

/// Lets another process look for what is wrong with a mutant: it must find what the oracles are for.
fn found(number: usize, wrong: &Wrong) -> Result<(), libtest_mimic::Failed> {
    let this = std::env::current_exe()?;
    let output = Command::new(this)
        .args([FIND, &number.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{:?}: {said}", wrong.mutant);
    if output.status.code() == Some(FOUND) && said.contains(wrong.finds) {
        return Ok(());
    }
    Err(format!("not found: {}, {said}", output.status).into())
}

/// The exit status of a process that has found something.
const FOUND: i32 = 42;

fn find(wrong: &'static Wrong) {
    let orders = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&orders);
    std::panic::set_hook(Box::new(move |panic| {
        let what = panic.payload_as_str().unwrap_or("?");
        let what = what.lines().next().unwrap_or_default();
        println!("in the order {}: {what}", counted.load(Ordering::Relaxed));
        std::process::exit(FOUND);
    }));
    let world = World {
        mutant: Some(wrong.mutant),
        trouble: None,
    };
    explore(wrong.interruptions, None, &orders, move || {
        (wrong.meeting)(world)
    });
    println!("nothing in {} orders", orders.load(Ordering::Relaxed));
}
