//! What the figures depend on.

use std::fmt::Write;
use std::fs;
use std::num::NonZeroUsize;

use transhume_sys::{limits, numa};

use super::candidate::Candidate;
use super::shape::SHAPES;

/// The fields of `/proc/cpuinfo` that tell one processor from another, on x86-64 and on others.
const FIELDS: [&str; 9] = [
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "CPU implementer",
    "CPU variant",
    "CPU part",
    "CPU revision",
];

/// The machine and the program as lines of text: figures taken under another key are not of this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key(String);

impl Key {
    /// For a process that may use `cpus` CPUs.
    pub(super) fn here(cpus: NonZeroUsize, candidates: &[Candidate]) -> Self {
        let nodes = numa::nodes_with_memory().unwrap_or_default();
        let nodes = nodes.iter().map(|node| format!(" {node}"));
        let names = candidates.iter().map(|one| format!(" {}", one.name));
        let shapes = SHAPES
            .iter()
            .map(|shape| format!(" {}x{}", shape.jobs, shape.job_bytes));
        let cpu = processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
        Self::of(&[
            ("transhume", env!("CARGO_PKG_VERSION")),
            ("kernel", &limits::kernel_release().text),
            ("cpu", &cpu),
            ("cpus", &cpus.to_string()),
            ("nodes", nodes.collect::<String>().trim_start()),
            ("candidates", names.collect::<String>().trim_start()),
            ("shapes", shapes.collect::<String>().trim_start()),
        ])
    }

    fn of(lines: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (name, value) in lines {
            let value = value.replace(char::is_control, "?");
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name} {value}");
        }
        Self(text)
    }

    #[cfg(test)]
    pub(super) fn told(text: &str) -> Self {
        Self::of(&[("told", text)])
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

/// The first processor of a list like `/proc/cpuinfo`.
fn processor(list: &str) -> String {
    let mut values = Vec::new();
    for line in list.lines().take_while(|line| !line.trim().is_empty()) {
        if let Some((name, value)) = line.split_once(':')
            && FIELDS.contains(&name.trim())
        {
            values.push(value.trim());
        }
    }
    values.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_told_apart() {
        let list = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 167\nmodel name\t: Xeon: E\n\
                    cpu MHz\t\t: 2600.1\n\nprocessor\t: 1\nmodel\t: 9\n";
        assert_eq!(processor(list), "GenuineIntel/167/Xeon: E");
        assert_eq!(processor(""), "");
    }

    #[test]
    fn another_number_of_cpus_or_other_candidates_are_another_key() {
        let one = [Candidate::new("memcpy", 1)];
        let here = |cpus, candidates: &[Candidate]| {
            Key::here(NonZeroUsize::new(cpus).unwrap(), candidates)
        };
        assert_eq!(here(1, &one), here(1, &one));
        assert_ne!(here(1, &one), here(2, &one));
        assert_ne!(here(1, &one), here(1, &[]));
        assert_eq!(Key::of(&[("a", "b\nc d")]).text(), "a b?c d\n");
    }
}
