//! Which work queues the machine has, and why it has none.

use std::fs;
use std::path::{Path, PathBuf};

use super::instructions::Instructions;
use super::portal::{QueueMode, Shape};
use crate::Unavailable;

/// The most that a copy is cut to, whatever a queue would take: its length must fit into 32 bits.
const LONGEST: u64 = 1 << 31;
/// What one queue has at most; the specification allows for 16 bits.
const MOST_ENTRIES: u64 = 1 << 16;

/// Where the kernel shows devices, and where their files are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places<'p> {
    pub(crate) sysfs: &'p Path,
    pub(crate) files: &'p Path,
}

impl Places<'static> {
    pub(crate) fn of_linux() -> Self {
        Self {
            sysfs: Path::new("/sys/bus/dsa/devices"),
            files: Path::new("/dev/dsa"),
        }
    }
}

/// A work queue that user space may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) shape: Shape,
    pub(crate) file: PathBuf,
}

fn text(directory: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(directory.join(name)).ok()?;
    Some(text.trim().to_owned())
}

fn number(directory: &Path, name: &str) -> Option<u64> {
    text(directory, name)?.parse().ok()
}

/// A number within what fits, and at least `least`.
fn within(number: u64, least: u32, most: u64) -> u32 {
    u32::try_from(number.min(most))
        .unwrap_or(u32::MAX)
        .max(least)
}

/// The work queues of type `user` that are enabled, in the order of their names.
///
/// # Errors
///
/// Why there are none, and what cures it, in one line.
pub(crate) fn discover(places: Places<'_>, has: Instructions) -> Result<Vec<Found>, Unavailable> {
    let none = |why: String| Err(Unavailable(why));
    let Ok(entries) = fs::read_dir(places.sysfs) else {
        return none(format!(
            "no DSA device (no {}); cure: modprobe idxd, on a processor that has one",
            places.sysfs.display()
        ));
    };
    let mut names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect::<Vec<_>>();
    names.sort_unstable();
    // IAA devices are on the same bus, with queues of the same names.
    if !names.iter().any(|name| name.starts_with("dsa")) {
        return none("no DSA device: the kernel's idxd module has found none".to_owned());
    }
    let mut found = Vec::new();
    let mut reasons = Vec::new();
    for name in names.iter().filter(|name| name.starts_with("wq")) {
        match queue(places, name, has) {
            Ok(Some(queue)) => found.push(queue),
            Ok(None) => {}
            Err(reason) => reasons.push(reason),
        }
    }
    if found.is_empty() && reasons.is_empty() {
        return none(
            "no enabled DSA work queue of type user; cure: accel-config load-config, or accel-config config-wq \
             dsa0/wq0.0 --type user ... and enable-wq"
                .to_owned(),
        );
    }
    if found.is_empty() {
        return none(reasons.join("; "));
    }
    Ok(found)
}

