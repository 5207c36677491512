//! The nodes of the machine: what memory and CPUs they have, how far apart and how fast they are,
//! and in which tiers the kernel has put them.
//!
//! Everything comes from sysfs, which anybody may read. What the kernel does not show is absent here
//! and never guessed.

mod cache;
mod kind;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use super::MAX_NODES;
use crate::abi::to_usize;
use crate::limits;
use crate::text::{self, TextError};

pub use cache::cache_bytes;
pub use kind::{DaxDevice, NodeKind, Origin};

/// CPUs have numbers below this.
const MAX_CPUS: u32 = 1 << 16;

/// The nodes and the memory tiers of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The nodes that are online, in order; some may have no memory, some no CPUs.
    pub nodes: Vec<NumaNode>,
    /// The tiers, the fastest first; `None` where the kernel shows none, as before Linux 6.1.
    pub tiers: Option<Vec<MemoryTier>>,
    /// Whether the kernel moves cold pages to a lower tier in place of reclaiming them; `None` where
    /// it does not say.
    pub demotion: Option<bool>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumaNode {
    /// Its number.
    pub number: u32,
    /// What its memory is said to be.
    pub kind: NodeKind,
    /// The DAX devices that serve as its memory.
    pub devices: Vec<DaxDevice>,
    /// Its memory in bytes.
    pub total_bytes: u64,
    /// The bytes that nobody uses. What caches hold is not among them.
    pub free_bytes: u64,
    /// Its CPUs that are online, in order.
    pub cpus: Vec<usize>,
    /// The CPUs that are nearest to its memory ([`nearest_cpus`]).
    pub nearest_cpus: Vec<usize>,
    /// How far each node is from this one, itself included, in the firmware's units: 10 is local.
    pub distances: BTreeMap<u32, u32>,
    /// The tier that its memory is in.
    pub tier: Option<u32>,
    /// The nodes with the best way to its memory, which [`performance`](Self::performance) is
    /// about; none where the firmware has no HMAT.
    pub initiators: Vec<u32>,
    /// How fast the firmware says that the memory is.
    pub performance: Performance,
    /// Its pools of huge pages, by size.
    pub huge_pages: Vec<HugePages>,
}

/// What the firmware (the HMAT, or the CDAT of a CXL device) rates memory at, as seen from the best
/// initiators. What it does not say is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Performance {
    /// In nanoseconds.
    pub read_latency_ns: Option<u64>,
    /// In nanoseconds.
    pub write_latency_ns: Option<u64>,
    /// In bytes per second.
    pub read_bandwidth: Option<u64>,
    /// In bytes per second.
    pub write_bandwidth: Option<u64>,
}

/// A node's pool of huge pages of one size, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// The size of a page in bytes.
    pub page_bytes: usize,
    /// All there are.
    pub total: usize,
    /// Those that nobody has.
    pub free: usize,
}

/// A tier of memory: nodes that the kernel takes to be alike fast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryTier {
    /// Its number; lower is faster.
    pub number: u32,
    /// Its nodes.
    pub nodes: Vec<u32>,
}

impl Topology {
    /// Reads this machine's.
    ///
    /// # Errors
    ///
    /// [`TextError`] on a kernel without NUMA, and where sysfs says what cannot be understood.
    ///
    /// # References
    ///
    /// `Documentation/ABI/stable/sysfs-devices-node`, `Documentation/admin-guide/mm/numaperf.rst`,
    /// `Documentation/ABI/testing/sysfs-kernel-mm-memory-tiers`, `sysfs-kernel-mm-numa` and
    /// `sysfs-bus-dax`.
    pub fn here() -> Result<Self, TextError> {
        Self::read(Path::new("/sys"))
    }

    /// Reads a tree that is like `/sys`.
    ///
    /// # Errors
    ///
    /// As [`here`](Self::here).
    pub fn read(root: &Path) -> Result<Self, TextError> {
        let folder = root.join("devices/system/node");
        let online = text::read_list(folder.join("online"), MAX_NODES)?;
        let tiers = tiers(root)?;
        let mut devices = kind::kmem_devices(root)?;
        let mut nodes = Vec::with_capacity(online.len());
        for &number in &online {
            let at = folder.join(format!("node{number}"));
            let mut node = node(&at, number, &online)?;
            let is_in = |tier: &&MemoryTier| tier.nodes.contains(&number);
            node.tier = tiers.iter().flatten().find(is_in).map(|tier| tier.number);
            node.devices = devices.remove(&number).unwrap_or_default();
            node.nearest_cpus = nearest_cpus_in(root, number)?;
            node.kind = kind::of(&node);
            nodes.push(node);
        }
        Ok(Self {
            nodes,
            tiers,
            demotion: demotion(root)?,
        })
    }

