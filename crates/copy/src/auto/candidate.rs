//! What is chosen among.

use std::num::NonZeroUsize;

use super::shape::Shape;
use crate::threads::MIN_BYTES_PER_THREAD;
use crate::{Dsa, Isa, SharedCopier, Streaming, UnknownCopier, by_name};

/// A copier, by its name in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) name: String,
    threads: usize,
}

impl Candidate {
    pub(super) fn new(name: impl Into<String>, threads: usize) -> Self {
        Self {
            name: name.into(),
            threads,
        }
    }

    pub(super) fn make(&self) -> Result<SharedCopier, UnknownCopier> {
        by_name(&self.name, None)
    }

    /// Whether it does something of its own with lists of this shape: threads that the list is too
    /// short for take no part in it.
    pub(super) fn is_for(&self, shape: Shape) -> bool {
        self.threads <= 1 || self.threads <= shape.bytes() / MIN_BYTES_PER_THREAD
    }
}

/// The candidates of this machine for a process that may use `cpus` CPUs, the simpler ones first: one
/// thread before several, few before many, and a device last. The model of a device is none.
pub(super) fn candidates(cpus: NonZeroUsize) -> Vec<Candidate> {
    let mut all = vec![Candidate::new("memcpy", 1)];
    let mut streaming = Vec::new();
    for isa in Isa::ALL {
        streaming.extend(Streaming::with(isa).map(|_| format!("streaming-{isa}")));
    }
    let has_streaming = !streaming.is_empty();
    all.extend(streaming.into_iter().map(|name| Candidate::new(name, 1)));
    for threads in counts(cpus.get()) {
        for inner in ["memcpy", "streaming"] {
            if inner == "memcpy" || has_streaming {
                all.push(Candidate::new(
                    format!("threads:{threads}:{inner}"),
                    threads,
                ));
            }
        }
    }
    if Dsa::shared().is_ok() {
        all.push(Candidate::new("dsa", 1));
    }
    all
}

/// Powers of two from 2 on, and all CPUs.
fn counts(cpus: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(2_usize), |count| count.checked_mul(2));
    let mut counts = powers.take_while(|&count| count < cpus).collect::<Vec<_>>();
    if cpus > 1 {
        counts.push(cpus);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::super::shape::{BASE, HUGE, SHAPES};
    use super::*;

    #[test]
    fn numbers_of_threads() {
        assert_eq!(counts(1), []);
        assert_eq!(counts(2), [2]);
        assert_eq!(counts(6), [2, 4, 6]);
        assert_eq!(counts(16), [2, 4, 8, 16]);
    }

    #[test]
    fn one_cpu_has_no_candidates_with_threads() {
        let alone = candidates(NonZeroUsize::MIN);
        assert_eq!(alone[0].name, "memcpy");
        assert!(alone.iter().all(|one| !one.name.starts_with("threads")));
        let many = candidates(NonZeroUsize::new(4).unwrap());
        assert!(many.iter().any(|one| one.name == "threads:4:memcpy"));
        assert!(many.iter().all(|one| one.name != "dsa-model"));
        for one in many.iter().filter(|one| one.threads < 3) {
            assert_eq!(one.make().unwrap().name(), one.name);
        }
    }

    #[test]
    fn threads_are_for_lists_that_are_worth_them() {
        let candidate = |threads| Candidate::new("threads", threads);
        for shape in SHAPES {
            assert!(candidate(1).is_for(shape));
            assert_eq!(
                candidate(4).is_for(shape),
                shape.job_bytes == HUGE
                    || shape
                        == Shape {
                            job_bytes: BASE,
                            jobs: 512
                        }
            );
            assert_eq!(candidate(5).is_for(shape), shape.bytes() > HUGE);
        }
    }
}
