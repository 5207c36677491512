//! What the machine and this process may use, and do use.

mod cgroup;

use std::path::Path;
use std::time::Duration;

use rustix::process::Resource;

use crate::abi::to_usize;
use crate::text::{self, TextError};

pub use cgroup::cgroup_memory_left;

/// How many mappings a process may have (`vm.max_map_count`).
///
/// # Errors
///
/// [`TextError`] without procfs.
///
/// # References
///
/// proc_sys_vm(5).
pub fn max_map_count() -> Result<usize, TextError> {
    text::read_number("/proc/sys/vm/max_map_count").map(to_usize)
}

/// How many mappings this process has.
///
/// # Errors
///
/// [`TextError`] without procfs.
///
/// # References
///
/// proc_pid_maps(5).
pub fn mapping_count() -> Result<usize, TextError> {
    Ok(text::read("/proc/self/maps")?.lines().count())
}

/// How many bytes this process may lock; `None` for as many as there are.
///
/// # References
///
/// getrlimit(2), `RLIMIT_MEMLOCK`.
#[must_use]
pub fn memlock_limit() -> Option<u64> {
    rustix::process::getrlimit(Resource::Memlock).current
}

/// Whether the kernel refuses to map private memory beyond a fixed limit for the whole machine
/// (`vm.overcommit_memory` is 2). False where it cannot be read.
///
/// # References
///
/// proc_sys_vm(5).
#[must_use]
pub fn overcommit_is_forbidden() -> bool {
    text::read("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() == "2")
}

/// How many bytes of private memory this process may still map (`RLIMIT_AS`, `RLIMIT_DATA`); `None`
/// for as many as there are addresses. Zero where there is a limit and what is used cannot be read.
///
/// # References
///
/// getrlimit(2), proc_pid_status(5).
#[must_use]
pub fn address_space_left() -> Option<usize> {
    let limits = [(Resource::As, "VmSize"), (Resource::Data, "VmData")];
    let left = limits.into_iter().filter_map(|(resource, name)| {
        let limit = rustix::process::getrlimit(resource).current?;
        let status = text::read("/proc/self/status").ok();
        let used = status.and_then(|status| text::kib_field(&status, name));
        Some(used.map_or(0, |used| to_usize(limit.saturating_sub(used))))
    });
    left.min()
}

/// The pool of huge pages of one size, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HugetlbPool {
    /// All there are.
    pub total: usize,
    /// Those that nobody has.
    pub free: usize,
    /// Those of the free ones that are promised to mappings.
    pub reserved: usize,
}

/// The pool of huge pages of a size in bytes.
///
/// # Errors
///
/// [`TextError`] where the kernel has no huge pages of that size.
///
/// # References
///
/// `Documentation/admin-guide/mm/hugetlbpage.rst`.
pub fn hugetlb_pool(page_size: usize) -> Result<HugetlbPool, TextError> {
    let pool = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page_size / 1024);
    let number = |name| text::read_number(format!("{pool}/{name}")).map(to_usize);
    Ok(HugetlbPool {
        total: number("nr_hugepages")?,
        free: number("free_hugepages")?,
        reserved: number("resv_hugepages")?,
    })
}

/// The huge pages of a size in bytes that nobody has, on one node.
///
/// # Errors
///
/// [`TextError`] where the kernel has no huge pages of that size, or the machine no such node.
///
/// # References
///
/// `Documentation/admin-guide/mm/hugetlbpage.rst`.
pub fn hugetlb_free_on(node: u32, page_size: usize) -> Result<usize, TextError> {
    let node = format!("/sys/devices/system/node/node{node}");
    text::read_number(format!(
        "{node}/hugepages/hugepages-{}kB/free_hugepages",
        page_size / 1024
    ))
    .map(to_usize)
}

/// The sizes in bytes of huge pages that there are pools for, in order; none where the kernel has
/// no hugetlbfs.
///
/// # Errors
///
/// [`TextError`] where the list cannot be read.
///
/// # References
///
/// `Documentation/admin-guide/mm/hugetlbpage.rst`.
pub fn hugetlb_sizes() -> Result<Vec<usize>, TextError> {
    hugetlb_sizes_in(Path::new("/sys/kernel/mm/hugepages"))
}

/// The sizes in bytes that a folder of pools names, in order; none without the folder.
pub(crate) fn hugetlb_sizes_in(pools: &Path) -> Result<Vec<usize>, TextError> {
    let size = |name: String| {
        let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
        kib.parse::<usize>().ok()?.checked_mul(1024)
    };
    let mut sizes: Vec<usize> = text::entries(pools)?.into_iter().filter_map(size).collect();
    sizes.sort_unstable();
    Ok(sizes)
}

/// Which memory gets transparent huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ThpMode {
    /// All.
    Always,
    /// Shared memory: where all of the huge page is within the file, or by advice.
    WithinSize,
    /// That which was advised ([`Advice::HugePage`](crate::advise::Advice::HugePage)).
    Advised,
    /// None.
    Never,
    /// Shared memory: none, whatever a mount says.
    Deny,
    /// Shared memory: all, whatever a mount says.
    Force,
}

/// Transparent huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thp {
    /// For anonymous memory.
    pub anonymous: ThpMode,
    /// For shared memory; `None` where the kernel does not say.
    pub shmem: Option<ThpMode>,
    /// How large they are.
    pub page_size: usize,
}

