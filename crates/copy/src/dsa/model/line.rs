//! What is in the model's queues.

use std::collections::VecDeque;
use std::time::Instant;

use super::execute::Unwritten;
use super::faults::{Fault, Faults};
use crate::dsa::descriptor::{Descriptor, opcode};
use crate::dsa::portal::Shape;

const WHICH_ENTRY: u64 = 104;

#[derive(Debug)]
pub(super) struct State {
    pub(super) queues: Vec<Line>,
    pub(super) submitted: u64,
    pub(super) stop: bool,
}

/// What is in a queue, each with its number.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) size: usize,
    pub(super) waiting: VecDeque<Entry>,
    pub(super) executed: Vec<u64>,
    pub(super) parked: Vec<(Entry, Option<Instant>)>,
    pub(super) unwritten: Vec<(Unwritten, Instant)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) descriptor: Descriptor,
    /// It was parked, and is now executed without more ado.
    pub(super) again: bool,
}

impl Line {
    pub(super) fn new(shape: &Shape) -> Self {
        let size = usize::try_from(shape.size).unwrap_or(1);
        Self {
            size,
            waiting: VecDeque::with_capacity(size),
            executed: Vec::new(),
            parked: Vec::with_capacity(size),
            unwritten: Vec::with_capacity(size),
        }
    }

    pub(super) fn held(&self) -> usize {
        self.waiting.len() + self.executed.len() + self.parked.len()
    }

    /// Whether something submitted before `number` is not done.
    pub(super) fn has_before(&self, number: u64) -> bool {
        self.executed.iter().any(|&other| other < number)
            || self.waiting.iter().any(|entry| entry.number < number)
            || self.parked.iter().any(|(entry, _)| entry.number < number)
    }

    /// Takes the entry to execute next.
    pub(super) fn take(&mut self, faults: &Faults, now: Instant) -> Option<Entry> {
        let due = |(_, when): &(Entry, Option<Instant>)| when.is_some_and(|when| when <= now);
        if let Some(index) = self.parked.iter().position(due) {
            return Some(self.parked.swap_remove(index).0);
        }
        let first = self.waiting.front()?.number;
        let skip = if faults.befalls(Fault::Reorders, first) {
            let random = faults.random(first, WHICH_ENTRY) % self.waiting.len() as u64;
            usize::try_from(random).unwrap_or(0)
        } else {
            0
        };
        let ready = |index: &usize| {
            self.waiting.get(*index).is_some_and(|entry| {
                entry.descriptor.opcode() != opcode::DRAIN || !self.has_before(entry.number)
            })
        };
        let index = (skip..self.waiting.len()).chain(0..skip).find(ready)?;
        self.waiting.remove(index)
    }

    /// When something is due by itself.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let parked = self.parked.iter().filter_map(|(_, when)| *when);
        parked
            .chain(self.unwritten.iter().map(|(_, when)| *when))
            .min()
    }
}
