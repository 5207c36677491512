//! Shootdowns: interrupts that are sent, taken and acknowledged.

use std::collections::BTreeSet;

use transhume_engine::{Generation, Generations};

use super::{CpuId, Machine, SpaceId};
use crate::bug::Bug;

/// A shootdown under way, or made.
#[derive(Clone, Debug)]
pub(crate) struct Flush {
    /// The CPUs that have not acknowledged it.
    pub(crate) pending: BTreeSet<CpuId>,
    /// When it began.
    pub(crate) began: Generation,
    /// The address spaces that it is for, each once.
    spaces: Vec<SpaceId>,
}

/// Moments by a number that wraps, as the bug has it.
#[derive(Debug)]
pub(crate) struct Wrapping([Generation; 2]);

impl Wrapping {
    pub(crate) fn new() -> Self {
        let all = Generations::new();
        Self([all.now(), all.begin()])
    }
}

impl Machine {
    /// Sends interrupts to whoever may have translations of these address spaces; returns the number
    /// of the shootdown.
    pub(crate) fn send(&mut self, spaces: &[SpaceId]) -> usize {
        let mut pending = BTreeSet::new();
        for &space in spaces {
            if self.has(Bug::CpuLostInFlush) {
                pending.extend(&self.users[space]);
            } else {
                // Who translates anew from here on is a user again.
                pending.append(&mut self.users[space]);
            }
        }
        let number = self.flushes.len();
        for &cpu in &pending {
            self.cpus[cpu].inbox.push_back(number);
        }
        self.flushes.push(Flush {
            pending,
            began: self.generations.begin(),
            spaces: spaces.to_vec(),
        });
        self.count_flushed();
        number
    }

    /// A CPU takes an interrupt: it forgets all translations, and says so.
    pub(crate) fn interrupt(&mut self, cpu: CpuId) {
        if let Some(flush) = self.cpus[cpu].inbox.pop_front() {
            self.cpus[cpu].tlb.clear();
            self.flushes[flush].pending.remove(&cpu);
            self.count_flushed();
        }
    }

    fn count_flushed(&mut self) {
        let done = |flush: &Flush| flush.pending.is_empty();
        while self.flushes.get(self.flushed).is_some_and(done) {
            self.flushed += 1;
        }
    }

    /// Whether everything has been invalidated that had to be when this shootdown was sent. What
    /// others sent before has to be waited for: a CPU that they asked was not asked again.
    pub(crate) fn is_flushed(&self, number: usize) -> bool {
        if self.has(Bug::SecondFlusherDoesNotWait) {
            return self.flushes[number].pending.is_empty();
        }
        self.flushed > number
    }

    /// The shootdown has come to its end.
    pub(crate) fn finish(&mut self, number: usize) {
        // Who waits for a pair of another address space is not served by it.
        if self.flushes[number].spaces.len() == self.spaces.len() {
            self.generations.finish(self.flushes[number].began);
        }
        if self.has(Bug::CpuLostInFlush) {
            for space in self.flushes[number].spaces.clone() {
                self.users[space].clear();
            }
        }
    }

    /// The moment that a pair is recorded at.
    pub(crate) fn moment(&self) -> Generation {
        if self.has(Bug::GenerationWraps) {
            return self.wrapping.0[self.flushes.len() % 2];
        }
        self.generations.now()
    }

    /// Whether a shootdown that began after the moment has come to its end.
    pub(crate) fn has_flushed(&self, since: Generation) -> bool {
        if self.has(Bug::GenerationWraps) {
            let finished = self
                .flushes
                .iter()
                .rposition(|flush| flush.pending.is_empty())
                .map_or(0, |last| last + 1);
            return self.wrapping.0[finished % 2] != since && finished > 0;
        }
        self.generations.has_flushed(since)
    }

    /// Takes all interrupts, when there is nobody else to do it.
    pub(crate) fn interrupt_all(&mut self) {
        for cpu in 0..self.cpus.len() {
            while !self.cpus[cpu].inbox.is_empty() {
                self.interrupt(cpu);
            }
        }
    }
}
