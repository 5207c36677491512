//! The copier in use, which can be changed while migrations run (\[offload\]).
//!
//! Copies hold folios locked, so nothing here makes one wait for a change, nor allocates: a copy takes
//! the copier that is in use when it begins, and keeps it to its end. A change makes another one the
//! copier in use first, then waits for the copies that began before. So it waits for a bounded time,
//! and neither can copies that keep coming hold it up, nor can a copier that does not come back hold
//! up the copies after it.

mod slots;
mod tally;
mod through;

/// What [`slots`] is made of; its model checker has others.
mod sync {
    pub(super) use std::hint::spin_loop as again;
    pub(super) use std::sync::atomic::{AtomicUsize, Ordering};
    pub(super) use std::sync::{RwLock, TryLockError};
}

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use transhume_engine::{Copier, Reason};

use crate::{Memcpy, Reasons, SharedCopier, UnknownCopier, by_name};
use slots::Slots;
use tally::Account;
pub use tally::Tally;
pub use through::{Beside, ForReason};

/// How long a change waits for copies that began before it. Copiers have deadlines well below.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest pause between two looks whether they have returned.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// A copier, and for which reasons it is to copy.
#[derive(Clone)]
pub struct Choice {
    /// The copier.
    pub copier: SharedCopier,
    /// The reasons for which it is asked. Copies for others are made by `memcpy`.
    pub only: Reasons,
}

impl Choice {
    /// The copier of this name, for every reason; see [`by_name`].
    ///
    /// # Errors
    ///
    /// [`UnknownCopier`], in one line.
    pub fn named(name: &str) -> Result<Self, UnknownCopier> {
        by_name(name, None).map(Self::from)
    }

    /// The same for these reasons only.
    #[must_use]
    pub fn only(mut self, reasons: Reasons) -> Self {
        self.only = reasons;
        self
    }
}

impl From<SharedCopier> for Choice {
    fn from(copier: SharedCopier) -> Self {
        Self {
            copier,
            only: Reasons::ALL,
        }
    }
}

impl fmt::Debug for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Choice")
            .field("copier", &self.copier.name())
            .field("only", &self.only)
            .finish()
    }
}

/// Why a copier could not be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// A copier asked for it, which would wait for its own return.
    #[error("a copier cannot change which copier is in use; ask from a thread that is not copying")]
    InsideCopier,
    /// The process was forked from the one that made the switch, whose copies under way are not here.
    #[error(
        "this process was forked from the one that chose its copiers, and only that one can change them"
    )]
    Forked,
    /// A copy that an earlier change did not wait for still runs, or another change waits.
    #[error(
        "nothing was changed: an earlier change still waits for a copy to return; try again later"
    )]
    Occupied,
    /// The change is made, but a copy by the one before has not returned.
    #[error(
        "'{new}' is in use now, but a copy by '{old}' has not returned within {} seconds; \
         it keeps its folios until it does", PATIENCE.as_secs()
    )]
    NotReturned {
        /// The copier in use before.
        old: String,
        /// The one in use now.
        new: String,
    },
}

/// What is in use: the copier, and the account that its copies go to.
struct Chosen {
    choice: Choice,
    account: Arc<Account>,
}

/// Which copier is in use, and for which reasons (\[offload\]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// The copier's name.
    pub name: String,
    /// The reasons for which it is asked. Copies for others are made by `memcpy`.
    pub only: Reasons,
}

/// What was counted of the copiers of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopierTally {
    /// The name.
    pub name: String,
    /// What was counted.
    pub tally: Tally,
}

/// The copier in use by a region, or by several that share it (\[offload\]).
///
/// It can be changed at any time ([`select`](Self::select)), and counts what each copier does
/// ([`statistics`](Self::statistics)). Migrations copy through [`for_reason`](Self::for_reason).
///
/// ```
/// use std::sync::Arc;
/// use transhume_copy::{Choice, Switch};
///
/// let switch = Arc::new(Switch::default());
/// assert_eq!(switch.in_use().name, "memcpy");
/// let only = "demotion".parse()?;
/// let before = switch.select(Choice::named("threads:2")?.only(only))?;
/// assert_eq!(before.copier.name(), "memcpy");
/// assert_eq!(switch.in_use().only, only);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What is counted, and for whom
///
/// Each list of jobs goes to one copier, and to the account of its name. Where the copier in use is
/// limited to other reasons it is not asked, and nothing is counted for it: `memcpy` copies, and that
/// is counted for `memcpy`. A name keeps its account over changes, for as long as the switch lives.
///
/// # Where it cannot be changed
///
/// Not by a copier, while it copies ([`SwitchError::InsideCopier`]). Nor can one that a switch has
/// chosen copy through a switch, which could go round in a circle: such jobs are declined. A copier that panics is over with
/// its copy; the panic goes on to whoever migrates, and the switch serves as before. In the child of a
/// fork copies go on as they were and nothing can be changed; it can make a switch of its own.
pub struct Switch {
    chosen: Slots<Chosen>,
    /// Whoever changes it has this.
    changing: Mutex<()>,
    /// Of all names that there were. Copies know theirs and do not look here.
    accounts: Mutex<Vec<Arc<Account>>>,
    /// The account of `memcpy`, which copies for other reasons than those chosen.
    plain: Arc<Account>,
    process: u32,
}

