//! Who runs where.

use std::ops::Range;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Which CPUs the migrator and the application run on: different ones where there are several.
pub(crate) struct Cpus {
    all: Option<CpuSet>,
    list: Vec<usize>,
}

impl Cpus {
    pub(crate) fn divide() -> Self {
        let all = sched_getaffinity(None).ok();
        let list = all.as_ref().map_or_else(Vec::new, |set| {
            (0..CpuSet::MAX_CPU)
                .filter(|&cpu| set.is_set(cpu))
                .collect()
        });
        Self { all, list }
    }

    fn pin(&self, place: usize) {
        if place < self.list.len() {
            self.pin_among(place..place + 1);
        }
    }

    fn pin_among(&self, places: Range<usize>) {
        let mut set = CpuSet::new();
        for &cpu in &self.list[places] {
            set.set(cpu);
        }
        // Where that is forbidden the scheduler places the thread.
        let _ = sched_setaffinity(None, &set);
    }

    /// How many are left beside an application of so many threads: one at least.
    fn beside(&self, application: usize) -> usize {
        self.list.len().saturating_sub(application).max(1)
    }

    /// Puts the calling thread, and the process that it starts next, where an application of so many
    /// threads is to be.
    pub(crate) fn pin_process(&self, threads: usize) {
        if self.list.len() > 1 {
            self.pin_among(self.beside(threads)..self.list.len());
        }
    }

    /// Puts the calling thread and those that it starts beside such an application, or anywhere if
    /// they are too many to have a CPU each there.
    pub(crate) fn pin_beside(&self, threads: usize, movers: usize) {
        let beside = self.beside(threads);
        if self.list.len() > 1 && movers <= beside {
            self.pin_among(0..beside);
        } else {
            self.unpin();
        }
    }

    pub(crate) fn pin_migrator(&self) {
        if self.list.len() > 1 {
            self.pin(0);
        }
    }

    pub(crate) fn pin_application(&self, thread: usize) {
        if self.list.len() > 1 {
            self.pin(1 + thread % (self.list.len() - 1));
        }
    }

    pub(crate) fn unpin(&self) {
        if let Some(all) = &self.all {
            let _ = sched_setaffinity(None, all);
        }
    }
}
