//! How large the caches before memory are.

use std::collections::BTreeSet;
use std::path::Path;

use super::MAX_CPUS;
use crate::text::{self, TextError};

/// How many bytes the last-level caches of these CPUs have, each counted once, all together; `None`
/// where the machine does not say.
///
/// # Errors
///
/// [`TextError`] where sysfs says what cannot be understood.
///
/// # References
///
/// `Documentation/ABI/testing/sysfs-devices-system-cpu`.
pub fn last_level_cache(cpus: &[usize]) -> Result<Option<u64>, TextError> {
    last_level_cache_in(Path::new("/sys"), cpus)
}

pub(super) fn last_level_cache_in(root: &Path, cpus: &[usize]) -> Result<Option<u64>, TextError> {
    let mut found = BTreeSet::new();
    for cpu in cpus {
        let folder = root.join(format!("devices/system/cpu/cpu{cpu}/cache"));
        let mut last = None;
        for number in super::numbered(&folder, "index")? {
            let index = folder.join(format!("index{number}"));
            let level = text::read_number(index.join("level"))?;
            let shared = text::read_list(index.join("shared_cpu_list"), MAX_CPUS)?;
            let first = shared.first().copied();
            if let Some(bytes) = text::if_there(size(&index.join("size")))? {
                last = last.max(Some((level, first, bytes)));
            }
        }
        found.extend(last);
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
