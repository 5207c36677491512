//! Orders by chance: evenly, or by priorities that change at a few steps.
//!
//! With priorities a bug that needs a few steps in a certain order is found with a probability that
//! does not shrink with the number of other steps (Burckhardt et al., "A randomized scheduler with
//! probabilistic guarantees of finding bugs", 2010). shuttle's own scheduler does the same, but takes
//! where priorities change from the runs before; here an order depends on nothing but its seed.

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};

use super::{Ready, Strategy};
use crate::machine::ActorId;

/// The orders of seeds that follow each other.
#[derive(Debug)]
pub(crate) struct Random {
    next_seed: u64,
    left: u64,
    /// About how many steps a run has.
    length: u64,
    numbers: Pcg64Mcg,
    /// By actor, if this run goes by priorities; the largest first.
    priorities: Option<Vec<u64>>,
    changes: Vec<u64>,
    steps: u64,
    current: ActorId,
}

impl Random {
    /// Orders from this seed on.
    pub(crate) fn new(seed: u64, orders: u64, length: u64) -> Self {
        Self {
            next_seed: seed,
            left: orders,
            length: length.max(2),
            numbers: Pcg64Mcg::seed_from_u64(seed),
            priorities: None,
            changes: Vec::new(),
            steps: 0,
            current: 0,
        }
    }

    /// The seed of the run under way.
    pub(crate) fn seed(&self) -> u64 {
        self.next_seed.wrapping_sub(1)
    }

    fn below(&mut self, count: u64) -> u64 {
        self.numbers.next_u64() % count
    }
}

impl Strategy for Random {
    fn begin(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.numbers = Pcg64Mcg::seed_from_u64(self.next_seed);
        self.next_seed = self.next_seed.wrapping_add(1);
        self.steps = 0;
        // A quarter of them evenly; the others with one to four changes.
        let depth = self.below(4);
        self.priorities = (depth > 0).then(Vec::new);
        self.changes.clear();
        for _ in 0..self.below(4) + 1 {
            let at = 1 + self.below(self.length - 1);
            self.changes.push(at);
        }
        true
    }

    fn pick(&mut self, ready: &[Ready]) -> Option<usize> {
        self.steps += 1;
        let Some(mut priorities) = self.priorities.take() else {
            let count = ready.len() as u64;
            return usize::try_from(self.below(count)).ok();
        };
        let last = ready.iter().map(|one| one.actor).max().unwrap_or(0);
        while priorities.len() <= last {
            // Above all numbers that a change gives.
            priorities.push(self.numbers.next_u64() | (1 << 63));
        }
        if self.changes.contains(&self.steps) {
            priorities[self.current] = self.length.saturating_sub(self.steps);
        }
        let first = (0..ready.len()).max_by_key(|&one| priorities[ready[one].actor]);
        self.current = first.map_or(0, |one| ready[one].actor);
        self.priorities = Some(priorities);
        first
    }

    fn choose(&mut self, count: u32) -> u32 {
        // Rarely, since most runs should get beyond the first call that may go wrong.
        let one_of = u64::from(count) * 4;
        u32::try_from(self.below(one_of)).map_or(0, |n| if n < count { n } else { 0 })
    }
}
