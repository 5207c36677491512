//! What the workers on one process share: the queue, the limits, and why it ends.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use transhume_engine::{Failure, Folio};
use transhume_sys::CallError;

use crate::account::Account;
use crate::backoff::BackOff;
use crate::budget::Budget;
use crate::exchange::Exchange;
use crate::near::Affinity;
use crate::pace::{Throttle, sleep_unless};
use crate::plan::{Plan, WINDOW, windows};
use crate::progress::Progress;
use crate::request::Request;
use crate::target::Target;
use crate::worker::Worker;

/// A worker gets its memory in so many windows at least, so that none waits long for the last.
const WINDOWS_EACH: usize = 4;
/// Huge pages stay whole.
const SMALLEST_WINDOW: usize = 2 << 20;

/// What one worker takes at a time: a part of one mapping.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) range: Range<usize>,
    pub(crate) page_size: usize,
}

/// What the rounds of one request have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Means<'r> {
    pub(crate) request: &'r Request,
    pub(crate) progress: &'r Progress,
    pub(crate) throttle: &'r Throttle,
    /// How many bytes may still move.
    pub(crate) budget: &'r Budget,
}

/// The workers on one process.
#[derive(Debug)]
pub(crate) struct Crew<'r> {
    pub(crate) means: Means<'r>,
    pub(crate) target: &'r Target,
    /// Zero is the first.
    pub(crate) round: u32,
    /// What stayed in an earlier round, in order.
    pub(crate) known: &'r [Folio],
    pub(crate) exchange: Option<Mutex<Exchange<'r>>>,
    began: Instant,
    queue: Mutex<VecDeque<Window>>,
    backoff: Mutex<BackOff>,
    active: AtomicUsize,
    moved: AtomicU64,
    /// Destinations that take no more pages of a size, and why.
    closed: Mutex<BTreeMap<(u32, usize), Failure>>,
    error: Mutex<Option<CallError>>,
    ended: AtomicBool,
    /// Whether a worker has left.
    left: AtomicBool,
}

/// What a crew has done.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Without what stayed.
    pub(crate) account: Account,
    pub(crate) stayed: Vec<(Folio, Failure)>,
    /// What was not there.
    pub(crate) absent: Vec<Folio>,
    /// Shootdowns that the workers asked for; `None` where they cannot be counted, or were not to be.
    pub(crate) shootdowns: Option<u64>,
    /// Why a destination took no more, if one did.
    pub(crate) closed: Option<(u32, Failure)>,
    /// Why some pages could not be found.
    pub(crate) error: Option<CallError>,
    pub(crate) ended: bool,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|held| held.into_inner())
}

impl<'r> Crew<'r> {
    pub(crate) fn new(
        means: Means<'r>,
        target: &'r Target,
        plan: &Plan,
        round: u32,
        known: &'r [Folio],
    ) -> Self {
        let request = means.request;
        let threads = request.threads.get();
        let span = plan.parts.iter().map(|part| part.range.len());
        // One alone has nobody to wait for.
        let size = match threads {
            1 => WINDOW,
            _ => (span.sum::<usize>() / threads.saturating_mul(WINDOWS_EACH)).next_power_of_two(),
        };
        let size = size.clamp(SMALLEST_WINDOW, WINDOW);
        let queue = plan.parts.iter().flat_map(|part| {
            windows(part.range.clone(), size.max(part.page_size)).map(|range| Window {
                range,
                page_size: part.page_size,
            })
        });
        let exchange = || Mutex::new(Exchange::new(means, target, &plan.mappings));
        Self {
            means,
            target,
            round,
            known,
            exchange: request.exchange.then(exchange),
            began: Instant::now(),
            queue: Mutex::new(queue.collect()),
            backoff: Mutex::new(BackOff::new(1)),
            active: AtomicUsize::new(1),
            moved: AtomicU64::new(0),
            closed: Mutex::default(),
            error: Mutex::default(),
            ended: AtomicBool::new(false),
            left: AtomicBool::new(false),
        }
    }

