//! A small file system: pages with a buffer each, and a journal that writes them, while they migrate.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use transhume_engine::{
    Alone, Copier, CopyAnswer, Entry, Failure, Folio, FolioOwner, Place, Platform, Refused, Step,
    Wait, Why,
};

use crate::board::{Board, Broken, What, Who};

pub(crate) const PAGES: usize = 8;

/// Page `page` as a folio.
pub(crate) fn folio(page: usize) -> Folio {
    Folio::base(page as u64).unwrap()
}

/// The pages: two frames each, and which of them is in use.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    frames: [[AtomicU64; 2]; PAGES],
    at: [AtomicUsize; PAGES],
}

impl Pages {
    pub(crate) fn add_one(&self, page: u64) {
        self.word(page).fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self, page: u64) -> u64 {
        self.word(page).load(Ordering::Relaxed)
    }

    pub(crate) fn tier(&self, page: u64) -> usize {
        self.at[index(page)].load(Ordering::Relaxed)
    }

    fn word(&self, page: u64) -> &AtomicU64 {
        &self.frames[index(page)][self.tier(page)]
    }

    fn copy(&self, page: u64) {
        let other = &self.frames[index(page)][1 - self.tier(page)];
        other.store(self.get(page), Ordering::Relaxed);
    }

    fn switch(&self, page: u64) {
        self.at[index(page)].fetch_xor(1, Ordering::Relaxed);
    }
}

fn index(page: u64) -> usize {
    usize::try_from(page).unwrap()
}

/// The latches of the buffers, by the rule: in a batch they are only tried.
#[derive(Debug)]
pub(crate) struct Buffers<'b>(pub(crate) &'b Board);

impl Buffers<'_> {
    fn wait_for(&self, folio: Folio) -> Result<(), Refused> {
        let latch = What::Latch(folio.page());
        self.0.take(Who::Migrator, latch).map_err(|Broken| Refused)
    }
}

impl FolioOwner for Buffers<'_> {
    fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
        let free = self.0.try_take(Who::Migrator, What::Latch(folio.page()));
        free.then_some(()).ok_or(Refused)
    }

    fn detach(&self, folio: Folio, _alone: &Alone) -> Result<(), Refused> {
        self.wait_for(folio)
    }

    fn attach(&self, folio: Folio, _at: Place) {
        self.0.give(Who::Migrator, What::Latch(folio.page()));
    }
}

/// As [`Buffers`], but it waits in a batch too: what \[batch-flush\] did before its review.
#[derive(Debug)]
pub(crate) struct RashBuffers<'b>(pub(crate) Buffers<'b>);

impl FolioOwner for RashBuffers<'_> {
    fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
        self.0.wait_for(folio)
    }

    fn detach(&self, folio: Folio, _alone: &Alone) -> Result<(), Refused> {
        self.0.wait_for(folio)
    }

    fn attach(&self, folio: Folio, at: Place) {
        self.0.attach(folio, at);
    }
}

/// What migrates the pages.
pub(crate) struct Migrator<'b> {
    pub(crate) board: &'b Board,
    pub(crate) pages: &'b Pages,
    pub(crate) owner: &'b dyn FolioOwner,
}

impl Platform for Migrator<'_> {
    type Tier = usize;
    type Held = u64;
    type Gather = ();
    type Job = ();

    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn owner(&self) -> Option<&dyn FolioOwner> {
        Some(self.owner)
    }

    fn try_lock(&mut self, folio: Folio) -> Result<u64, Failure> {
        let page = folio.page();
        let free = self.board.try_take(Who::Migrator, What::Lock(page));
        free.then_some(page)
            .ok_or(Failure::new(Step::Lock, Why::Busy))
    }

    fn lock(&mut self, folio: Folio, _alone: &Alone) -> Result<u64, Failure> {
        let page = folio.page();
        match self.board.take(Who::Migrator, What::Lock(page)) {
            Ok(()) => Ok(page),
            Err(Broken) => Err(Failure::new(Step::Lock, Why::Busy)),
        }
    }

    fn is_in(&self, _folio: Folio, page: &u64, tier: usize) -> bool {
        self.pages.tier(*page) == tier
    }

    fn reserve(&mut self, _entries: &mut [Entry<u64>], _to: usize, _wait: &Wait) {}

    fn unmap(
        &mut self,
        _folio: Folio,
        _page: &mut u64,
        (): &mut (),
        _wait: &Wait,
    ) -> Result<(), Failure> {
        Ok(())
    }

    fn shootdown(&mut self, (): (), _entries: &mut [Entry<u64>]) {}

    fn job(&mut self, _folio: Folio, _page: &mut u64) {}

    fn copy_on_cpu(&mut self, _folio: Folio, page: &mut u64) -> Result<(), Failure> {
        self.pages.copy(*page);
        Ok(())
    }

    fn remap(&mut self, entries: &mut [Entry<u64>]) {
        for entry in entries {
            self.pages.switch(entry.held);
        }
    }

    fn putback(&mut self, _entries: &mut [Entry<u64>]) {}

    fn release(&mut self, folios: &mut dyn Iterator<Item = (Folio, u64)>, _at: Place) {
        for (_, page) in folios {
            self.board.give(Who::Migrator, What::Lock(page));
        }
    }
}

/// Leaves every copy to the CPU.
pub(crate) struct NoCopier;

impl Copier<()> for NoCopier {
    fn name(&self) -> &str {
        "none"
    }

    fn copy(&self, _jobs: &[()], _answers: &mut [CopyAnswer]) {}
}
