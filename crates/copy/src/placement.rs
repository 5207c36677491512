//! Which CPUs copy threads run on.
//!
//! Threads that share a last-level cache share its way to memory as well, so copy threads are spread
//! over caches first (\[offload\]: eight threads copy 37.1 GB/s spread over the core complexes of a
//! Zen 3, and 11.1 all in one). Two threads of one core share its buffers for outstanding lines, so a
//! second thread of a core comes after every core has one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// More CPUs than this, or nodes, are a mistake in a list.
const MOST_CPUS: usize = 1 << 16;

/// A CPU that this process may run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpu {
    /// Its number.
    pub number: usize,
    /// Its NUMA node, if the machine says.
    pub node: Option<u32>,
    /// The first CPU that shares its last-level cache.
    pub cache: usize,
    /// The first CPU that shares its core: itself, where cores have one thread.
    pub core: usize,
}

/// The CPUs that this process may run on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    cpus: Vec<Cpu>,
}

impl Topology {
    /// Reads this machine's, and the calling thread's rights: threads inherit those of the thread
    /// that starts them, and a CPU set limits them. Empty on machines with more than 1024 CPUs, where
    /// the scheduler then places the threads.
    #[must_use]
    pub fn here() -> Self {
        let allowed = rustix::thread::sched_getaffinity(None).map(|set| {
            (0..rustix::thread::CpuSet::MAX_CPU)
                .filter(|&cpu| set.is_set(cpu))
                .collect()
        });
        Self::read(
            Path::new("/sys/devices/system"),
            &allowed.unwrap_or_default(),
        )
    }

    /// Reads a tree that is like `/sys/devices/system`, as far as the CPUs in `allowed` go. Those
    /// that it calls offline are left out; those of which it says nothing are taken to share one
    /// cache and no core.
    #[must_use]
    pub fn read(root: &Path, allowed: &BTreeSet<usize>) -> Self {
        let online = fs::read_to_string(root.join("cpu/online"))
            .ok()
            .map(|list| parse_list(&list));
        let mut nodes = BTreeMap::new();
        for node in fs::read_dir(root.join("node"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = node.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix("node")?.parse().ok());
            let list = fs::read_to_string(node.path().join("cpulist")).unwrap_or_default();
            if let Some(number) = number {
                nodes.extend(parse_list(&list).into_iter().map(|cpu| (cpu, number)));
            }
        }
        let cpu = |&number: &usize| Cpu {
            number,
            node: nodes.get(&number).copied(),
            cache: last_level_cache(&root.join(format!("cpu/cpu{number}/cache"))).unwrap_or(0),
            core: core(&root.join(format!("cpu/cpu{number}/topology"))).unwrap_or(number),
        };
        let there = |number: &&usize| online.as_ref().is_none_or(|online| online.contains(number));
        Self {
            cpus: allowed.iter().filter(there).map(cpu).collect(),
        }
    }

    /// How many CPUs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cpus.len()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cpus.is_empty()
    }

    /// The CPUs that are known, by number.
    #[must_use]
    pub fn cpus(&self) -> &[Cpu] {
        &self.cpus
    }

    /// The CPUs for `count` threads beside one that is on the CPU `caller`: of `node`, if it has any,
    /// else of all. One of each cache first, the caller's cache last, then a second of each; second
    /// threads of cores after that; the caller's own CPU only when every other has a thread; and from
    /// the beginning again if there are more threads than CPUs. Empty if no CPU is known.
    #[must_use]
    pub fn workers(&self, count: usize, node: Option<u32>, caller: Option<usize>) -> Vec<Cpu> {
        let near = |cpu: &&Cpu| node.is_some() && cpu.node == node;
        let mut order = self.cpus.iter().filter(near).collect::<Vec<_>>();
        if order.is_empty() {
            order = self.cpus.iter().collect();
        }
        // The caller comes first, has the first turn of its core and cache, and goes to the end.
        let is_caller = |cpu: &Cpu| Some(cpu.number) == caller;
        order.sort_by_key(|cpu| !is_caller(cpu));
        let mut of_core: BTreeMap<usize, usize> = BTreeMap::new();
        let mut of_cache: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut turns = order
            .into_iter()
            .map(|&cpu| {
                let thread = next(of_core.entry(cpu.core).or_default());
                let turn = next(of_cache.entry((thread, cpu.cache)).or_default());
                (is_caller(&cpu), thread, turn, cpu)
            })
            .collect::<Vec<_>>();
        turns.sort_unstable();
        let known = if turns.is_empty() { 0 } else { count };
        let cpus = turns.into_iter().map(|(.., cpu)| cpu);
        cpus.collect::<Vec<_>>()
            .into_iter()
            .cycle()
            .take(known)
            .collect()
    }
}

/// Counts one more, and says how many there were.
fn next(count: &mut usize) -> usize {
    *count += 1;
    *count - 1
}

/// The first CPU of the core.
fn core(topology: &Path) -> Option<usize> {
    let read = |name: &str| fs::read_to_string(topology.join(name)).ok();
    // The second is the name in kernels before 5.3.
    let list = read("core_cpus_list").or_else(|| read("thread_siblings_list"))?;
    parse_list(&list).first().copied()
}

