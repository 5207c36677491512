//! The workers: threads that move disjoint windows of one process's memory.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use transhume_engine::{ASYNC_PASSES, Failure, Folio, Why};
use transhume_sys::CallError;
use transhume_sys::numa::PageStatus;
use transhume_sys::shootdown::ShootdownCounter;

use crate::account::Account;
use crate::backoff::BackOff;
use crate::bring::{Check, Kernel, bring};
use crate::exchange::Exchange;
use crate::near::stay_near;
use crate::pace::{Pace, Throttle};
use crate::plan::{Plan, WINDOW, windows};
use crate::progress::Progress;
use crate::request::Request;
use crate::scan::{Scanner, address, size};
use crate::target::Target;

/// How long an idle worker sleeps, and how often a waiting one looks whether it was stopped.
const NAP: Duration = Duration::from_millis(2);
/// A worker gets its memory in so many windows at least, so that none waits long for the last.
const WINDOWS_EACH: usize = 4;
/// Huge pages stay whole.
const SMALLEST_WINDOW: usize = 2 << 20;
/// How long what was in use is left alone at most before it is tried again.
const LONGEST_WAIT: Duration = Duration::from_millis(64);

/// A part of one mapping.
#[derive(Debug)]
struct Piece {
    range: Range<usize>,
    page_size: usize,
    all_misplaced: bool,
}

/// What one worker takes at a time: small pieces together, because a call costs as much for one page.
type Window = Vec<Piece>;

/// What the workers on one process share.
#[derive(Debug)]
pub(crate) struct Crew<'r> {
    request: &'r Request,
    target: &'r Target,
    progress: &'r Progress,
    throttle: &'r Throttle,
    began: Instant,
    queue: Mutex<VecDeque<Window>>,
    backoff: Mutex<BackOff>,
    active: AtomicUsize,
    moved: Mutex<u64>,
    /// Destinations that take no more pages of a size, and why.
    closed: Mutex<BTreeMap<(u32, usize), Failure>>,
    exchange: Option<Mutex<Exchange<'r>>>,
    /// What stayed in an earlier round, in order.
    known: &'r [Folio],
    ended: AtomicBool,
}

/// What a crew has done.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) account: Account,
    /// What stayed, for the next round to leave alone.
    pub(crate) stayed: Vec<Folio>,
    /// Shootdowns that the workers asked for; `None` where they cannot be counted, or were not to be.
    pub(crate) shootdowns: Option<u64>,
    /// Why a destination took no more, if one did.
    pub(crate) closed: Option<(u32, Failure)>,
    pub(crate) ended: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|held| held.into_inner())
}

impl<'r> Crew<'r> {
    pub(crate) fn new(
        request: &'r Request,
        target: &'r Target,
        plan: &Plan,
        known: &'r [Folio],
        progress: &'r Progress,
        throttle: &'r Throttle,
    ) -> Self {
        let threads = request.threads.get();
        let span = plan
            .parts
            .iter()
            .map(|part| part.range.len())
            .sum::<usize>();
        // One alone has nobody to wait for.
        let size = match threads {
            1 => WINDOW,
            _ => (span / (threads * WINDOWS_EACH)).next_power_of_two(),
        };
        let size = size.clamp(SMALLEST_WINDOW, WINDOW);
        let pieces = plan.parts.iter().flat_map(|part| {
            windows(part.range.clone(), size.max(part.page_size)).map(|range| Piece {
                range,
                page_size: part.page_size,
                all_misplaced: part.all_misplaced,
            })
        });
        Self {
            request,
            target,
            progress,
            throttle,
            began: Instant::now(),
            queue: Mutex::new(together(pieces, size)),
            backoff: Mutex::new(BackOff::new(threads)),
            active: AtomicUsize::new(threads),
            moved: Mutex::new(0),
            closed: Mutex::default(),
            exchange: request
                .exchange
                .then(|| Mutex::new(Exchange::new(request, target, &plan.mappings))),
            known,
            ended: AtomicBool::new(false),
        }
    }

    /// Moves everything, as far as it goes.
    pub(crate) fn run(self) -> Done {
        let threads = locked(&self.queue).len().min(self.request.threads.get());
        let work = |index| Worker::new(&self, index).run();
        let mut all = std::thread::scope(|scope| {
            // They are tied to CPUs, which the caller need not be.
            let others = (0..threads).filter_map(|index| {
                let name = format!("transhume-{index}");
                let thread = std::thread::Builder::new().name(name);
                thread.spawn_scoped(scope, move || work(index)).ok()
            });
            let others = others.collect::<Vec<_>>();
            if others.is_empty() {
                // Where no thread can be had, the caller does it.
                return vec![work(0)];
            }
            others
                .into_iter()
                .filter_map(|other| other.join().ok())
                .collect()
        });
        self.progress.set_workers(0);
        let mut done = Done {
            shootdowns: Some(0),
            ..Done::default()
        };
        for worker in &mut all {
            done.account.merge(&worker.account);
            done.stayed.append(&mut worker.stayed);
            let sum = done.shootdowns.zip(worker.shootdowns);
            done.shootdowns = sum.map(|(sum, more)| sum + more);
        }
        if let Some(exchange) = &self.exchange {
            locked(exchange).account(&mut done.account);
        }
        done.stayed.sort_unstable();
        let closed = locked(&self.closed);
        done.closed = closed.iter().next().map(|(&(node, _), &why)| (node, why));
        done.ended = self.ended.load(Relaxed);
        done
    }

