//! What the memory of a node is said to be.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use super::NumaNode;
use crate::text::{self, TextError};

/// What the memory of a node is, as far as the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NodeKind {
    /// It is that of CPUs, which are on the same node.
    Dram,
    /// The node has no CPUs, and nothing says what its memory is. Memory of a CXL device that the
    /// firmware has set up is among these, and HBM; the tier may tell more.
    CpuLess,
    /// All of it is that of CXL devices.
    Cxl,
    /// All of it is persistent memory, by CXL or not, used as volatile.
    Persistent,
    /// There is none.
    Memoryless,
}

impl fmt::Display for NodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dram => "DRAM",
            Self::CpuLess => "CPU-less",
            Self::Cxl => "CXL",
            Self::Persistent => "persistent",
            Self::Memoryless => "no memory",
        })
    }
}

/// A DAX device that the kernel uses as memory (driver `kmem`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaxDevice {
    /// Its name, such as `dax0.0`.
    pub name: String,
    /// Where its memory is from.
    pub origin: Origin,
}

/// What is behind a DAX device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// A region of CXL memory.
    Cxl,
    /// Persistent memory, of the kernel's libnvdimm.
    Persistent,
    /// The kernel does not tell: memory that the firmware has set aside, for one.
    Unknown,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cxl => "CXL",
            Self::Persistent => "persistent",
            Self::Unknown => "unknown",
        })
    }
}

/// What a node is whose CPUs, memory and devices are known.
pub(super) fn of(node: &NumaNode) -> NodeKind {
    if node.total_bytes == 0 {
        return NodeKind::Memoryless;
    }
    if !node.cpus.is_empty() {
        return NodeKind::Dram;
    }
    let all_are = |origin: Origin| {
        let mut devices = node.devices.iter();
        !node.devices.is_empty() && devices.all(|device| device.origin == origin)
    };
    if all_are(Origin::Persistent) {
        NodeKind::Persistent
    } else if all_are(Origin::Cxl) {
        NodeKind::Cxl
    } else {
        NodeKind::CpuLess
    }
}

/// The DAX devices that serve as memory, by node.
pub(super) fn kmem_devices(root: &Path) -> Result<BTreeMap<u32, Vec<DaxDevice>>, TextError> {
    let folder = root.join("bus/dax/devices");
    let mut devices: BTreeMap<u32, Vec<DaxDevice>> = BTreeMap::new();
    for name in text::entries(&folder)? {
        let device = folder.join(&name);
        if link_is(&device.join("driver"), "kmem") {
            let path = device.join("target_node");
            let node: i64 = text::read(&path)?
                .trim()
                .parse()
                .map_err(|_| TextError::unexpected(&path, "one number"))?;
            // -1 is none.
            if let Ok(node) = u32::try_from(node) {
                let origin = origin(root, &device);
                devices
                    .entry(node)
                    .or_default()
                    .push(DaxDevice { name, origin });
            }
        }
    }
    Ok(devices)
}

/// Goes up from a device, through all that it is a part of. Persistent memory behind CXL is found to
/// be persistent.
fn origin(root: &Path, device: &Path) -> Origin {
    let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    let Ok(device) = device.canonicalize() else {
        return Origin::Unknown;
    };
    let parts = || device.ancestors().take_while(|part| *part != root);
    let any = |bus: &str, named: &dyn Fn(&str) -> bool| {
        parts().any(|part| {
            let name = part.file_name().and_then(|name| name.to_str());
            link_is(&part.join("subsystem"), bus) || name.is_some_and(named)
        })
    };
    if any("nd", &|name| {
        name.starts_with("ndbus") || name.starts_with("pmem")
    }) {
        Origin::Persistent
    } else if any("cxl", &|name| name.contains("cxl")) {
        Origin::Cxl
    } else {
        Origin::Unknown
    }
}

/// Says whether a path is a link to something of this name.
fn link_is(path: &Path, name: &str) -> bool {
    fs::read_link(path).is_ok_and(|to| to.file_name().is_some_and(|to| to == name))
}
