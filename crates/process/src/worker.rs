//! One of the threads that move windows of a process's memory.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use transhume_engine::{ASYNC_PASSES, Failure, Folio, Order, Step, Why};
use transhume_sys::Errno;
use transhume_sys::shootdown::ShootdownCounter;

use crate::BASE_PAGE;
use crate::account::{Account, Amount};
use crate::bring::{Check, Kernel, bring};
use crate::crew::{Crew, Window, locked};
use crate::list::{List, fit_bytes};
use crate::near::stay_near;
use crate::pace::Pace;
use crate::scan::{Scanner, address, addresses, size, size_of_all};
use crate::stride::Stride;

/// How long an idle worker sleeps.
const NAP: Duration = Duration::from_millis(2);
/// How long what was in use is left alone at most before it is tried again.
const LONGEST_WAIT: Duration = Duration::from_millis(64);
/// Passes in which a page that is absent is looked for: one that the kernel itself moves just then is
/// absent for that moment.
const ABSENT_PASSES: u32 = 3;

/// What goes to one node, of mappings with one size of pages.
type Lists = BTreeMap<(u32, usize), List>;

#[derive(Debug)]
pub(crate) struct Worker<'c, 'r> {
    crew: &'c Crew<'r>,
    index: usize,
    scanner: Scanner<'c>,
    kernel: Kernel,
    pace: Pace,
    stride: Stride,
    pub(crate) account: Account,
    pub(crate) stayed: Vec<(Folio, Failure)>,
    /// What was not there; whether it is gone is seen in the end.
    pub(crate) absent: Vec<Folio>,
    /// Why what is to be tried again has stayed so far.
    so_far: BTreeMap<Folio, Failure>,
    /// What was found and waits until there is enough for a call.
    waiting: Lists,
    /// What is to be tried again.
    again: Lists,
    pass: u32,
    pub(crate) shootdowns: Option<u64>,
}

impl<'c, 'r> Worker<'c, 'r> {
    pub(crate) fn new(crew: &'c Crew<'r>, index: usize) -> Self {
        let request = crew.means.request;
        Self {
            crew,
            index,
            scanner: Scanner::new(crew.target),
            kernel: Kernel::new(Some(crew.target.pid()), request.shared),
            pace: Pace::new(request.max_stall, request.bandwidth, request.exchange),
            stride: Stride::default(),
            account: Account::default(),
            stayed: Vec::new(),
            absent: Vec::new(),
            so_far: BTreeMap::new(),
            waiting: Lists::new(),
            again: Lists::new(),
            pass: 1,
            shootdowns: None,
        }
    }

    pub(crate) fn run(mut self) -> Self {
        if let Some(node) = self.crew.means.request.to.nodes().next() {
            stay_near(node);
        }
        let _leaving = Leaving(self.crew);
        let counts = self.crew.means.request.count_shootdowns;
        let counter = counts.then(ShootdownCounter::open_for_this_thread);
        while !self.crew.is_over() {
            if self.crew.is_sent_home(self.index) {
                std::thread::sleep(NAP);
                continue;
            }
            let Some(window) = self.crew.next_window() else {
                break;
            };
            if !self.crew.all_closed(window.page_size) {
                self.find(window);
                self.move_what_waits(AtLeast::ASlice);
            }
        }
        self.move_what_waits(AtLeast::APage);
        self.try_again();
        // It was stopped before they could be tried as often as they should.
        let untried = std::mem::take(&mut self.waiting).into_values();
        for folio in untried
            .chain(std::mem::take(&mut self.again).into_values())
            .flatten()
        {
            if let Some(&failure) = self.so_far.get(&folio) {
                self.stayed.push((folio, failure));
            }
        }
        self.account.calls += self.kernel.calls;
        self.shootdowns = counter.and_then(|counter| counter.ok()?.read().ok());
        self
    }

