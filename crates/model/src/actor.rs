//! Actors: who does something on the machine, one step after the other.

use std::fmt;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shuttle::thread;
use transhume_engine::Why;

use crate::act::Act;
use crate::explore::Strategy;
use crate::machine::{ActorId, Machine};
use crate::roles::Role;
use crate::timed::World;

/// One run from its beginning to its end, as actors and the scheduler see it.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) machine: Machine,
    /// What each actor is about to do; nothing while it does it, and when it has ended.
    pub(crate) next: Vec<Option<Act>>,
    /// Actors that only serve others, and for which nobody waits.
    pub(crate) serves: Vec<bool>,
    pub(crate) titles: Vec<String>,
    /// The run has been judged: all go home, whatever they find.
    pub(crate) over: bool,
    /// It was given up because what follows has been tried.
    pub(crate) pruned: bool,
    pub(crate) steps: usize,
    /// Who did what, if somebody wants to see it.
    pub(crate) timeline: Option<Vec<Event>>,
    /// The clock, if steps take time and nobody chooses among them.
    pub(crate) timed: Option<Box<World>>,
    note: Option<String>,
}

/// A step that was made.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) actor: ActorId,
    /// What there is to tell of it, if anything.
    pub(crate) text: Option<String>,
}

impl Run {
    /// A run with those actors, after the one who sets the scene.
    pub(crate) fn new(machine: Machine, roles: &[Role], watched: bool) -> Self {
        let serve = roles.iter().map(Role::serves);
        Self {
            machine,
            next: vec![None; roles.len() + 1],
            serves: std::iter::once(false).chain(serve).collect(),
            titles: titles(roles),
            over: false,
            pruned: false,
            steps: 0,
            timeline: watched.then(Vec::new),
            timed: None,
            note: None,
        }
    }

    /// Has everything happen that comes before this step.
    fn let_time_pass(&mut self, act: Act) {
        if let Some(world) = &mut self.timed
            && !world.before(&mut self.machine, act)
        {
            self.machine
                .violated(format!("deadlock: who migrates waits until it {act}"));
        }
        self.over |= self.machine.violation.is_some();
    }

    fn show(&mut self, actor: ActorId, act: Act) {
        let note = self.note.take();
        if let Some(timeline) = &mut self.timeline {
            let text = match (act, note) {
                // What may go wrong and does not is nothing to tell of.
                (Act::MayPanic, note) => note,
                (Act::Answer { .. }, None) => None,
                (act, Some(note)) => {
                    let told = act.to_string();
                    let colon = if told.ends_with('?') { "" } else { ":" };
                    Some(format!("{told}{colon} {note}"))
                }
                (act, None) => Some(act.to_string()),
            };
            timeline.push(Event { actor, text });
        }
    }
}

/// Who they are, after the one who sets the scene. Those who would be taken for each other are numbered.
pub(crate) fn titles(roles: &[Role]) -> Vec<String> {
    let names: Vec<String> = roles.iter().map(Role::title).collect();
    let title = |(n, role): (usize, &Role)| {
        let name = &names[n];
        let same = |names: &[String]| names.iter().filter(|other| *other == name).count();
        if role.is_hardware() || same(&names) == 1 {
            name.clone()
        } else {
            format!("{name} ({})", same(&names[..=n]))
        }
    };
    let stage = std::iter::once("at the end".to_owned());
    stage.chain(roles.iter().enumerate().map(title)).collect()
}

/// A run that several look at; all on one thread, in turns.
pub(crate) type Shared = Arc<Mutex<Run>>;
/// Who decides what is not decided.
pub(crate) type Chooser = Arc<Mutex<dyn Strategy>>;

/// Locks what is only ever used by one at a time.
pub(crate) fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an unwinding carries that was meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned;

/// Somebody who acts on the machine.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    pub(crate) run: Shared,
    pub(crate) chooser: Chooser,
    pub(crate) id: ActorId,
}

/// What a step may do.
pub(crate) struct Step<'s> {
    pub(crate) machine: &'s mut Machine,
    note: &'s mut Option<String>,
    watched: bool,
    chooser: &'s Chooser,
}

