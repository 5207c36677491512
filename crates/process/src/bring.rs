//! Asking the kernel to bring pages to a node until it is known of each what became of it.
//!
//! move_pages(2) collects pages into a list until one cannot be put there: it is on its node
//! already, or absent, or in use. Then the list goes, and what is said of that page is written. If a
//! page of the list stayed, the call ends there: it answers a count, and writes nothing of the list
//! and of all that follows it. So
//!
//! - a page of which nothing is said, before one of which something is, was in that last list: it
//!   was tried, and may have gone;
//! - pages after that one were not tried, and are asked for again;
//! - if there is none such, the last list reached to the end, and all were tried.
//!
//! And of a page that is no head of its folio the kernel says `EBUSY`, though it goes with the head.

use std::time::{Duration, Instant};

use transhume_engine::{Failure, Step, Why};
use transhume_sys::numa::{self, PageStatus, Shared};
use transhume_sys::{Errno, Pid};

use crate::failure::{failed, why};

/// Who moves pages: the kernel, or a test that stands in for it.
pub trait Mover {
    /// Moves pages to a node and writes what it says of them; leaves [`PageStatus::UNKNOWN`] where it
    /// says nothing.
    ///
    /// # Errors
    ///
    /// Why the call failed as a whole; pages may have moved before.
    fn move_pages(
        &mut self,
        pages: &[usize],
        node: u32,
        said: &mut [PageStatus],
    ) -> Result<(), Errno>;

    /// Writes where pages are.
    ///
    /// # Errors
    ///
    /// Why that cannot be known.
    fn query_pages(&mut self, pages: &[usize], now: &mut [PageStatus]) -> Result<(), Errno>;
}

/// The kernel, for the pages of one process.
#[derive(Debug)]
pub struct Kernel {
    process: Option<Pid>,
    shared: Shared,
    nodes: Vec<u32>,
    /// How often it was asked to move.
    pub(crate) calls: u64,
    longest: Duration,
}

impl Kernel {
    /// For the pages of a process; `None` is this one.
    #[must_use]
    pub fn new(process: Option<Pid>, shared: Shared) -> Self {
        Self {
            process,
            shared,
            nodes: Vec::new(),
            calls: 0,
            longest: Duration::ZERO,
        }
    }

    /// How long a call takes that moves nothing: it empties the LRU caches of all CPUs all the same,
    /// while no page is cut off.
    pub(crate) fn time_without_pages(&mut self, node: u32) -> Duration {
        let mut said = [PageStatus::UNKNOWN];
        let began = Instant::now();
        // Nobody has a page at address zero, which is the answer.
        let _ = numa::move_pages(self.process, &[0], &[node], &mut said, self.shared);
        began.elapsed()
    }

    /// The longest call since this was asked last.
    pub(crate) fn take_longest(&mut self) -> Duration {
        std::mem::take(&mut self.longest)
    }
}

impl Mover for Kernel {
    fn move_pages(
        &mut self,
        pages: &[usize],
        node: u32,
        said: &mut [PageStatus],
    ) -> Result<(), Errno> {
        self.calls += 1;
        self.nodes.clear();
        self.nodes.resize(pages.len(), node);
        let began = Instant::now();
        let moved = numa::move_pages(self.process, pages, &self.nodes, said, self.shared);
        self.longest = self.longest.max(began.elapsed());
        // Its counts are of pages of which it has said nothing, and these are looked at one by one.
        moved.map(|_| ()).map_err(|error| error.errno)
    }

    fn query_pages(&mut self, pages: &[usize], now: &mut [PageStatus]) -> Result<(), Errno> {
        numa::query_pages(self.process, pages, now).map_err(|error| error.errno)
    }
}

/// Which of the kernel's answers are checked by asking where the page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Check {
    /// All.
    All,
    /// Those that leave it open: none at all, and `EBUSY`.
    Doubtful,
}

/// What became of pages that were to go to a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Brought {
    /// Of each page whether it is there, or why it stayed.
    pub answers: Vec<Result<(), Failure>>,
    /// How many went with another page of theirs: they are of folios larger than a page, and it would
    /// have been enough to name one page of each.
    pub with_others: usize,
}

