//! The copier.

use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use transhume_engine::{Copier, CopyAnswer};

use super::device::Device;
use super::discovery::{Places, discover};
use super::flight::{Flight, was_executed};
use super::instructions::Instructions;
use super::model::DsaModel;
use super::portal::Portal;
use super::queue::Queue;
use super::record::{Completion, Status};
use super::slot::{Cursor, HeadState, Part, Plan, Slot};
use crate::parts::Job;
use crate::{CopyJob, Memcpy, Unavailable};

/// How often what a page fault has left is submitted again before the CPU copies it.
const RESUMPTIONS: usize = 4;
const PAGE: u64 = 4 << 10;
/// The longest wait, a year: a clock to which more is added may have no number for it.
const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// When a [`Dsa`] takes a list, and how long it waits for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DsaOptions {
    /// Lists of fewer bytes are declined. The default is 2 MiB: on the machine of \[offload\] one DMA
    /// channel lost to the CPU at every size up to 1 MiB. The device there was another; measure
    /// yours.
    pub min_bytes: usize,
    /// Lists of fewer jobs are declined. The default is 2: one folio of 2 MiB took longer by DMA
    /// (6.52 GB/s) than by the CPU (7.96) in \[offload\].
    pub min_jobs: usize,
    /// How many threads can copy at once; one more is declined. Each takes a quarter of a MiB.
    pub callers: NonZeroUsize,
    /// A list is waited for as long as this and the time that its bytes take at
    /// [`slowest`](Self::slowest), and then as long as this again for a drain.
    pub floor: Duration,
    /// Bytes a second that a device reaches at least, others' work on it included.
    pub slowest: NonZeroU64,
}

impl Default for DsaOptions {
    /// Lists of 2 MiB and 2 jobs or more, 4 callers, 10 ms and 512 MiB/s.
    fn default() -> Self {
        Self {
            min_bytes: 2 << 20,
            min_jobs: 2,
            callers: const { NonZeroUsize::new(4).unwrap() },
            floor: Duration::from_millis(10),
            slowest: const { NonZeroU64::new(512 << 20).unwrap() },
        }
    }
}

impl DsaOptions {
    /// For tests on the model: takes every list, and waits longer than a loaded machine needs to
    /// run the model's threads.
    #[must_use]
    pub fn for_tests() -> Self {
        Self {
            min_bytes: 0,
            min_jobs: 0,
            floor: Duration::from_secs(60),
            ..Self::default()
        }
    }
}

/// Copies by DSA: a list goes to the work queues whole, shared among them by bytes.
///
/// It declines a list that is too small to gain, one that finds as many others under way as it has
/// room for, and all in the child of a fork, which has no portals. What the device does not
/// complete by the deadline is [`CopyAnswer::TimedOut`], what it refuses or fails at
/// [`CopyAnswer::Failed`].
pub struct Dsa {
    queues: Box<[Queue]>,
    slots: Box<[Mutex<Slot>]>,
    options: DsaOptions,
    name: &'static str,
    process: u32,
}