    fn is_over(&self) -> bool {
        self.progress.is_stopped() || self.ended.load(Relaxed)
    }

    /// Whether no destination takes pages of a size any more.
    fn all_closed(&self, page_size: usize) -> bool {
        let closed = locked(&self.closed);
        let mut nodes = self.request.to.nodes();
        nodes.all(|node| closed.contains_key(&(node, page_size)))
    }

    fn closed(&self, node: u32, page_size: usize) -> bool {
        locked(&self.closed).contains_key(&(node, page_size))
    }

    /// Counts what has moved, and lets the number of workers follow.
    fn count(&self, folios: u64, bytes: u64) {
        self.progress.count_moved(folios, bytes);
        let mut moved = locked(&self.moved);
        *moved += bytes;
        // A rate that is given says nothing of what the machine could do.
        if self.request.bandwidth.is_none() {
            let mut backoff = locked(&self.backoff);
            backoff.observe(self.began.elapsed(), *moved);
            self.active.store(backoff.active(), Relaxed);
        }
        let threads = self.active.load(Relaxed);
        self.progress.set_workers(threads);
    }

    /// Sleeps, unless it is over before.
    fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_over() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(10 * NAP));
        }
    }
}

/// Puts pieces together as long as they are no larger than `size` in all.
fn together(pieces: impl Iterator<Item = Piece>, size: usize) -> VecDeque<Window> {
    let mut queue = VecDeque::<Window>::new();
    let mut room = 0;
    for piece in pieces {
        let len = piece.range.len();
        match queue.back_mut() {
            Some(window) if len <= room => {
                room -= len;
                window.push(piece);
            }
            _ => {
                room = size.saturating_sub(len);
                queue.push_back(vec![piece]);
            }
        }
    }
    queue
}

/// One thread's part.
#[derive(Debug)]
struct Worker<'c, 'r> {
    crew: &'c Crew<'r>,
    index: usize,
    scanner: Scanner<'c>,
    kernel: Kernel,
    pace: Pace,
    account: Account,
    stayed: Vec<Folio>,
    /// What is to be tried again, with its destination and its mapping's page size.
    again: Vec<(Folio, u32, usize)>,
    pass: u32,
    shootdowns: Option<u64>,
}

impl<'c, 'r> Worker<'c, 'r> {
    fn new(crew: &'c Crew<'r>, index: usize) -> Self {
        let request = crew.request;
        Self {
            crew,
            index,
            scanner: Scanner::new(crew.target),
            kernel: Kernel::new(Some(crew.target.pid()), request.shared),
            pace: Pace::new(request.max_stall, request.bandwidth, request.exchange),
            account: Account::default(),
            stayed: Vec::new(),
            again: Vec::new(),
            pass: 1,
            shootdowns: None,
        }
    }

    fn run(mut self) -> Self {
        if let Some(node) = self.crew.request.to.nodes().next() {
            stay_near(node);
        }
        let counts = self.crew.request.count_shootdowns;
        let counter = counts.then(ShootdownCounter::open_for_this_thread);
        while !self.crew.is_over() {
            // One that has windows to finish is not sent home.
            if self.index >= self.crew.active.load(Relaxed) && !locked(&self.crew.queue).is_empty()
            {
                std::thread::sleep(NAP);
                continue;
            }
            let Some(window) = locked(&self.crew.queue).pop_front() else {
                break;
            };
            self.window(window);
        }
        self.try_again();
        self.account.calls += self.kernel.calls;
        self.shootdowns = counter.and_then(|counter| counter.ok()?.read().ok());
        self
    }

    /// Moves what is in a window.
    fn window(&mut self, window: Window) {
        let mut lists = BTreeMap::new();
        for piece in window {
            if !self.crew.all_closed(piece.page_size) {
                self.sort_out(piece, &mut lists);
            }
        }
        for ((node, page_size), folios) in lists {
            self.list(&folios, node, page_size);
        }
    }

    /// Adds what is to move of a piece to the list of its destination.
    fn sort_out(&mut self, piece: Piece, lists: &mut BTreeMap<(u32, usize), Vec<Folio>>) {
        let mut status = Vec::new();
        let found = self
            .scanner
            .present(piece.range, piece.page_size)
            .and_then(|folios| {
                if !piece.all_misplaced {
                    self.scanner.locate(&folios, &mut status)?;
                }
                Ok(folios)
            });
        let folios = match found {
            Ok(folios) => folios,
            Err(error) => return self.failed(&error),
        };
        let request = self.crew.request;
        for (at, folio) in folios.into_iter().enumerate() {
            match status.get(at).copied().and_then(PageStatus::node) {
                Some(node) if !request.from.contains(&node) => {
                    if request.to.nodes().any(|to| to == node) {
                        self.account.already_there.count(folio);
                    }
                    continue;
                }
                // Gone again, or nothing that can be moved.
                None if !piece.all_misplaced => continue,
                _ => {}
            }
            if self.crew.known.binary_search(&folio).is_err() {
                let node = request.to.node(folio.page() / folio.base_pages());
                let list = lists.entry((node, piece.page_size)).or_default();
                list.push(folio);
            }
        }
    }

