//! An owner that lets go of every page and sees to it that each comes back once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use transhume_region::Folio;
use transhume_region::owner::{FolioOwner, Place, Refused};

/// The pages that are detached now.
#[derive(Debug, Default)]
pub(crate) struct Balance {
    detached: Mutex<Vec<Folio>>,
    times: AtomicU64,
}

impl Balance {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// How often pages were detached so far; none is now.
    pub(crate) fn times(&self) -> u64 {
        assert_eq!(*self.detached.lock().unwrap(), []);
        self.times.load(Ordering::Relaxed)
    }
}

impl FolioOwner for Balance {
    fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
        let mut detached = self.detached.lock().unwrap();
        assert!(!detached.contains(&folio), "{folio:?} is detached twice");
        detached.push(folio);
        self.times.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn attach(&self, folio: Folio, _at: Place) {
        let mut detached = self.detached.lock().unwrap();
        let at = detached.iter().position(|&other| other == folio);
        detached.remove(at.unwrap());
    }
}
