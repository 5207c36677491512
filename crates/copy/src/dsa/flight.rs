//! Descriptors on their way: submitted, watched, and never left behind.

use std::time::{Duration, Instant};

use super::descriptor::Descriptor;
use super::portal::Submitted;
use super::queue::{Purpose, Queue};
use super::record::{Completion, Status};
use super::slot::{HeadState, Memory, Plan};

/// Looks at records that have not changed, before the CPU is offered to others.
const LOOKS: u32 = 256;

/// Waiting for a device without holding up a thread that may be at its work.
#[derive(Default)]
struct Patience(u32);

impl Patience {
    fn wait(&mut self) {
        self.0 = self.0.saturating_add(1);
        if self.0 < LOOKS {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

/// What became of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    NotAccepted,
    NotCompleted,
    Completed,
}

/// The heads of a plan, on their way. Dropped, also by a panic, nothing is on its way any more.
pub(crate) struct Flight<'f> {
    queues: &'f [Queue],
    memory: &'f Memory,
    plan: &'f mut Plan,
}

impl<'f> Flight<'f> {
    pub(crate) fn new(queues: &'f [Queue], memory: &'f Memory, plan: &'f mut Plan) -> Self {
        Self {
            queues,
            memory,
            plan,
        }
    }

    /// Submits all heads and returns when all have ended, one way or another, and every record is
    /// as it will stay: see the module's description. `grace` is how long a drain is waited for.
    ///
    /// # Safety
    ///
    /// The plan's jobs are under their promise until this returns or unwinds.
    pub(crate) unsafe fn run(mut self, deadline: Instant, grace: Duration) {
        let mut patience = Patience::default();
        loop {
            // SAFETY: the caller's promise, and nothing is on its way after this value is gone.
            let (open, moved) = unsafe { self.step() };
            if open == 0 {
                break;
            }
            if moved {
                patience = Patience::default();
            } else if Instant::now() >= deadline {
                // SAFETY: as above.
                unsafe { self.settle(grace) };
                break;
            } else {
                patience.wait();
            }
        }
        self.call_off_where_records_are_missing();
    }

    /// Looks at every head once. How many are not done with, and whether anything has changed.
    ///
    /// # Safety
    ///
    /// As [`run`](Self::run).
    unsafe fn step(&mut self) -> (usize, bool) {
        self.plan.full.fill(false);
        let (mut open, mut moved) = (0, false);
        for index in 0..self.plan.heads.len() {
            let Some(head) = self.plan.heads.get(index) else {
                break;
            };
            let Some(queue) = self.queues.get(head.queue) else {
                continue;
            };
            let state = match head.state {
                HeadState::Flying => {
                    // Before the record: what a queue that is gone has not written it never will.
                    let gone = queue.is_gone();
                    let record = self.memory.of_head(index, head);
                    let ended = match record.and_then(|record| record.read()) {
                        Some(completion) => Some(HeadState::Ended(completion)),
                        None => gone.then_some(HeadState::CalledOff),
                    };
                    if ended.is_some() {
                        queue.release();
                    }
                    ended
                }
                HeadState::Unsent if self.plan.full.get(head.queue) == Some(&true) => None,
                HeadState::Unsent => {
                    let descriptor = self.plan.descriptor(self.memory, index);
                    // SAFETY: the descriptor names bytes of the plan's jobs, and memory of the
                    // slot, which outlives this value.
                    let submitted = descriptor
                        .map(|descriptor| unsafe { queue.submit(&descriptor, Purpose::Work) });
                    match submitted {
                        Some(Submitted::Accepted) => Some(HeadState::Flying),
                        Some(Submitted::Retry) => {
                            let full = self.plan.full.get_mut(head.queue);
                            full.into_iter().for_each(|full| *full = true);
                            None
                        }
                        Some(Submitted::Gone) | None => Some(HeadState::Refused),
                    }
                }
                HeadState::Ended(_) | HeadState::CalledOff | HeadState::Refused => continue,
            };
            moved |= state.is_some();
            let still_open = matches!(state, None | Some(HeadState::Flying));
            open += usize::from(still_open);
            if let (Some(head), Some(state)) = (self.plan.heads.get_mut(index), state) {
                head.state = state;
            }
        }
        (open, moved)
    }

