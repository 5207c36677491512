//! Scattered pages: a span of the region is cut off whole, and only the wanted pages in it are
//! replaced.
//!
//! A call that cuts off, or brings back, costs a shootdown for each run of pages. Where wanted pages
//! are close together it costs less to take their neighbours along:
//!
//! 1. The neighbours are try-locked, their owner is asked if there is one, and `UFFDIO_MOVE` takes
//!    the span out to staging slots of the *destination's* node. A page that is not there, or will
//!    not move, divides it.
//! 2. The wanted pages are copied to frames of the pool, as ever.
//! 3. One `process_madvise` gives up the sources, and `UFFDIO_COPY` fills their slots from the pool's
//!    frames: the kernel takes the new frames from the slots' node.
//! 4. `UFFDIO_MOVE` brings the span back.
//!
//! Three shootdowns, however many pages are wanted, where one by one they cost two each. What the
//! kernel allocates in step 3 it may have to look for; if there is none, the pool's frame itself is
//! moved to the slot, so a page is never without a frame.
//!
//! Neighbours count against the limit of what is cut off at once. They are held by a batch only while
//! no other request is under way, which would find them busy for no reason that its caller knows.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use transhume_engine::{Entry, Step, Why};
use transhume_sys::advise;
use transhume_sys::uffd::{CopyMode, MoveMode};
use transhume_sys::{Errno, Progress};

use super::session::{At, Held, Session};
use super::slots::Kind;
use super::span::{Part, Span};
use crate::BASE_PAGE;
use crate::failure::{failed, why};
use crate::walk::{Stopped, Walk};

