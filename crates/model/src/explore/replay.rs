//! One order that was written down.

use super::{Decisions, Ready, Strategy};

/// Makes the decisions again, once.
#[derive(Debug)]
pub(crate) struct Replay {
    decisions: Decisions,
    at: usize,
    done: bool,
}

impl Replay {
    pub(crate) fn new(decisions: Decisions) -> Self {
        Self {
            decisions,
            at: 0,
            done: false,
        }
    }

    fn next(&mut self) -> Option<usize> {
        let decision = self.decisions.get(self.at).copied().map(usize::from);
        self.at += 1;
        decision
    }
}

impl Strategy for Replay {
    fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.done, true)
    }

    // Beyond what is written anything will do.
    fn pick(&mut self, ready: &[Ready]) -> Option<usize> {
        let actor = self.next();
        let found = ready.iter().position(|one| Some(one.actor) == actor);
        Some(found.unwrap_or(0))
    }

    fn choose(&mut self, count: u32) -> u32 {
        let number = self.next().and_then(|number| u32::try_from(number).ok());
        number.filter(|number| *number < count).unwrap_or(0)
    }
}