    /// Finds what is to move of a window.
    fn find(&mut self, window: Window) {
        let crew = self.crew;
        let request = crew.means.request;
        let found = self.scanner.visit(window.range, window.page_size, |run| {
            if request.from.contains(&run.node) {
                let key = (request.to.node(address(run.first)), window.page_size);
                let list = self.waiting.entry(key).or_default();
                list.push_run(run, crew.known);
            } else if crew.round == 0 && request.to.contains(run.node) {
                // Later rounds meet what the first has moved.
                self.account.already_there += run.amount();
            }
        });
        if let Err(error) = found {
            crew.cannot_find(error);
        }
    }

    /// Moves what waits for each node, slice by slice, as long as there is at least so much.
    fn move_what_waits(&mut self, least: AtLeast) {
        for ((node, page_size), mut list) in std::mem::take(&mut self.waiting) {
            let mut tried = 0;
            while let Some(&first) = list.folios().get(tried)
                && !self.crew.is_over()
            {
                if self.crew.is_closed(node, page_size) {
                    tried = list.folios().len();
                    break;
                }
                let room = self.pace.base_pages().min(self.stride.base_pages(first));
                if least == AtLeast::ASlice && list.base_pages_from(tried) < room {
                    break;
                }
                let end = tried + list.fit(tried, room);
                tried += self.slice(&list.folios()[tried..end], node, page_size);
            }
            list.drop_first(tried);
            if !list.folios().is_empty() {
                self.waiting.insert((node, page_size), list);
            }
        }
    }

    /// Moves folios to a node by one call, if the kernel does not need more. Says how many of the first
    /// were tried; none if it is over.
    fn slice(&mut self, folios: &[Folio], node: u32, page_size: usize) -> usize {
        let crew = self.crew;
        let bytes = size_of_all(folios);
        crew.sleep(crew.means.throttle.wait_for(bytes, Instant::now()));
        let granted = loop {
            if crew.is_over() {
                return 0;
            }
            match crew.means.budget.grant(bytes) {
                None => crew.sleep(NAP),
                Some(granted) => break granted,
            }
        };
        let (folios, asked) = match granted.bytes() < bytes {
            true => {
                let folios = &folios[..fit_bytes(folios, granted.bytes())];
                (folios, size_of_all(folios))
            }
            false => (folios, bytes),
        };
        if folios.is_empty() {
            granted.spend();
            return 0;
        }
        if let Some(exchange) = &crew.exchange {
            locked(exchange).make_room(node, asked);
        }
        // A number may be another process's by now; between this and the call it hardly is.
        if crew.target.has_ended() {
            crew.end();
        }
        if crew.is_over_before_a_call() {
            return 0;
        }
        let answers = self.bring(folios, node);
        let took = self.kernel.take_longest();
        let kernel = &mut self.kernel;
        self.pace.observe(asked / BASE_PAGE as u64, took, || {
            kernel.time_without_pages(node)
        });
        self.account.longest_call = self.account.longest_call.max(took);
        let before = self.account.moved;
        if answers.iter().all(Result::is_ok) {
            self.account.moved += Amount {
                folios: folios.len() as u64,
                bytes: asked,
            };
        } else {
            self.account_for(folios, answers, node, page_size);
        }
        let moved = self.account.moved;
        let (pages, moved) = (moved.folios - before.folios, moved.bytes - before.bytes);
        granted.have_moved(moved);
        crew.count(pages, moved);
        if self.pass == 1 {
            crew.means.progress.handle(asked);
        }
        folios.len()
    }

    /// Accounts for folios of which some have not gone.
    fn account_for(
        &mut self,
        folios: &[Folio],
        answers: Vec<Result<(), Failure>>,
        node: u32,
        page_size: usize,
    ) {
        for (&folio, answer) in folios.iter().zip(answers) {
            let is_huge = folio.order() != Order::BASE && page_size == BASE_PAGE;
            if is_huge && self.split_up(folio, answer, node) {
                continue;
            }
            match answer {
                Ok(()) => self.account.moved.count(folio),
                Err(failure) => self.stays(folio, node, page_size, failure),
            }
        }
    }

