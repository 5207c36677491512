//! Huge pages out of a pool: for base pages that are to become one, and for folios of their size.

use std::ops::Range;
use std::sync::atomic::Ordering;

use transhume_sys::advise;
use transhume_sys::uffd::Uffd;

use super::{FramePool, Slots};

impl FramePool {
    /// Takes one huge page, in a pool of base pages: the slots of its parts. One that waits since
    /// its pages have moved away will do. `None` if there is none to be had, as `is_huge` says of a
    /// range. May block, so no folio may be locked.
    pub(crate) fn take_huge(
        &self,
        uffd: &Uffd,
        is_huge: impl Fn(Range<usize>) -> bool,
    ) -> Option<Range<usize>> {
        let parts = self.pages_per_table();
        let waiting = self.lock().full.take_aligned(parts);
        if let Some(slots) = waiting {
            if is_huge(self.bytes(&slots)) {
                return Some(slots);
            }
            self.put_unused(slots);
        }
        let slots = {
            let mut state = self.lock();
            match state.parts.take_aligned(parts) {
                Some(slots) => slots,
                None => {
                    self.add_chunk(&mut state, Slots::Parts, parts, uffd).ok()?;
                    state.parts.take_aligned(parts)?
                }
            }
        };
        self.free_tables(&slots);
        let filled = advise::populate_write(self.bytes(&slots));
        if filled.is_ok() && is_huge(self.bytes(&slots)) {
            self.fresh.fetch_add(slots.len() as u64, Ordering::Relaxed);
            return Some(slots);
        }
        self.empty(slots);
        None
    }

    /// Frees the page tables of empty slots that are to hold huge pages: those that were split there
    /// have left one, and over it none can come. Where the kernel does not they hold base pages.
    pub(crate) fn free_tables(&self, slots: &Range<usize>) {
        // SAFETY: the slots are this pool's own, taken by the caller, and nobody needs what may be
        // left in them.
        let _ = unsafe { advise::dont_need(self.bytes(slots)) };
    }

    /// Gives frames back to the kernel that were reserved and do not suit.
    pub(crate) fn discard(&self, slots: Range<usize>) {
        self.empty(slots);
    }
}
