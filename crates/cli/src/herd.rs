//! A process to be moved: threads read and write its memory at random and check every value.
//!
//! It is for tests and for `bench move`, which start it and talk to it by lines: it says
//! `{"start":..,"end":..}` when its memory is where it was to be and its threads are at work; to each
//! line it answers what they have seen since the last, and at the end of its input it looks at every
//! word and says what was wrong in all.

use std::io::{self, BufRead};
use std::num::NonZeroU64;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use transhume_process::{Check, Kernel, bring};
use transhume_region::PageSize;
use transhume_sys::numa::{NodeMemory, NodePages, Shared};

use crate::args::Herd;
use crate::error::CliError;
use crate::print;
use crate::workload::{self, Seen, Workload};

/// Where the memory is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// How much of it is in huge pages.
    pub(crate) huge_bytes: usize,
}

/// What its threads have seen in some time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sight {
    pub(crate) operations: u64,
    pub(crate) errors: u64,
    pub(crate) seconds: f64,
    pub(crate) stall_p50_us: f64,
    pub(crate) stall_p99_us: f64,
    pub(crate) stall_max_us: f64,
}

impl From<&Seen> for Sight {
    fn from(seen: &Seen) -> Self {
        let micro = |nanos: u64| nanos as f64 / 1e3;
        Self {
            operations: seen.operations(),
            errors: seen.errors,
            seconds: seen.time.as_secs_f64(),
            stall_p50_us: micro(seen.stalls.value_at_quantile(0.5)),
            stall_p99_us: micro(seen.stalls.value_at_quantile(0.99)),
            stall_max_us: micro(seen.stalls.max()),
        }
    }
}

/// What was wrong in all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) errors: u64,
}

pub(crate) fn run(args: &Herd) -> Result<(), CliError> {
    let failed = |what: &str, error: String| CliError::Failed(format!("cannot {what}: {error}"));
    let pages = match args.page_size {
        PageSize::Base => NodePages::Base,
        PageSize::Huge => NodePages::Huge,
    };
    let memory = |node, bytes: NonZeroU64| {
        let bytes = usize::try_from(bytes.get()).unwrap_or(usize::MAX);
        let memory = NodeMemory::reserve(node, bytes, pages)
            .map_err(|error| failed("have memory", error.to_string()))?;
        workload::fill(memory.shared_words());
        Ok::<_, CliError>(memory)
    };
    let beside = args.beside_node.zip(args.beside);
    let beside = beside
        .map(|(node, bytes)| memory(node, bytes))
        .transpose()?;
    let memory = memory(args.node, args.bytes)?;
    if let Some(second) = args.second {
        put_every_second(memory.range(), args.page_size.bytes(), second);
    }
    let threads = args.threads.get();
    let load = Workload::new(threads);
    let errors = std::thread::scope(|scope| {
        let words = memory.shared_words();
        let workers = (0..threads).map(|thread| {
            let load = &load;
            scope.spawn(move || load.run(words, thread))
        });
        let workers = workers.collect::<Vec<_>>();
        let answered = answer(&memory, &load);
        let seen = load.take().errors;
        load.stop();
        let wrong = workers.into_iter().map(|worker| worker.join().unwrap_or(1));
        answered.map(|errors| errors + seen + wrong.sum::<u64>())
    })?;
    let beside = beside.map_or(0, |beside| workload::sweep(beside.shared_words()));
    let errors = errors + beside + workload::sweep(memory.shared_words());
    say(&End { errors })?;
    if errors > 0 {
        return Err(CliError::Failed(format!("{errors} words were wrong")));
    }
    Ok(())
}

/// Answers until there is nobody to; how many errors there were.
fn answer(memory: &NodeMemory, load: &Workload) -> Result<u64, CliError> {
    // The threads are at work when they have handed over something.
    let mut errors = load.take().errors;
    let range = memory.range();
    say(&Ready {
        start: range.start,
        end: range.end,
        huge_bytes: memory.huge_bytes().unwrap_or(0),
    })?;
    for line in io::stdin().lock().lines() {
        if line.is_err() {
            break;
        }
        let seen = load.take();
        errors += seen.errors;
        say(&Sight::from(&seen))?;
    }
    Ok(errors)
}

fn say(line: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string(line)
        .map_err(|error| CliError::Failed(format!("cannot answer: {error}")))?;
    print(&format!("{text}\n"))
}

fn put_every_second(range: Range<usize>, page_size: usize, node: u32) {
    let pages = range.step_by(2 * page_size).map(|page| page + page_size);
    let pages = pages.collect::<Vec<_>>();
    // Whoever asked for it looks where they are.
    let _ = bring(
        &mut Kernel::new(None, Shared::Leave),
        &pages,
        node,
        Check::All,
    );
}