    /// The node of this number.
    #[must_use]
    pub fn node(&self, number: u32) -> Option<&NumaNode> {
        self.nodes.iter().find(|node| node.number == number)
    }
}

/// The CPUs of a node, or if it has none those of the node with CPUs that is at the least distance
/// from it: of several the one of the lowest number. None where there is no such node.
///
/// # Errors
///
/// [`TextError`] on a kernel without NUMA, and where a file of sysfs does not say what it should.
///
/// # References
///
/// `Documentation/ABI/stable/sysfs-devices-node`.
pub fn nearest_cpus(node: u32) -> Result<Vec<usize>, TextError> {
    nearest_cpus_in(Path::new("/sys"), node)
}

fn nearest_cpus_in(root: &Path, node: u32) -> Result<Vec<usize>, TextError> {
    let folder = root.join("devices/system/node");
    let of = |node| text::if_there(cpus(&folder.join(format!("node{node}"))));
    match of(node)? {
        None => return Ok(Vec::new()),
        Some(cpus) if !cpus.is_empty() => return Ok(cpus),
        Some(_) => {}
    }
    let online = text::read_list(folder.join("online"), MAX_NODES)?;
    let distances = distances(&folder.join(format!("node{node}/distance")), &online)?;
    let mut nearest: Option<(u32, Vec<usize>)> = None;
    for other in online {
        let distance = distances.get(&other).copied().unwrap_or(u32::MAX);
        // The first of the least: nodes are in order.
        if nearest.as_ref().is_none_or(|(least, _)| distance < *least) {
            let cpus = of(other)?.unwrap_or_default();
            nearest = if cpus.is_empty() {
                nearest
            } else {
                Some((distance, cpus))
            };
        }
    }
    Ok(nearest.map_or_else(Vec::new, |(_, cpus)| cpus))
}

fn cpus(at: &Path) -> Result<Vec<usize>, TextError> {
    let cpus = text::read_list(at.join("cpulist"), MAX_CPUS)?;
    Ok(cpus.into_iter().map(|cpu| to_usize(cpu.into())).collect())
}

/// How large the memory of a node is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize {
    /// All of it.
    pub total: u64,
    /// What nobody uses. What caches hold is not among it.
    pub free: u64,
}

/// How large the memory of one node is now, without looking at anything else.
///
/// # Errors
///
/// [`TextError`] where there is no such node.
///
/// # References
///
/// `Documentation/ABI/stable/sysfs-devices-node`.
pub fn memory_size(node: u32) -> Result<MemorySize, TextError> {
    memory_size_at(
        Path::new(&format!("/sys/devices/system/node/node{node}")),
        node,
    )
}

/// How much free memory of a node the kernel keeps for itself: with less it begins to take memory away
/// from others (the watermarks `high` of its zones). In bytes.
///
/// # Errors
///
/// [`TextError`] without procfs, and for a node that is not there.
///
/// # References
///
/// proc_zoneinfo(5), `Documentation/admin-guide/sysctl/vm.rst`, `watermark_scale_factor`.
pub fn watermark(node: u32) -> Result<u64, TextError> {
    let path = "/proc/zoneinfo";
    high_pages(&text::read(path)?, node)
        .map(|pages| pages * crate::abi::to_u64(rustix::param::page_size()))
        .ok_or_else(|| TextError::unexpected(path, "the watermarks of the node"))
}

/// The sum over the zones of a node. `None` if there is none.
fn high_pages(zoneinfo: &str, node: u32) -> Option<u64> {
    let wanted = format!("Node {node},");
    let (mut here, mut sum) = (false, None);
    for line in zoneinfo.lines() {
        if line.starts_with("Node ") {
            here = line.starts_with(&wanted);
        } else if here && let Some(pages) = line.trim_start().strip_prefix("high ") {
            *sum.get_or_insert(0) += pages.trim().parse::<u64>().ok()?;
        }
    }
    sum
}

fn memory_size_at(at: &Path, number: u32) -> Result<MemorySize, TextError> {
    let path = at.join("meminfo");
    let meminfo = text::read(&path)?;
    let bytes = |name| {
        text::kib_field(&meminfo, &format!("Node {number} {name}"))
            .ok_or_else(|| TextError::unexpected(&path, name))
    };
    Ok(MemorySize {
        total: bytes("MemTotal")?,
        free: bytes("MemFree")?,
    })
}

