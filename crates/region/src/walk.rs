//! Walking over a run of folios by calls that can stop half-way.

use std::ops::Range;

use transhume_sys::{Errno, Progress};

/// How often a call is repeated at once when the kernel says "again" without having done anything.
const AGAIN: u32 = 64;

/// How far a run of folios has come.
#[derive(Debug)]
pub(crate) struct Walk {
    page: usize,
    end: usize,
    at: usize,
    again: u32,
    /// The next call takes one folio only.
    alone: bool,
}

/// A folio that could not be done, and how much of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stopped {
    /// Its position in the run.
    pub(crate) folio: usize,
    /// How many of its first bytes were done.
    pub(crate) torn: usize,
    pub(crate) errno: Errno,
}

impl Walk {
    /// A run of `folios` folios of `page` bytes each.
    pub(crate) fn over(folios: usize, page: usize) -> Self {
        Self {
            page,
            end: folios * page,
            at: 0,
            again: 0,
            alone: false,
        }
    }

    /// The bytes to do next, counted from the start of the run; `None` at its end.
    pub(crate) fn rest(&self) -> Option<Range<usize>> {
        let next = (self.at / self.page + 1) * self.page;
        let end = if self.alone { next } else { self.end };
        (self.at < self.end).then_some(self.at..end)
    }

    /// Records how far a call over [`rest`](Self::rest) came: the folios that are now done, and the
    /// one that cannot be, after which the walk goes on.
    pub(crate) fn record(&mut self, progress: Progress) -> (Range<usize>, Option<Stopped>) {
        let first = self.at / self.page;
        self.at = (self.at + progress.done).min(self.end);
        let done = first..self.at / self.page;
        let Some(errno) = progress.stopped else {
            // What follows may go together again.
            self.alone = false;
            return (done, None);
        };
        if progress.done > 0 {
            self.again = 0;
        }
        // Where a run reaches over two mappings the kernel refuses it whole: one by one they go.
        if errno == Errno::INVAL && !self.alone && self.end - self.at > self.page {
            self.alone = true;
            return (done, None);
        }
        if self.at == self.end {
            return (done, None);
        }
        if errno == Errno::AGAIN && self.again < AGAIN {
            self.again += 1;
            return (done, None);
        }
        self.again = 0;
        let stopped = Stopped {
            folio: done.end,
            torn: self.at % self.page,
            errno,
        };
        self.at = (done.end + 1) * self.page;
        (done, Some(stopped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_run_in_one_call() {
        let mut walk = Walk::over(3, 10);
        assert_eq!(walk.rest(), Some(0..30));
        assert_eq!(walk.record(Progress::complete(30)), (0..3, None));
        assert_eq!(walk.rest(), None);
    }

    #[test]
    fn a_stop_skips_one_folio_and_says_what_was_torn() {
        let mut walk = Walk::over(4, 10);
        let (done, stopped) = walk.record(Progress::partial(15, Errno::BUSY));
        assert_eq!(done, 0..1);
        assert_eq!(
            stopped,
            Some(Stopped {
                folio: 1,
                torn: 5,
                errno: Errno::BUSY
            })
        );
        assert_eq!(walk.rest(), Some(20..40));
        let (done, stopped) = walk.record(Progress::partial(0, Errno::NOENT));
        assert_eq!(done, 2..2);
        assert_eq!(
            stopped,
            Some(Stopped {
                folio: 2,
                torn: 0,
                errno: Errno::NOENT
            })
        );
        assert_eq!(walk.record(Progress::complete(10)), (3..4, None));
        assert_eq!(walk.rest(), None);
    }

    #[test]
    fn again_goes_on_where_it_stopped() {
        let mut walk = Walk::over(2, 10);
        assert_eq!(
            walk.record(Progress::partial(13, Errno::AGAIN)),
            (0..1, None)
        );
        assert_eq!(walk.rest(), Some(13..20));
        assert_eq!(walk.record(Progress::complete(7)), (1..2, None));
    }

    #[test]
    fn a_run_that_is_refused_whole_goes_one_by_one() {
        let mut walk = Walk::over(3, 10);
        assert_eq!(
            walk.record(Progress::partial(0, Errno::INVAL)),
            (0..0, None)
        );
        assert_eq!(walk.rest(), Some(0..10));
        assert_eq!(walk.record(Progress::complete(10)), (0..1, None));
        assert_eq!(walk.rest(), Some(10..30));
        assert_eq!(
            walk.record(Progress::partial(0, Errno::INVAL)),
            (1..1, None)
        );
        let (done, stopped) = walk.record(Progress::partial(0, Errno::INVAL));
        assert_eq!(
            (done, stopped.map(|stopped| stopped.folio)),
            (1..1, Some(1))
        );
        assert_eq!(walk.rest(), Some(20..30));
        assert_eq!(walk.record(Progress::complete(10)), (2..3, None));
        assert_eq!(walk.rest(), None);
    }

    #[test]
    fn again_without_end_is_a_stop() {
        let mut walk = Walk::over(1, 10);
        let stopped = (0..1000).find_map(|_| walk.record(Progress::partial(0, Errno::AGAIN)).1);
        assert_eq!(
            stopped,
            Some(Stopped {
                folio: 0,
                torn: 0,
                errno: Errno::AGAIN
            })
        );
        assert_eq!(walk.rest(), None);
    }
}
