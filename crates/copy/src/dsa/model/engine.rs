//! The threads that execute descriptors.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::execute::{CalledOff, Execution};
use super::faults::{Fault, Faults};
use super::line::{Entry, Line, State};
use crate::dsa::descriptor::opcode;
use crate::dsa::portal::Shape;

/// How much later than it should something comes that is late.
pub(super) const LATE_BY: Duration = Duration::from_millis(15);
/// The longest delay, in microseconds.
const LONGEST_DELAY: u64 = 200;
const HOW_LONG: u64 = 103;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) shapes: Vec<Shape>,
    /// How often each queue was called off.
    pub(super) called_off: Vec<AtomicU64>,
    pub(super) faults: Faults,
    pub(super) counts: [AtomicU64; Fault::ALL.len()],
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Executes an entry; notes its end.
    pub(super) fn execute(&self, queue: usize, entry: Entry, epoch: u64) {
        let (Some(shape), Some(called_off)) = (self.shapes.get(queue), self.called_off.get(queue))
        else {
            return;
        };
        let none = Faults::default();
        let execution = Execution {
            shape,
            faults: if entry.again { &none } else { &self.faults },
            counts: &self.counts,
            number: entry.number,
            called_off,
            epoch,
        };
        let works = matches!(entry.descriptor.opcode(), opcode::MEMMOVE | opcode::BATCH);
        let befalls = |fault| works && !entry.again && self.faults.befalls(fault, entry.number);
        let (hangs, late) = (befalls(Fault::Hangs), befalls(Fault::Late));
        if befalls(Fault::Delays) {
            execution.count(Fault::Delays);
            let delay = self.faults.random(entry.number, HOW_LONG) % LONGEST_DELAY;
            std::thread::sleep(Duration::from_micros(delay));
        }
        // SAFETY: what was submitted is promised until its end is noted below or its queue is
        // called off, which waits for that.
        let executed = unsafe { execution.run(&entry.descriptor, hangs || late) };
        let mut state = self.lock();
        let Some(line) = state.queues.get_mut(queue) else {
            return;
        };
        line.executed.retain(|&number| number != entry.number);
        match executed {
            Ok(executed) if called_off.load(Ordering::Relaxed) == epoch => {
                let soon = Instant::now() + LATE_BY;
                if hangs || late {
                    execution.count(if hangs { Fault::Hangs } else { Fault::Late });
                    let again = Entry {
                        again: true,
                        ..entry
                    };
                    line.parked.push((again, (!hangs).then_some(soon)));
                } else if let Some(record) = executed.record {
                    let single = entry.descriptor.opcode() == opcode::MEMMOVE;
                    if single && befalls(Fault::RecordsLate) {
                        execution.count(Fault::RecordsLate);
                        line.unwritten.push((record, soon));
                    } else {
                        line.unwritten
                            .extend(executed.late.map(|late| (late, soon)));
                        // SAFETY: as above; the queue was not called off, and is not while the lock
                        // is held.
                        unsafe { record.write() };
                    }
                }
            }
            Ok(_) | Err(CalledOff) => {}
        }
        drop(state);
        self.changed.notify_all();
    }
}

/// What an engine does.
pub(super) fn serve(shared: &Shared) {
    let mut state = shared.lock();
    let mut first = 0;
    while !state.stop {
        let now = Instant::now();
        let queues = state.queues.len();
        for line in &mut state.queues {
            line.unwritten.retain(|(record, when)| {
                if *when <= now {
                    // SAFETY: the queue was not called off since, or it would have been forgotten,
                    // and is not while the lock is held.
                    unsafe { record.write() };
                }
                *when > now
            });
        }
        first += 1;
        let found = (0..queues).map(|n| (n + first) % queues).find_map(|queue| {
            let line = state.queues.get_mut(queue)?;
            let entry = line.take(&shared.faults, now)?;
            line.executed.push(entry.number);
            let called_off = shared.called_off.get(queue)?.load(Ordering::Relaxed);
            Some((queue, entry, called_off))
        });
        if let Some((queue, entry, called_off)) = found {
            drop(state);
            shared.execute(queue, entry, called_off);
            state = shared.lock();
            continue;
        }
        let due = state.queues.iter().filter_map(Line::next_due).min();
        state = match due {
            None => shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(due) => {
                let time = due.saturating_duration_since(now);
                shared
                    .changed
                    .wait_timeout(state, time)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
    }
}