impl Switch {
    /// With this copier in use, for every reason or some.
    #[must_use]
    pub fn new(choice: impl Into<Choice>) -> Self {
        let choice = choice.into();
        let plain = Arc::new(Account::new(Copier::name(&Memcpy)));
        let accounts = Mutex::new(vec![Arc::clone(&plain)]);
        let account = account(&accounts, choice.copier.name());
        Self {
            chosen: Slots::new(Chosen { choice, account }),
            changing: Mutex::new(()),
            accounts,
            plain,
            process: std::process::id(),
        }
    }

    /// Which copier is in use now.
    #[must_use]
    pub fn in_use(&self) -> InUse {
        self.chosen.with(|chosen| InUse {
            name: chosen.account.name.clone(),
            only: chosen.choice.only,
        })
    }

    /// Changes the copier in use, and returns the one before when no copy by it is left. Copies that
    /// began before go on with that one to their end, later ones take the new.
    ///
    /// The one returned stops its threads, if it has any, when the last who has it drops it.
    ///
    /// # Errors
    ///
    /// See [`SwitchError`]. With [`SwitchError::NotReturned`] the change is made, and the copier
    /// before is dropped with a later change or with the switch; with all others nothing was changed.
    pub fn select(&self, choice: impl Into<Choice>) -> Result<Choice, SwitchError> {
        self.select_within(choice.into(), PATIENCE)
    }

    fn select_within(&self, choice: Choice, patience: Duration) -> Result<Choice, SwitchError> {
        if through::is_copying() {
            return Err(SwitchError::InsideCopier);
        }
        if self.process != std::process::id() {
            return Err(SwitchError::Forked);
        }
        let until = Instant::now() + patience;
        let account = account(&self.accounts, choice.copier.name());
        let name = account.name.clone();
        // Dropped after the turn, since dropping it may take long.
        let mut left_over = None;
        let turn = within(until, || self.try_turn());
        let _turn = turn.ok_or(SwitchError::Occupied)?;
        let old = self.in_use().name;
        let mut new = Some(Chosen { choice, account });
        let changed = within(until, || {
            left_over = self.chosen.retire().or_else(|| left_over.take());
            new = self.chosen.replace(new.take()?).err();
            new.is_none().then_some(())
        });
        changed.ok_or(SwitchError::Occupied)?;
        let before = within(until, || self.chosen.retire());
        before
            .map(|chosen| chosen.choice)
            .ok_or(SwitchError::NotReturned { old, new: name })
    }

    fn try_turn(&self) -> Option<MutexGuard<'_, ()>> {
        match self.changing.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// What was counted, in the order in which the names were first used, `memcpy` first. It can be
    /// asked at any time and stops nothing. Of a list that is being copied, some figures may be
    /// counted already and others not.
    #[must_use]
    pub fn statistics(&self) -> Vec<CopierTally> {
        let accounts = self.accounts.lock();
        let accounts = accounts.unwrap_or_else(PoisonError::into_inner);
        let of = |account: &Arc<Account>| CopierTally {
            name: account.name.clone(),
            tally: account.tally(),
        };
        accounts.iter().map(of).collect()
    }

    /// The copier of a migration for this reason: whichever is in use for it, batch by batch. Its own
    /// name is `switch`.
    #[must_use]
    pub fn for_reason(self: &Arc<Self>, reason: Reason) -> ForReason {
        ForReason {
            switch: Arc::clone(self),
            reason,
        }
    }

    /// A copier that is used whatever is chosen here, and counted with the others.
    #[must_use]
    pub fn beside(&self, copier: SharedCopier) -> Beside {
        let account = account(&self.accounts, copier.name());
        Beside { copier, account }
    }
}

/// The account of this name, which is opened if there is none.
fn account(accounts: &Mutex<Vec<Arc<Account>>>, name: &str) -> Arc<Account> {
    let accounts = accounts.lock();
    let mut accounts = accounts.unwrap_or_else(PoisonError::into_inner);
    let known = accounts.iter().find(|account| account.name == name);
    known.map(Arc::clone).unwrap_or_else(|| {
        let new = Arc::new(Account::new(name));
        accounts.push(Arc::clone(&new));
        new
    })
}

/// Asks again and again, until something comes of it or it takes too long.
fn within<R>(until: Instant, mut ask: impl FnMut() -> Option<R>) -> Option<R> {
    let mut pause = Duration::from_micros(10);
    loop {
        let answer = ask();
        if answer.is_some() || Instant::now() >= until {
            return answer;
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

impl Default for Switch {
    /// With `memcpy` in use.
    fn default() -> Self {
        Self::new(Arc::new(Memcpy) as SharedCopier)
    }
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switch")
            .field("in_use", &self.in_use())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