/// Asks the kernel to bring pages to a node, and says of each whether it is there, or why it stayed.
///
/// One that stayed was tried as often as the kernel does, once; it may be worth another try later
/// ([`Why::is_transient`]).
pub fn bring(mover: &mut impl Mover, pages: &[usize], node: u32, check: Check) -> Brought {
    let mut brought = Brought {
        answers: Vec::with_capacity(pages.len()),
        with_others: 0,
    };
    let mut rest = pages;
    // Each call says something of its first page at least, or all that it is asked has been tried.
    while !rest.is_empty() {
        let said = ask(mover, rest, node, check, &mut brought);
        rest = &rest[said..];
    }
    brought
}

/// One call for some pages; answers for the first of them, and says for how many.
fn ask(
    mover: &mut impl Mover,
    pages: &[usize],
    node: u32,
    check: Check,
    brought: &mut Brought,
) -> usize {
    let answers = &mut brought.answers;
    let mut said = vec![PageStatus::UNKNOWN; pages.len()];
    let refused = mover.move_pages(pages, node, &mut said).err();
    let there = PageStatus::on_node(node);
    if check == Check::Doubtful && said.iter().all(|&said| said == there) {
        answers.extend(std::iter::repeat_n(Ok(()), said.len()));
        return said.len();
    }
    let tried = match refused {
        None => tried(&said),
        // What it did is seen from where the pages are; what it did not do, it will not do now.
        Some(_) => said.len(),
    };
    let doubtful = |said: &PageStatus| match check {
        Check::All => true,
        Check::Doubtful => said.is_unknown() || said.errno().is_some_and(is_busy),
    };
    let asked = (0..tried).filter(|&at| doubtful(&said[at]));
    let asked = asked.collect::<Vec<_>>();
    let list = asked.iter().map(|&at| pages[at]).collect::<Vec<_>>();
    let mut now = vec![PageStatus::UNKNOWN; list.len()];
    let known = mover.query_pages(&list, &mut now).is_ok();
    if !known {
        // What the call said is all there is.
        now.fill(PageStatus::UNKNOWN);
    }
    let mut found = said.clone();
    for (&at, now) in asked.iter().zip(now) {
        if !now.is_unknown() {
            found[at] = now;
        }
        let busy = said[at].errno().is_some_and(is_busy);
        brought.with_others += usize::from(busy && now == there);
    }
    answers.extend((0..tried).map(|at| {
        if found[at] == there {
            return Ok(());
        }
        let gone = found[at].errno().filter(|&errno| is_absent(errno));
        let of_page = gone.or(said[at].errno()).map(of_page);
        let of_call = refused.map(of_call);
        let otherwise = if known {
            // Nothing said, or said to have gone and elsewhere since.
            failed(Step::Remap, Why::Pinned, Errno::BUSY)
        } else {
            failed(Step::Remap, Why::Again, Errno::AGAIN)
        };
        Err(of_page.or(of_call).unwrap_or(otherwise))
    }));
    tried
}

/// How many of the first pages the kernel tried, by what it said of them. At least one.
fn tried(said: &[PageStatus]) -> usize {
    let last = said.iter().rposition(|said| !said.is_unknown());
    let silent = said.iter().position(|said| said.is_unknown());
    match (silent, last) {
        (Some(silent), Some(last)) if silent < last => last + 1,
        _ => said.len(),
    }
}

fn is_busy(errno: Errno) -> bool {
    matches!(errno, Errno::BUSY | Errno::AGAIN)
}

fn is_absent(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::FAULT)
}

/// What the kernel means by the status of a page that it has not moved.
fn of_page(errno: Errno) -> Failure {
    let why = match errno {
        Errno::BUSY | Errno::AGAIN => Why::Pinned,
        Errno::ACCESS => Why::Shared,
        Errno::NOENT | Errno::FAULT => Why::Absent,
        other => why(other),
    };
    failed(Step::Remap, why, errno)
}

