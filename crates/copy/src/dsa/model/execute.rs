//! What the model does with a descriptor, by the specification.

use std::sync::atomic::{AtomicU64, Ordering};

use super::faults::{Fault, Faults};
use crate::dsa::descriptor::{Descriptor, DescriptorCell, flags, opcode};
use crate::dsa::portal::Shape;
use crate::dsa::record::{Completion, Record, Status};

/// Bytes between two looks at whether the queue was called off.
const STRETCH: usize = 16 << 10;
/// Purposes of random numbers beside the faults.
const HOW_FAR: u64 = 100;
const WHICH_ERROR: u64 = 101;
const WHICH_MEMBER: u64 = 102;

/// The queue was called off: nothing more is to be touched.
#[derive(Debug)]
pub(super) struct CalledOff;

/// How an operation is gone about.
pub(super) struct Execution<'e> {
    pub(super) shape: &'e Shape,
    pub(super) faults: &'e Faults,
    pub(super) counts: &'e [AtomicU64; Fault::ALL.len()],
    /// The number of what was submitted.
    pub(super) number: u64,
    /// Counts how often the queue was called off, and what it was at the beginning.
    pub(super) called_off: &'e AtomicU64,
    pub(super) epoch: u64,
}

/// A record that is not written yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unwritten {
    pub(super) address: u64,
    pub(super) completion: Completion,
}

/// What an operation has come to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Executed {
    /// What to say of it, if anything.
    pub(super) record: Option<Unwritten>,
    /// A member's record that is to be written later.
    pub(super) late: Option<Unwritten>,
}