impl fmt::Debug for Dsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dsa")
            .field("queues", &self.describe())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Dsa {
    /// On all work queues of type `user` that this machine has and this process may use.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] with the reason and what cures it.
    pub fn open(options: DsaOptions) -> Result<Self, Unavailable> {
        Self::open_at(Places::of_linux(), Instructions::here(), options)
    }

    /// The copier that this process has open already, with the default options, or else a new one:
    /// a dedicated queue serves one opener at a time. One all of whose queues are out of use is
    /// opened anew.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn shared() -> Result<Arc<Self>, Unavailable> {
        static OPEN: Mutex<Weak<Dsa>> = Mutex::new(Weak::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dsa) = open.upgrade().filter(|dsa| dsa.is_usable()) {
            return Ok(dsa);
        }
        let dsa = Arc::new(Self::open(DsaOptions::default())?);
        *open = Arc::downgrade(&dsa);
        Ok(dsa)
    }

    fn is_usable(&self) -> bool {
        self.process == std::process::id() && !self.queues.iter().all(Queue::is_gone)
    }

    fn open_at(
        places: Places<'_>,
        has: Instructions,
        options: DsaOptions,
    ) -> Result<Self, Unavailable> {
        let mut portals: Vec<Box<dyn Portal>> = Vec::new();
        let mut reasons = Vec::new();
        for found in discover(places, has)? {
            match Device::open(&found.file, found.shape) {
                Ok(device) => portals.push(Box::new(device)),
                Err(reason) => reasons.push(reason.to_string()),
            }
        }
        if portals.is_empty() {
            return Err(Unavailable(reasons.join("; ")));
        }
        Ok(Self::over(portals, options, "dsa"))
    }

    /// On the queues of a software model: for tests, never for speed.
    #[must_use]
    pub fn over_model(model: &DsaModel, options: DsaOptions) -> Self {
        Self::over(model.portals(), options, DsaModel::NAME)
    }

    pub(crate) fn over(
        portals: Vec<Box<dyn Portal>>,
        options: DsaOptions,
        name: &'static str,
    ) -> Self {
        let queues = portals.into_iter().map(Queue::new).collect::<Box<[_]>>();
        let slot = |_| Mutex::new(Slot::new(queues.len()));
        Self {
            slots: (0..options.callers.get()).map(slot).collect(),
            queues,
            options,
            name,
            process: std::process::id(),
        }
    }

    /// When it takes a list, and how long it waits for one.
    #[must_use]
    pub const fn options(&self) -> &DsaOptions {
        &self.options
    }

    /// Its work queues in one line.
    #[must_use]
    pub fn describe(&self) -> String {
        let queues = self.queues.iter().map(|queue| {
            let shape = queue.shape();
            let node = shape
                .node
                .map_or(String::new(), |node| format!(", node {node}"));
            let gone = if queue.is_gone() { ", out of use" } else { "" };
            format!(
                "{} ({}, {} entries{node}{gone})",
                shape.name, shape.mode, shape.size
            )
        });
        queues.collect::<Vec<_>>().join(", ")
    }

    /// Memory to work in, if somebody else has not got the last of it.
    fn slot(&self) -> Option<MutexGuard<'_, Slot>> {
        self.slots.iter().find_map(|slot| match slot.try_lock() {
            Ok(slot) => Some(slot),
            // Whoever panicked had its descriptors called off by `Flight`.
            Err(TryLockError::Poisoned(slot)) => Some(slot.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        })
    }

    /// The bytes of a list that is worth it.
    fn worthwhile(&self, jobs: &[CopyJob]) -> Option<usize> {
        let total = jobs
            .iter()
            .try_fold(0_usize, |sum, job| sum.checked_add(job.bytes()))?;
        let here = self.process == std::process::id();
        (here && total >= self.options.min_bytes && jobs.len() >= self.options.min_jobs)
            .then_some(total)
    }

    fn deadline(&self, total: usize) -> Instant {
        let bytes = total as u128;
        let nanos = bytes.saturating_mul(1_000_000_000) / u128::from(self.options.slowest.get());
        let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        Instant::now() + time.saturating_add(self.options.floor).min(LONGEST_WAIT)
    }

    fn copy_list(
        &self,
        slot: &mut Slot,
        jobs: &[CopyJob],
        answers: &mut [CopyAnswer],
        total: usize,
    ) {
        let deadline = self.deadline(total);
        let grace = self.options.floor.min(LONGEST_WAIT);
        let mut cursor = Cursor::default();
        while !cursor.is_at_end(jobs) {
            let plan = Forgets(&mut slot.plan);
            let from = cursor;
            if !plan.0.deal(jobs, total, &mut cursor, &self.queues) {
                return Plan::give_up(from, answers, CopyAnswer::Failed);
            }
            let mut late = false;
            for resumption in 0..=RESUMPTIONS {
                plan.0.prepare(&slot.memory, &self.queues);
                let flight = Flight::new(&self.queues, &slot.memory, plan.0);
                // SAFETY: the jobs are lent to this call, under their promise, and the slot's
                // memory is this call's alone; the slot outlives whatever is submitted.
                unsafe { flight.run(deadline, grace) };
                collect(plan.0, &slot.memory);
                late = Instant::now() >= deadline;
                if late || plan.0.parts.iter().all(|part| part.answer.is_some()) {
                    break;
                }
                if resumption == RESUMPTIONS {
                    finish_by_cpu(&mut plan.0.parts);
                }
            }
            for part in plan.0.parts.iter_mut().filter(|part| part.answer.is_none()) {
                part.answer = Some(CopyAnswer::TimedOut);
            }
            plan.0.answer(from, &mut cursor, answers);
            if late && !cursor.is_at_end(jobs) {
                return Plan::give_up(cursor, answers, CopyAnswer::TimedOut);
            }
        }
    }
}

