//! A model of the kernel: one page table, its frames, and a userfaultfd with those who wait at it.
//!
//! Each call is made of steps, one for each page and one for waking, and others can come between any
//! two. A thread that finds no page, or one that is protected, is queued in a later step than it looked,
//! and looks again then.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use transhume_sys::uffd::{Event, FaultFlags, Protection, Waiters};
use transhume_sys::{Call, CallError, Errno, Progress};

use crate::BASE_PAGE;
use crate::mutants::Mutant;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// Where the region lies.
pub(crate) const START: usize = 1 << 20;

/// How many threads store, each to a word of its own in each page.
pub(crate) const WORDS: usize = 2;

/// What a page holds: the last version of each word.
pub(crate) type Contents = [u64; WORDS];

/// What is in a frame that belongs to nobody.
const NOTHING: u64 = u64::MAX;

/// What the kernel may do and the region has to live with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The first call that lets stores go fails when it has done so for its first page.
    LetGoFails,
    /// Pages come back and nobody is woken, as where the kernel has miscounted.
    MapsQuietly,
    /// What is mapped anew cannot be registered, until it is tried again.
    MapsUnregistered,
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) mutant: Option<Mutant>,
    pub(crate) trouble: Option<Trouble>,
    state: Mutex<State>,
    /// For threads that wait for pages.
    woken: Condvar,
    /// For the keeper.
    readable: Condvar,
}

#[derive(Debug)]
struct State {
    pages: Vec<Page>,
    frames: Vec<Contents>,
    /// The last that was stored to each page, wherever it is.
    stored: Vec<Contents>,
    waiting: Vec<Waiter>,
    /// Calls that wait until it has been read what they did.
    remaps: Vec<usize>,
    next: usize,
    rung: bool,
    troubled: bool,
    /// How many calls have let stores go and woken who waits, as those do for what was held ahead.
    let_go: usize,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    frame: Option<usize>,
    protected: bool,
    /// Whether stores to it can be held off and let go.
    registered: bool,
}

#[derive(Debug)]
struct Waiter {
    number: usize,
    folio: usize,
    stores: bool,
    /// It waits because the page is protected.
    protected: bool,
    read: bool,
}

/// What a thread does to its page.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    Load,
    Store(usize, u64),
}

thread_local! {
    static HERE: RefCell<Option<Arc<Machine>>> = const { RefCell::new(None) };
}

impl Machine {
    /// Makes a machine with so many pages of zeros the one of this execution.
    pub(crate) fn boot(
        pages: usize,
        mutant: Option<Mutant>,
        trouble: Option<Trouble>,
    ) -> Arc<Self> {
        let page = |frame| Page {
            frame: Some(frame),
            protected: false,
            registered: true,
        };
        let machine = Arc::new(Self {
            mutant,
            trouble,
            state: Mutex::new(State {
                pages: (0..pages).map(page).collect(),
                frames: vec![[0; WORDS]; pages],
                stored: vec![[0; WORDS]; pages],
                waiting: Vec::new(),
                remaps: Vec::new(),
                next: 0,
                rung: false,
                troubled: false,
                let_go: 0,
            }),
            woken: Condvar::default(),
            readable: Condvar::default(),
        });
        HERE.replace(Some(Arc::clone(&machine)));
        machine
    }

