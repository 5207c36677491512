//! The blind: memory without a page, of which copies are laid over pages to cut them off.
//!
//! It must stay empty: what is in it would be seen in place of the pages. Nobody has its address,
//! but a process that locks all its memory (`mlockall`) fetches all pages of all its mappings, and
//! waits in a fault on the blind until it gets one. So the blind is made empty after it is mapped,
//! and a fault on it is answered with zeros for all of it; it is emptied again before it is laid.

mod filled;

use std::ops::Range;

use transhume_sys::CallError;
use transhume_sys::advise::{self, Advice};
use transhume_sys::map::{self, Mapping, Source};
use transhume_sys::uffd::{RegisterMode, Uffd, Waiters};

use self::filled::Filled;
use crate::failure::wake;

/// How long a run one blind can cover, unless more is asked for.
const BYTES: usize = 32 << 20;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Blind {
    memory: Mapping,
    filled: Filled,
}

impl Blind {
    /// A blind for pages of `page` bytes, served by `uffd`, that can cover `bytes` bytes at least.
    pub(super) fn create(uffd: &Uffd, page: usize, bytes: usize) -> Result<Self, CallError> {
        let bytes = bytes.max(BYTES).next_multiple_of(page);
        let memory = Mapping::reserve_aligned(bytes, page)?;
        advise::advise(memory.range(), Advice::DontFork)?;
        empty(memory.range())?;
        // SAFETY: the blind is our own and is never touched, except by threads of the application
        // that meet it in place of a page.
        unsafe { uffd.register(memory.range(), RegisterMode::MISSING) }?;
        Ok(Self {
            memory,
            filled: Filled::new(),
        })
    }

    /// How many bytes it covers at most.
    pub(super) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Lays a copy of it over `pages`, which are no longer than it is.
    ///
    /// # Safety
    ///
    /// Nobody maps anything there meanwhile, and nobody views the pages as `&` or `&mut`.
    pub(super) unsafe fn lay_over(&self, pages: Range<usize>) -> Result<(), CallError> {
        let all = self.memory.range();
        let cover = all.start..all.start + pages.len();
        self.filled.while_empty(
            || empty(all.clone()),
            // SAFETY: by this function's contract; the blind has no page, so none is moved.
            || unsafe { map::remap(cover, pages.start, Source::LeftEmpty) },
        )
    }

    /// Notes a fault, if it is one on the blind itself.
    pub(super) fn see_fault(&self, address: usize) {
        if self.memory.range().contains(&address) {
            self.filled.ask();
        }
    }

    /// Answers what was noted; says whether something is left to answer, which is so while the blind
    /// is being laid. Never waits: who lays it waits for the thread that calls this.
    pub(super) fn answer(&self, uffd: &Uffd) -> bool {
        self.filled.answer(|| {
            let all = self.memory.range();
            // From its beginning, as the kernel stops at a page that is there.
            let answered = empty(all.clone()).is_ok()
                && uffd
                    .zeropage(all.clone(), Waiters::LeaveAsleep)
                    .is_complete();
            wake(uffd, all);
            answered
        })
    }
}

/// Takes all pages out, locked or not, and the lock off.
fn empty(range: Range<usize>) -> Result<(), CallError> {
    map::unlock(range.clone())?;
    // SAFETY: the blind is our own, and nobody needs what is in it.
    unsafe { advise::dont_need(range) }
}