/// What it means by refusing the call. `EACCES` is not about a page then: the cpuset of the process
/// has not got the node. `EINVAL` and `ESRCH` are said of a process that ends, as it has no memory any
/// more.
fn of_call(errno: Errno) -> Failure {
    let why = match errno {
        Errno::NODEV => Why::NotPermitted,
        Errno::SRCH | Errno::INVAL => Why::Absent,
        other => why(other),
    };
    failed(Step::Remap, why, errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: u32 = 1;

    /// What the kernel of a test does with a page.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Page {
        Goes,
        /// In use: it stays, and the call gives up.
        Stays,
        /// It stays, and this is said of it.
        Says(Errno),
        /// It goes, and is said to be in use.
        GoesUnseen,
        /// It is said to have gone, and is elsewhere.
        Bounces,
    }

    /// A page's address is its number.
    struct Fake {
        pages: Vec<Page>,
        there: Vec<bool>,
        /// The call fails after this many pages.
        refused: Option<(usize, Errno)>,
        can_be_asked: bool,
        check: Check,
        calls: usize,
    }

    impl Fake {
        fn new(pages: Vec<Page>) -> Self {
            Self {
                there: vec![false; pages.len()],
                pages,
                refused: None,
                can_be_asked: true,
                check: Check::All,
                calls: 0,
            }
        }

        fn bring(&mut self) -> Vec<Result<(), (Why, i32)>> {
            let pages = (0..self.pages.len()).collect::<Vec<_>>();
            let answers = bring(self, &pages, FAR, self.check).answers.into_iter();
            let in_short = answers.map(|answer| {
                answer.map_err(|failure| {
                    assert_eq!(failure.step, Step::Remap);
                    (failure.why, failure.errno.map_or(0, |errno| errno.get()))
                })
            });
            in_short.collect()
        }
    }

    /// As the kernel does it: pages go list by list, and a page of which something is said ends a
    /// list, before which that is written.
    impl Mover for Fake {
        fn move_pages(
            &mut self,
            pages: &[usize],
            node: u32,
            said: &mut [PageStatus],
        ) -> Result<(), Errno> {
            assert_eq!(node, FAR);
            self.calls += 1;
            let mut list = 0;
            for at in 0..=pages.len() {
                if let Some((after, errno)) = self.refused
                    && at >= after
                {
                    return Err(errno);
                }
                let page = pages.get(at).map(|&page| self.pages[page]);
                let status = match page {
                    Some(Page::Says(errno)) => Some(errno.into()),
                    Some(Page::GoesUnseen) => Some(Errno::BUSY.into()),
                    Some(_) => None,
                    None => Some(PageStatus::UNKNOWN),
                };
                if let Some(&page) = pages.get(at) {
                    let goes = matches!(self.pages[page], Page::Goes | Page::GoesUnseen);
                    self.there[page] |= goes;
                }
                let Some(status) = status else { continue };
                if let Some(said) = said.get_mut(at) {
                    *said = status;
                }
                let stays = |&page: &usize| self.pages[page] == Page::Stays;
                if pages[list..at].iter().any(stays) {
                    return Ok(());
                }
                said[list..at].fill(PageStatus::on_node(FAR));
                list = at + 1;
            }
            Ok(())
        }

        fn query_pages(&mut self, pages: &[usize], now: &mut [PageStatus]) -> Result<(), Errno> {
            if !self.can_be_asked {
                return Err(Errno::NOMEM);
            }
            for (&page, now) in pages.iter().zip(now) {
                *now = PageStatus::on_node(u32::from(self.there[page]));
            }
            Ok(())
        }
    }

    const IN_USE: Result<(), (Why, i32)> = Err((Why::Pinned, Errno::BUSY.raw_os_error()));

    #[test]
    fn what_goes_takes_one_call() {
        let mut kernel = Fake::new(vec![Page::Goes; 512]);
        assert_eq!(kernel.bring(), [Ok(()); 512]);
        assert_eq!(kernel.calls, 1);
        assert_eq!(bring(&mut kernel, &[], FAR, Check::All), Brought::default());
    }

    #[test]
    fn what_is_in_use_holds_nothing_else_up() {
        let mut pages = vec![Page::Goes; 512];
        pages[0] = Page::Stays;
        pages[300] = Page::Stays;
        pages[301] = Page::Says(Errno::NOENT);
        let mut kernel = Fake::new(pages);
        let answers = kernel.bring();
        assert_eq!([answers[0], answers[300]], [IN_USE; 2]);
        assert_eq!(
            answers[301],
            Err((Why::Absent, Errno::NOENT.raw_os_error()))
        );
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 509);
        assert!(kernel.calls <= 8, "{} calls", kernel.calls);
    }

    #[test]
    fn what_is_all_in_use_is_tried_once() {
        let mut kernel = Fake::new(vec![Page::Stays; 5]);
        assert_eq!(kernel.bring(), [IN_USE; 5]);
        assert_eq!(kernel.calls, 1);
    }

    #[test]
    fn doubtful_answers_are_checked_and_no_others() {
        let pages = vec![Page::Goes, Page::GoesUnseen, Page::Bounces, Page::Stays];
        let mut kernel = Fake::new(pages);
        kernel.check = Check::Doubtful;
        // What has gone is believed where it comes with something that has not.
        assert_eq!(kernel.bring(), [Ok(()), Ok(()), IN_USE, IN_USE]);
        let mut kernel = Fake::new(vec![Page::Goes, Page::GoesUnseen, Page::GoesUnseen]);
        let brought = bring(&mut kernel, &[0, 1, 2], FAR, Check::Doubtful);
        assert_eq!((brought.answers, brought.with_others), (vec![Ok(()); 3], 2));
        let mut kernel = Fake::new(vec![Page::Bounces; 3]);
        kernel.check = Check::Doubtful;
        kernel.can_be_asked = false;
        assert_eq!(kernel.bring(), [Ok(()); 3]);
    }

    /// What the kernel says, and how many pages it has tried by that.
    #[test]
    fn what_was_tried_is_known_by_what_was_said() {
        let (far, busy, nothing) = (
            PageStatus::on_node(FAR),
            PageStatus::from(Errno::BUSY),
            PageStatus::UNKNOWN,
        );
        for (said, expected) in [
            (vec![far, far, far], 3),
            (vec![nothing, nothing, nothing], 3),
            (vec![far, busy, nothing, nothing], 4),
            (vec![nothing, busy, nothing, nothing], 2),
            (vec![far, busy, nothing, far, nothing], 4),
            (vec![busy, busy, busy], 3),
        ] {
            assert_eq!(tried(&said), expected, "{said:?}");
        }
    }

    #[test]
    fn what_is_said_of_a_page_has_a_meaning() {
        for (errno, why) in [
            (Errno::BUSY, Why::Pinned),
            (Errno::ACCESS, Why::Shared),
            (Errno::NOENT, Why::Absent),
            (Errno::FAULT, Why::Absent),
            (Errno::NOMEM, Why::NoMemory),
            (Errno::PERM, Why::NotPermitted),
        ] {
            let mut kernel = Fake::new(vec![Page::Goes, Page::Says(errno), Page::Goes]);
            let stays = Err((why, errno.raw_os_error()));
            assert_eq!(kernel.bring(), [Ok(()), stays, Ok(())], "{errno:?}");
        }
    }

    #[test]
    fn a_refused_call_is_not_about_its_pages() {
        for (errno, why) in [
            (Errno::ACCESS, Why::NotPermitted),
            (Errno::NODEV, Why::NotPermitted),
            (Errno::PERM, Why::NotPermitted),
            (Errno::NOMEM, Why::NoMemory),
            (Errno::AGAIN, Why::Again),
        ] {
            let mut kernel = Fake::new(vec![Page::Goes; 4]);
            kernel.refused = Some((2, errno));
            let stays = Err((why, errno.raw_os_error()));
            // What had gone by then has gone.
            assert_eq!(kernel.bring(), [Ok(()), Ok(()), stays, stays], "{errno:?}");
            assert_eq!(kernel.calls, 1);
        }
    }

    #[test]
    fn the_page_itself_is_believed_before_what_was_said_of_it() {
        let mut kernel = Fake::new(vec![Page::GoesUnseen, Page::Bounces, Page::Goes]);
        assert_eq!(kernel.bring(), [Ok(()), IN_USE, Ok(())]);
    }

    #[test]
    fn where_nobody_can_be_asked_what_was_said_counts() {
        let pages = vec![
            Page::Goes,
            Page::Says(Errno::ACCESS),
            Page::Stays,
            Page::Goes,
        ];
        let mut kernel = Fake::new(pages);
        kernel.can_be_asked = false;
        let shared = Err((Why::Shared, Errno::ACCESS.raw_os_error()));
        let open = Err((Why::Again, Errno::AGAIN.raw_os_error()));
        assert_eq!(kernel.bring(), [Ok(()), shared, open, open]);
    }
}
