//! Asking the kernel to bring pages to a node until it is known of each what became of it.

use transhume_engine::{Failure, Step, Why};
use transhume_sys::Errno;
use transhume_sys::numa::{self, PageStatus, Shared};

use crate::failure::{failed, why};

/// Who moves pages: the kernel, or a test that stands in for it.
pub(super) trait Mover {
    /// Moves pages to a node and writes what it says of them; leaves unwritten what it says nothing
    /// of.
    fn move_pages(
        &mut self,
        pages: &[usize],
        node: u32,
        said: &mut [PageStatus],
    ) -> Result<(), Errno>;

    /// Writes where pages are.
    fn query_pages(&mut self, pages: &[usize], now: &mut [PageStatus]) -> Result<(), Errno>;
}

/// The kernel, for the pages of this process.
pub(super) struct Kernel;

impl Mover for Kernel {
    fn move_pages(
        &mut self,
        pages: &[usize],
        node: u32,
        said: &mut [PageStatus],
    ) -> Result<(), Errno> {
        let nodes = vec![node; pages.len()];
        let moved = numa::move_pages(None, pages, &nodes, said, Shared::Leave);
        // Its counts are of pages of which it has said nothing, and these are looked at one by one.
        moved.map(|_| ()).map_err(|error| error.errno)
    }

    fn query_pages(&mut self, pages: &[usize], now: &mut [PageStatus]) -> Result<(), Errno> {
        numa::query_pages(None, pages, now).map_err(|error| error.errno)
    }
}

/// Asks the kernel to bring pages to a node, and says of each whether it is there, or why it stayed.
///
/// The kernel gives up a call at the first pages that it cannot move and says nothing of them and
/// of all after them. So what is left is asked for again, in the end one by one.
pub(super) fn bring(
    mover: &mut impl Mover,
    pages: &[usize],
    node: u32,
) -> Vec<Result<(), Failure>> {
    let mut answers = ask(mover, pages, node);
    loop {
        let open = (0..pages.len()).filter(|&at| answers[at].is_none());
        let open = open.collect::<Vec<_>>();
        let rest = open.iter().map(|&at| pages[at]).collect::<Vec<_>>();
        let mut again = match rest.len() {
            0 => return answers.into_iter().flatten().collect(),
            1 => vec![None],
            _ => ask(mover, &rest, node),
        };
        if again.iter().all(Option::is_none) {
            for (answer, &page) in again.iter_mut().zip(&rest) {
                // It was tried, by itself, as often as the kernel does: it is in use.
                let in_use = Err(failed(Step::Remap, Why::Pinned, Errno::BUSY));
                *answer = ask(mover, &[page], node)[0].or(Some(in_use));
            }
        }
        for (&at, answer) in open.iter().zip(again) {
            answers[at] = answer;
        }
    }
}

/// One call for some pages: whether each is there now, why not if that is said, and else nothing.
fn ask(mover: &mut impl Mover, pages: &[usize], node: u32) -> Vec<Option<Result<(), Failure>>> {
    let mut said = vec![PageStatus::UNKNOWN; pages.len()];
    let call = mover.move_pages(pages, node, &mut said);
    let mut now = vec![PageStatus::UNKNOWN; pages.len()];
    if mover.query_pages(pages, &mut now).is_err() {
        // What the call said is all there is.
        now.clone_from(&said);
    }
    let answers = said.into_iter().zip(now).map(|(said, now)| {
        if now.node() == Some(node) {
            return Some(Ok(()));
        }
        // Else it is unsaid, or the page has been put elsewhere since.
        let of_page = said.errno().map(of_page);
        let of_call = call.err().map(of_call);
        of_page.or(of_call).map(Err)
    });
    answers.collect()
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

/// What it means by refusing the call. `EACCES` is not about a page then: the cpuset of this process
/// has not got the node.
fn of_call(errno: Errno) -> Failure {
    let why = match errno {
        Errno::NODEV => Why::NotPermitted,
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
        calls: usize,
    }

    impl Fake {
        fn new(pages: Vec<Page>) -> Self {
            Self {
                there: vec![false; pages.len()],
                pages,
                refused: None,
                can_be_asked: true,
                calls: 0,
            }
        }

        fn bring(&mut self) -> Vec<Result<(), (Why, i32)>> {
            let pages = (0..self.pages.len()).collect::<Vec<_>>();
            let answers = bring(self, &pages, FAR).into_iter();
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

    const IN_USE: Result<(), (Why, i32)> = Err((Why::Pinned, libc::EBUSY));

    #[test]
    fn what_goes_takes_one_call() {
        let mut kernel = Fake::new(vec![Page::Goes; 512]);
        assert_eq!(kernel.bring(), [Ok(()); 512]);
        assert_eq!(kernel.calls, 1);
        assert!(bring(&mut kernel, &[], FAR).is_empty());
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
        assert_eq!(answers[301], Err((Why::Absent, libc::ENOENT)));
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 509);
        assert!(kernel.calls <= 8, "{} calls", kernel.calls);
    }

    #[test]
    fn all_in_use_are_tried_one_by_one() {
        let mut kernel = Fake::new(vec![Page::Stays; 5]);
        assert_eq!(kernel.bring(), [IN_USE; 5]);
        assert_eq!(kernel.calls, 2 + 5);
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
        let shared = Err((Why::Shared, libc::EACCES));
        assert_eq!(kernel.bring(), [Ok(()), shared, IN_USE, Ok(())]);
    }
}
