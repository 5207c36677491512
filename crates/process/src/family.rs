//! The processes that others have started.

use std::collections::BTreeMap;

use crate::target::{Running, Target, TargetError, running};

/// Processes that were met, by number and the time when they started, which no later one shares.
#[derive(Debug)]
pub(crate) struct Family {
    met: BTreeMap<i32, u64>,
}

impl Family {
    pub(crate) fn new(targets: &[Target]) -> Self {
        let met = targets
            .iter()
            .map(|target| (target.number(), target.started()));
        Self { met: met.collect() }
    }

    /// Those that were not met yet and have been started by one that was, or by one of these.
    pub(crate) fn look_for_children(&mut self) -> Vec<Running> {
        let now = running();
        let by_number = now.iter().map(|process| (process.pid, process));
        let by_number = by_number.collect::<BTreeMap<_, _>>();
        let mut found = Vec::new();
        loop {
            let before = found.len();
            for process in &now {
                let parent = by_number.get(&process.parent);
                if !self.has_met(process) && parent.is_some_and(|parent| self.has_met(parent)) {
                    self.met.insert(process.pid, process.started);
                    found.push(*process);
                }
            }
            if found.len() == before {
                return found;
            }
        }
    }

    fn has_met(&self, process: &Running) -> bool {
        self.met.get(&process.pid) == Some(&process.started)
    }
}

impl Running {
    /// Opens it, if it is still the same.
    pub(crate) fn open(self) -> Result<Target, TargetError> {
        let target = Target::open(self.pid)?;
        if target.started() == self.started {
            Ok(target)
        } else {
            Err(TargetError::NoSuch { pid: self.pid })
        }
    }
}
