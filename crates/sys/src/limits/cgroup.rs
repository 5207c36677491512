//! What a control group lets its processes have.

use std::path::Path;

use crate::text;

/// How many bytes of memory the control groups of this process leave it, at the least of them;
/// `None` without a limit, or where it cannot be read. Only version 2 is looked at. What the page
/// cache holds counts as used.
///
/// # References
///
/// `Documentation/admin-guide/cgroup-v2.rst`, `memory.max` and `memory.current`.
#[must_use]
pub fn cgroup_memory_left() -> Option<u64> {
    let own = text::read("/proc/self/cgroup").ok()?;
    left(Path::new("/sys/fs/cgroup"), &own)
}

fn left(root: &Path, own: &str) -> Option<u64> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = root.join(path);
    let groups = own.ancestors().take_while(|group| group.starts_with(root));
    let left = groups.filter_map(|group| {
        // Without a limit it says "max", which is no number.
        let limit = text::read_number(group.join("memory.max")).ok()?;
        let used = text::read_number(group.join("memory.current")).ok()?;
        Some(limit.saturating_sub(used))
    });
    left.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_all_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        let group = |path: &str, max: &str, current: &str| {
            let group = root.path().join(path);
            std::fs::create_dir_all(&group).unwrap();
            std::fs::write(group.join("memory.max"), max).unwrap();
            std::fs::write(group.join("memory.current"), current).unwrap();
        };
        group("a/b/c", "max\n", "10\n");
        group("a/b", "1000\n", "100\n");
        group("a", "500\n", "100\n");
        let left = |own: &str| left(root.path(), own);
        assert_eq!(left("0::/a/b/c\n"), Some(400));
        assert_eq!(left("1:memory:/x\n0::/a/b\n"), Some(400));
        assert_eq!(left("0::/\n"), None);
        assert_eq!(left("1:memory:/x\n"), None);
        group("a", "50\n", "100\n");
        assert_eq!(left("0::/a\n"), Some(0));
    }
}
