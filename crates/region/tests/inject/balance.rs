//! An owner that lets go of every page and sees to it that each comes back once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use transhume_region::Folio;
use transhume_region::owner::{FolioOwner, Place, Refused};

/// More base pages than any region here has.
const PAGES: usize = 2048;

/// Which pages are detached now, by the first base page.
#[derive(Debug)]
pub(crate) struct Balance {
    detached: Vec<AtomicBool>,
    times: AtomicU64,
}

impl Balance {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            detached: (0..PAGES).map(|_| AtomicBool::new(false)).collect(),
            times: AtomicU64::new(0),
        })
    }

    /// How often pages were detached so far; none is now.
    pub(crate) fn times(&self) -> u64 {
        let is_detached = |page: &AtomicBool| page.load(Ordering::Relaxed);
        assert_eq!(self.detached.iter().position(is_detached), None);
        self.times.load(Ordering::Relaxed)
    }

    fn change(&self, folio: Folio, to_detached: bool) {
        let page = &self.detached[folio.page() as usize];
        let was_detached = page.swap(to_detached, Ordering::Relaxed);
        assert_ne!(was_detached, to_detached, "{folio:?}");
    }
}

impl FolioOwner for Balance {
    fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
        self.change(folio, true);
        self.times.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn attach(&self, folio: Folio, _at: Place) {
        self.change(folio, false);
    }
}
