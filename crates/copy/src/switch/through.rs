//! What migrations copy through, and where their threads are meanwhile.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use transhume_engine::{Copier, CopyAnswer, Reason};

use super::Switch;
use super::tally::Account;
use crate::{CopyJob, Memcpy, SharedCopier};

thread_local! {
    static COPYING: Cell<Copying> = const { Cell::new(Copying::No) };
}

/// Where this thread is.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Copying {
    /// In no copier.
    No,
    /// In one that a request named.
    Beside,
    /// In one that a switch has chosen.
    Through,
}

/// Whether this thread is in a copier.
pub(super) fn is_copying() -> bool {
    COPYING.get() != Copying::No
}

/// This thread is in a copier, until it is dropped.
struct Inside {
    before: Copying,
    /// It belongs to the thread.
    _thread: PhantomData<*const ()>,
}

impl Inside {
    fn begin(copying: Copying) -> Self {
        let before = COPYING.get();
        if before < copying {
            COPYING.set(copying);
        }
        Self {
            before,
            _thread: PhantomData,
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        COPYING.set(self.before);
    }
}

/// Copies through a [`Switch`] for one reason; see [`Switch::for_reason`].
#[derive(Clone, Debug)]
pub struct ForReason {
    pub(super) switch: Arc<Switch>,
    pub(super) reason: Reason,
}

impl Copier<CopyJob> for ForReason {
    fn name(&self) -> &'static str {
        "switch"
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        if COPYING.get() == Copying::Through {
            return answers.fill(CopyAnswer::Declined);
        }
        let _inside = Inside::begin(Copying::Through);
        self.switch.chosen.with(|chosen| {
            if chosen.choice.only.contains(self.reason) {
                let copier = &*chosen.choice.copier;
                chosen.account.copy(copier, jobs, answers);
            } else {
                self.switch.plain.copy(&Memcpy, jobs, answers);
            }
        });
    }
}

/// A copier that is used whatever a [`Switch`] has chosen, and counted there; see
/// [`Switch::beside`].
#[derive(Clone)]
pub struct Beside {
    pub(super) copier: SharedCopier,
    pub(super) account: Arc<Account>,
}

impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Beside").field(&self.account.name).finish()
    }
}

impl Copier<CopyJob> for Beside {
    fn name(&self) -> &str {
        &self.account.name
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        let _inside = Inside::begin(Copying::Beside);
        self.account.copy(&*self.copier, jobs, answers);
    }
}