impl Step<'_> {
    /// Says more of the step in a timeline.
    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if self.watched {
            *self.note = Some(text());
        }
    }

    /// Whether a call that may fail does so here, which is tried both ways.
    pub(crate) fn fails(&mut self) -> bool {
        if self.machine.failures == 0 || locked(self.chooser).choose(2) == 0 {
            return false;
        }
        self.machine.failures -= 1;
        self.note(|| "fails".to_owned());
        true
    }

    /// Which of these the call answers in place of what is so, if it fails here; `first` only, unless the scene
    /// has every answer tried.
    pub(crate) fn answers<T: Copy + fmt::Debug>(&mut self, first: T, others: &[T]) -> Option<T> {
        if self.machine.failures == 0 {
            return None;
        }
        let others = if self.machine.any_answer { others } else { &[] };
        let count = u32::try_from(others.len()).unwrap_or(u32::MAX - 2);
        let answer = match locked(self.chooser).choose(count + 2).checked_sub(1)? {
            0 => first,
            other => others[other as usize - 1],
        };
        self.machine.failures -= 1;
        self.note(|| format!("{answer:?}"));
        Some(answer)
    }

    /// Why a call refuses a folio, if it does here. A platform may have any reason but the engine's own.
    pub(crate) fn refuses(&mut self, first: Why) -> Option<Why> {
        const ANY: [Why; 10] = [
            Why::Busy,
            Why::Again,
            Why::Pinned,
            Why::Shared,
            Why::Absent,
            Why::NoMemory,
            Why::NotPermitted,
            Why::Unsupported,
            Why::CopyFailed,
            Why::System,
        ];
        if self.machine.failures == 0 {
            return None;
        }
        let others: Vec<Why> = ANY.into_iter().filter(|why| *why != first).collect();
        self.answers(first, &others)
    }

    /// Whether the call unwinds here, which is tried both ways.
    fn panics(&mut self) -> bool {
        if locked(self.chooser).choose(2) == 0 {
            return false;
        }
        self.machine.panics = None;
        self.note(|| "panics".to_owned());
        true
    }
}

/// The actor that sets the scene and looks at it in the end.
pub(crate) const STAGE: ActorId = 0;

impl Actor {
    /// Waits for its turn and makes the step; nothing once the run is over.
    pub(crate) fn step<R>(&self, act: Act, make: impl FnOnce(&mut Step<'_>) -> R) -> Option<R> {
        if self.id != STAGE {
            let mut run = locked(&self.run);
            if run.over {
                return None;
            }
            if run.timed.is_none() {
                run.next[self.id] = Some(act);
                drop(run);
                thread::yield_now();
            } else {
                run.let_time_pass(act);
            }
        }
        let mut run = locked(&self.run);
        run.next[self.id] = None;
        if run.over {
            return None;
        }
        run.steps += 1;
        let run = &mut *run;
        let done = make(&mut Step {
            machine: &mut run.machine,
            note: &mut run.note,
            watched: run.timeline.is_some(),
            chooser: &self.chooser,
        });
        if let Some(world) = &mut run.timed {
            world.after(&mut run.machine, act);
        }
        run.show(self.id, act);
        Some(done)
    }

    /// A place where a call of the platform, the copier or the owner may unwind, by who is to in this scene.
    pub(crate) fn may_panic(&self) {
        let may = self.look(|machine| machine.panics == Some(self.id));
        if may && self.step(Act::MayPanic, |step| step.panics()) == Some(true) {
            // Not by `panic!`, which would say so on stderr.
            resume_unwind(Box::new(Planned));
        }
    }

    /// Looks at what nobody else changes now, so that it is part of the last step.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Machine) -> R) -> R {
        look(&locked(&self.run).machine)
    }

    /// Changes what nobody else looks at.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Machine) -> R) -> R {
        change(&mut locked(&self.run).machine)
    }

    /// Whether the run is over.
    pub(crate) fn is_over(&self) -> bool {
        locked(&self.run).over
    }
}
