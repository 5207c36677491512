//! The two moves, and the way back: runs of pages by `UFFDIO_MOVE`.

use std::ops::Range;
use std::time::Duration;

use transhume_engine::{Entry, Step, Why};
use transhume_sys::uffd::{CopyMode, MoveMode};
use transhume_sys::{Errno, advise};

use super::session::{At, Busy, Held, Session};
use crate::BASE_PAGE;
use crate::failure::{failed, why};
use crate::walk::{Stopped, Walk};

impl Session<'_> {
    /// Moves a run of folios, adjacent in the region and in the slots, out to the slots.
    pub(super) fn move_out(&mut self, run: &mut [Entry<Held>]) {
        let first = &run[0].held;
        let (from, to) = (self.address(first), self.slot_address(first.staging));
        let mut walk = Walk::over(run.len(), self.page());
        while let Some(rest) = walk.rest() {
            // SAFETY: the folios are locked by this session, so no other migrator moves them, and
            // the staging slots are empty and reserved for them. Threads that use the region's
            // memory do so by atomics or raw pointers and wait in a fault until it is back.
            let progress = unsafe {
                self.memory.uffd.move_range(
                    to + rest.start,
                    from + rest.start,
                    rest.len(),
                    MoveMode::DONTWAKE,
                )
            };
            let (done, stopped) = walk.record(progress);
            for entry in &mut run[done] {
                entry.held.at = At::Staging;
                self.new_cut_off();
            }
            if let Some(Stopped { folio, torn, errno }) = stopped {
                let entry = &mut run[folio];
                if torn > 0 {
                    entry.held.at = At::Torn(torn);
                    self.new_cut_off();
                }
                let slot = self.slot_address(entry.held.staging);
                let why = if errno == Errno::EXIST {
                    let rest = torn..self.page();
                    self.clear_slot(self.address(&entry.held), slot, rest);
                    Why::Again
                } else {
                    self.why_not_out(entry.held.index, errno)
                };
                entry.fail(failed(Step::Shootdown, why, errno));
            }
        }
    }

    /// What the kernel means by `errno` when it will not move a folio out.
    fn why_not_out(&mut self, index: usize, errno: Errno) -> Why {
        match errno {
            Errno::BUSY => match self.busy.get(&index) {
                // Shared since a fork or pinned: the next pass unshares it first.
                None | Some(Busy::MaybeShared) => {
                    self.busy.insert(index, Busy::MaybeShared);
                    Why::Again
                }
                Some(Busy::Unshared) => Why::Pinned,
            },
            // The run reaches over two mappings, or the slots are not locked as the folio is; the
            // next batch knows better.
            Errno::INVAL => {
                let is_right = self.layout_is_right.unwrap_or_else(|| {
                    let memory = self.memory.memory.range();
                    !self
                        .memory
                        .layouts
                        .differs(&self.layout, &memory, self.page())
                });
                self.layout_is_right = Some(is_right);
                if is_right {
                    Why::Unsupported
                } else {
                    Why::Again
                }
            }
            _ => why(errno),
        }
    }

    /// Moves a run of frames, adjacent in the slots and in the region, into the region.
    pub(super) fn move_in(&mut self, run: &mut [Entry<Held>]) {
        let first = &run[0].held;
        let (from, to) = (self.slot_address(first.frame), self.address(first));
        let page = self.page();
        let mut walk = Walk::over(run.len(), page);
        while let Some(rest) = walk.rest() {
            // SAFETY: the frames are reserved for these folios and only this session knows their
            // addresses; the folios' places in the region are empty since they were cut off.
            let progress = unsafe {
                self.memory.uffd.move_range(
                    to + rest.start,
                    from + rest.start,
                    rest.len(),
                    MoveMode::empty(),
                )
            };
            let (done, stopped) = walk.record(progress);
            for entry in &mut run[done] {
                entry.held.at = At::Destination;
                self.no_longer_cut_off();
            }
            if let Some(Stopped { folio, torn, errno }) = stopped {
                if torn == 0 {
                    run[folio].fail(failed(Step::Remap, why(errno), errno));
                } else {
                    // Threads may have stored to what arrived, so the folio can only go on.
                    let at = folio * page + torn;
                    self.bring_in(from + at, to + at, page - torn);
                    run[folio].held.at = At::Destination;
                    self.no_longer_cut_off();
                }
            }
        }
    }

    /// Moves bytes from slots into their places in the region, whatever it takes: where the kernel
    /// will not move a page it can still copy it, and where it has no memory for that it is asked
    /// again. Until then the threads that want the page wait, and its contents stay where they are.
    pub(super) fn bring_in(&self, from: usize, to: usize, bytes: usize) {
        let mut done = 0;
        let mut nap = Duration::from_micros(20);
        while done < bytes {
            let (from, to, rest) = (from + done, to + done, bytes - done);
            // SAFETY: as in `move_in`; the slots belong to locked folios of this session.
            let moved = unsafe {
                self.memory
                    .uffd
                    .move_range(to, from, rest, MoveMode::empty())
            };
            done += moved.done;
            if moved.done > 0 || moved.stopped.is_none() {
                continue;
            }
            // SAFETY: the slot holds the page's contents, as the move failed before it.
            let copied = unsafe {
                let from = std::ptr::with_exposed_provenance(from);
                self.memory
                    .uffd
                    .copy(to, from, BASE_PAGE, CopyMode::empty())
            };
            match copied.stopped {
                None => {
                    done += copied.done;
                    self.empty_slot(from, copied.done);
                }
                // It is there already: an earlier call brought it.
                Some(Errno::EXIST) => done += BASE_PAGE,
                Some(_) => {
                    std::thread::sleep(nap);
                    nap = (nap * 2).min(Duration::from_millis(10));
                }
            }
        }
    }

    /// Empties a slot whose contents are elsewhere. If that fails, it is found out when a page is to
    /// be moved there, and tried again.
    fn empty_slot(&self, start: usize, bytes: usize) {
        // SAFETY: the slot is reserved for a folio of this session, and nobody needs what is there.
        let _ = unsafe { advise::dont_need(start..start + bytes) };
    }

    /// Empties what is in the way in a slot that should be empty, page by page: what a copy in place
    /// of a move has left there. A page whose place in the region is empty is not that, whatever the
    /// kernel has counted: it goes back.
    fn clear_slot(&self, address: usize, slot: usize, rest: Range<usize>) {
        for offset in rest.step_by(BASE_PAGE) {
            let page = address + offset..address + offset + BASE_PAGE;
            if self.memory.is_present(&page) {
                self.empty_slot(slot + offset, BASE_PAGE);
            } else {
                // SAFETY: as in `bring_in`; where the region does have the page, this does nothing.
                let _ = unsafe {
                    self.memory.uffd.move_range(
                        page.start,
                        slot + offset,
                        BASE_PAGE,
                        MoveMode::empty(),
                    )
                };
            }
        }
    }
}
