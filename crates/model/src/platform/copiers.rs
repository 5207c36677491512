//! What copies on the machine: the CPU, and a device with channels.

use std::collections::BTreeSet;

use transhume_engine::{CopyAnswer, SwapAnswer};

use super::{Held, Job};
use crate::act::Act;
use crate::actor::Actor;
use crate::bug::Bug;
use crate::machine::{Descriptor, FrameId, Machine, Progress};

/// Copies word by word on the CPU of the actor.
pub(super) fn copy_words(actor: &Actor, job: &Job) {
    if !job.early {
        copy_words_from(actor, job, 0);
    }
}

fn copy_words_from(actor: &Actor, job: &Job, first: usize) {
    let Job { from, to, .. } = *job;
    for word in first..job.words {
        let act = Act::Copy { from, to, word };
        actor.step(act, |step| step.machine.copy_word(from, to, word));
    }
}

/// Which copier a migrator uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The CPU.
    Cpu,
    /// A device, whose channels each make their copies in order, and which know nothing of each
    /// other.
    Device,
    /// Whichever is in use, of two.
    InUse,
}

/// A copier for one actor.
#[derive(Debug)]
pub(crate) struct Copier {
    pub(crate) actor: Actor,
    pub(crate) kind: Kind,
}

impl transhume_engine::Copier<Job> for Copier {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Cpu => "cpu",
            Kind::Device => "device",
            Kind::InUse => "in-use",
        }
    }

    fn copy(&self, jobs: &[Job], answers: &mut [CopyAnswer]) {
        match self.kind {
            Kind::Cpu => {
                for (job, answer) in jobs.iter().zip(&mut *answers) {
                    *answer = self.by_cpu(job);
                }
            }
            Kind::Device => self.by_device(jobs, answers),
            Kind::InUse => {
                self.by_the_one_in_use(jobs);
                answers.fill(CopyAnswer::Copied);
            }
        }
        self.actor.may_panic();
        self.actor.count(|calls| {
            for answer in answers {
                match answer {
                    CopyAnswer::Copied => calls.copied_by_copier += 1,
                    CopyAnswer::Declined => calls.declined += 1,
                    CopyAnswer::Failed => calls.copy_failures += 1,
                    CopyAnswer::TimedOut => calls.timed_out += 1,
                    CopyAnswer::Unconfirmed => calls.unconfirmed += 1,
                }
            }
        });
    }
}

impl Copier {
    /// Where a call may fail it may give up before anything is copied, or when a word is, or not know
    /// that it has copied.
    fn by_cpu(&self, job: &Job) -> CopyAnswer {
        use CopyAnswer::{Copied, Declined, Failed, TimedOut, Unconfirmed};
        if job.early {
            return Copied;
        }
        self.actor.may_panic();
        let Job { from, to, .. } = *job;
        let act = Act::Copy { from, to, word: 0 };
        let gives_up = self.actor.step(act, |step| {
            let others = [
                (Declined, 0),
                (TimedOut, 0),
                (Unconfirmed, 0),
                (Failed, 1),
                (TimedOut, 1),
                (Unconfirmed, job.words),
            ];
            let gives_up = step.answers((Failed, 0), &others);
            if gives_up.is_none_or(|(_, words)| words > 0) {
                step.machine.copy_word(from, to, 0);
            }
            gives_up
        });
        match gives_up.flatten() {
            None | Some((_, 2..)) => copy_words_from(&self.actor, job, 1),
            Some((_, 0 | 1)) => {}
        }
        gives_up.flatten().map_or(Copied, |(answer, _)| answer)
    }

    /// Where a call may fail the driver may wait no longer than it likes.
    fn by_device(&self, jobs: &[Job], answers: &mut [CopyAnswer]) {
        self.actor.may_panic();
        let submitted = self.actor.step(Act::Submit, |step| {
            let list = step.machine.submit(jobs);
            (list, step.fails())
        });
        let Some((list, has_deadline)) = submitted else {
            return;
        };
        answers.fill(CopyAnswer::Copied);
        if !has_deadline {
            self.actor.step(Act::AwaitCopies { list }, |_| {});
            return;
        }
        let called_off = self
            .actor
            .step(Act::CallOff { list }, |step| step.machine.call_off(list));
        let left = called_off.unwrap_or_default();
        for (job, answer) in jobs.iter().zip(answers) {
            if left.contains(&job.to) {
                *answer = CopyAnswer::TimedOut;
            }
        }
    }