    /// Moves everything, as far as it goes.
    pub(crate) fn run(self) -> Done {
        let threads = locked(&self.queue)
            .len()
            .min(self.means.request.threads.get());
        let work = |index| Worker::new(&self, index).run();
        let alone = || {
            let _affinity = Affinity::keep();
            work(0)
        };
        let mut all = std::thread::scope(|scope| {
            if threads == 1 {
                return vec![alone()];
            }
            let spawned = (0..threads).map_while(|index| {
                let thread = std::thread::Builder::new().name(format!("transhume-{index}"));
                thread.spawn_scoped(scope, move || work(index)).ok()
            });
            let workers = spawned.collect::<Vec<_>>();
            if workers.len() > 1 {
                *locked(&self.backoff) = BackOff::new(workers.len());
                self.active.store(workers.len(), Relaxed);
            }
            if workers.is_empty() && threads > 0 {
                // Where no thread can be had, the caller does it.
                return vec![alone()];
            }
            let joined = workers.into_iter().map(|worker| match worker.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect()
        });
        self.means.progress.set_workers(0);
        let mut done = Done {
            shootdowns: self.means.request.count_shootdowns.then_some(0),
            ..Done::default()
        };
        for worker in &mut all {
            done.account.merge(&worker.account);
            done.stayed.append(&mut worker.stayed);
            done.absent.append(&mut worker.absent);
            let sum = done.shootdowns.zip(worker.shootdowns);
            done.shootdowns = sum.map(|(sum, more)| sum + more);
        }
        if let Some(exchange) = &self.exchange {
            locked(exchange).account(&mut done.account);
        }
        let closed = locked(&self.closed);
        done.closed = closed.iter().next().map(|(&(node, _), &why)| (node, why));
        done.error = locked(&self.error).take();
        done.ended = self.ended.load(Relaxed);
        done
    }

    /// Whether it is over before everything had its turn.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over_before_a_call() || self.means.budget.is_spent()
    }

    /// Whether not even what was granted may move.
    pub(crate) fn is_over_before_a_call(&self) -> bool {
        self.means.progress.is_stopped() || self.ended.load(Relaxed)
    }

    /// Notes that the process has no memory any more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Relaxed);
    }

    /// Notes that pages cannot be found, unless that is because the process is gone.
    pub(crate) fn cannot_find(&self, error: CallError) {
        if self.target.has_ended() {
            self.end();
        } else {
            locked(&self.error).get_or_insert(error);
        }
    }

    pub(crate) fn next_window(&self) -> Option<Window> {
        locked(&self.queue).pop_front()
    }

    /// Whether a worker is one too many for now. One that has nothing to wait for is not, nor is any
    /// when one has left.
    pub(crate) fn is_sent_home(&self, index: usize) -> bool {
        index >= self.active.load(Relaxed)
            && !self.left.load(Relaxed)
            && !locked(&self.queue).is_empty()
    }

    /// Notes that a worker does no more, for whatever reason.
    pub(crate) fn leave(&self) {
        self.left.store(true, Relaxed);
    }

    /// Whether no destination takes pages of a size any more.
    pub(crate) fn all_closed(&self, page_size: usize) -> bool {
        let mut nodes = self.means.request.to.nodes();
        nodes.all(|node| self.is_closed(node, page_size))
    }

    pub(crate) fn is_closed(&self, node: u32, page_size: usize) -> bool {
        locked(&self.closed).contains_key(&(node, page_size))
    }

    pub(crate) fn close(&self, node: u32, page_size: usize, failure: Failure) {
        locked(&self.closed)
            .entry((node, page_size))
            .or_insert(failure);
    }

    /// Counts what has moved, and lets the number of workers follow.
    pub(crate) fn count(&self, folios: u64, bytes: u64) {
        self.means.progress.count_moved(folios, bytes);
        let moved = self.moved.fetch_add(bytes, Relaxed) + bytes;
        // A rate that is given says nothing of what the machine could do.
        if self.means.request.bandwidth.is_none() {
            let mut backoff = locked(&self.backoff);
            backoff.observe(self.began.elapsed(), moved);
            self.active.store(backoff.active(), Relaxed);
        }
        self.means.progress.set_workers(self.active.load(Relaxed));
    }

    /// Sleeps, unless it is over before.
    pub(crate) fn sleep(&self, time: Duration) {
        sleep_unless(time, || self.is_over());
    }
}