impl Session<'_> {
    /// Whether two wanted pages go with what lies between them.
    pub(super) fn is_in_reach(&self, before: usize, index: usize) -> bool {
        index > before && index - before <= self.reach
    }

    /// Before a batch is made ready: whether it may hold neighbours. If not, those of others have
    /// been let go of.
    pub(super) fn may_span(&mut self) -> bool {
        const NAP: Duration = Duration::from_micros(20);
        const PATIENCE: Duration = Duration::from_millis(100);
        self.close_spans();
        let spans = &self.memory.spans;
        let alone = || self.memory.sessions.load(Ordering::SeqCst) == 1;
        if self.reach > 1 && alone() {
            spans.holders.fetch_add(1, Ordering::SeqCst);
            // Another request has begun before this was seen, or will wait for its end.
            if alone() {
                self.holds = true;
                return true;
            }
            spans.holders.fetch_sub(1, Ordering::SeqCst);
        }
        if !alone() {
            let until = Instant::now() + PATIENCE;
            while spans.holders.load(Ordering::SeqCst) > 0 && Instant::now() < until {
                std::thread::sleep(NAP);
            }
        }
        false
    }

    /// Takes slots for a span of the region, if its pages lie in one mapping that is not locked;
    /// says whether it did.
    pub(super) fn make_ready_span(&mut self, pages: Range<usize>, pool: usize) -> bool {
        let plain = |index| !self.layout.is_mlocked(index);
        let one_mapping = pages
            .clone()
            .skip(1)
            .all(|index| !self.layout.is_seam(index));
        if !one_mapping || !pages.clone().all(plain) {
            return false;
        }
        let first = self.memory.memory.range().start / BASE_PAGE + pages.start;
        let from = &self.memory.pools[pool];
        let Some(slots) = from.take_staging(pages.len(), first, &self.memory.uffd) else {
            return false;
        };
        if slots.len() < pages.len() {
            from.put_staging(slots);
            return false;
        }
        self.spans.push(Span {
            first: pages.start,
            parts: vec![Part::Apart; pages.len()],
            slots,
            pool,
            begun: false,
            closed: false,
            soiled: false,
        });
        true
    }

    /// The span that a page is in, and its slot there.
    pub(super) fn span_of(&self, index: usize) -> Option<(usize, usize)> {
        let at = self.spans.partition_point(|span| span.pages().end <= index);
        let span = self.spans.get(at)?;
        let inside = span.pages().contains(&index) && !span.closed;
        inside.then(|| (at, span.slots.start + index - span.first))
    }

    /// Moves the spans of these folios out to their slots. The entries of a span lie together.
    pub(super) fn move_spans_out(&mut self, entries: &mut [Entry<Held>]) {
        for entries in entries.chunk_by_mut(|a, b| a.held.span == b.held.span) {
            let Some(span) = entries.first().and_then(|entry| entry.held.span) else {
                continue;
            };
            let mut from = 0;
            while let Some(piece) = self.spans[span].next_piece(from) {
                from = piece.end;
                self.move_piece_out(span, piece, entries);
            }
            if self.spans[span].next_out(0).is_none() {
                self.close_span(span);
            }
        }
    }

    fn move_piece_out(&mut self, span: usize, piece: Range<usize>, entries: &mut [Entry<Held>]) {
        let (page, slot) = (
            self.spans[span].first + piece.start,
            self.spans[span].slots.start + piece.start,
        );
        let (from, to) = (self.address_of(page), slot * BASE_PAGE);
        let mut walk = Walk::over(piece.len(), BASE_PAGE);
        while let Some(rest) = walk.rest() {
            // SAFETY: the pages are locked by this session and the slots are reserved for them; see
            // `move_out`.
            let progress = unsafe {
                self.memory.move_range(
                    to + rest.start,
                    from + rest.start,
                    rest.len(),
                    MoveMode::DONTWAKE,
                )
            };
            let (done, stopped) = walk.record(progress);
            for at in done {
                self.part_is_out(span, piece.start + at, entries);
            }
            if let Some(Stopped { folio, errno, .. }) = stopped {
                let index = page + folio;
                // A stray access has put something into the slot.
                self.spans[span].soiled |= errno == Errno::EXIST;
                // A neighbour that will not move stays where it is.
                if let Ok(at) = entries.binary_search_by_key(&index, |entry| entry.held.index) {
                    let why = self.why_not_out(&mut entries[at].held, errno);
                    entries[at].fail(failed(Step::Shootdown, why, errno));
                }
            }
        }
    }

    fn part_is_out(&mut self, span: usize, at: usize, entries: &mut [Entry<Held>]) {
        let index = self.spans[span].first + at;
        let part = &mut self.spans[span].parts[at];
        *part = match *part {
            Part::Neighbour => Part::NeighbourOut,
            _ => Part::WantedOut,
        };
        self.new_cut_off();
        self.effort.pages += 1;
        if let Ok(at) = entries.binary_search_by_key(&index, |entry| entry.held.index) {
            entries[at].held.at = At::Staging;
            self.effort.wanted += 1;
        }
    }

    /// A wanted page has been brought back by itself.
    pub(super) fn part_is_home(&mut self, held: &Held) {
        let Some(span) = held.span else { return };
        let span = &mut self.spans[span];
        span.soiled |= held.soiled.staging;
        span.parts[held.index - span.first] = Part::Wanted;
    }

    /// Replaces the wanted pages of spans by their copies and brings the spans back.
    pub(super) fn move_spans_in(&mut self, entries: &mut [Entry<Held>]) {
        if entries.iter().all(|entry| entry.held.span.is_none()) {
            return;
        }
        self.give_up_sources(entries);
        let replaced = |entry: &Entry<Held>| entry.held.span.is_some() && entry.is_alive();
        for run in entries.chunk_by_mut(|a, b| {
            let together = a.held.span == b.held.span && a.held.index + 1 == b.held.index;
            let side_by_side = |a: Option<NonZeroUsize>, b: Option<_>| {
                a.and_then(|a| a.checked_add(1)) == b && b.is_some()
            };
            together && replaced(a) == replaced(b) && side_by_side(a.held.frame, b.held.frame)
        }) {
            if replaced(&run[0]) {
                self.fill_slots(run);
            }
        }
        for entry in entries {
            let Some(span) = entry.held.span else {
                continue;
            };
            self.close_span(span);
            entry.held.at = if entry.is_alive() {
                At::Destination
            } else {
                At::Source
            };
        }
    }

    /// Gives up the sources of all wanted pages that have been copied, by one call if the kernel
    /// will. Where it will not, the page stays.
    fn give_up_sources(&mut self, entries: &mut [Entry<Held>]) {
        const TRIES: u32 = 64;
        self.sources.clear();
        for entry in entries.iter().filter(|entry| entry.held.span.is_some()) {
            self.sources
                .push(self.slot_bytes(entry.held.staging).into());
        }
        let mut done = 0;
        let mut refused = Errno::NOSYS;
        for _ in 0..TRIES {
            let rest = &self.sources[done / BASE_PAGE..];
            let progress = match &self.memory.spans.process {
                // SAFETY: the slots are this session's, and their contents have been copied.
                Some(process) => unsafe { process.dont_need_all(rest) },
                None => Progress::partial(0, Errno::NOSYS),
            };
            done += progress.done;
            match progress.stopped {
                None => return,
                Some(errno) => refused = errno,
            }
            if refused != Errno::AGAIN && refused != Errno::INTR {
                break;
            }
        }
        if matches!(refused, Errno::INVAL | Errno::PERM | Errno::NOSYS) {
            // This kernel does not do it: from now on pages go one by one.
            self.memory.spans.refused.store(true, Ordering::Relaxed);
        }
        let in_spans = entries.iter_mut().filter(|entry| entry.held.span.is_some());
        for entry in in_spans.skip(done / BASE_PAGE) {
            // Whatever the kernel says: a source that is gone is not put back.
            if self.memory.is_gone(self.slot_address(entry.held.staging)) {
                continue;
            }
            let why = match why(refused) {
                Why::Unsupported | Why::NotPermitted => Why::Again,
                other => other,
            };
            entry.fail(failed(Step::Remap, why, refused));
        }
    }

    /// Fills the empty slots of a run of wanted pages with copies of the frames, which lie side by
    /// side too.
    fn fill_slots(&self, run: &mut [Entry<Held>]) {
        let (from, to) = (
            self.slot_address(run[0].held.frame),
            self.slot_address(run[0].held.staging),
        );
        let mut walk = Walk::over(run.len(), BASE_PAGE);
        while let Some(rest) = walk.rest() {
            // SAFETY: the frames are this session's, and nobody writes to them any more.
            let progress = unsafe {
                let from = ptr::with_exposed_provenance(from + rest.start);
                self.memory
                    .uffd
                    .copy(to + rest.start, from, rest.len(), CopyMode::DONTWAKE)
            };
            let (done, stopped) = walk.record(progress);
            let replaced = &self.memory.spans.replaced;
            replaced.fetch_add(done.len() as u64, Ordering::Relaxed);
            if let Some(Stopped { folio, .. }) = stopped {
                let at = folio * BASE_PAGE;
                run[folio].held.frame_is_spent = self.fill_slot(from + at, to + at);
            }
        }
    }

    /// Fills the slot of a wanted page, whatever it takes: where there is no frame to be had, the
    /// pool's is put there itself. Says whether it was.
    fn fill_slot(&self, frame: usize, slot: usize) -> bool {
        let mut nap = Duration::from_micros(20);
        loop {
            if self.memory.is_gone(frame) {
                return true;
            }
            // SAFETY: what the slot may still hold has been copied to the frame. If this fails, the
            // calls below do too.
            let _ = unsafe { advise::dont_need(slot..slot + BASE_PAGE) };
            // SAFETY: frame and slot are this session's.
            let moved = unsafe {
                self.memory
                    .move_range(slot, frame, BASE_PAGE, MoveMode::DONTWAKE)
            };
            if moved.done > 0 {
                return true;
            }
            // SAFETY: the frame still holds the contents, as the move failed.
            let copied = unsafe {
                let frame = ptr::with_exposed_provenance(frame);
                self.memory
                    .uffd
                    .copy(slot, frame, BASE_PAGE, CopyMode::DONTWAKE)
            };
            if copied.done > 0 {
                return false;
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(10));
        }
    }

    /// Brings back what is out of a span. May be called twice.
    ///
    /// Its neighbours are let go of when folios are released: their owner is told then, and could
    /// panic, which must not be in the middle of a step. Its slots are given back when the batch has
    /// ended: that may allocate, which must not be while other pages are cut off.
    pub(super) fn close_span(&mut self, number: usize) {
        if std::mem::replace(&mut self.spans[number].closed, true) {
            return;
        }
        let (first, slots) = (self.spans[number].first, self.spans[number].slots.clone());
        let mut from = 0;
        while let Some(out) = self.spans[number].next_out(from) {
            from = out.end;
            let emptied = self.bring_in(
                (slots.start + out.start) * BASE_PAGE,
                self.address_of(first + out.start),
                out.len() * BASE_PAGE,
            );
            self.spans[number].soiled |= !emptied;
            for at in out {
                let part = &mut self.spans[number].parts[at];
                *part = match *part {
                    Part::NeighbourOut => Part::Neighbour,
                    _ => Part::Wanted,
                };
                self.no_longer_cut_off();
            }
        }
    }

    /// Closes the spans of a batch that has ended, and gives back their slots.
    pub(super) fn close_spans(&mut self) {
        for number in 0..self.spans.len() {
            self.close_span(number);
        }
        self.let_go_of_neighbours();
        for span in self.spans.drain(..) {
            let pool = &self.memory.pools[span.pool];
            if span.soiled {
                for slot in span.slots {
                    pool.put_soiled_staging(NonZeroUsize::new(slot));
                }
            } else {
                pool.put_staging(span.slots);
            }
        }
        if std::mem::take(&mut self.holds) {
            self.memory.spans.holders.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Closes the spans of which something was cut off, and nothing that is wanted is any more.
    pub(super) fn close_finished_spans(&mut self) {
        for number in 0..self.spans.len() {
            let span = &self.spans[number];
            if span.begun && !span.parts.contains(&Part::WantedOut) {
                self.close_span(number);
            }
        }
    }

    /// Makes what a batch needs to be known before it is made ready: its spans, in order, and what
    /// goes run by run. `leaving` is sorted.
    pub(super) fn make_spans_ready(&mut self, leaving: &mut Vec<(usize, usize)>, target: usize) {
        let spans = self.may_span();
        if !spans {
            return;
        }
        let mut rest = Vec::with_capacity(leaving.len());
        let reach = self.reach;
        for close in leaving.chunk_by(|a, b| b.0 - a.0 <= reach) {
            let pages = close[0].0..close[close.len() - 1].0 + 1;
            let scattered = pages.len() > close.len();
            if scattered && self.make_ready_span(pages, target) {
                for run in close.chunk_by(|a, b| a.0 + 1 == b.0) {
                    self.make_ready(run[0].0, run.len(), Kind::Frame, target);
                }
            } else {
                rest.extend_from_slice(close);
            }
        }
        self.sources.clear();
        self.sources.reserve(leaving.len());
        *leaving = rest;
    }
}
