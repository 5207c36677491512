//! One copy to make.

/// A source, a destination and a length.
///
/// Three words that can go to another thread. Making one is the promise that lets every copier be
/// safe to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyJob {
    source: *const u8,
    destination: *mut u8,
    bytes: usize,
}

// SAFETY: the promise at `CopyJob::new` holds on whatever thread the copy is made.
unsafe impl Send for CopyJob {}
// SAFETY: a shared job only gives its three words away.
unsafe impl Sync for CopyJob {}

impl CopyJob {
    /// The copy of `bytes` bytes from `source` to `destination`, at any alignment. No bytes is a
    /// copy too.
    ///
    /// # Safety
    ///
    /// For as long as the job, a copy of it or a part of it exists, any thread may read `bytes`
    /// bytes at `source` and write `bytes` bytes at `destination`; the two do not overlap, and
    /// neither is viewed as `&` or `&mut` while a copier has the job.
    ///
    /// From the call of a copier until it returns or unwinds:
    ///
    /// - nothing stores to the source, and nothing loads from or stores to the destination: no other
    ///   thread, no other job of the same or another list, and nobody through another mapping of the
    ///   same memory. Jobs may share a source.
    /// - A fault on either side is resolved without the thread that called the copier.
    ///
    /// What another *process* or a device stores through its own mapping breaks no rule of the
    /// language, but what is copied is then any mixture of old and new: the caller must make sure
    /// that the copy is not used, or that nobody can do it.
    #[must_use]
    pub const unsafe fn new(source: *const u8, destination: *mut u8, bytes: usize) -> Self {
        Self {
            source,
            destination,
            bytes,
        }
    }

    /// Where it reads.
    #[must_use]
    pub const fn source(&self) -> *const u8 {
        self.source
    }

    /// Where it writes.
    #[must_use]
    pub const fn destination(&self) -> *mut u8 {
        self.destination
    }

    /// How many bytes it has.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its first `at` bytes, and the rest. Beyond its end, all of it and nothing.
    #[must_use]
    pub const fn split_at(&self, at: usize) -> (Self, Self) {
        (self.part(0, at), self.part(at, usize::MAX))
    }

    /// The part of it that begins `from` bytes in and has `bytes` bytes, or what is left there.
    pub(crate) const fn part(&self, from: usize, bytes: usize) -> Self {
        let from = if from < self.bytes { from } else { self.bytes };
        let rest = self.bytes - from;
        Self {
            source: self.source.wrapping_add(from),
            destination: self.destination.wrapping_add(from),
            bytes: if bytes < rest { bytes } else { rest },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stay_inside() {
        let source = [0u8; 100];
        let mut destination = [0u8; 100];
        // SAFETY: two arrays, not used otherwise.
        let job = unsafe { CopyJob::new(source.as_ptr(), destination.as_mut_ptr(), 100) };
        let part = |from, bytes| {
            let part = job.part(from, bytes);
            (part.source().addr() - source.as_ptr().addr(), part.bytes())
        };
        assert_eq!(part(0, 100), (0, 100));
        assert_eq!(part(30, 40), (30, 40));
        assert_eq!(part(90, 40), (90, 10));
        assert_eq!(part(100, 1), (100, 0));
        assert_eq!(part(usize::MAX, usize::MAX), (100, 0));
        let (first, rest) = job.split_at(30);
        assert_eq!((first.bytes(), rest.bytes()), (30, 70));
        assert_eq!(rest.destination(), job.destination().wrapping_add(30));
        assert_eq!(job.split_at(101).1.bytes(), 0);
    }
}
