//! What a control group lets its processes have.

use std::path::Path;

use crate::text;

/// How many bytes of memory the control groups of this process leave it, at the least of them;
/// `None` without a limit, or where it cannot be read. What the page cache holds counts as used.
///
/// # References
///
/// `Documentation/admin-guide/cgroup-v2.rst`, `memory.max` and `memory.current`;
/// `Documentation/admin-guide/cgroup-v1/memory.rst`, `memory.limit_in_bytes`.
#[must_use]
pub fn cgroup_memory_left() -> Option<u64> {
    let own = text::read("/proc/self/cgroup").ok()?;
    left(Path::new("/sys/fs/cgroup"), &own)
}

fn left(root: &Path, own: &str) -> Option<u64> {
    let lines = own.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(":/")?;
        match controllers {
            "" => least(root, path, ["memory.max", "memory.current"]),
            // Version 1, where no limit is a number that no machine has.
            "memory" => least(
                &root.join("memory"),
                path,
                ["memory.limit_in_bytes", "memory.usage_in_bytes"],
            ),
            _ => None,
        }
    });
    lines.min()
}

/// The least that a group and those above it leave. In a container the lower ones of the path may
/// not be visible.
fn least(root: &Path, path: &str, [limit, used]: [&str; 2]) -> Option<u64> {
    let own = root.join(path);
    let groups = own.ancestors().take_while(|group| group.starts_with(root));
    let left = groups.filter_map(|group| {
        // In version 2 no limit is "max", which is no number.
        let limit = text::read_number(group.join(limit)).ok()?;
        let used = text::read_number(group.join(used)).ok()?;
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
        assert_eq!(left("1:memory:/x\n4:cpu:/\nodd\n"), None);
        let old = root.path().join("memory");
        std::fs::create_dir_all(&old).unwrap();
        std::fs::write(old.join("memory.limit_in_bytes"), "300\n").unwrap();
        std::fs::write(old.join("memory.usage_in_bytes"), "1\n").unwrap();
        assert_eq!(left("4:memory:/docker/x\n0::/a\n"), Some(299));
        group("a", "50\n", "100\n");
        assert_eq!(left("0::/a\n"), Some(0));
    }
}