    /// The one of this execution.
    pub(crate) fn here() -> Arc<Self> {
        HERE.with_borrow(|here| here.clone().expect("a machine"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// An access by any thread, which waits for as long as it takes.
    pub(crate) fn access(&self, folio: usize, access: Access) -> Contents {
        let stores = matches!(access, Access::Store(..));
        loop {
            let protected = {
                let mut state = self.state();
                let page = state.pages[folio];
                match page.frame {
                    Some(frame) if !(stores && page.protected) => {
                        if let Access::Store(word, version) = access {
                            state.frames[frame][word] = version;
                            state.stored[folio][word] = version;
                        }
                        let (found, stored) = (state.frames[frame], state.stored[folio]);
                        let known = found
                            .iter()
                            .zip(stored)
                            .all(|(&found, stored)| found <= stored);
                        assert!(known, "{found:?} in folio {folio}: nobody stored that");
                        return found;
                    }
                    found => found.is_some(),
                }
            };
            self.wait(folio, stores, protected);
        }
    }

    fn wait(&self, folio: usize, stores: bool, protected: bool) {
        let mut state = self.state();
        let page = state.pages[folio];
        let still = page.frame.is_none() || (protected && page.protected);
        if !still {
            return;
        }
        let number = state.next;
        state.next += 1;
        state.waiting.push(Waiter {
            number,
            folio,
            stores,
            protected,
            read: false,
        });
        self.readable.notify_one();
        while state.waiting.iter().any(|waiter| waiter.number == number) {
            state = self.woken.wait_well(state);
        }
    }

    fn wake(&self, folios: &Range<usize>) {
        let mut state = self.state();
        let mut left = if self.has(Mutant::WakesOne) {
            1
        } else {
            usize::MAX
        };
        let before = state.waiting.len();
        state.waiting.retain(|waiter| {
            let wakes = left > 0 && folios.contains(&waiter.folio);
            left -= usize::from(wakes);
            !wakes
        });
        if state.waiting.len() < before {
            self.woken.notify_all();
        }
    }

    pub(crate) fn ring(&self) {
        self.state().rung = true;
        self.readable.notify_one();
    }

    pub(crate) fn poll(&self, heeds_events: bool, once: bool) {
        let mut state = self.state();
        let unread = |state: &State| {
            !state.remaps.is_empty() || state.waiting.iter().any(|waiter| !waiter.read)
        };
        while !(once || state.rung || heeds_events && unread(&state)) {
            state = self.readable.wait_well(state);
        }
        state.rung = false;
    }

    /// A frame that belongs to the caller.
    pub(crate) fn allocate(&self) -> usize {
        let mut state = self.state();
        state.frames.push([NOTHING; WORDS]);
        state.frames.len() - 1
    }

    pub(crate) fn free(&self, frame: usize) {
        let mut state = self.state();
        let mapped = state.pages.iter().any(|page| page.frame == Some(frame));
        assert!(!mapped, "a frame is free that is mapped");
        state.frames[frame] = [NOTHING; WORDS];
    }

    pub(crate) fn read(&self, frame: usize) -> Contents {
        self.state().frames[frame]
    }

    pub(crate) fn write(&self, frame: usize, contents: Contents) {
        self.state().frames[frame] = contents;
    }

    /// `UFFDIO_MOVE` out of the region, of one page: its frame, if there is one.
    pub(crate) fn take(&self, folio: usize) -> Option<usize> {
        let page = &mut self.state().pages[folio];
        page.protected = false;
        page.frame.take()
    }

    /// `UFFDIO_MOVE` into the region, where nothing is.
    pub(crate) fn put(&self, folio: usize, frame: usize) {
        let before = {
            let page = &mut self.state().pages[folio];
            page.protected = false;
            page.frame.replace(frame)
        };
        assert_eq!(before, None, "a page over a page of folio {folio}");
        if self.trouble != Some(Trouble::MapsQuietly) {
            self.wake(&(folio..folio + 1));
        }
    }

    /// The frame of a page that is there.
    pub(crate) fn frame(&self, folio: usize) -> usize {
        self.state().pages[folio].frame.expect("a page")
    }

    /// `mremap` of a page that should be empty over another one, which waits until that has been read.
    pub(crate) fn lay(&self, blind: usize, folio: usize) {
        let mut state = self.state();
        let frame = state.pages[blind].frame.take();
        state.pages[folio] = Page {
            frame,
            protected: false,
            registered: false,
        };
        drop(state);
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.remaps.push(number);
        self.readable.notify_one();
        while state.remaps.contains(&number) {
            state = self.woken.wait_well(state);
        }
    }

    /// `mmap` of a frame over a page, whatever is there. Wakes nobody.
    pub(crate) fn map(&self, folio: usize, frame: usize) {
        self.state().pages[folio] = Page {
            frame: Some(frame),
            protected: false,
            registered: self.trouble != Some(Trouble::MapsUnregistered),
        };
    }

    /// Lets stores to these pages be held off.
    pub(crate) fn register(&self, bytes: &Range<usize>) {
        let pages = &mut self.state().pages;
        folios(bytes).for_each(|folio| pages[folio].registered = true);
    }

    /// Whether a store to the page would wait.
    pub(crate) fn is_held_off(&self, folio: usize) -> bool {
        self.state().pages[folio].protected
    }

    /// How many calls have let stores go and woken who waits.
    pub(crate) fn let_go(&self) -> usize {
        self.state().let_go
    }

    /// `madvise(MADV_DONTNEED)` of one page.
    pub(crate) fn give_back(&self, folio: usize) {
        if let Some(frame) = self.take(folio) {
            self.free(frame);
        }
    }

    pub(crate) fn has_page(&self, address: usize) -> bool {
        self.state().pages[(address - START) / BASE_PAGE]
            .frame
            .is_some()
    }

    /// What is in a page, if there is one.
    pub(crate) fn contents(&self, folio: usize) -> Option<Contents> {
        let state = self.state();
        state.pages[folio].frame.map(|frame| state.frames[frame])
    }
}

/// The userfaultfd of this machine.
#[derive(Debug)]
pub(crate) struct Uffd(pub(crate) Arc<Machine>);

fn folios(bytes: &Range<usize>) -> Range<usize> {
    (bytes.start - START) / BASE_PAGE..(bytes.end - START) / BASE_PAGE
}

impl Uffd {
    pub(crate) fn read_events(&self, events: &mut Vec<Event>) -> Result<usize, CallError> {
        let mut state = self.0.state();
        let before = events.len();
        if !state.remaps.is_empty() {
            self.0.woken.notify_all();
        }
        let State {
            pages,
            waiting,
            remaps,
            ..
        } = &mut *state;
        events.extend(remaps.drain(..).map(|_| Event::Remap {
            from: START,
            to: START,
            len: BASE_PAGE,
        }));
        for waiter in waiting.iter_mut().filter(|waiter| !waiter.read) {
            waiter.read = true;
            let late = pages[waiter.folio].frame.is_some() && !waiter.protected;
            if late && self.0.has(Mutant::DropsLateFaults) {
                continue;
            }
            let mut flags = FaultFlags::empty();
            flags.set(FaultFlags::WRITE, waiter.stores);
            flags.set(FaultFlags::WP, waiter.protected);
            events.push(Event::Pagefault {
                addr: START + waiter.folio * BASE_PAGE,
                flags,
                thread: None,
            });
        }
        Ok(events.len() - before)
    }

    pub(crate) fn wake(&self, bytes: Range<usize>) -> Result<(), CallError> {
        self.0.wake(&folios(&bytes));
        Ok(())
    }

    pub(crate) fn zeropage(&self, bytes: Range<usize>, waiters: Waiters) -> Progress {
        for folio in folios(&bytes) {
            let mut state = self.0.state();
            if state.pages[folio].frame.is_some() {
                return Progress::partial((folio - folios(&bytes).start) * BASE_PAGE, Errno::EXIST);
            }
            let frame = state.frames.len();
            state.frames.push([0; WORDS]);
            let page = &mut state.pages[folio];
            page.frame = Some(frame);
            page.protected = false;
        }
        if waiters == Waiters::Wake {
            self.0.wake(&folios(&bytes));
        }
        Progress::complete(bytes.len())
    }

    pub(crate) fn write_protect(
        &self,
        bytes: Range<usize>,
        protection: Protection,
    ) -> Result<(), CallError> {
        let protects = protection == Protection::Protect;
        let wakes = protection == Protection::Unprotect(Waiters::Wake);
        let failed = |errno| CallError {
            call: Call::UffdWriteProtect,
            range: Some(bytes.clone()),
            errno,
        };
        for (nth, folio) in folios(&bytes).enumerate() {
            let mut state = self.0.state();
            state.let_go += usize::from(wakes && nth == 0);
            let page = &mut state.pages[folio];
            if !page.registered {
                return Err(failed(Errno::NOENT));
            }
            page.protected = protects && page.frame.is_some();
            let fails = !protects && self.0.trouble == Some(Trouble::LetGoFails);
            if fails && !std::mem::replace(&mut state.troubled, true) {
                return Err(failed(Errno::NOMEM));
            }
        }
        if wakes {
            self.0.wake(&folios(&bytes));
        }
        Ok(())
    }
}

/// No handlers run here.
#[derive(Debug)]
pub(crate) struct HeldOff(());

impl HeldOff {
    pub(crate) fn begin() -> Self {
        Self(())
    }
}

/// There is memory.
pub(crate) mod limits {
    use std::time::Duration;

    pub(crate) fn address_space_left() -> Option<usize> {
        None
    }

    pub(crate) fn memory_available() -> Result<u64, ()> {
        Ok(u64::MAX)
    }

    pub(crate) fn memory_stalled() -> Result<Duration, ()> {
        Ok(Duration::ZERO)
    }
}
