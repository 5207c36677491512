//! Who holds what and who waits for what: locks of folios and latches of buffers that can be watched.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How long nothing may happen. Far longer than anything here takes: only a test that hangs for a
/// reason that the watchdog does not know gets there.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Migrator,
    Journal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// The lock of the folio that begins at this page.
    Lock(u64),
    /// The latch of its buffer.
    Latch(u64),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Migrator => "the migrator",
            Self::Journal => "the journal",
        })
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lock(page) => write!(f, "the lock of page {page}"),
            Self::Latch(page) => write!(f, "the latch of page {page}"),
        }
    }
}

/// The wait was ended by the watchdog.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken;

#[derive(Debug, Default)]
pub(crate) struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<What, Who>,
    ever_held: BTreeSet<(Who, What)>,
    waits: BTreeMap<Who, What>,
    /// Whose wait ends without what it waits for.
    victims: BTreeSet<Who>,
    deadlocks: Vec<String>,
    is_over: bool,
}

impl Board {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Takes it if it is free.
    pub(crate) fn try_take(&self, who: Who, what: What) -> bool {
        let mut state = self.state();
        if state.held.contains_key(&what) {
            return false;
        }
        state.hold(who, what);
        self.changed.notify_all();
        true
    }

    /// Takes it, and waits for it.
    pub(crate) fn take(&self, who: Who, what: What) -> Result<(), Broken> {
        let mut state = self.state();
        while state.held.contains_key(&what) {
            if state.victims.remove(&who) {
                state.waits.remove(&who);
                return Err(Broken);
            }
            if state.waits.insert(who, what).is_none() {
                self.changed.notify_all();
            }
            state = self.changed.wait(state).unwrap();
        }
        state.waits.remove(&who);
        state.victims.remove(&who);
        state.hold(who, what);
        self.changed.notify_all();
        Ok(())
    }

    pub(crate) fn give(&self, who: Who, what: What) {
        let mut state = self.state();
        assert_eq!(state.held.remove(&what), Some(who), "{what}");
        self.changed.notify_all();
    }

    /// Waits until it has been held by this one at any time.
    pub(crate) fn wait_until_held_by(&self, who: Who, what: What) {
        let mut state = self.state();
        while !state.ever_held.contains(&(who, what)) {
            let (now, waited) = self.changed.wait_timeout(state, PATIENCE).unwrap();
            state = now;
            assert!(!waited.timed_out(), "{who} never held {what}");
        }
    }

    /// Looks for deadlocks until [`is_over`](Self::is_over), and breaks each.
    pub(crate) fn watch(&self) {
        let mut state = self.state();
        while !state.is_over {
            if let Some((deadlock, victim)) = state.deadlock() {
                state.deadlocks.push(deadlock);
                state.victims.insert(victim);
                self.changed.notify_all();
            }
            let (now, waited) = self.changed.wait_timeout(state, PATIENCE).unwrap();
            state = now;
            if waited.timed_out() {
                let hang = format!("nothing for {PATIENCE:?}: {state:?}");
                state.deadlocks.push(hang);
                state.victims = state.waits.keys().copied().collect();
                self.changed.notify_all();
            }
        }
    }

    /// Ends the watch.
    pub(crate) fn is_over(&self) {
        self.state().is_over = true;
        self.changed.notify_all();
    }

    /// The deadlocks that were found; nothing may be held or waited for any more.
    pub(crate) fn into_deadlocks(self) -> Vec<String> {
        let state = self.state.into_inner().unwrap();
        assert!(state.held.is_empty() && state.waits.is_empty(), "{state:?}");
        state.deadlocks
    }
}

impl State {
    fn hold(&mut self, who: Who, what: What) {
        self.held.insert(what, who);
        self.ever_held.insert((who, what));
    }

    /// Threads that wait for each other in a ring, in words, and one among them that waits for a
    /// latch.
    fn deadlock(&self) -> Option<(String, Who)> {
        let waiting = self.waits.keys();
        waiting.copied().find_map(|first| {
            let ring = self.ring(first)?;
            let in_words = ring
                .iter()
                .map(|(who, held, wanted)| format!("{who} holds {held} and waits for {wanted}"));
            let in_words = in_words.collect::<Vec<_>>().join("; ");
            let for_latch = |(_, _, wanted): &&(_, _, What)| matches!(wanted, What::Latch(_));
            let victim = ring.iter().find(for_latch).map_or(first, |link| link.0);
            (!self.victims.contains(&victim)).then_some((in_words, victim))
        })
    }

    /// The ring that this one waits in: each with what it holds that the one before wants, and what
    /// it wants itself.
    fn ring(&self, first: Who) -> Option<Vec<(Who, What, What)>> {
        let mut ring = Vec::new();
        let mut wanted = *self.waits.get(&first)?;
        loop {
            let holder = *self.held.get(&wanted)?;
            let next = *self.waits.get(&holder)?;
            ring.push((holder, wanted, next));
            if holder == first {
                return Some(ring);
            }
            if ring.len() > self.waits.len() {
                return None; // It waits for a ring that it is not in.
            }
            wanted = next;
        }
    }
}
