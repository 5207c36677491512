//! The shapes of lists for which the machine is measured.

/// A list of so many jobs of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Bytes of a job: 4 KiB or 2 MiB.
    pub job_bytes: usize,
    /// How many jobs there are.
    pub jobs: usize,
}

impl Shape {
    const fn new(job_bytes: usize, jobs: usize) -> Self {
        Self { job_bytes, jobs }
    }

    pub(super) const fn bytes(self) -> usize {
        self.job_bytes * self.jobs
    }
}

pub(super) const BASE: usize = 4 << 10;
pub(super) const HUGE: usize = 2 << 20;
pub(super) const COUNT: usize = 7;

/// Each size of jobs together, the short lists first. The last one of either is what a batch is at
/// most, unless the caller asks for more.
pub(super) const SHAPES: [Shape; COUNT] = [
    Shape::new(BASE, 1),
    Shape::new(BASE, 8),
    Shape::new(BASE, 64),
    Shape::new(BASE, 512),
    Shape::new(HUGE, 1),
    Shape::new(HUGE, 4),
    Shape::new(HUGE, 16),
];

/// The shape that a list is taken for: of the size that is nearer to the mean of its jobs, the one
/// whose bytes are nearer to those of the list, both as ratios.
pub(super) fn nearest(jobs: usize, bytes: usize) -> usize {
    let size = if is_nearer_to_larger(bytes / jobs.max(1), BASE, HUGE) {
        HUGE
    } else {
        BASE
    };
    let mut nearest = None;
    for (index, shape) in SHAPES.iter().enumerate() {
        if shape.job_bytes != size {
            continue;
        }
        match nearest {
            Some((_, before)) if !is_nearer_to_larger(bytes, before, shape.bytes()) => break,
            _ => nearest = Some((index, shape.bytes())),
        }
    }
    nearest.map_or(0, |(index, _)| index)
}

/// Whether a number is above the geometric mean of two.
const fn is_nearer_to_larger(number: usize, smaller: usize, larger: usize) -> bool {
    // No product of two `usize` is too large.
    (number as u128) * (number as u128) > (smaller as u128) * (larger as u128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_shapes_are_their_own() {
        for (index, shape) in SHAPES.iter().enumerate() {
            assert_eq!(nearest(shape.jobs, shape.bytes()), index);
        }
    }

    #[test]
    fn others_are_taken_for_the_nearer() {
        let list = |jobs, bytes| {
            let shape = SHAPES[nearest(jobs, bytes)];
            (shape.job_bytes, shape.jobs)
        };
        assert_eq!(list(0, 0), (BASE, 1));
        assert_eq!(list(2, 2 * BASE), (BASE, 1));
        assert_eq!(list(3, 3 * BASE), (BASE, 8));
        assert_eq!(list(22, 22 * BASE), (BASE, 8));
        assert_eq!(list(23, 23 * BASE), (BASE, 64));
        assert_eq!(list(100_000, 100_000 * BASE), (BASE, 512));
        // Jobs of 64 KiB are nearer to 4 KiB than to 2 MiB, those of 128 KiB are not.
        assert_eq!(list(16, 1 << 20), (BASE, 512));
        assert_eq!(list(8, 1 << 20), (HUGE, 1));
        assert_eq!(list(2, 2 * HUGE), (HUGE, 1));
        assert_eq!(list(3, 3 * HUGE), (HUGE, 4));
        assert_eq!(list(1, 1 << 30), (HUGE, 16));
        // One large job and many small ones: by the mean.
        assert_eq!(list(513, HUGE + 512 * BASE), (BASE, 512));
        assert_eq!(list(5, HUGE + 4 * BASE), (HUGE, 1));
        assert_eq!(list(usize::MAX, usize::MAX), (BASE, 512));
        assert_eq!(list(1, usize::MAX), (HUGE, 16));
    }
}
