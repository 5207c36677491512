//! Where workers run.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use transhume_sys::numa::topology::nearest_cpus;

/// Keeps the calling thread on the CPUs that are nearest to a node, among those that it may run on.
/// Where these are none, or are not known, it runs where it likes.
pub(crate) fn stay_near(node: u32) {
    let (Ok(allowed), Ok(near)) = (sched_getaffinity(None), nearest_cpus(node)) else {
        return;
    };
    let mut cpus = CpuSet::new();
    for cpu in near {
        if cpu < CpuSet::MAX_CPU && allowed.is_set(cpu) {
            cpus.set(cpu);
        }
    }
    if cpus.count() > 0 {
        // It is faster so, and right without.
        let _ = sched_setaffinity(None, &cpus);
    }
}

/// The CPUs that the calling thread may run on; it may again when this is dropped.
#[derive(Debug)]
pub(crate) struct Affinity(Option<CpuSet>);

impl Affinity {
    pub(crate) fn keep() -> Self {
        Self(sched_getaffinity(None).ok())
    }
}

impl Drop for Affinity {
    fn drop(&mut self) {
        if let Some(cpus) = &self.0 {
            // Where its cpuset has changed meanwhile the kernel has done it.
            let _ = sched_setaffinity(None, cpus);
        }
    }
}
