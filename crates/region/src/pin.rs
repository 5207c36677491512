//! Holding pages where they are.

use std::ops::Range;

use crate::region::Region;

/// Pages that stay where they are until this is dropped: no migration touches them, and their
/// addresses may be handed to whoever takes references to frames (direct I/O, io_uring buffers,
/// `vmsplice`, zero-copy sends). Made by [`Region::pin`].
///
/// Drop it only when the other side is done with the memory: for `vmsplice`, when the pipe has been
/// read; for registered buffers, when they are unregistered.
#[derive(Debug)]
#[must_use = "the pages are only held while this lives"]
pub struct Pin<'r> {
    pub(crate) region: &'r Region,
    pub(crate) runs: Vec<Range<usize>>,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let table = self.region.table();
        self.runs
            .iter()
            .flat_map(Clone::clone)
            .for_each(|folio| table.unpin(folio));
    }
}
