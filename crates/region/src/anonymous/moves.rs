//! The two moves, and the way back: runs of pages by `UFFDIO_MOVE`.

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
                self.memory.move_range(
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
                let why = self.why_not_out(&mut entry.held, errno);
                entry.fail(failed(Step::Shootdown, why, errno));
            }
        }
    }

    /// What the kernel means by `errno` when it will not move a folio out.
    pub(super) fn why_not_out(&mut self, held: &mut Held, errno: Errno) -> Why {
        match errno {
            // A batch that only switches does not store to a page to make it ours alone.
            Errno::BUSY if held.marks.parked => Why::Shared,
            Errno::BUSY => match self.busy.get(&held.index) {
                // Shared since a fork or pinned: the next batch unshares it first.
                None => {
                    self.new_busy.push(held.index);
                    Why::Again
                }
                Some(Busy::MaybeShared) => Why::Again,
                Some(Busy::Unshared) => Why::Pinned,
            },
            // The run reaches over two mappings, or the slots are not locked as the folio is; the
            // next batch looks before it begins.
            Errno::INVAL if self.layout_is_right => Why::Unsupported,
            Errno::INVAL => {
                self.layout_in_doubt = true;
                Why::Again
            }
            // A stray access has put something into the slot. Another one will do.
            Errno::EXIST => {
                held.soiled.staging = true;
                Why::Again
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
                self.memory.move_range(
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
                    let held = &mut run[folio].held;
                    held.soiled.frame = !self.bring_in(from + at, to + at, page - torn);
                    held.at = At::Destination;
                    self.no_longer_cut_off();
                }
            }
        }
    }

    /// Moves bytes from slots into their places in the region, whatever it takes: where the kernel
    /// will not move a page it can still copy it, and where it has no memory for that it is asked
    /// again. Until then the threads that want the page wait, and its contents stay where they are.
    ///
    /// Says whether the slots are empty now.
    pub(super) fn bring_in(&self, from: usize, to: usize, bytes: usize) -> bool {
        let mut emptied = true;
        let mut done = 0;
        let mut nap = Duration::from_micros(20);
        while done < bytes {
            let (from, to, rest) = (from + done, to + done, bytes - done);
            // SAFETY: as in `move_in`; the slots belong to locked folios of this session.
            let moved = unsafe { self.memory.move_range(to, from, rest, MoveMode::empty()) };
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
            if copied.done > 0 {
                done += copied.done;
                // SAFETY: the slot is reserved for a folio of this session, and what was there is in
                // the region now.
                emptied &= unsafe { advise::dont_need(from..from + copied.done) }.is_ok();
            } else {
                std::thread::sleep(nap);
                nap = (nap * 2).min(Duration::from_millis(10));
            }
        }
        emptied
    }
}