    /// Moves folios to a node, slice by slice.
    fn list(&mut self, folios: &[Folio], node: u32, page_size: usize) {
        let mut rest = folios;
        while !rest.is_empty() && !self.crew.is_over() {
            if self.crew.closed(node, page_size) {
                return;
            }
            let room = self.pace.base_pages();
            let mut pages = 0;
            let fit = rest.iter().take_while(|folio| {
                pages += folio.base_pages();
                pages <= room
            });
            let (slice, others) = rest.split_at(fit.count().max(1));
            self.slice(slice, node, page_size);
            rest = others;
        }
    }

    /// Moves folios to a node by one call, if the kernel does not need more.
    fn slice(&mut self, folios: &[Folio], node: u32, page_size: usize) {
        let bytes = folios.iter().map(|&folio| size(folio)).sum::<u64>();
        let wait = self.crew.throttle.wait_for(bytes, Instant::now());
        self.crew.sleep(wait);
        if self.crew.is_over() {
            return;
        }
        let crew = self.crew;
        if let Some(exchange) = &crew.exchange {
            locked(exchange).make_room(node, bytes, crew.progress);
        }
        let pages = folios
            .iter()
            .map(|&folio| address(folio))
            .collect::<Vec<_>>();
        let answers = bring(&mut self.kernel, &pages, node, Check::Doubtful);
        let took = self.kernel.take_longest();
        let kernel = &mut self.kernel;
        self.pace
            .observe(bytes / crate::BASE_PAGE as u64, took, || {
                kernel.time_without_pages(node)
            });
        self.account.longest_call = self.account.longest_call.max(took);
        let before = self.account.moved;
        for (&folio, answer) in folios.iter().zip(answers) {
            match answer {
                Ok(()) => self.account.moved.count(folio),
                Err(failure) => self.stays(folio, node, page_size, failure),
            }
        }
        let moved = self.account.moved;
        let (folios, moved) = (moved.folios - before.folios, moved.bytes - before.bytes);
        self.crew.count(folios, moved);
        if self.pass == 1 {
            self.crew.progress.handle(bytes);
        }
    }

    fn stays(&mut self, folio: Folio, node: u32, page_size: usize, failure: Failure) {
        match failure.why {
            Why::Absent if self.crew.target.has_ended() => self.crew.ended.store(true, Relaxed),
            Why::Absent => self.account.vanished.count(folio),
            why if why.is_transient() && self.pass < ASYNC_PASSES => {
                self.again.push((folio, node, page_size));
            }
            // By then there may be room.
            Why::NoMemory if self.crew.exchange.is_some() && self.pass < ASYNC_PASSES => {
                self.again.push((folio, node, page_size));
            }
            why => {
                if matches!(why, Why::NoMemory | Why::NotPermitted) {
                    let mut closed = locked(&self.crew.closed);
                    closed.entry((node, page_size)).or_insert(failure);
                }
                self.stayed.push(folio);
                self.account.stay(folio, failure);
            }
        }
    }

    /// The later passes, over what was in use.
    fn try_again(&mut self) {
        while !self.again.is_empty() && !self.crew.is_over() {
            self.pass += 1;
            self.crew
                .sleep((NAP * (1 << (self.pass - 2))).min(LONGEST_WAIT));
            let mut lists = BTreeMap::<(u32, usize), Vec<Folio>>::new();
            for (folio, node, page_size) in std::mem::take(&mut self.again) {
                lists.entry((node, page_size)).or_default().push(folio);
            }
            for ((node, page_size), folios) in lists {
                self.account.retries += folios.len() as u64;
                self.list(&folios, node, page_size);
            }
        }
    }

    /// What cannot be found is left to the survey that follows, unless the process is gone.
    fn failed(&mut self, _error: &CallError) {
        if self.crew.target.has_ended() {
            self.crew.ended.store(true, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_go_together() {
        let piece = |range: Range<usize>| Piece {
            range,
            page_size: 4096,
            all_misplaced: true,
        };
        let sizes = |pieces: &[Range<usize>]| {
            let pieces = pieces.iter().cloned().map(piece);
            let queue = together(pieces, 100);
            queue.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[0..40, 50..90, 100..120, 130..131]), [3, 1]);
        assert_eq!(sizes(&[0..100, 100..200, 200..210]), [1, 1, 1]);
        assert_eq!(sizes(&[0..500, 500..501]), [1, 1]);
        assert_eq!(sizes(&[]), []);
    }
}