impl Copier<CopyJob> for Dsa {
    fn name(&self) -> &str {
        self.name
    }

    fn copy(&self, jobs: &[CopyJob], answers: &mut [CopyAnswer]) {
        let ready = self.worthwhile(jobs).zip(self.slot());
        match ready {
            Some((total, mut slot)) => self.copy_list(&mut slot, jobs, answers, total),
            None => answers.fill(CopyAnswer::Declined),
        }
    }
}

/// A plan that does not keep its jobs, whose promises end with the call.
struct Forgets<'p>(&'p mut Plan);

impl Drop for Forgets<'_> {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// Reads what became of each member, when all have ended.
fn collect(plan: &mut Plan, memory: &super::slot::Memory) {
    for head in &plan.heads {
        for (nth, member) in head.members.clone().enumerate() {
            let completion = memory.record(member).and_then(|record| record.read());
            let part = plan.order.get(member).copied();
            if let Some(part) = part.and_then(|index| plan.parts.get_mut(index)) {
                part.answer = what_became(part, head.state, nth, completion);
            }
        }
    }
}

/// What to answer for a part; nothing if it is to be tried again.
fn what_became(
    part: &mut Part,
    head: HeadState,
    nth: usize,
    own: Option<Completion>,
) -> Option<CopyAnswer> {
    let in_time = match head {
        HeadState::Refused => return Some(CopyAnswer::Failed),
        HeadState::Ended(_) => true,
        HeadState::CalledOff | HeadState::Unsent | HeadState::Flying => false,
    };
    match (own, head) {
        (Some(own), _) if own.status == Status::SUCCESS => Some(CopyAnswer::Copied),
        (Some(own), _) if in_time && own.status.code() == Status::PAGE_FAULT => {
            if advance(part, own) {
                None
            } else {
                Some(CopyAnswer::Failed)
            }
        }
        (Some(_), _) if in_time => Some(CopyAnswer::Failed),
        // The device could not read so far: the list is there now, since the CPU has written it.
        (None, HeadState::Ended(batch))
            if batch.status.code() == Status::BATCH_PAGE_FAULT && !was_executed(batch, nth) =>
        {
            None
        }
        (None, HeadState::Ended(batch)) if !was_executed(batch, nth) => Some(CopyAnswer::Failed),
        _ => Some(CopyAnswer::TimedOut),
    }
}

/// Goes on to where a page fault ended a copy, and brings in the page. Whether the device's account
/// makes sense.
fn advance(part: &mut Part, fault: Completion) -> bool {
    let Ok(done) = usize::try_from(fault.done) else {
        return false;
    };
    // From the end to the beginning it copies only where the sides overlap, and these do not.
    if fault.result != 0 || done >= part.rest.bytes() {
        return false;
    }
    part.rest = part.rest.part(done, usize::MAX);
    let page = fault.fault & !(PAGE - 1);
    for side in [part.rest.source().addr(), part.rest.destination().addr()] {
        // Some bytes of the page, if there are any, or those that are next.
        let at = usize::try_from(page).unwrap_or(0).saturating_sub(side);
        Memcpy::copy_one(
            &part
                .rest
                .part(if at < part.rest.bytes() { at } else { 0 }, 1),
        );
    }
    true
}

fn finish_by_cpu(parts: &mut [Part]) {
    for part in parts.iter_mut().filter(|part| part.answer.is_none()) {
        Memcpy::copy_one(&part.rest);
        part.answer = Some(CopyAnswer::Copied);
    }
}

#[cfg(test)]
mod tests;
