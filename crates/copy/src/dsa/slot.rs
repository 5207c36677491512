//! The memory that one call of the copier works in, made before there is anything to copy.
//!
//! Folios are locked while a list is copied, so nothing is allocated then (\[batch-deadlock\]).

use std::ops::Range;

use transhume_engine::CopyAnswer;

use super::descriptor::{Descriptor, DescriptorCell};
use super::queue::Queue;
use super::record::{Completion, Record};
use crate::CopyJob;
use crate::parts::Job;

/// Parts that are with the devices at once. A list of more goes in several waves.
pub(crate) const CAPACITY: usize = 1024;
/// A page; cuts are made where one of the destination begins.
const PAGE: usize = 4 << 10;
/// Where several queues share a list, each has a few parts of it, none shorter than this.
const SHORTEST: usize = 64 << 10;
const PARTS_PER_QUEUE: usize = 4;
/// What a queue gets is as many batches at least, if it is enough for that: an engine of a device
/// takes a batch as a whole, and a device has up to four.
const BATCHES: usize = 4;

/// What the devices read and write. Reached by `&` only while they have it.
#[derive(Debug)]
pub(crate) struct Memory {
    cells: Box<[DescriptorCell]>,
    records: Box<[Record]>,
    of_batches: Box<[Record]>,
    of_drains: Box<[Record]>,
}

fn boxed<T: Default>(count: usize) -> Box<[T]> {
    (0..count).map(|_| T::default()).collect()
}

impl Memory {
    /// The record of the member of this number.
    pub(crate) fn record(&self, member: usize) -> Option<&Record> {
        self.records.get(member)
    }

    /// The record for a queue's drain.
    pub(crate) fn of_drain(&self, queue: usize) -> Option<&Record> {
        self.of_drains.get(queue)
    }

    /// The record that says that a head has ended: a batch has its own, a single copy its member's.
    pub(crate) fn of_head(&self, index: usize, head: &Head) -> Option<&Record> {
        if head.is_batch() {
            self.of_batches.get(index)
        } else {
            self.records.get(head.members.start)
        }
    }
}

/// A piece of a job that is one descriptor.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) job: usize,
    /// What of it is not copied yet.
    pub(crate) rest: CopyJob,
    queue: usize,
    /// `None` while there is something to try.
    pub(crate) answer: Option<CopyAnswer>,
}

/// What is submitted: a batch, or a copy by itself.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) queue: usize,
    pub(crate) members: Range<usize>,
    pub(crate) state: HeadState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadState {
    /// The device does not have it.
    Unsent,
    /// The device has it.
    Flying,
    /// The device is done with it.
    Ended(Completion),
    /// It was called off; its members' records say what was done until then.
    CalledOff,
    /// Its queue is out of use and never had it.
    Refused,
}

impl Head {
    pub(crate) fn is_batch(&self) -> bool {
        self.members.len() > 1
    }
}

/// Where the next part of a list begins.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    job: usize,
    offset: usize,
    /// What became of the parts of this job that earlier waves had.
    so_far: Option<CopyAnswer>,
}

impl Cursor {
    pub(crate) fn is_at_end(&self, jobs: &[CopyJob]) -> bool {
        self.job >= jobs.len()
    }
}

/// Who does what in a wave, and how far it has got. No device looks at it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) parts: Vec<Part>,
    /// The part that each member is made for.
    pub(crate) order: Vec<usize>,
    pub(crate) heads: Vec<Head>,
    /// Queues that are in use.
    live: Vec<usize>,
    /// Queues that had no room when asked last.
    pub(crate) full: Vec<bool>,
    /// How many members each queue is to get.
    counts: Vec<usize>,
}

/// What one call needs.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) memory: Memory,
    pub(crate) plan: Plan,
}

impl Slot {
    pub(crate) fn new(queues: usize) -> Self {
        Self {
            memory: Memory {
                cells: boxed(CAPACITY),
                records: boxed(CAPACITY),
                of_batches: boxed(CAPACITY),
                of_drains: boxed(queues),
            },
            plan: Plan {
                parts: Vec::with_capacity(CAPACITY),
                order: Vec::with_capacity(CAPACITY),
                heads: Vec::with_capacity(CAPACITY),
                live: Vec::with_capacity(queues),
                full: vec![false; queues],
                counts: vec![0; queues],
            },
        }
    }
}

impl Plan {
    /// Forgets the jobs, whose promises end with the call.
    pub(crate) fn clear(&mut self) {
        self.parts.clear();
        self.order.clear();
        self.heads.clear();
    }

