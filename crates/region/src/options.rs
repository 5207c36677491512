//! How a migration is to go, and what the application promises.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::time::Duration;

use transhume_copy::CopyJob;
use transhume_copy::swap::SwapJob;
use transhume_engine::{Copier, Mode, Reason, Swapper};

use crate::error::RegionError;
use crate::runs::RunSet;

/// A copier that a region can use.
pub type AnyCopier = Arc<dyn Copier<CopyJob> + Send + Sync>;

/// A swapper that an exchange can use.
pub type AnySwapper = Arc<dyn Swapper<SwapJob> + Send + Sync>;

/// What the application says about references that the kernel may hold to the frames of its pages:
/// direct I/O in flight, registered io_uring buffers, `vmsplice`, zero-copy sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pins {
    /// Nothing is known. A page that the kernel has pinned is found out and stays; a source frame is
    /// given back to the kernel and never used again, since a pipe may still hold it. Mapped
    /// backing, where a pin cannot be seen, is refused.
    #[default]
    Undeclared,
    /// Every such reference is taken only while the pages are held by
    /// [`Region::pin`](crate::Region::pin). Then frames are used again, and mapped backing works.
    Declared,
}

/// Whether the kernel itself may touch the region's memory: system calls with a pointer into it,
/// io_uring, futex, ptrace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KernelAccess {
    /// It may. This needs a userfaultfd that handles the kernel's faults too.
    #[default]
    Expected,
    /// The application promises never to hand the region's memory to a system call. Then an
    /// unprivileged userfaultfd, which handles the faults of user mode only, is enough.
    Never,
}

/// The pages of a request, by their number in the region, counted in the region's page size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages(pub(crate) Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Range(Bound<usize>, Bound<usize>),
    List(Vec<usize>),
}

impl Pages {
    /// The pages of a range, such as `0..512` or `..`.
    pub fn range(range: impl RangeBounds<usize>) -> Self {
        Self(Kind::Range(
            range.start_bound().cloned(),
            range.end_bound().cloned(),
        ))
    }
}

impl Pages {
    /// The pages as a set, for a region of `pages` pages.
    pub(crate) fn resolve(self, pages: usize) -> Result<RunSet, RegionError> {
        let last = pages - 1;
        let mut set = RunSet::default();
        match self.0 {
            Kind::Range(start, end) => {
                let start = match start {
                    Bound::Included(page) => page,
                    Bound::Excluded(page) => page.saturating_add(1),
                    Bound::Unbounded => 0,
                };
                let end = match end {
                    Bound::Included(page) => page.saturating_add(1),
                    Bound::Excluded(page) => page,
                    Bound::Unbounded => pages,
                };
                if start < end && end > pages {
                    return Err(RegionError::OutsideRegion {
                        page: end - 1,
                        last,
                    });
                }
                set.insert(start..end.max(start));
            }
            Kind::List(list) => {
                for page in list {
                    if page > last {
                        return Err(RegionError::OutsideRegion { page, last });
                    }
                    set.insert(page..page + 1);
                }
            }
        }
        if set.len() == 0 {
            Err(RegionError::NoPages)
        } else {
            Ok(set)
        }
    }
}

impl Pages {
    /// The pages in the order in which they were given, each as often as it was.
    pub(crate) fn in_order(self, pages: usize) -> Result<Vec<usize>, RegionError> {
        if let Kind::List(list) = &self.0
            && !list.is_empty()
        {
            let last = pages - 1;
            let outside = list.iter().copied().find(|&page| page > last);
            return match outside {
                Some(page) => Err(RegionError::OutsideRegion { page, last }),
                None => Ok(list.clone()),
            };
        }
        Ok(self.resolve(pages)?.iter().flatten().collect())
    }
}

macro_rules! from_range {
    ($($range:ty),*) => {$(
        impl From<$range> for Pages {
            fn from(range: $range) -> Self {
                Self::range(range)
            }
        }
    )*};
}
from_range!(
    std::ops::Range<usize>,
    std::ops::RangeInclusive<usize>,
    std::ops::RangeFrom<usize>,
    std::ops::RangeTo<usize>,
    std::ops::RangeFull
);