impl Execution<'_> {
    fn befalls(&self, fault: Fault, number: u64) -> bool {
        let befalls = self.faults.befalls(fault, number);
        if befalls {
            self.count(fault);
        }
        befalls
    }

    pub(super) fn count(&self, fault: Fault) {
        if let Some(count) = self.counts.get(fault.index()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn go_on(&self) -> Result<(), CalledOff> {
        if self.called_off.load(Ordering::Relaxed) == self.epoch {
            Ok(())
        } else {
            Err(CalledOff)
        }
    }

    /// Executes what was submitted. `half`: it does some of it only, as if it were interrupted.
    ///
    /// # Safety
    ///
    /// By the promise at `Portal::submit`, which holds until the caller has taken note of the end.
    pub(super) unsafe fn run(
        &self,
        descriptor: &Descriptor,
        half: bool,
    ) -> Result<Executed, CalledOff> {
        self.go_on()?;
        if let Some(completion) = self.refused(descriptor, Place::Queue) {
            return Ok(executed(descriptor, completion));
        }
        match descriptor.opcode() {
            // SAFETY: the caller's promise.
            opcode::MEMMOVE => unsafe {
                self.copy(descriptor, self.number, half)
                    .map(|completion| executed(descriptor, completion))
            },
            // SAFETY: as above.
            opcode::BATCH => unsafe { self.batch(descriptor, half) },
            // A drain is not begun before all is done that it waits for.
            _ => Ok(executed(descriptor, Completion::of(Status::SUCCESS))),
        }
    }

    /// What is wrong with a descriptor.
    fn refused(&self, descriptor: &Descriptor, place: Place) -> Option<Completion> {
        let refuse = |status| Some(Completion::of(status));
        let copies = flags::RECORD_VALID | flags::RECORD_WANTED | flags::CACHE;
        let others = flags::RECORD_VALID | flags::RECORD_WANTED;
        let allowed = match (descriptor.opcode(), place) {
            (opcode::MEMMOVE, Place::Queue) => copies,
            (opcode::MEMMOVE, Place::Batch) => copies | flags::FENCE,
            (opcode::NOOP, Place::Batch) => others | flags::FENCE,
            (opcode::NOOP | opcode::BATCH | opcode::DRAIN, Place::Queue) => others,
            _ => return refuse(Status::BAD_OPCODE),
        };
        let mut wrong = descriptor.flags() & !allowed;
        if descriptor.flags() & others == flags::RECORD_WANTED {
            wrong |= flags::RECORD_WANTED;
        }
        if wrong != 0 {
            return Some(Completion {
                invalid_flags: wrong,
                ..Completion::of(Status::INVALID_FLAGS)
            });
        }
        if descriptor.owner != 0 || descriptor.reserved != 0 || descriptor.specific != [0; 3] {
            return refuse(Status::RESERVED_FIELD);
        }
        match descriptor.opcode() {
            opcode::MEMMOVE if !(1..=self.shape.max_transfer).contains(&descriptor.size) => {
                refuse(Status::TRANSFER_SIZE)
            }
            opcode::BATCH if !(2..=self.shape.max_batch).contains(&descriptor.size) => {
                refuse(Status::BATCH_SIZE)
            }
            opcode::BATCH if !descriptor.source.is_multiple_of(64) => {
                refuse(Status::LIST_ALIGNMENT)
            }
            _ => None,
        }
    }

    /// # Safety
    ///
    /// As [`run`](Self::run).
    unsafe fn batch(&self, batch: &Descriptor, half: bool) -> Result<Executed, CalledOff> {
        let list = address(batch.source).cast::<DescriptorCell>();
        let count = usize::try_from(batch.size).unwrap_or(0);
        // SAFETY: the list has so many descriptors, which are atomics, and is there until the batch
        // has ended.
        let list = unsafe { std::slice::from_raw_parts(list, count) };
        let until = if self.befalls(Fault::BatchFaults, self.number) {
            below(self.faults.random(self.number, HOW_FAR), count)
        } else {
            count
        };
        let stop = if half { count / 2 } else { until };
        let late = below(self.faults.random(self.number, WHICH_MEMBER), count);
        let late = self
            .faults
            .befalls(Fault::RecordsLate, self.number)
            .then_some(late);
        let mut failed = false;
        let mut put_off = None;
        let reordered = self.befalls(Fault::Reorders, self.number);
        let members = list.get(..stop).unwrap_or_default();
        // A fence waits for those before it, so what is between two of them may take any order.
        let mut begin = 0;
        while begin < members.len() {
            let is_fenced = |cell: &DescriptorCell| cell.load().flags() & flags::FENCE != 0;
            let rest = members.get(begin + 1..).unwrap_or_default();
            let length = 1 + rest.iter().position(is_fenced).unwrap_or(rest.len());
            let fenced = members.get(begin).is_some_and(is_fenced);
            if fenced && failed {
                break;
            }
            for at in 0..length {
                let nth = begin + if reordered { length - 1 - at } else { at };
                let Some(member) = members.get(nth).map(DescriptorCell::load) else {
                    continue;
                };
                let number = self.number.wrapping_mul(4096).wrapping_add(nth as u64 + 1);
                self.go_on()?;
                let completion = match self.refused(&member, Place::Batch) {
                    Some(refusal) => refusal,
                    None if member.opcode() != opcode::MEMMOVE => Completion::of(Status::SUCCESS),
                    // SAFETY: the caller's promise is for the members too.
                    None => unsafe { self.copy(&member, number, false)? },
                };
                failed |= completion.status != Status::SUCCESS;
                let Some(record) = executed(&member, completion).record else {
                    continue;
                };
                if late == Some(nth) {
                    self.count(Fault::RecordsLate);
                    put_off = Some(record);
                } else {
                    // SAFETY: as above.
                    unsafe { record.write() };
                }
            }
            begin += length;
        }
        let status = if until < count {
            Status::BATCH_PAGE_FAULT
        } else if failed {
            Status::BATCH_FAILED
        } else {
            Status::SUCCESS
        };
        let completion = Completion {
            done: u32::try_from(stop).unwrap_or(u32::MAX),
            fault: if until < count {
                batch.source + 64 * until as u64
            } else {
                0
            },
            ..Completion::of(status)
        };
        Ok(Executed {
            late: put_off,
            ..executed(batch, completion)
        })
    }

    /// # Safety
    ///
    /// As [`run`](Self::run).
    unsafe fn copy(
        &self,
        copy: &Descriptor,
        number: u64,
        half: bool,
    ) -> Result<Completion, CalledOff> {
        let bytes = usize::try_from(copy.size).unwrap_or(0);
        let (source, destination) = (address(copy.source).cast_const(), address(copy.destination));
        // Where the destination begins within the source, it goes from the end, or it would read
        // what it has written.
        let backward = destination.addr().wrapping_sub(source.addr()) < bytes;
        let some = below(self.faults.random(number, HOW_FAR), bytes);
        let next = if backward { bytes - 1 - some } else { some } as u64;
        let mut completion = Completion::of(Status::SUCCESS);
        let mut length = if half { bytes / 2 } else { bytes };
        if self.befalls(Fault::ReadFaults, number) {
            length = some;
            completion.status = Status::PAGE_FAULT;
            completion.fault = copy.source + next;
        } else if self.befalls(Fault::WriteFaults, number) {
            length = some;
            completion.status = Status(Status::PAGE_FAULT.0 | Status::ON_WRITE);
            completion.fault = copy.destination + next;
        } else if self.befalls(Fault::Fails, number) {
            length = some;
            completion.status = if self.faults.random(number, WHICH_ERROR) & 1 == 0 {
                Status::HARDWARE_ERROR
            } else {
                Status::TRANSLATION_FAILED
            };
        }
        let mut done = 0;
        while done < length {
            self.go_on()?;
            let stretch = (length - done).min(STRETCH);
            let at = if backward {
                bytes - done - stretch
            } else {
                done
            };
            // SAFETY: both sides have `bytes` bytes that the caller promised, and this stretch is
            // among them.
            unsafe {
                std::ptr::copy(
                    source.wrapping_add(at),
                    destination.wrapping_add(at),
                    stretch,
                );
            }
            done += stretch;
        }
        if completion.status.code() == Status::PAGE_FAULT {
            completion.done = u32::try_from(done).unwrap_or(u32::MAX);
            completion.result = u8::from(backward);
        }
        Ok(completion)
    }
}

/// Where a descriptor is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Queue,
    Batch,
}

fn executed(descriptor: &Descriptor, completion: Completion) -> Executed {
    let valid = descriptor.flags() & flags::RECORD_VALID != 0;
    let wanted = descriptor.flags() & flags::RECORD_WANTED != 0;
    // A record whose address is not one is nowhere to be written; a device notes that for its driver.
    let aligned = descriptor.record.is_multiple_of(32) && descriptor.record != 0;
    let written = valid && aligned && (wanted || completion.status != Status::SUCCESS);
    Executed {
        record: written.then_some(Unwritten {
            address: descriptor.record,
            completion,
        }),
        late: None,
    }
}

impl Unwritten {
    /// # Safety
    ///
    /// By the promise at `Portal::submit`, the record is there, and its queue was not called off.
    pub(super) unsafe fn write(&self) {
        // SAFETY: the caller's promise; a record is made of atomics.
        let record = unsafe { &*address(self.address).cast::<Record>().cast_const() };
        record.write(self.completion);
    }
}

fn address(address: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0))
}

/// A random number below `limit`, or 0.
fn below(random: u64, limit: usize) -> usize {
    usize::try_from(random % (limit as u64).max(1)).unwrap_or(0)
}
