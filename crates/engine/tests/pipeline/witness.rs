//! An owner that can refuse and panic, and that checks what the engine owes to owners.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::sync::{Mutex, MutexGuard, PoisonError};

use transhume_engine::{Alone, Folio, FolioOwner, Place, Refused};

use crate::machine::{Call, PLANNED, Trouble, Troubles, What};

/// The owner of a machine's folios. The machine tells it what it does to them.
#[derive(Debug, Default)]
pub(crate) struct Witness(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    troubles: Troubles,
    locked: BTreeSet<u64>,
    may_wait: bool,
    cut_off: BTreeSet<u64>,
    detached: BTreeSet<u64>,
    /// Where folios were when they were attached, until they are unlocked.
    attached: BTreeMap<u64, Place>,
    refused: Vec<Folio>,
    asked: BTreeMap<u64, Asked>,
}

/// How often a folio was asked for, and how often given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) tried: u32,
    pub(crate) waited: u32,
    pub(crate) attached: u32,
}

impl Witness {
    /// A panic that was planned may have passed through.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_troubles(&self, troubles: &[Trouble]) {
        self.seen().troubles = Troubles::new(troubles);
    }

    pub(crate) fn locked(&self, page: u64, may_wait: bool) {
        let mut seen = self.seen();
        seen.locked.insert(page);
        seen.may_wait = may_wait;
    }

    pub(crate) fn cut_off(&self, page: u64) {
        self.seen().cut_off.insert(page);
    }

    pub(crate) fn reachable(&self, page: u64) {
        self.seen().cut_off.remove(&page);
    }

    pub(crate) fn unlocked(&self, page: u64, at: Place) {
        let mut seen = self.seen();
        seen.locked.remove(&page);
        assert!(
            !seen.detached.contains(&page),
            "page {page} is unlocked and its owner not told"
        );
        let attached = seen.attached.remove(&page);
        assert!(
            attached.is_none_or(|place| place == at),
            "page {page} is told to be elsewhere"
        );
    }

    pub(crate) fn has_detached(&self, page: u64) -> bool {
        self.seen().detached.contains(&page)
    }

    /// Those that were refused since the last call.
    pub(crate) fn take_refused(&self) -> Vec<Folio> {
        std::mem::take(&mut self.seen().refused)
    }

    pub(crate) fn asked(&self, folio: Folio) -> Asked {
        let asked = &self.seen().asked;
        asked.get(&folio.page()).copied().unwrap_or_default()
    }

    /// What must hold whenever no batch is open.
    pub(crate) fn check(&self) {
        let seen = self.seen();
        assert!(seen.detached.is_empty(), "left: {:?}", seen.detached);
        assert!(seen.refused.is_empty(), "not put back: {:?}", seen.refused);
    }

    fn ask(&self, folio: Folio, waits: bool) -> Result<(), Refused> {
        let mut seen = self.seen();
        let page = folio.page();
        assert!(seen.locked.contains(&page), "{folio:?} is not locked");
        assert!(
            seen.cut_off.is_empty(),
            "accesses wait while owners are asked"
        );
        assert!(!seen.detached.contains(&page), "{folio:?} is asked twice");
        assert_eq!(waits, seen.may_wait, "{folio:?}");
        let asked = seen.asked.entry(page).or_default();
        if waits {
            asked.waited += 1;
        } else {
            asked.tried += 1;
        }
        match seen.trouble(Call::Detach, folio) {
            None => {
                seen.detached.insert(page);
                Ok(())
            }
            Some(What::Fail(_)) => {
                seen.refused.push(folio);
                Err(Refused)
            }
            Some(What::Panic) => resume_unwind(Box::new(PLANNED)),
        }
    }
}

impl Seen {
    fn trouble(&mut self, call: Call, folio: Folio) -> Option<What> {
        self.troubles.take(call, folio, self.may_wait)
    }
}

impl FolioOwner for Witness {
    fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
        self.ask(folio, false)
    }

    fn detach(&self, folio: Folio, _alone: &Alone) -> Result<(), Refused> {
        let held = self.seen().locked.len();
        assert_eq!(held, 1, "waits while others are locked");
        self.ask(folio, true)
    }

    fn attach(&self, folio: Folio, at: Place) {
        let mut seen = self.seen();
        let page = folio.page();
        assert!(seen.detached.remove(&page), "{folio:?} was not detached");
        assert!(seen.locked.contains(&page), "{folio:?} is not locked");
        assert!(!seen.cut_off.contains(&page), "{folio:?} is cut off");
        assert!(seen.attached.insert(page, at).is_none());
        seen.asked.entry(page).or_default().attached += 1;
        if seen.trouble(Call::Attach, folio).is_some() {
            resume_unwind(Box::new(PLANNED));
        }
    }
}
