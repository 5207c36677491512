//! How large the caches before memory are.

use std::collections::BTreeSet;
use std::path::Path;

use super::MAX_CPUS;
use crate::text::{self, TextError};

/// How many bytes the caches of these CPUs have, of all levels and each counted once, all together;
/// `None` where the machine does not say. Caches for instructions only are left out.
///
/// # Errors
///
/// [`TextError`] where sysfs says what cannot be understood.
///
/// # References
///
/// `Documentation/ABI/testing/sysfs-devices-system-cpu`.
pub fn cache_bytes(cpus: &[usize]) -> Result<Option<u64>, TextError> {
    cache_bytes_in(Path::new("/sys"), cpus)
}

pub(super) fn cache_bytes_in(root: &Path, cpus: &[usize]) -> Result<Option<u64>, TextError> {
    let mut found = BTreeSet::new();
    for cpu in cpus {
        let folder = root.join(format!("devices/system/cpu/cpu{cpu}/cache"));
        for number in super::numbered(&folder, "index")? {
            let index = folder.join(format!("index{number}"));
            if text::read(index.join("type"))?.trim() == "Instruction" {
                continue;
            }
            let level = text::read_number(index.join("level"))?;
            let shared = text::read_list(index.join("shared_cpu_list"), MAX_CPUS)?;
            // A machine may show a cache and not its size.
            if let Some(bytes) = text::if_there(size(&index.join("size")))? {
                found.insert((level, shared.first().copied(), bytes));
            }
        }
    }
    let bytes = found.iter().map(|&(.., bytes)| bytes);
    Ok((!found.is_empty()).then(|| bytes.fold(0, u64::saturating_add)))
}

/// A size such as `32768K`.
fn size(path: &Path) -> Result<u64, TextError> {
    let text = text::read(path)?;
    let kib = text
        .trim()
        .strip_suffix('K')
        .and_then(|kib| kib.parse().ok());
    kib.and_then(|kib: u64| kib.checked_mul(1024))
        .ok_or_else(|| TextError::unexpected(path, "a size in K"))
}
