//! What the machine must offer for a case to mean something.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use transhume_sys::uffd::{Allowed, Features, probe};

/// Something that a case cannot do without.
#[derive(Clone, Copy)]
pub(crate) enum Need {
    /// A userfaultfd that stops the kernel's accesses too, with `UFFDIO_MOVE`.
    Move,
    /// One that moves adjacent pages by one shootdown: where it does not, no neighbours are taken along.
    MoveInBatches,
    /// One with remap events, for mapped backing.
    Blind,
    /// One that holds stores off shared memory, with remap events.
    Stores,
    /// One that holds stores off anonymous memory, with `UFFDIO_MOVE`.
    Protect,
    /// A counter of shootdowns.
    Counter,
    /// Transparent huge pages where they are asked for.
    HugePages,
    /// A kernel that frees page tables as soon as they are empty.
    FreesTables,
    /// So many free huge pages in the hugetlb pool.
    Hugetlb(usize),
    /// io_uring.
    IoUring,
    /// A file system that does direct I/O.
    DirectIo,
    /// The right to give privileges up.
    Root,
    /// Memory on nodes 0 and 1.
    TwoNodes,
    /// The kernel's automatic NUMA balancing.
    Balancing,
    /// A DAX device that may be overwritten.
    DaxDevice,
}

impl Need {
    /// Why the need is not met, or `None` if it is.
    pub(crate) fn missing(self) -> Option<String> {
        match self {
            Self::Move => feature(Features::MOVE, "UFFDIO_MOVE"),
            Self::MoveInBatches => {
                let there = transhume_sys::limits::kernel_release().is_at_least(6, 18);
                let kernel = "before Linux 6.18 UFFDIO_MOVE flushes for each page";
                Self::Move
                    .missing()
                    .or_else(|| (!there).then(|| kernel.to_owned()))
            }
            Self::Blind => feature(Features::EVENT_REMAP, "userfaultfd remap events"),
            Self::Stores => Self::Blind.missing().or_else(|| {
                let held = Features::WP_HUGETLBFS_SHMEM;
                feature(held, "write protection of shared memory by userfaultfd")
            }),
            Self::Protect => Self::Move.missing().or_else(|| {
                feature(
                    Features::PAGEFAULT_FLAG_WP,
                    "write protection by userfaultfd",
                )
            }),
            Self::Counter => transhume_sys::shootdown::ShootdownCounter::open_for_this_thread()
                .err()
                .map(|error| error.to_string()),
            Self::HugePages => {
                let enabled = read("/sys/kernel/mm/transparent_hugepage/enabled");
                enabled
                    .contains("[never]")
                    .then(|| "transparent huge pages are off".to_owned())
            }
            Self::FreesTables => {
                let there = transhume_sys::limits::kernel_release().is_at_least(6, 14);
                let kernel = "before Linux 6.14 empty page tables stay";
                (!there || cfg!(not(target_arch = "x86_64"))).then(|| kernel.to_owned())
            }
            Self::Hugetlb(needed) => {
                let free = read("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
                let free = free.trim().parse().unwrap_or(0);
                (free < needed).then(|| {
                    format!(
                        "needs {needed} free huge pages, there are {free} (sysctl vm.nr_hugepages)"
                    )
                })
            }
            Self::IoUring => io_uring::IoUring::new(2)
                .err()
                .map(|error| format!("no io_uring: {error}")),
            Self::DirectIo => direct_file().err().map(|error| {
                format!(
                    "no direct I/O in {}: {error}",
                    std::env::temp_dir().display()
                )
            }),
            Self::Root => (!rustix::process::geteuid().is_root()).then(|| "needs root".to_owned()),
            Self::DaxDevice => std::env::var_os("TRANSHUME_DAX_DEVICE").is_none().then(|| {
                "set TRANSHUME_DAX_DEVICE to a DAX device that may be overwritten".to_owned()
            }),
            Self::Balancing => {
                let balancing = read("/proc/sys/kernel/numa_balancing");
                matches!(balancing.trim(), "" | "0").then(|| {
                    "automatic NUMA balancing is off (sysctl kernel.numa_balancing)".to_owned()
                })
            }
            Self::TwoNodes => {
                let nodes = transhume_sys::numa::nodes_with_memory().unwrap_or_default();
                (!nodes.starts_with(&[0, 1])).then(|| {
                    format!("needs memory on NUMA nodes 0 and 1, there is some on {nodes:?}")
                })
            }
        }
    }
}

fn feature(feature: Features, name: &str) -> Option<String> {
    match probe(Allowed::ALL_FAULTS) {
        Err(error) => Some(error.to_string()),
        Ok(probe) if probe.features.contains(feature) => None,
        Ok(_) => Some(format!("this kernel has no {name}")),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A file for direct I/O, deleted already.
pub(crate) fn direct_file() -> io::Result<File> {
    let name = format!(
        "transhume-direct-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    );
    let path: PathBuf = std::env::temp_dir().join(name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)?;
    std::fs::remove_file(path)?;
    file.set_len(1 << 20)?;
    Ok(file)
}
