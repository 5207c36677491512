//! What machine this is.

use std::fs;

use serde::Serialize;
use transhume_sys::limits;
use transhume_sys::map::HUGE_PAGE;
use transhume_sys::numa;

/// The machine that figures were taken on. What it does not say is absent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: Option<String>,
    pub(crate) cpus: usize,
    pub(crate) nodes: Vec<u32>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) kernel: String,
    pub(crate) hypervisor: bool,
    pub(crate) transparent_huge_pages: Option<String>,
    pub(crate) free_hugetlb_pages: Option<usize>,
    pub(crate) unix_time: Option<u64>,
    pub(crate) transhume: &'static str,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let kib = field(&meminfo, "MemTotal")
            .and_then(|total| total.split(' ').next()?.parse::<u64>().ok());
        let flags = field(&cpuinfo, "flags").unwrap_or_default();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            cpu: field(&cpuinfo, "model name"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            nodes: numa::nodes_with_memory().unwrap_or_default(),
            memory_bytes: kib.map(|kib| kib << 10),
            kernel: limits::kernel_release().text,
            hypervisor: flags.split(' ').any(|flag| flag == "hypervisor"),
            transparent_huge_pages: limits::thp()
                .ok()
                .map(|thp| format!("{:?}", thp.anonymous).to_lowercase()),
            free_hugetlb_pages: limits::hugetlb_pool(HUGE_PAGE).ok().map(|pool| pool.free),
            unix_time: now.ok().map(|since| since.as_secs()),
            transhume: env!("CARGO_PKG_VERSION"),
        }
    }

    /// In one line.
    pub(crate) fn describe(&self) -> String {
        let memory = match self.memory_bytes {
            Some(bytes) => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
            None => "memory of unknown size".to_owned(),
        };
        format!(
            "{}, {} CPUs, {} NUMA {}, {}, Linux {}{}",
            self.cpu.as_deref().unwrap_or("unknown processor"),
            self.cpus,
            self.nodes.len(),
            if self.nodes.len() == 1 {
                "node"
            } else {
                "nodes"
            },
            memory,
            self.kernel,
            if self.hypervisor {
                ", a virtual machine"
            } else {
                ""
            },
        )
    }
}