    fn by_the_one_in_use(&self, jobs: &[Job]) {
        let taken = self.actor.step(Act::TakeCopier, |step| {
            let copier = step.machine.copier;
            step.note(|| format!("copier {copier}"));
            if let Some(users) = &mut step.machine.copies_by[copier] {
                *users += 1;
            }
            copier
        });
        let Some(copier) = taken else { return };
        for job in jobs {
            for word in 0..job.words {
                let (from, to) = (job.from, job.to);
                self.actor.step(Act::Copy { from, to, word }, |step| {
                    if step.machine.copies_by[copier].is_none() {
                        let what = format!("copier {copier} copies after it was taken away");
                        step.machine.violated(what);
                    }
                    step.machine.copy_word(from, to, word);
                });
            }
        }
        self.actor.step(Act::LeaveCopier { copier }, |step| {
            if let Some(users) = &mut step.machine.copies_by[copier] {
                *users -= 1;
            }
        });
    }
}

impl Machine {
    /// Queues the copies of a list, in equal parts by words; returns the number of the list.
    fn submit(&mut self, jobs: &[Job]) -> usize {
        let list = self.lists.len();
        let channels = self.channels.len();
        let words = |job: Job| (0..job.words).map(move |word| (job.from, job.to, word));
        let mut copies: Vec<(FrameId, FrameId, usize)> = jobs
            .iter()
            .filter(|job| !job.early)
            .copied()
            .flat_map(words)
            .collect();
        let part = if self.has(Bug::RemainderLost) {
            let part = copies.len() / channels;
            copies.truncate(part * channels);
            part
        } else if self.splits_folios {
            copies.len().div_ceil(channels)
        } else {
            // Frames of a list are of one size.
            let words = jobs.first().map_or(1, |job| job.words);
            jobs.len().div_ceil(channels) * words
        };
        let left = copies.len();
        for (n, (from, to, word)) in copies.into_iter().enumerate() {
            let last = n + 1 == left;
            self.channels[n / part].push_back(Descriptor {
                list,
                from,
                to,
                word,
                last,
            });
        }
        self.lists.push(Progress {
            left,
            last_done: left == 0,
        });
        list
    }

    /// The device makes no more copies of a list; the frames that are not complete.
    fn call_off(&mut self, list: usize) -> BTreeSet<FrameId> {
        let mut left = BTreeSet::new();
        for channel in &mut self.channels {
            left.extend(
                channel
                    .iter()
                    .filter(|copy| copy.list == list)
                    .map(|copy| copy.to),
            );
            channel.retain(|copy| copy.list != list);
        }
        left
    }

    /// The device makes the next copy of a channel.
    pub(crate) fn device(&mut self, channel: usize) {
        if let Some(next) = self.channels[channel].pop_front() {
            self.copy_word(next.from, next.to, next.word);
            let progress = &mut self.lists[next.list];
            progress.left -= 1;
            progress.last_done |= next.last;
        }
    }

    /// Whether the list is complete, as the driver sees it.
    pub(crate) fn is_copied(&self, list: usize) -> bool {
        let progress = self.lists[list];
        if self.has(Bug::LastDescriptorOnly) {
            progress.last_done
        } else {
            progress.left == 0
        }
    }
}

/// Swaps on the CPU, word by word.
#[derive(Debug)]
pub(crate) struct Swapper {
    pub(crate) actor: Actor,
}

/// A swap that a pair needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SwapJob {
    pub(crate) a: FrameId,
    pub(crate) b: FrameId,
    pub(crate) words: usize,
}

/// Swaps word by word on the CPU of the actor.
pub(super) fn swap_words(actor: &Actor, a: &Held, b: &Held) {
    let words = actor.look(|machine| machine.frames[a.source].words.len());
    let job = SwapJob {
        a: a.source,
        b: b.source,
        words,
    };
    swap_job(actor, job);
}

fn swap_job(actor: &Actor, job: SwapJob) {
    let SwapJob { a, b, words } = job;
    for word in 0..words {
        let act = Act::Swap { a, b, word };
        actor.step(act, |step| step.machine.swap_word(a, b, word));
    }
}

impl Machine {
    fn swap_word(&mut self, a: FrameId, b: FrameId, word: usize) {
        let (of_a, of_b) = (self.frames[a].words[word], self.frames[b].words[word]);
        self.frames[a].words[word] = of_b;
        self.frames[b].words[word] = of_a;
    }
}

impl transhume_engine::Swapper<SwapJob> for Swapper {
    fn name(&self) -> &str {
        "cpu"
    }

    fn swap(&self, pairs: &[SwapJob], answers: &mut [SwapAnswer]) {
        for (job, answer) in pairs.iter().zip(&mut *answers) {
            self.actor.may_panic();
            let frame = job.a;
            // Where a call may fail it may leave a pair untouched.
            let leaves = self.actor.step(Act::Answer { frame }, |step| step.fails());
            if leaves != Some(true) {
                swap_job(&self.actor, *job);
                *answer = SwapAnswer::Swapped;
            }
        }
        self.actor.may_panic();
        self.actor.count(|calls| {
            for answer in answers {
                match answer {
                    SwapAnswer::Swapped => calls.copied_by_copier += 1,
                    SwapAnswer::Untouched => calls.unconfirmed += 1,
                }
            }
        });
    }
}