impl From<usize> for Pages {
    fn from(page: usize) -> Self {
        Self::range(page..=page)
    }
}

impl From<Vec<usize>> for Pages {
    fn from(pages: Vec<usize>) -> Self {
        Self(Kind::List(pages))
    }
}

impl From<&[usize]> for Pages {
    fn from(pages: &[usize]) -> Self {
        Self(Kind::List(pages.to_vec()))
    }
}

/// What becomes of pages that lie between those of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Neighbours {
    /// Where it is faster they are cut off together with the others, and come back as they were:
    /// scattered pages of anonymous memory then take few shootdowns. They count against the limit.
    /// An [`owner`](crate::owner) is asked for them too.
    #[default]
    Taken,
    /// They are left alone.
    Left,
}

/// How a migration is to go. The default never blocks, cuts off 512 base pages at a time
/// (\[batch-flush\]) and uses the region's copier.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// Whether it may wait for busy folios.
    pub mode: Mode,
    /// The most bytes that are cut off at a time; a page larger than that goes alone. `None` is
    /// 512 base pages.
    pub limit_bytes: Option<NonZeroUsize>,
    /// The longest that a thread should wait for a page; the batches adapt to it.
    pub max_stall: Option<Duration>,
    /// Why.
    pub reason: Reason,
    /// Another copier than the region's, for this request, whatever its reason.
    pub copier: Option<AnyCopier>,
    /// What becomes of pages that lie between those of the request.
    pub neighbours: Neighbours,
    /// What swaps the contents of an [exchange](crate::Region::exchange). `None` is the widest
    /// registers of this machine.
    pub swapper: Option<AnySwapper>,
    /// Whether the switch to the destination may wait (\[deferred-flush\]).
    pub deferred: bool,
    /// Whether base pages become huge pages on the way, where they can.
    pub collapse: bool,
    /// Whether a page of 2 MiB stays for which there is no huge page at the destination.
    pub whole: bool,
}

impl Options {
    /// The default.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether it may wait.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the most bytes cut off at a time. Less than one page means one page.
    #[must_use]
    pub fn limit_bytes(mut self, bytes: NonZeroUsize) -> Self {
        self.limit_bytes = Some(bytes);
        self
    }

    /// Sets the target for the worst stall.
    #[must_use]
    pub fn max_stall(mut self, stall: Duration) -> Self {
        self.max_stall = Some(stall);
        self
    }

    /// Sets the reason.
    #[must_use]
    pub fn reason(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }

    /// Sets what becomes of pages that lie between those of the request.
    #[must_use]
    pub fn neighbours(mut self, neighbours: Neighbours) -> Self {
        self.neighbours = neighbours;
        self
    }

    /// Sets the swapper.
    #[must_use]
    pub fn swapper(mut self, swapper: AnySwapper) -> Self {
        self.swapper = Some(swapper);
        self
    }

    /// Lets the switch wait: pages are copied while threads go on reading them at the source, and many
    /// are switched by one shootdown later. A store to one of them waits for that. The region needs a
    /// [`Builder::deferral`](crate::Builder::deferral). It never waits for busy pages, whatever the mode,
    /// and leaves [`Neighbours`] alone.
    /// [`max_stall`](Self::max_stall) has no part in the switch:
    /// [`Deferral::at_once_bytes`](crate::Deferral::at_once_bytes) bounds it.
    #[must_use]
    pub fn deferred(mut self) -> Self {
        self.deferred = true;
        self
    }

