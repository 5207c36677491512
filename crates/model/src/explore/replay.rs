//! One order that was written down.

use super::{Decisions, Ready, Strategy};

/// Makes the decisions again, once.
#[derive(Debug)]
pub(crate) struct Replay {
    decisions: Decisions,
    at: usize,
    done: bool,
    /// A decision that could not be made.
    misfit: Option<usize>,
}

impl Replay {
    pub(crate) fn new(decisions: Decisions) -> Self {
        Self {
            decisions,
            at: 0,
            done: false,
            misfit: None,
        }
    }

    /// The next decision, made among what there is; beyond what is written the first will do.
    fn next(&mut self, among: impl Fn(usize) -> Option<usize>) -> Option<usize> {
        let Some(&decision) = self.decisions.get(self.at) else {
            return Some(0);
        };
        let found = among(usize::from(decision));
        if found.is_none() {
            self.misfit.get_or_insert(self.at);
        }
        self.at += 1;
        found
    }

    /// The first decision that could not be made, by its index; of a run to its end also the first that is left.
    pub(crate) fn misfit(&self, to_its_end: bool) -> Option<usize> {
        let is_left = to_its_end && self.at < self.decisions.len();
        self.misfit.or(is_left.then_some(self.at))
    }
}

impl Strategy for Replay {
    fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.done, true)
    }

    fn pick(&mut self, ready: &[Ready]) -> Option<usize> {
        if self.misfit.is_some() {
            return None;
        }
        self.next(|actor| ready.iter().position(|one| one.actor == actor))
    }

    fn choose(&mut self, count: u32) -> u32 {
        let number = self.next(|number| (number < count as usize).then_some(number));
        number
            .and_then(|number| u32::try_from(number).ok())
            .unwrap_or(0)
    }
}