/// One queue; `None` if it is not for user space or not a DSA device's, the reason if this
/// processor cannot reach it.
fn queue(places: Places<'_>, name: &str, has: Instructions) -> Result<Option<Found>, String> {
    let directory = places.sysfs.join(name);
    let Some((device, _)) = name
        .strip_prefix("wq")
        .and_then(|rest| rest.split_once('.'))
    else {
        return Ok(None);
    };
    let device = places.sysfs.join(format!("dsa{device}"));
    let is = |name: &str, wanted: &str| text(&directory, name).as_deref() == Some(wanted);
    if !device.is_dir() || !is("type", "user") || !is("state", "enabled") {
        return Ok(None);
    }
    let (mode, instruction, here) = if is("mode", "dedicated") {
        (QueueMode::Dedicated, "MOVDIR64B", has.movdir64b)
    } else {
        (QueueMode::Shared, "ENQCMD", has.enqcmd)
    };
    if !here {
        return Err(format!(
            "{mode} queue {name} wants the instruction {instruction}, which this processor lacks or its hypervisor hides"
        ));
    }
    let limit = |name: &str| number(&directory, name).or_else(|| number(&device, name));
    Ok(Some(Found {
        file: places.files.join(name),
        shape: Shape {
            name: name.to_owned(),
            mode,
            // A shared queue takes from user space no more than its threshold.
            size: within(
                number(&directory, "threshold")
                    .filter(|&threshold| mode == QueueMode::Shared && threshold > 0)
                    .or_else(|| number(&directory, "size"))
                    .unwrap_or(1),
                1,
                MOST_ENTRIES,
            ),
            max_transfer: within(limit("max_transfer_size").unwrap_or(4096), 1, LONGEST),
            // Not there where the device has no batches.
            max_batch: within(limit("max_batch_size").unwrap_or(1), 1, MOST_ENTRIES),
            node: number(&device, "numa_node").and_then(|node| u32::try_from(node).ok()),
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Instructions = Instructions {
        movdir64b: true,
        enqcmd: true,
    };

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn with(self, name: &str, attributes: &[(&str, &str)]) -> Self {
            let directory = self.0.path().join(name);
            fs::create_dir_all(&directory).unwrap();
            for (name, value) in attributes {
                fs::write(directory.join(name), format!("{value}\n")).unwrap();
            }
            self
        }

        fn discover(&self, has: Instructions) -> Result<Vec<Found>, String> {
            let places = Places {
                sysfs: self.0.path(),
                files: Path::new("/dev/dsa"),
            };
            discover(places, has).map_err(|why| why.to_string())
        }

        fn refuses(&self, has: Instructions, part: &str) {
            let why = self.discover(has).unwrap_err();
            assert!(why.contains(part) && !why.contains('\n'), "{why}");
        }
    }

    const DEDICATED: &[(&str, &str)] = &[
        ("type", "user"),
        ("state", "enabled"),
        ("mode", "dedicated"),
        ("size", "16"),
        ("threshold", "0"),
        ("max_transfer_size", "2097152"),
        ("max_batch_size", "32"),
        ("block_on_fault", "0"),
    ];
    const SHARED: &[(&str, &str)] = &[
        ("type", "user"),
        ("state", "enabled"),
        ("mode", "shared"),
        ("size", "128"),
        ("threshold", "100"),
    ];

    #[test]
    fn queues_are_found_with_their_limits() {
        let tree = Tree::new()
            .with("dsa0", &[("numa_node", "1")])
            .with(
                "dsa2",
                &[
                    ("numa_node", "-1"),
                    ("max_transfer_size", "4294967296"),
                    ("max_batch_size", "1024"),
                ],
            )
            .with("wq0.0", DEDICATED)
            .with("wq2.1", SHARED)
            // An accelerator for compression, a queue of the kernel's, one that is off, and noise.
            .with("iax1", &[])
            .with("wq1.0", DEDICATED)
            .with("wq2.2", &[("type", "kernel"), ("state", "enabled")])
            .with("wq2.3", &[("type", "user"), ("state", "disabled")])
            .with("wqx", DEDICATED)
            .with("engine0.0", &[]);
        let found = tree.discover(BOTH).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].file, Path::new("/dev/dsa/wq0.0"));
        assert_eq!(
            found[0].shape,
            Shape {
                name: "wq0.0".to_owned(),
                mode: QueueMode::Dedicated,
                size: 16,
                max_transfer: 2 << 20,
                max_batch: 32,
                node: Some(1),
            }
        );
        assert_eq!(
            found[1].shape,
            Shape {
                name: "wq2.1".to_owned(),
                mode: QueueMode::Shared,
                size: 100,
                max_transfer: 1 << 31,
                max_batch: 1024,
                node: None,
            }
        );
        let no_enqcmd = Instructions {
            enqcmd: false,
            ..BOTH
        };
        assert_eq!(tree.discover(no_enqcmd).unwrap().len(), 1);
    }

    #[test]
    fn nonsense_in_attributes_is_kept_within_bounds() {
        let tree = Tree::new().with("dsa0", &[]).with(
            "wq0.0",
            &[
                ("type", "user"),
                ("state", "enabled"),
                ("mode", "dedicated"),
                ("size", "0"),
                ("max_transfer_size", "0"),
                ("max_batch_size", "-2"),
            ],
        );
        let shape = &tree.discover(BOTH).unwrap()[0].shape;
        assert_eq!((shape.size, shape.max_transfer, shape.max_batch), (1, 1, 1));
    }

    #[test]
    fn why_there_are_none_is_said_in_one_line() {
        let nowhere = Places {
            sysfs: Path::new("/nonexistent"),
            files: Path::new("/nonexistent"),
        };
        let why = discover(nowhere, BOTH).unwrap_err().to_string();
        assert!(why.contains("modprobe idxd"), "{why}");
        Tree::new().with("iax1", &[]).refuses(BOTH, "no DSA device");
        let tree = Tree::new()
            .with("dsa0", &[])
            .with("wq0.0", &[("type", "user"), ("state", "disabled")]);
        tree.refuses(BOTH, "accel-config");
        let neither = Instructions {
            movdir64b: false,
            enqcmd: false,
        };
        let tree = tree.with("wq0.1", SHARED).with("wq0.2", DEDICATED);
        tree.refuses(neither, "wq0.1 wants the instruction ENQCMD");
        tree.refuses(neither, "wq0.2 wants the instruction MOVDIR64B");
    }
}