fn node(at: &Path, number: u32, online: &[u32]) -> Result<NumaNode, TextError> {
    let memory = memory_size_at(at, number)?;
    let initiators = at.join("access0/initiators");
    Ok(NumaNode {
        number,
        // What the node is said to be is found out from all of this.
        kind: NodeKind::CpuLess,
        devices: Vec::new(),
        tier: None,
        total_bytes: memory.total,
        free_bytes: memory.free,
        cpus: cpus(at)?,
        nearest_cpus: Vec::new(),
        distances: distances(&at.join("distance"), online)?,
        initiators: numbered(&initiators, "node")?,
        performance: performance(&initiators)?,
        huge_pages: huge_pages(&at.join("hugepages"))?,
    })
}

/// The kernel lists one for each node that is online, without its number.
fn distances(path: &Path, online: &[u32]) -> Result<BTreeMap<u32, u32>, TextError> {
    let Some(text) = text::if_there(text::read(path))? else {
        return Ok(BTreeMap::new());
    };
    let numbers = text.split_whitespace().map(str::parse::<u32>);
    let numbers = numbers.collect::<Result<Vec<_>, _>>().ok();
    let numbers = numbers.filter(|numbers| numbers.len() == online.len());
    let numbers = numbers.ok_or_else(|| TextError::unexpected(path, "a distance for each node"))?;
    Ok(online.iter().copied().zip(numbers).collect())
}

fn performance(initiators: &Path) -> Result<Performance, TextError> {
    let rated = |name: &str, unit: u64| -> Result<Option<u64>, TextError> {
        let path = initiators.join(name);
        match text::if_there(text::read_number(&path))? {
            // The kernel shows a zero for what the firmware does not say.
            None | Some(0) => Ok(None),
            Some(number) => match number.checked_mul(unit) {
                Some(number) => Ok(Some(number)),
                None => Err(TextError::unexpected(path, "a number that can be")),
            },
        }
    };
    // numaperf.rst says MiB/s; the ABI document says MB/s, which would be 5 % less.
    Ok(Performance {
        read_latency_ns: rated("read_latency", 1)?,
        write_latency_ns: rated("write_latency", 1)?,
        read_bandwidth: rated("read_bandwidth", 1 << 20)?,
        write_bandwidth: rated("write_bandwidth", 1 << 20)?,
    })
}

fn huge_pages(pools: &Path) -> Result<Vec<HugePages>, TextError> {
    let sizes = limits::hugetlb_sizes_in(pools)?;
    let pool = |page_bytes: usize| {
        let pool = pools.join(format!("hugepages-{}kB", page_bytes / 1024));
        let number = |name| text::read_number(pool.join(name)).map(to_usize);
        Ok(HugePages {
            page_bytes,
            total: number("nr_hugepages")?,
            free: number("free_hugepages")?,
        })
    };
    sizes.into_iter().map(pool).collect()
}

fn tiers(root: &Path) -> Result<Option<Vec<MemoryTier>>, TextError> {
    let folder = root.join("devices/virtual/memory_tiering");
    if !folder.exists() {
        return Ok(None);
    }
    let tier = |number: u32| {
        let list = folder.join(format!("memory_tier{number}/nodelist"));
        Ok(MemoryTier {
            number,
            nodes: text::read_list(list, MAX_NODES)?,
        })
    };
    let numbers = numbered(&folder, "memory_tier")?;
    numbers
        .into_iter()
        .map(tier)
        .collect::<Result<_, _>>()
        .map(Some)
}

/// The numbers of the entries of a folder that are named so and numbered, in order.
pub(super) fn numbered(folder: &Path, name: &str) -> Result<Vec<u32>, TextError> {
    let entries = text::entries(folder)?;
    let number = |entry: &String| entry.strip_prefix(name)?.parse().ok();
    let mut numbers = entries.iter().filter_map(number).collect::<Vec<u32>>();
    numbers.sort_unstable();
    Ok(numbers)
}

fn demotion(root: &Path) -> Result<Option<bool>, TextError> {
    let path = root.join("kernel/mm/numa/demotion_enabled");
    let Some(text) = text::if_there(text::read(&path))? else {
        return Ok(None);
    };
    match text.trim() {
        "true" | "1" => Ok(Some(true)),
        "false" | "0" => Ok(Some(false)),
        _ => Err(TextError::unexpected(path, "true or false")),
    }
}
