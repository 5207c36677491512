//! The cases, several at a time.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressStyle;
use transhume_model::{Bug, Case, Orders, Progress, Verdict, check};

use crate::context::Context;
use crate::error::CliError;

/// So long a bug is looked for in one way.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which orders of a case are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    All,
    Chance {
        first: u64,
        count: u64,
    },
    /// Whichever show a bug.
    Find(Bug),
}

/// A case to be tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) case: &'static Case,
    pub(super) task: Task,
}

impl Job {
    pub(super) fn new(case: &'static Case, task: Task) -> Self {
        Self { case, task }
    }

    pub(super) fn find(bug: Bug) -> Self {
        let case = Case::by_name(bug.case()).unwrap_or(&Case::ALL[0]);
        Self::new(case, Task::Find(bug))
    }
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) job: Job,
    pub(super) verdict: Verdict,
    pub(super) took: Duration,
}

/// What came of those that were finished.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) done: Vec<Done>,
    /// How many there were to be.
    pub(super) of: usize,
    pub(super) interrupted: bool,
}

/// Those under way, and what came of the others.
#[derive(Debug, Default)]
struct Board {
    left: VecDeque<(usize, Job)>,
    running: Vec<Running>,
    done: Vec<(usize, Done)>,
    /// Orders of those that are done.
    orders: u64,
    interrupted: bool,
}

#[derive(Debug)]
struct Running {
    number: usize,
    name: &'static str,
    progress: Arc<Progress>,
    since: Instant,
    patience: Option<Duration>,
}

/// Tries all of them, as many at a time as there are CPUs, until they are done or Ctrl-C.
pub(super) fn run(jobs: Vec<Job>) -> Result<Finished, CliError> {
    let of = jobs.len();
    let context = Context::start(of as u64)?;
    // How long a case takes says nothing of the next, so nothing is said of the time left.
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} done, {elapsed}: {wide_msg}");
    if let Ok(style) = style {
        context.progress.set_style(style);
    }
    let board = Mutex::new(Board {
        left: jobs.into_iter().enumerate().collect(),
        ..Board::default()
    });
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(|| work(&board))).collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::sleep(Duration::from_millis(100));
            watch(&board, &context);
        }
    });
    context.progress.finish_and_clear();
    let board = board.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut done = board.done;
    done.sort_by_key(|(number, _)| *number);
    Ok(Finished {
        done: done.into_iter().map(|(_, done)| done).collect(),
        of,
        interrupted: board.interrupted,
    })
}

fn locked(board: &Mutex<Board>) -> std::sync::MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shows how far they are, and ends what has to end.
fn watch(board: &Mutex<Board>, context: &Context) {
    let mut board = locked(board);
    if context.is_interrupted() {
        board.left.clear();
        board.interrupted = true;
    }
    let mut orders = board.orders;
    for running in &board.running {
        orders += running.progress.orders();
        let late = running
            .patience
            .is_some_and(|most| running.since.elapsed() > most);
        if late || board.interrupted {
            running.progress.stop();
        }
    }
    context.progress.set_position(board.done.len() as u64);
    let names = board.running.iter().map(|running| running.name);
    let names = names.collect::<Vec<_>>().join(", ");
    context
        .progress
        .set_message(format!("{orders} orders, now {names}"));
}

fn work(board: &Mutex<Board>) {
    loop {
        let mut shared = locked(board);
        let Some((number, job)) = shared.left.pop_front() else {
            return;
        };
        drop(shared);
        let began = Instant::now();
        let step = |bug, orders, patience| {
            let progress = Arc::new(Progress::default());
            locked(board).running.push(Running {
                number,
                name: job.case.name,
                progress: Arc::clone(&progress),
                since: Instant::now(),
                patience,
            });
            let verdict = check(job.case, bug, orders, &progress);
            let mut shared = locked(board);
            shared.running.retain(|running| running.number != number);
            shared.orders += verdict.orders;
            verdict
        };
        let verdict = match job.task {
            Task::All => step(None, Orders::Exhaustive, None),
            Task::Chance { first: seed, count } => step(None, Orders::Random { seed, count }, None),
            Task::Find(bug) => {
                let first = step(Some(bug), Orders::Exhaustive, Some(PATIENCE));
                if first.violation.is_some() || locked(board).interrupted {
                    first
                } else {
                    let (seed, count) = (1, u64::MAX);
                    let mut second =
                        step(Some(bug), Orders::Random { seed, count }, Some(PATIENCE));
                    second.orders += first.orders;
                    second
                }
            }
        };
        let took = began.elapsed();
        let mut shared = locked(board);
        // What was cut short says nothing.
        if !shared.interrupted || verdict.complete || verdict.violation.is_some() {
            shared.done.push((number, Done { job, verdict, took }));
        }
    }
}
