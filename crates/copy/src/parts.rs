//! The parts of a list of jobs, cut by bytes rather than by jobs (\[fast-copy\]).
//!
//! The bytes of a list are numbered from the first of its first job to the last of its last. A range
//! of these numbers falls into several small jobs or into the middle of a large one. Where it cuts a
//! job, the cut is moved down to where a page of the destination begins, or to the beginning of the
//! job: no two threads then write to one cache line, and each sees whole pages. Both neighbours of a
//! cut move it to the same place, so every byte is in exactly one range.

use std::ops::Range;

/// What can be cut into parts: a copy or a swap.
pub(crate) trait Job: Send + Sized {
    /// What is said of one.
    type Answer: Copy + PartialEq;
    /// All of its parts are done.
    const DONE: Self::Answer;
    /// One of its parts is not.
    const FAILED: Self::Answer;

    /// How many bytes it has.
    fn bytes(&self) -> usize;

    /// The address of its first byte that is stored to.
    fn stores_to(&self) -> usize;

    /// The same for these bytes of it, by number from its first.
    fn of(&self, bytes: Range<usize>) -> Self;

    /// The part of it that begins `from` bytes in and has `bytes` bytes, or what is left there.
    ///
    /// It is under the promise made for the whole, which nothing here keeps it from outliving. So
    /// whoever takes parts drops them while it has the whole lent, and neither hands them to code
    /// outside this crate nor has one byte of the whole on two threads at once.
    fn part(&self, from: usize, bytes: usize) -> Self {
        let from = from.min(self.bytes());
        let to = from.saturating_add(bytes).min(self.bytes());
        self.of(from..to)
    }

    /// All of it as a [`part`](Self::part), on the same terms.
    fn whole(&self) -> Self {
        self.of(0..self.bytes())
    }
}

/// Cuts are made where a destination's address is a multiple of this many bytes.
const CUT: usize = 4 << 10;

/// Where one reader of a list has got to, so that the next part is found without starting over.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Walk {
    index: usize,
    /// The number of the first byte of the job at `index`.
    begins: usize,
}

impl Walk {
    /// The parts of `jobs` in `range`, which does not begin before the range asked for last.
    ///
    /// The bytes of the list can be counted in a `usize`.
    pub(crate) fn parts<'l, J: Job>(&mut self, jobs: &'l [J], range: Range<usize>) -> Parts<'l, J> {
        while let Some(job) = jobs.get(self.index) {
            if self.begins + job.bytes() > range.start {
                break;
            }
            self.begins += job.bytes();
            self.index += 1;
        }
        Parts {
            jobs,
            walk: *self,
            range,
        }
    }
}

/// The parts of jobs in one range, each with the index of its job. None is empty.
#[derive(Debug)]
pub(crate) struct Parts<'l, J> {
    jobs: &'l [J],
    walk: Walk,
    range: Range<usize>,
}

impl<J: Job> Iterator for Parts<'_, J> {
    type Item = (usize, J);

    fn next(&mut self) -> Option<Self::Item> {
        while self.walk.begins < self.range.end {
            let Walk { index, begins } = self.walk;
            let job = self.jobs.get(index)?;
            self.walk = Walk {
                index: index + 1,
                begins: begins + job.bytes(),
            };
            let from = cut(job, self.range.start.saturating_sub(begins));
            let to = cut(job, self.range.end - begins);
            if from < to {
                return Some((index, job.part(from, to - from)));
            }
        }
        None
    }
}

/// Moves a cut `at` bytes into a job to where it is made.
fn cut(job: &impl Job, at: usize) -> usize {
    if at >= job.bytes() {
        return job.bytes();
    }
    let over = job.stores_to().wrapping_add(at) % CUT;
    at.saturating_sub(over)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CopyJob;
    use proptest::prelude::*;

    fn job(source: usize, destination: usize, bytes: usize) -> CopyJob {
        let (source, destination) = (
            std::ptr::without_provenance(source),
            std::ptr::without_provenance_mut(destination),
        );
        // SAFETY: these jobs are cut and never copied.
        unsafe { CopyJob::new(source, destination, bytes) }
    }

    proptest! {
        #[test]
        fn every_byte_is_in_one_part(
            shapes in proptest::collection::vec((0..9000_usize, 0..20_000_usize), 0..12),
            piece in 1..30_000_usize,
        ) {
            let jobs = shapes
                .iter()
                .enumerate()
                .map(|(n, &(to, bytes))| job((n + 1) << 20, ((n + 1) << 24) + to, bytes))
                .collect::<Vec<_>>();
            let total = shapes.iter().map(|&(_, bytes)| bytes).sum::<usize>();
            let mut done = vec![0; jobs.len()];
            let mut walk = Walk::default();
            for start in (0..total).step_by(piece) {
                for (index, part) in walk.parts(&jobs, start..total.min(start + piece)) {
                    let offset = part.source().addr() - jobs[index].source().addr();
                    prop_assert!(part.bytes() > 0);
                    prop_assert_eq!(offset, done[index]);
                    prop_assert_eq!(
                        part.destination().addr() - jobs[index].destination().addr(),
                        offset
                    );
                    prop_assert!(offset == 0 || part.destination().addr() % CUT == 0);
                    done[index] += part.bytes();
                }
            }
            prop_assert_eq!(done, shapes.iter().map(|&(_, bytes)| bytes).collect::<Vec<_>>());
        }
    }
}