    /// Makes huge pages of base pages on the way: wherever all 512 base pages of an aligned 2 MiB of
    /// addresses are in the request, move, and can be cut off together, they arrive as one huge page of
    /// the destination. The others arrive as base pages, as do all where no huge page is to be had.
    /// [`Report::reshaped`](crate::Report::reshaped) says how many huge pages were made, by the page map.
    ///
    /// A limit under 2 MiB, or a [`max_stall`](Self::max_stall) in which 2 MiB cannot be moved, rules it
    /// out. A range with memory that is locked (`mlock`), or of which pages are at the destination
    /// already or of several nodes, is left as it is. A later migration of fewer of its pages splits
    /// the huge page.
    ///
    /// A program that forks afterwards may find pages of it that the kernel no longer moves: they stay,
    /// as [`Why::Pinned`](crate::Why::Pinned), where the first base page was stored to while a child
    /// shared it.
    ///
    /// In a region of [`PageSize::Huge`](crate::PageSize::Huge) it makes pages whole again that the
    /// kernel has split.
    /// A [deferred](Self::deferred) request makes none.
    #[must_use]
    pub fn collapse(mut self) -> Self {
        self.collapse = true;
        self
    }

    /// Lets pages of 2 MiB arrive as huge pages only, in a region of
    /// [`PageSize::Huge`](crate::PageSize::Huge): one for which the destination has no huge page stays
    /// ([`Why::NoMemory`](crate::Why::NoMemory)), and with it the rest of the request. Otherwise it
    /// moves as 512 base pages then, which [`Report::reshaped`](crate::Report::reshaped) counts as
    /// split. In a region of base pages it changes nothing.
    #[must_use]
    pub fn whole(mut self) -> Self {
        self.whole = true;
        self
    }

    /// Sets the copier.
    #[must_use]
    pub fn copier(mut self, copier: AnyCopier) -> Self {
        self.copier = Some(copier);
        self
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("mode", &self.mode)
            .field("limit_bytes", &self.limit_bytes)
            .field("max_stall", &self.max_stall)
            .field("reason", &self.reason)
            .field("neighbours", &self.neighbours)
            .field("deferred", &self.deferred)
            .field("collapse", &self.collapse)
            .field("whole", &self.whole)
            .field(
                "copier",
                &self.copier.as_ref().map(|copier| copier.name().to_owned()),
            )
            .field(
                "swapper",
                &self
                    .swapper
                    .as_ref()
                    .map(|swapper| swapper.name().to_owned()),
            )
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(pages: impl Into<Pages>) -> Result<Vec<usize>, String> {
        let set = pages
            .into()
            .resolve(10)
            .map_err(|refused| refused.to_string())?;
        Ok(set.iter().flatten().collect())
    }

    #[test]
    fn ranges_and_lists_become_sets() {
        assert_eq!(resolve(8..10).unwrap(), [8, 9]);
        assert_eq!(resolve(8..=9).unwrap(), [8, 9]);
        assert_eq!(resolve(8..).unwrap(), [8, 9]);
        assert_eq!(resolve(..2).unwrap(), [0, 1]);
        assert_eq!(resolve(..).unwrap().len(), 10);
        assert_eq!(resolve(3).unwrap(), [3]);
        assert_eq!(resolve(vec![5, 3, 5]).unwrap(), [3, 5]);
    }

    #[test]
    fn lists_keep_their_order() {
        let in_order = |pages: Pages| pages.in_order(10).map_err(|refused| refused.to_string());
        assert_eq!(in_order(vec![5, 3, 5].into()).unwrap(), [5, 3, 5]);
        assert_eq!(in_order((7..).into()).unwrap(), [7, 8, 9]);
        assert!(
            in_order(vec![5, 10].into())
                .unwrap_err()
                .contains("page 10")
        );
        assert!(
            in_order(Vec::new().into())
                .unwrap_err()
                .contains("names no page")
        );
    }

    #[test]
    fn what_is_not_in_the_region_is_refused() {
        for refused in [
            resolve(9..11),
            resolve(10),
            resolve(vec![1, 10]),
            resolve(3..usize::MAX),
        ] {
            assert!(
                refused
                    .unwrap_err()
                    .contains("outside the region, which has pages 0 to 9")
            );
        }
        for nothing in [resolve(4..4), resolve(Vec::new()), resolve(12..12)] {
            assert!(nothing.unwrap_err().contains("names no page"));
        }
    }
}