    /// What lacks a huge page at its destination the kernel splits, and moves the base pages that it
    /// can. Then these are accounted for one by one, and it is true.
    fn split_up(&mut self, folio: Folio, answer: Result<(), Failure>, node: u32) -> bool {
        let start = address(folio);
        let end = start + usize::try_from(size(folio)).unwrap_or(0);
        let Ok(found) = self.scanner.located(start..end, BASE_PAGE) else {
            return false;
        };
        if found.iter().any(|&(found, _)| found == folio) {
            return false;
        }
        let again = Failure::new(Step::Remap, Why::Again);
        for (page, now) in found {
            match now == node {
                true => self.account.moved.count(page),
                false => self.stays(page, node, BASE_PAGE, answer.err().unwrap_or(again)),
            }
        }
        true
    }

    /// Asks the kernel for folios: one page for each that may be larger than it looks, and then for
    /// what has not gone with it.
    fn bring(&mut self, folios: &[Folio], node: u32) -> Vec<Result<(), Failure>> {
        if !self.stride.is_more_than_a_page() {
            let brought = bring(&mut self.kernel, &addresses(folios), node, Check::Doubtful);
            self.stride.learn(folios.len(), brought.with_others);
            return brought.answers;
        }
        let (first, others) = self.stride.split(folios);
        let brought = bring(&mut self.kernel, &addresses(&first), node, Check::Doubtful);
        self.stride.learn(first.len(), brought.with_others);
        let mut answers = first
            .into_iter()
            .zip(brought.answers)
            .collect::<BTreeMap<_, _>>();
        let mut now = Vec::new();
        let known = self.scanner.locate(&others, &mut now).is_ok();
        let there = |at: &usize| known && now[*at].node() == Some(node);
        let (gone, rest): (Vec<_>, Vec<_>) = (0..others.len()).partition(there);
        answers.extend(gone.iter().map(|&at| (others[at], Ok(()))));
        let rest = rest.into_iter().map(|at| others[at]).collect::<Vec<_>>();
        self.stride.unlearn(others.len(), rest.len());
        let brought = bring(&mut self.kernel, &addresses(&rest), node, Check::Doubtful);
        answers.extend(rest.into_iter().zip(brought.answers));
        folios
            .iter()
            .filter_map(|folio| answers.get(folio).copied())
            .collect()
    }

    fn stays(&mut self, folio: Folio, node: u32, page_size: usize, failure: Failure) {
        let is = |errno: Errno| {
            failure
                .errno
                .is_some_and(|of| of.get() == errno.raw_os_error())
        };
        let again = match failure.why {
            // What a process without memory is said to be, before it is gone.
            Why::Absent if is(Errno::SRCH) || is(Errno::INVAL) => return self.crew.end(),
            Why::Absent => self.pass < ABSENT_PASSES,
            // By then there may be room.
            Why::NoMemory if self.crew.exchange.is_some() => self.pass < ASYNC_PASSES,
            why => why.is_transient() && self.pass < ASYNC_PASSES,
        };
        if again {
            self.so_far.insert(folio, failure);
            self.again.entry((node, page_size)).or_default().push(folio);
            return;
        }
        self.so_far.remove(&folio);
        if failure.why == Why::Absent {
            self.absent.push(folio);
            return;
        }
        // Where there is no huge page there may be base pages yet.
        let is_of_node = folio.order() == Order::BASE || page_size > BASE_PAGE;
        if failure.why == Why::NotPermitted || failure.why == Why::NoMemory && is_of_node {
            self.crew.close(node, page_size, failure);
        }
        self.stayed.push((folio, failure));
    }

    /// The later passes, over what was in use.
    fn try_again(&mut self) {
        while !self.again.is_empty() && !self.crew.is_over() {
            self.pass += 1;
            let wait = (NAP * (1 << (self.pass - 2))).min(LONGEST_WAIT);
            self.crew.sleep(wait);
            self.waiting = std::mem::take(&mut self.again);
            self.account.retries += self
                .waiting
                .values()
                .map(|list| list.folios().len() as u64)
                .sum::<u64>();
            self.move_what_waits(AtLeast::APage);
        }
    }
}

/// A worker that ends, be it by a panic.
struct Leaving<'c, 'r>(&'c Crew<'r>);

impl Drop for Leaving<'_, '_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// How much a call must have to be worth it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AtLeast {
    /// More may come.
    ASlice,
    /// Nothing more comes.
    APage,
}