/// How transparent huge pages are set up.
///
/// # Errors
///
/// [`TextError`] on a kernel without them.
///
/// # References
///
/// `Documentation/admin-guide/mm/transhuge.rst`.
pub fn thp() -> Result<Thp, TextError> {
    let mode = |name: &str| {
        let path = format!("/sys/kernel/mm/transparent_hugepage/{name}");
        chosen(&text::read(&path)?)
            .ok_or_else(|| TextError::unexpected(&path, "a choice that is known"))
    };
    let size = text::read_number("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")?;
    Ok(Thp {
        anonymous: mode("enabled")?,
        shmem: mode("shmem_enabled").ok(),
        page_size: to_usize(size),
    })
}

/// The choice in brackets, as in `always [madvise] never`.
fn chosen(text: &str) -> Option<ThpMode> {
    let (_, rest) = text.split_once('[')?;
    Some(match rest.split_once(']')?.0 {
        "always" => ThpMode::Always,
        "within_size" => ThpMode::WithinSize,
        "madvise" | "advise" => ThpMode::Advised,
        "never" => ThpMode::Never,
        "deny" => ThpMode::Deny,
        "force" => ThpMode::Force,
        _ => return None,
    })
}

/// The release of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRelease {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// All that it says.
    pub text: String,
}

impl KernelRelease {
    /// Says whether it is this version or a later one.
    #[must_use]
    pub fn is_at_least(&self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }

    fn parse(text: &str) -> Self {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
        Self {
            major: next(),
            minor: next(),
            text: text.to_owned(),
        }
    }
}

/// The release of the running kernel.
///
/// # References
///
/// uname(2).
#[must_use]
pub fn kernel_release() -> KernelRelease {
    KernelRelease::parse(&rustix::system::uname().release().to_string_lossy())
}

/// What this process uses, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Pages in memory.
    pub resident: u64,
    /// Pages that it has locked.
    pub locked: u64,
    /// Pages in swap.
    pub swapped: u64,
    /// Page tables.
    pub page_tables: u64,
}

/// What this process uses.
///
/// # Errors
///
/// [`TextError`] without procfs.
///
/// # References
///
/// proc_pid_status(5).
pub fn process_memory() -> Result<ProcessMemory, TextError> {
    let path = "/proc/self/status";
    let status = text::read(path)?;
    let bytes = |name, expected| {
        text::kib_field(&status, name).ok_or_else(|| TextError::unexpected(path, expected))
    };
    Ok(ProcessMemory {
        resident: bytes("VmRSS", "VmRSS")?,
        locked: bytes("VmLck", "VmLck")?,
        swapped: bytes("VmSwap", "VmSwap")?,
        page_tables: bytes("VmPTE", "VmPTE")?,
    })
}

/// How many bytes could be allocated without swapping (`MemAvailable`).
///
/// # Errors
///
/// [`TextError`] without procfs.
///
/// # References
///
/// proc_meminfo(5).
pub fn memory_available() -> Result<u64, TextError> {
    let path = "/proc/meminfo";
    text::kib_field(&text::read(path)?, "MemAvailable")
        .ok_or_else(|| TextError::unexpected(path, "MemAvailable"))
}

/// For how long tasks of this machine have waited for memory since it was started: at least one of
/// them at a time.
///
/// # Errors
///
/// [`TextError`] where the kernel does not count it (`CONFIG_PSI`, `psi=0`).
///
/// # References
///
/// Linux, Documentation/accounting/psi.rst.
pub fn memory_stalled() -> Result<Duration, TextError> {
    let path = "/proc/pressure/memory";
    stalled(&text::read(path)?).ok_or_else(|| TextError::unexpected(path, "some ... total="))
}

fn stalled(text: &str) -> Option<Duration> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some
        .split(' ')
        .find_map(|word| word.strip_prefix("total="))?;
    Some(Duration::from_micros(total.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_for_memory() {
        let text = "some avg10=0.00 avg60=0.12 avg300=0.05 total=1500000\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(stalled(text), Some(Duration::from_millis(1500)));
        assert_eq!(stalled("full avg10=0.00 total=7"), None);
        assert_eq!(stalled("some total=x"), None);
    }

    #[test]
    fn releases() {
        let release = KernelRelease::parse("6.18.44-fc-v669");
        assert_eq!((release.major, release.minor), (6, 18));
        assert!(release.is_at_least(6, 18) && release.is_at_least(5, 19));
        assert!(!release.is_at_least(6, 19) && !release.is_at_least(7, 0));
        assert_eq!(KernelRelease::parse("odd").major, 0);
    }

    #[test]
    fn choices() {
        assert_eq!(chosen("always [madvise] never\n"), Some(ThpMode::Advised));
        assert_eq!(
            chosen("always within_size advise [never] deny force"),
            Some(ThpMode::Never)
        );
        assert_eq!(chosen("always madvise never"), None);
        assert_eq!(chosen("[other]"), None);
    }

    #[test]
    fn this_machine_and_process_say_something() {
        assert!(max_map_count().unwrap() > 0);
        assert!(mapping_count().unwrap() > 5);
        assert!(kernel_release().major >= 5);
        assert!(memory_available().unwrap() > 0);
        let memory = process_memory().unwrap();
        assert!(memory.resident > 0 && memory.page_tables > 0, "{memory:?}");
        let _ = memlock_limit();
        for size in hugetlb_sizes().unwrap() {
            let pool = hugetlb_pool(size).unwrap();
            assert!(pool.free <= pool.total, "{pool:?}");
        }
        assert!(hugetlb_pool(12345).is_err());
    }
}