    /// Ends what is on its way after the deadline: waits for a drain of each queue, then calls the
    /// queue off if something has no record even so.
    ///
    /// # Safety
    ///
    /// As [`run`](Self::run).
    unsafe fn settle(&mut self, grace: Duration) {
        for (number, queue) in self.queues.iter().enumerate() {
            if !self.is_flying(number) {
                continue;
            }
            // SAFETY: a drain names its record only, which is memory of the slot.
            let drain = unsafe { self.drain(number, queue, grace) };
            self.look_again(number, queue);
            if drain != Drain::Completed || self.is_flying(number) {
                self.call_off(number, queue);
            }
            if drain != Drain::NotAccepted {
                queue.release();
            }
        }
    }

    fn is_flying(&self, queue: usize) -> bool {
        let heads = &self.plan.heads;
        heads
            .iter()
            .any(|head| head.queue == queue && head.state == HeadState::Flying)
    }

    /// Waits until the device has completed all that was submitted to a queue before now.
    ///
    /// # Safety
    ///
    /// Unless it has, the queue is called off before the memory of its record is anything else.
    unsafe fn drain(&self, number: usize, queue: &Queue, grace: Duration) -> Drain {
        let Some(record) = self.memory.of_drain(number) else {
            return Drain::NotAccepted;
        };
        record.clear();
        let drain = Descriptor::drain(record);
        let until = Instant::now() + grace;
        let mut patience = Patience::default();
        // SAFETY: it names a record, which outlives its being called off.
        while unsafe { queue.submit(&drain, Purpose::Drain) } != Submitted::Accepted {
            // One that is gone stays so until then, and has ended all.
            if queue.is_gone() || Instant::now() >= until {
                return Drain::NotAccepted;
            }
            patience.wait();
        }
        let mut completion = record.read();
        while completion.is_none() && Instant::now() < until {
            patience.wait();
            completion = record.read();
        }
        match completion {
            Some(completion) if completion.status == Status::SUCCESS => Drain::Completed,
            _ => Drain::NotCompleted,
        }
    }

    /// Takes note of the records that a queue's heads have by now.
    fn look_again(&mut self, number: usize, queue: &Queue) {
        let memory = self.memory;
        for (index, head) in self.plan.heads.iter_mut().enumerate() {
            if head.queue == number
                && head.state == HeadState::Flying
                && let Some(completion) =
                    memory.of_head(index, head).and_then(|record| record.read())
            {
                head.state = HeadState::Ended(completion);
                queue.release();
            }
        }
    }

    fn call_off(&mut self, number: usize, queue: &Queue) {
        queue.call_off();
        for head in &mut self.plan.heads {
            if head.queue == number && head.state == HeadState::Flying {
                head.state = HeadState::CalledOff;
                queue.release();
            }
        }
    }

    /// A head has ended and a record of it is missing: the device met a page fault when it wrote
    /// it, and the kernel may write it any time. It must not do so when the record serves again.
    fn call_off_where_records_are_missing(&self) {
        for (number, queue) in self.queues.iter().enumerate() {
            let missing = self.plan.heads.iter().any(|head| {
                let HeadState::Ended(completion) = head.state else {
                    return false;
                };
                head.queue == number
                    && head.members.clone().enumerate().any(|(nth, member)| {
                        let record = self.memory.record(member);
                        record.is_some_and(|record| record.read().is_none())
                            && was_executed(completion, nth)
                    })
            });
            if missing {
                queue.call_off();
            }
        }
    }
}

/// Whether the member of this place in a batch that ended so may have been executed.
pub(crate) fn was_executed(batch: Completion, nth: usize) -> bool {
    match batch.status.code() {
        // It says how many descriptors were read before the fault.
        Status::BATCH_PAGE_FAULT => u32::try_from(nth).is_ok_and(|nth| nth < batch.done),
        // Refused as a whole.
        Status(0x10..0x20) => false,
        _ => true,
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        for (number, queue) in self.queues.iter().enumerate() {
            // After `run` there is none.
            if self.is_flying(number) {
                self.call_off(number, queue);
            }
        }
    }
}