/// The first CPU that shares the cache of the highest level.
fn last_level_cache(caches: &Path) -> Option<usize> {
    let mut best: Option<(u32, usize)> = None;
    for index in fs::read_dir(caches).ok()?.flatten() {
        let read = |name: &str| fs::read_to_string(index.path().join(name)).ok();
        let level = read("level").and_then(|level| level.trim().parse().ok());
        let first = read("shared_cpu_list").and_then(|list| parse_list(&list).first().copied());
        if let (Some(level), Some(first)) = (level, first) {
            best = best.max(Some((level, first)));
        }
    }
    best.map(|(_, first)| first)
}

/// A list such as `0-3,8`. What cannot be understood is left out.
fn parse_list(list: &str) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let last = last.trim().parse::<usize>().ok()?.min(MOST_CPUS);
        Some(first.trim().parse::<usize>().ok()?..=last)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sixteen CPUs: two sockets of two caches of two cores of two threads each, the second threads
    /// numbered after all the first; CPU 15 offline; and a node without CPUs.
    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("cpu/online", "0-14\n");
        write("node/node0/cpulist", "0-3,8-11\n");
        write("node/node1/cpulist", "4-7,12-14\n");
        write("node/node2/cpulist", "\n");
        write("node/has_memory", "0-2\n");
        for cpu in 0..15_usize {
            let at = format!("cpu/cpu{cpu}");
            let first = cpu % 8;
            let pair = first / 2 * 2;
            let siblings = format!("{first},{}\n", first + 8);
            write(&format!("{at}/topology/core_cpus_list"), &siblings);
            write(&format!("{at}/cache/index0/level"), "1\n");
            write(&format!("{at}/cache/index0/shared_cpu_list"), &siblings);
            write(&format!("{at}/cache/index3/level"), "3\n");
            write(
                &format!("{at}/cache/index3/shared_cpu_list"),
                &format!("{pair}-{},{}-{}\n", pair + 1, pair + 8, pair + 9),
            );
            write(&format!("{at}/cache/uevent"), "");
        }
        root
    }

    fn all() -> Topology {
        Topology::read(tree().path(), &(0..16).collect())
    }

    fn workers(
        topology: &Topology,
        count: usize,
        node: Option<u32>,
        caller: Option<usize>,
    ) -> Vec<usize> {
        let cpus = topology.workers(count, node, caller);
        cpus.iter().map(|cpu| cpu.number).collect()
    }

    #[test]
    fn a_tree_is_read() {
        let topology = all();
        assert_eq!(topology.len(), 15, "CPU 15 is offline");
        assert_eq!(
            topology.cpus()[13],
            Cpu {
                number: 13,
                node: Some(1),
                cache: 4,
                core: 5
            }
        );
    }

    #[test]
    fn threads_go_to_different_caches_first_and_to_second_threads_of_cores_last() {
        assert_eq!(
            workers(&all(), 17, None, None),
            [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 0, 2]
        );
        assert_eq!(workers(&all(), 0, None, None), []);
    }

    #[test]
    fn the_caller_keeps_its_cpu_its_core_and_its_cache_to_itself_for_long() {
        assert_eq!(
            workers(&all(), 16, None, Some(1)),
            [2, 4, 6, 0, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 1, 2]
        );
        // A caller on a second thread has the core, too.
        assert_eq!(workers(&all(), 4, None, Some(9)), [2, 4, 6, 0]);
        assert!(!workers(&all(), 7, None, Some(9)).contains(&1));
    }

    #[test]
    fn threads_of_a_node() {
        assert_eq!(workers(&all(), 3, Some(1), None), [4, 6, 5]);
        assert_eq!(
            workers(&all(), 8, Some(1), Some(0)),
            [4, 6, 5, 7, 12, 14, 13, 4]
        );
        assert_eq!(
            workers(&all(), 2, Some(2), None),
            [0, 2],
            "a node without CPUs is served by all"
        );
        assert_eq!(workers(&all(), 2, Some(9), None), [0, 2], "no such node");
    }

    #[test]
    fn only_cpus_that_are_allowed() {
        let root = tree();
        let topology = Topology::read(root.path(), &[1, 5, 15].into());
        assert_eq!(workers(&topology, 2, None, None), [1, 5]);
        assert_eq!(workers(&topology, 1, Some(1), None), [5]);
        assert_eq!(
            workers(&topology, 1, Some(1), Some(5)),
            [5],
            "there is no other"
        );
        let none = Topology::read(root.path(), &BTreeSet::new());
        assert!(none.is_empty() && none.workers(4, None, Some(0)).is_empty());
    }

    #[test]
    fn a_machine_that_says_nothing() {
        let root = tempfile::tempdir().unwrap();
        let topology = Topology::read(root.path(), &[0, 1].into());
        assert_eq!(workers(&topology, 3, Some(0), None), [0, 1, 0]);
        assert_eq!(workers(&topology, 1, None, Some(0)), [1]);
        let nowhere = Topology::read(Path::new("/nonexistent"), &[3].into());
        assert_eq!(workers(&nowhere, 1, None, None), [3]);
        assert!(!Topology::here().is_empty());
    }

    #[test]
    fn lists() {
        assert_eq!(
            parse_list("0-2,7\n").into_iter().collect::<Vec<_>>(),
            [0, 1, 2, 7]
        );
        for nothing in ["", "\n", "x-y", "3-", "5-3", "-"] {
            assert!(parse_list(nothing).is_empty(), "{nothing}");
        }
        assert_eq!(parse_list("0-99999999999999999999,2"), [2].into());
        assert_eq!(parse_list("65535-9999999999").len(), 2);
    }
}
