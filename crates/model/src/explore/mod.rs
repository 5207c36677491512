//! Exploration: which order of steps is tried next.
//!
//! The actors are tasks of [shuttle], which switches between them; what can be done next is said by
//! the machine, and which of it is done by a [`Strategy`].

mod exhaustive;
mod random;
mod replay;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

pub(crate) use self::exhaustive::Exhaustive;
pub(crate) use self::random::Random;
pub(crate) use self::replay::Replay;
use crate::act::Touch;
use crate::actor::{Chooser, Shared, locked};
use crate::machine::ActorId;

/// More steps than this are a run without an end.
const MOST_STEPS: usize = 20_000;

/// An actor that can make its step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub(crate) actor: ActorId,
    pub(crate) touch: Touch,
}

/// Decides the order of steps, and whatever else is not decided.
pub(crate) trait Strategy: std::fmt::Debug + Send {
    /// A run begins; `false` if there is none left to try.
    fn begin(&mut self) -> bool;

    /// Which of those comes next, as an index; `None` if what follows has been tried.
    fn pick(&mut self, ready: &[Ready]) -> Option<usize>;

    /// A number below `count`.
    fn choose(&mut self, count: u32) -> u32;
}

/// Every decision of a run, in order: an actor, or a number.
pub(crate) type Decisions = Vec<u8>;

/// A strategy whose decisions are written down.
#[derive(Debug)]
pub(crate) struct Recorded<S> {
    pub(crate) inner: S,
    pub(crate) decisions: Decisions,
}

impl<S: Strategy> Recorded<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self {
            inner,
            decisions: Vec::new(),
        }
    }

    fn write(&mut self, number: usize) {
        self.decisions.push(u8::try_from(number).unwrap_or(u8::MAX));
    }
}

impl<S: Strategy> Strategy for Recorded<S> {
    fn begin(&mut self) -> bool {
        self.decisions.clear();
        self.inner.begin()
    }

    fn pick(&mut self, ready: &[Ready]) -> Option<usize> {
        let picked = self.inner.pick(ready)?;
        self.write(ready[picked].actor);
        Some(picked)
    }

    fn choose(&mut self, count: u32) -> u32 {
        let chosen = self.inner.choose(count);
        self.write(chosen as usize);
        chosen
    }
}

/// Leads the tasks of shuttle through the order that the strategy wants.
pub(crate) struct Guide {
    pub(crate) chooser: Chooser,
    /// The run under way, put there when its scene is set.
    pub(crate) stage: Arc<std::sync::Mutex<Option<Shared>>>,
}

impl Guide {
    fn next(&self, runnable: &[&Task]) -> TaskId {
        // Who has not said what comes next is not at a decision.
        let first = runnable[0].id();
        let stage = locked(&self.stage);
        let Some(run) = &*stage else {
            return first;
        };
        let run = &mut *locked(run);
        if run.over {
            return first;
        }
        let actor = |task: &&Task| usize::from(task.id());
        if let Some(task) = runnable.iter().find(|task| run.next[actor(task)].is_none()) {
            return task.id();
        }
        if run.machine.violation.is_some() {
            run.over = true;
            return first;
        }
        let mut ready = Vec::with_capacity(runnable.len());
        for task in runnable {
            let actor = actor(task);
            if let Some(act) = run.next[actor]
                && act.is_enabled(&run.machine)
            {
                let touch = act.touch(&run.machine);
                ready.push(Ready { actor, touch });
            }
        }
        if ready.is_empty() {
            let waits = |(actor, act): (usize, &Option<_>)| {
                let act: crate::act::Act = (*act)?;
                (!run.serves[actor]).then(|| format!("{} waits until it {act}", run.titles[actor]))
            };
            let who: Vec<String> = run.next.iter().enumerate().filter_map(waits).collect();
            run.machine
                .violated(format!("deadlock: {}", who.join("; ")));
            run.over = true;
            return first;
        }
        if run.steps >= MOST_STEPS {
            run.machine
                .violated(format!("no end after {MOST_STEPS} steps"));
            run.over = true;
            return first;
        }
        let Some(picked) = locked(&self.chooser).pick(&ready) else {
            run.over = true;
            run.pruned = true;
            return first;
        };
        let picked = ready[picked].actor;
        runnable
            .iter()
            .find(|task| actor(task) == picked)
            .map_or(first, |task| task.id())
    }
}

impl Scheduler for Guide {
    fn new_execution(&mut self) -> Option<Schedule> {
        *locked(&self.stage) = None;
        locked(&self.chooser).begin().then(|| Schedule::new(0))
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        _current: Option<TaskId>,
        _is_yielding: bool,
    ) -> Option<TaskId> {
        Some(self.next(runnable))
    }

    // Nobody asks shuttle for numbers.
    fn next_u64(&mut self) -> u64 {
        0
    }
}