    /// Cuts the next wave off a list of `total` bytes and deals it out to the queues by bytes. Says
    /// whether there is a queue to deal to.
    pub(crate) fn deal(
        &mut self,
        jobs: &[CopyJob],
        total: usize,
        cursor: &mut Cursor,
        queues: &[Queue],
    ) -> bool {
        self.clear();
        self.live.clear();
        let live = queues
            .iter()
            .enumerate()
            .filter(|(_, queue)| !queue.is_gone());
        self.live.extend(live.map(|(index, _)| index));
        let shapes = || self.live.iter().filter_map(|&index| queues.get(index));
        let Some(longest) = shapes().map(|queue| queue.shape().max_transfer).min() else {
            return false;
        };
        let longest = usize::try_from(longest).unwrap_or(usize::MAX).max(1);
        let count = self.live.len();
        let piece = if count > 1 {
            (total / (count * PARTS_PER_QUEUE))
                .max(SHORTEST)
                .min(longest)
        } else {
            longest
        };
        let mut bytes = 0;
        while let Some(job) = jobs.get(cursor.job) {
            if cursor.offset >= job.bytes() {
                *cursor = Cursor {
                    job: cursor.job + 1,
                    ..Cursor::default()
                };
                continue;
            }
            if self.parts.len() == CAPACITY {
                break;
            }
            let rest = job.part(cursor.offset, piece_of(job, cursor.offset, piece));
            cursor.offset += rest.bytes();
            bytes += rest.bytes();
            self.parts.push(Part {
                job: cursor.job,
                rest,
                queue: 0,
                answer: None,
            });
        }
        let mut before = 0;
        for part in &mut self.parts {
            // Its first byte's share of the wave; `bytes` is not 0 where there is a part.
            let share = before as u128 * count as u128 / bytes.max(1) as u128;
            let share = usize::try_from(share).unwrap_or(0);
            part.queue = self.live.get(share).copied().unwrap_or_default();
            before += part.rest.bytes();
        }
        true
    }

    /// Makes descriptors of the parts that have no answer yet, in batches. Nothing is with a device
    /// meanwhile.
    pub(crate) fn prepare(&mut self, memory: &Memory, queues: &[Queue]) {
        self.order.clear();
        self.heads.clear();
        self.counts.fill(0);
        for part in self.parts.iter().filter(|part| part.answer.is_none()) {
            let count = self.counts.get_mut(part.queue);
            count.into_iter().for_each(|count| *count += 1);
        }
        let waiting = self.parts.iter().enumerate();
        for (index, part) in waiting.filter(|(_, part)| part.answer.is_none()) {
            let member = self.order.len();
            let (Some(cell), Some(record)) = (memory.cells.get(member), memory.records.get(member))
            else {
                break;
            };
            record.clear();
            cell.store(&Descriptor::copy(&part.rest, record));
            self.order.push(index);
            let most = queues
                .get(part.queue)
                .map_or(1, |queue| queue.shape().max_batch.max(1));
            let count = self.counts.get(part.queue).copied().unwrap_or(0);
            // One by itself is no batch, so they are of two at least.
            let most = count
                .div_ceil(BATCHES)
                .max(2)
                .min(usize::try_from(most).unwrap_or(1));
            match self.heads.last_mut() {
                Some(head) if head.queue == part.queue && head.members.len() < most => {
                    head.members.end = member + 1;
                }
                _ => self.heads.push(Head {
                    queue: part.queue,
                    members: member..member + 1,
                    state: HeadState::Unsent,
                }),
            }
        }
        memory
            .of_batches
            .iter()
            .take(self.heads.len())
            .for_each(Record::clear);
    }

    /// The descriptor to submit for a head.
    pub(crate) fn descriptor(&self, memory: &Memory, index: usize) -> Option<Descriptor> {
        let head = self.heads.get(index)?;
        if head.is_batch() {
            let list = memory.cells.get(head.members.clone())?;
            return Some(Descriptor::batch(list, memory.of_batches.get(index)?));
        }
        let part = self.parts.get(*self.order.get(head.members.start)?)?;
        let record = memory.records.get(head.members.start)?;
        Some(Descriptor::copy(&part.rest, record))
    }

    /// Answers for the jobs that this wave had the last parts of.
    pub(crate) fn answer(&self, from: Cursor, to: &mut Cursor, answers: &mut [CopyAnswer]) {
        let mut parts = self.parts.iter().peekable();
        for job in from.job..=to.job {
            let before = from.so_far.filter(|_| job == from.job);
            let mut all = before.unwrap_or(CopyAnswer::Copied);
            while let Some(part) = parts.next_if(|part| part.job == job) {
                if all == CopyAnswer::Copied {
                    all = part.answer.unwrap_or_default();
                }
            }
            if job == to.job {
                to.so_far = (to.offset > 0).then_some(all);
            } else if let Some(answer) = answers.get_mut(job) {
                *answer = all;
            }
        }
    }

    /// Ends a list of which waves are left: what was begun has failed, what was not is not tried.
    pub(crate) fn give_up(cursor: Cursor, answers: &mut [CopyAnswer], why: CopyAnswer) {
        let rest = answers.get_mut(cursor.job..).unwrap_or_default();
        rest.fill(CopyAnswer::Declined);
        if let (Some(answer), true) = (rest.first_mut(), cursor.offset > 0) {
            *answer = match cursor.so_far {
                None | Some(CopyAnswer::Copied) => why,
                Some(bad) => bad,
            };
        }
    }
}

/// How long the part of a job is that begins at `offset`: at most `piece`, less where a page of the
/// destination begins before.
fn piece_of(job: &CopyJob, offset: usize, piece: usize) -> usize {
    let left = job.bytes() - offset;
    if left <= piece {
        return left;
    }
    let over = job.destination().wrapping_add(offset + piece).addr() % PAGE;
    if over < piece { piece - over } else { piece }
}
