//! How fast a node's memory is, from the CPUs nearest to it.

use std::hint::black_box;
use std::thread::Builder;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity};
use serde::Serialize;
use transhume_sys::limits;
use transhume_sys::numa::topology::{NumaNode, cache_bytes};
use transhume_sys::numa::{NodeMemory, NodePages};

use super::chain;
use super::stream::{Work, divide, pin, rate};
use crate::context::Context;
use crate::error::CliError;
use crate::median::median;

/// How often each figure is taken; the median counts.
const REPETITIONS: u64 = 7;

/// How many runs a node is: two to prepare the memory, and those of three figures.
pub(super) const RUNS: u64 = 2 + 3 * REPETITIONS;

/// How long a run takes.
const RUN_TIME: Duration = Duration::from_millis(80);

/// Loads between two looks at the clock.
const LOADS: usize = 1 << 12;

const MIB: u64 = 1 << 20;

/// The figures of a node, and how they were taken.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measured {
    /// Of a load whose address is the value of the load before.
    pub(super) read_latency_ns: f64,
    /// Of all threads together.
    pub(super) read_bandwidth_bytes_per_s: f64,
    /// Of all threads together; a byte that is read and written counts once.
    pub(super) copy_bandwidth_bytes_per_s: f64,
    /// The memory that was measured.
    pub(super) bytes: usize,
    /// How much of it was in pages of 2 MiB.
    pub(super) huge_bytes: usize,
    /// How much of it was on another node, by the kernel's account; none should be.
    pub(super) elsewhere_bytes: usize,
    /// The caches of the CPUs, which the memory exceeds.
    pub(super) cache_bytes: Option<u64>,
    /// Where the threads ran: that of the latency on the first, those of the bandwidths on all.
    pub(super) cpus: Vec<usize>,
    pub(super) repetitions: u64,
}

/// Measures a node. What keeps it from being measured is said in words; an error ends the program.
pub(super) fn node(
    node: &NumaNode,
    context: &Context,
) -> Result<Result<Measured, String>, CliError> {
    context.check()?;
    context
        .progress
        .set_message(format!("node {}", node.number));
    if node.total_bytes == 0 {
        return Ok(Err("it has no memory".to_owned()));
    }
    let done_before = context.progress.position();
    // A thread of its own, since it stays on one CPU.
    let measured = std::thread::scope(|scope| {
        let thread = Builder::new().spawn_scoped(scope, || measure(node, context));
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        let joined = thread.join();
        joined.unwrap_or_else(|_| Err("the thread that measures panicked".to_owned()))
    });
    context.check()?;
    context.progress.set_position(done_before + RUNS);
    Ok(measured)
}

fn measure(node: &NumaNode, context: &Context) -> Result<Measured, String> {
    let cpus = cpus(node)?;
    let caches = cache_bytes(&cpus).map_err(|error| error.to_string())?;
    let bytes = size(node.free_bytes, limits::cgroup_memory_left(), caches)?;
    let no_memory = |error| format!("cannot reserve {} MiB on it: {error}", bytes >> 20);
    let mut memory = NodeMemory::reserve(node.number, bytes, NodePages::Huge).map_err(no_memory)?;
    let words = memory.words_mut();
    pin(cpus[0])?;

    // By all threads, since it is the kernel that takes its time, clearing pages.
    rate(
        &mut divide(words, &cpus),
        Work::Touch,
        Duration::ZERO,
        context,
    )?;
    context.progress.inc(1);
    let check = || context.check();
    chain::lay(words, check).map_err(|error| error.to_string())?;
    context.progress.inc(1);

    let read_latency_ns = latency(words, context)?;
    let mut parts = divide(words, &cpus);
    let mut bandwidth = |work| repeated(context, || rate(&mut parts, work, RUN_TIME, context));
    let read_bandwidth = bandwidth(Work::Read)?;
    let copy_bandwidth = bandwidth(Work::Copy)?;
    Ok(Measured {
        read_latency_ns,
        read_bandwidth_bytes_per_s: read_bandwidth,
        copy_bandwidth_bytes_per_s: copy_bandwidth,
        bytes,
        huge_bytes: memory.huge_bytes().map_err(|error| error.to_string())?,
        elsewhere_bytes: memory
            .elsewhere_bytes()
            .map_err(|error| error.to_string())?,
        cache_bytes: caches,
        cpus,
        repetitions: REPETITIONS,
    })
}

