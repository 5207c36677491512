//! Which CPUs copy threads run on.
//!
//! Threads that share a last-level cache share its way to memory as well, so copy threads are spread
//! over caches first: eight threads on eight core complexes copy three times what they do on one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A CPU that this process may run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpu {
    /// Its number.
    pub number: usize,
    /// Its NUMA node, if the machine says.
    pub node: Option<u32>,
    /// The first CPU that shares its last-level cache.
    pub cache: usize,
}

/// The CPUs that this process may run on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    cpus: Vec<Cpu>,
}

impl Topology {
    /// Reads this machine's, and this process's rights.
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

    /// Reads a tree that is like `/sys/devices/system`. CPUs of which it says nothing are taken to
    /// share one cache.
    #[must_use]
    pub fn read(root: &Path, allowed: &BTreeSet<usize>) -> Self {
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
        };
        Self {
            cpus: allowed.iter().map(cpu).collect(),
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

    /// The CPUs for `threads` threads, of `node` if it has any: one of each cache, then a second of
    /// each, and from the beginning again if there are more threads than CPUs. Empty if no CPU is
    /// known.
    #[must_use]
    pub fn spread(&self, threads: usize, node: Option<u32>) -> Vec<Cpu> {
        let near = self
            .cpus
            .iter()
            .filter(|cpu| node.is_some() && cpu.node == node);
        let mut chosen = near.copied().collect::<Vec<_>>();
        if chosen.is_empty() {
            chosen.clone_from(&self.cpus);
        }
        let mut seen: BTreeMap<usize, usize> = BTreeMap::new();
        let mut order = chosen
            .into_iter()
            .map(|cpu| {
                let turn = seen.entry(cpu.cache).or_default();
                *turn += 1;
                (*turn, cpu)
            })
            .collect::<Vec<_>>();
        order.sort_unstable();
        order
            .iter()
            .map(|&(_, cpu)| cpu)
            .cycle()
            .take(if order.is_empty() { 0 } else { threads })
            .collect()
    }
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
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse::<usize>().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sockets of two caches of two CPUs each, and a node without CPUs.
    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("node/node0/cpulist", "0-3\n");
        write("node/node1/cpulist", "4-7\n");
        write("node/node2/cpulist", "\n");
        for cpu in 0..8_usize {
            let first = cpu / 2 * 2;
            write(&format!("cpu/cpu{cpu}/cache/index0/level"), "1\n");
            write(
                &format!("cpu/cpu{cpu}/cache/index0/shared_cpu_list"),
                &format!("{cpu}\n"),
            );
            write(&format!("cpu/cpu{cpu}/cache/index3/level"), "3\n");
            write(
                &format!("cpu/cpu{cpu}/cache/index3/shared_cpu_list"),
                &format!("{first}-{}\n", first + 1),
            );
        }
        root
    }

    fn spread(topology: &Topology, threads: usize, node: Option<u32>) -> Vec<usize> {
        topology
            .spread(threads, node)
            .iter()
            .map(|cpu| cpu.number)
            .collect()
    }

    #[test]
    fn threads_go_to_different_caches_first() {
        let root = tree();
        let topology = Topology::read(root.path(), &(0..8).collect());
        assert_eq!(spread(&topology, 8, None), [0, 2, 4, 6, 1, 3, 5, 7]);
        assert_eq!(spread(&topology, 3, Some(1)), [4, 6, 5]);
        assert_eq!(spread(&topology, 6, Some(1)), [4, 6, 5, 7, 4, 6]);
        assert_eq!(
            spread(&topology, 2, Some(2)),
            [0, 2],
            "a node without CPUs is served by all"
        );
    }

    #[test]
    fn only_cpus_that_are_allowed() {
        let root = tree();
        let topology = Topology::read(root.path(), &[1, 5].into());
        assert_eq!(spread(&topology, 2, None), [1, 5]);
        assert_eq!(spread(&topology, 1, Some(1)), [5]);
        assert!(
            Topology::read(root.path(), &BTreeSet::new())
                .spread(4, None)
                .is_empty()
        );
    }

    #[test]
    fn a_machine_that_says_nothing() {
        let root = tempfile::tempdir().unwrap();
        let topology = Topology::read(root.path(), &[0, 1].into());
        assert_eq!(spread(&topology, 3, Some(0)), [0, 1, 0]);
        assert!(!Topology::here().is_empty());
    }

    #[test]
    fn lists() {
        assert_eq!(
            parse_list("0-2,7\n").into_iter().collect::<Vec<_>>(),
            [0, 1, 2, 7]
        );
        assert!(parse_list("\n").is_empty());
        assert!(parse_list("x-y").is_empty());
    }
}