/// The nearest CPUs, of those that this process may use.
fn cpus(node: &NumaNode) -> Result<Vec<usize>, String> {
    let allowed = sched_getaffinity(None).map_err(|error| {
        format!("the kernel does not say which CPUs this process may use: {error}")
    })?;
    let may_use = |&cpu: &usize| cpu < CpuSet::MAX_CPU && allowed.is_set(cpu);
    let cpus = node
        .nearest_cpus
        .iter()
        .copied()
        .filter(may_use)
        .collect::<Vec<_>>();
    if cpus.is_empty() {
        return Err("this process may use none of the CPUs nearest to it".to_owned());
    }
    Ok(cpus)
}

/// How many bytes to measure with, a power of two: four times the caches or more, at least twice, and
/// not above a quarter of what is free.
fn size(free: u64, group_left: Option<u64>, caches: Option<u64>) -> Result<usize, String> {
    let known = caches.unwrap_or(64 * MIB);
    let least = power_of_two(known.saturating_mul(2)).max(64 * MIB);
    let most = least.max(4096 * MIB);
    let wanted = power_of_two(known.saturating_mul(4)).clamp(256 * MIB, most);
    let allowed = free.min(group_left.unwrap_or(u64::MAX)) / 4;
    let mut bytes = wanted;
    while bytes > allowed && bytes > least {
        bytes /= 2;
    }
    if bytes > allowed {
        return Err(format!(
            "it takes {} MiB to exceed caches of {} MiB, more than a quarter of the {} MiB that are free",
            bytes / MIB,
            known / MIB,
            allowed * 4 / MIB
        ));
    }
    usize::try_from(bytes).map_err(|error| error.to_string())
}

fn power_of_two(bytes: u64) -> u64 {
    bytes.checked_next_power_of_two().unwrap_or(1 << 63)
}

/// The median of runs, each of which is a step of the progress.
fn repeated(
    context: &Context,
    mut run: impl FnMut() -> Result<f64, String>,
) -> Result<f64, String> {
    let mut figures = Vec::new();
    for _ in 0..REPETITIONS {
        if context.is_interrupted() {
            return Err("interrupted".to_owned());
        }
        figures.push(run()?);
        context.progress.inc(1);
    }
    Ok(median(figures.into_iter()))
}

/// How many nanoseconds a load takes. Each run goes on where the one before ended.
fn latency(words: &[u64], context: &Context) -> Result<f64, String> {
    let mut at = 0;
    repeated(context, || {
        let mut loads = 0_u32;
        let began = Instant::now();
        while began.elapsed() < RUN_TIME {
            at = black_box(chain::follow(words, at, LOADS));
            loads += 1;
        }
        let nanos = began.elapsed().as_secs_f64() * 1e9;
        Ok(nanos / (f64::from(loads) * LOADS as f64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn mib(free: u64, left: Option<u64>, caches: Option<u64>) -> Result<usize, String> {
        size(free, left, caches).map(|bytes| bytes >> 20)
    }

    #[test]
    fn memory_exceeds_the_caches_and_leaves_the_most_free() {
        assert_eq!(mib(64 * GIB, None, Some(480 * MIB)), Ok(2048));
        assert_eq!(mib(5 * GIB, None, Some(480 * MIB)), Ok(1024));
        assert_eq!(mib(64 * GIB, None, Some(MIB)), Ok(256));
        assert_eq!(mib(512 * MIB, None, Some(MIB)), Ok(128));
        assert_eq!(mib(64 * GIB, Some(GIB), Some(33 * MIB)), Ok(256));
        assert_eq!(mib(64 * GIB, None, Some(1500 * MIB)), Ok(4096));
        assert_eq!(mib(640 * GIB, None, Some(5 * GIB)), Ok(16384));
        assert_eq!(mib(64 * GIB, None, None), Ok(256));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = mib(3 * GIB, None, Some(480 * MIB)).unwrap_err();
        assert_eq!(
            refused,
            "it takes 1024 MiB to exceed caches of 480 MiB, more than a quarter of the 3072 MiB that are free"
        );
        assert!(mib(64 * GIB, Some(0), Some(MIB)).is_err());
        assert!(mib(0, None, None).is_err());
        assert!(mib(u64::MAX, None, Some(u64::MAX)).is_err());
    }
}
