//! A region and who meets in it.

use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use loom::thread::JoinHandle;
use transhume_engine::{Folio, FolioReport, Outcome, Report, Request, defer, migrate};

use crate::claims::Claims;
use crate::deferral::{Cause, Deferral, Desk};
use crate::kept::{Core, Kept};
use crate::kernel::{Access, Contents, Machine, Trouble};
use crate::memory::{ByModel, Memory, Session};
use crate::mutants::Mutant;
use crate::runs::RunSet;
use crate::table::FolioTable;
use crate::tier::TierId;
use crate::{BASE_PAGE, folio_at};

pub(crate) const NEAR: TierId = TierId(0);
pub(crate) const FAR: TierId = TierId(1);

/// What is different from one check to another.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct World {
    pub(crate) mutant: Option<Mutant>,
    pub(crate) trouble: Option<Trouble>,
}

/// A region on a machine of its own.
pub(crate) struct Region {
    pub(crate) kept: Kept<Memory>,
    claims: Claims,
    pub(crate) machine: Arc<Machine>,
}

/// So many pages may wait, for ever.
fn waits(pages: usize) -> Deferral {
    let limit = NonZeroUsize::new(pages * BASE_PAGE).unwrap();
    Deferral::new(limit)
        .max_age(Duration::MAX)
        .keep_free_bytes(0)
}

impl Region {
    fn start(world: World, pages: usize, is_mapped: bool, deferral: Option<&Deferral>) -> Self {
        let blinds = usize::from(is_mapped);
        let machine = Machine::boot(pages + blinds, world.mutant, world.trouble);
        if is_mapped {
            machine.give_back(pages);
        }
        let memory = Memory::new(&machine, pages, is_mapped, deferral);
        let table = FolioTable::new(pages, 2);
        let kept = Kept::start(Core { table, memory }).unwrap();
        Self {
            kept,
            claims: Claims::default(),
            machine,
        }
    }

    /// In which nothing waits.
    pub(crate) fn plain(world: World, pages: usize) -> Self {
        Self::start(world, pages, false, None)
    }

    /// The same of mapped memory.
    pub(crate) fn mapped(world: World, pages: usize) -> Self {
        Self::start(world, pages, true, None)
    }

    /// Mapped memory, of which all pages may wait.
    pub(crate) fn mapped_deferring(world: World, pages: usize) -> Self {
        Self::start(world, pages, true, Some(&waits(pages)))
    }

    /// In which so many pages may wait.
    pub(crate) fn deferring(world: World, pages: usize, limit: usize) -> Self {
        Self::start(world, pages, false, Some(&waits(limit)))
    }

    fn asked(folios: std::ops::Range<usize>, to: TierId, batch: u64) -> Request<TierId> {
        let folio = |index| folio_at(index, transhume_engine::Order::BASE).unwrap();
        let mut request = Request::new(folios.map(folio).collect::<Vec<Folio>>(), to);
        request.limit.base_pages = NonZeroU64::new(batch).unwrap();
        request
    }

    /// Moves folios, so many in a batch.
    pub(crate) fn migrate(
        &self,
        folios: std::ops::Range<usize>,
        to: TierId,
        batch: u64,
    ) -> Report<TierId> {
        let Core { table, memory } = &*self.kept.core;
        table.take_room(to, folios.len(), usize::MAX).unwrap();
        let mut session = Session::new(memory, table);
        migrate(&mut session, &ByModel, Self::asked(folios, to, batch))
    }

    /// The same, but leaves the switch for later.
    pub(crate) fn defer(
        &self,
        folios: std::ops::Range<usize>,
        to: TierId,
        batch: u64,
    ) -> Report<TierId> {
        let Core { table, memory } = &*self.kept.core;
        table.take_room(to, folios.len(), usize::MAX).unwrap();
        let mut session = Session::new(memory, table);
        let mut desk = Desk(memory.pending.as_ref().unwrap());
        let request = Self::asked(folios, to, batch);
        defer(&mut session, &ByModel, request, &mut desk)
    }

    /// A request for a page, as the region serves it; none if the page is in another one.
    pub(crate) fn request(&self, page: usize, to: TierId, deferred: bool) {
        let Core { table, memory } = &*self.kept.core;
        let mut pages = RunSet::default();
        pages.insert(page..page + 1);
        let Ok(mut claim) = self.claims.claim(pages.clone(), table) else {
            return;
        };
        let (core, keeper) = (&self.kept.core, &self.kept.keeper);
        core.settle_pages(keeper, &pages, Cause::Request);
        claim.take_room(to, usize::MAX).unwrap();
        let request = Self::asked(page..page + 1, to, 1);
        let mut session = Session::new(memory, table);
        if !deferred {
            migrate(&mut session, &ByModel, request);
            return;
        }
        let pending = memory.pending.as_ref().unwrap();
        claim.may_wait(pending);
        let report = defer(&mut session, &ByModel, request, &mut Desk(pending));
        let stays = |one: &FolioReport<TierId>| {
            matches!(one.outcome, Outcome::Stayed(_)) && table.tier(page) != to
        };
        claim.end(report.folios().filter(stays).count());
    }

    /// How many pages have room in a tier.
    pub(crate) fn room_taken(&self, tier: TierId) -> usize {
        self.kept
            .core
            .table
            .take_room(tier, 0, 0)
            .err()
            .unwrap_or(0)
    }

    pub(crate) fn settle(&self, pages: usize) {
        let (core, keeper) = (&self.kept.core, &self.kept.keeper);
        core.settle_pages(keeper, &RunSet::all(pages), Cause::Asked);
    }

    /// What a page must hold when all is over.
    pub(crate) fn holds(&self, folio: usize, expected: Contents) {
        let found = self.machine.contents(folio);
        assert_eq!(found, Some(expected), "a store to folio {folio} is lost");
    }

    pub(crate) fn is_in(&self, folio: usize, tier: TierId) {
        assert_eq!(
            self.kept.core.table.tier(folio),
            tier,
            "folio {folio} is elsewhere"
        );
    }

    /// No request moves these.
    pub(crate) fn pin(&self, folios: &[usize]) {
        let table = &self.kept.core.table;
        for &folio in folios {
            table.pin(folio, Duration::ZERO).unwrap();
        }
    }

    /// A store to one of these would not wait.
    pub(crate) fn is_let_go(&self, folios: std::ops::Range<usize>) {
        for folio in folios {
            let held = self.machine.is_held_off(folio);
            assert!(!held, "stores to folio {folio} are held off");
        }
    }

    /// A thread of the application.
    pub(crate) fn thread(&self, work: impl FnOnce(&mut Thread) + 'static) -> Joined {
        let mut thread = Thread {
            machine: Arc::clone(&self.machine),
        };
        Joined(loom::thread::spawn(move || work(&mut thread)))
    }
}

pub(crate) struct Joined(JoinHandle<()>);

impl Joined {
    pub(crate) fn join(self) {
        self.0.join().unwrap();
    }
}

/// What a thread of the application does.
pub(crate) struct Thread {
    machine: Arc<Machine>,
}

impl Thread {
    pub(crate) fn store(&mut self, folio: usize, word: usize, version: u64) {
        self.machine.access(folio, Access::Store(word, version));
    }

    pub(crate) fn load(&mut self, folio: usize, word: usize) -> u64 {
        self.machine.access(folio, Access::Load)[word]
    }

    /// Loads its own word, which must be as it was stored last.
    pub(crate) fn expect(&mut self, folio: usize, word: usize, version: u64) {
        let found = self.load(folio, word);
        assert_eq!(found, version, "a store to folio {folio} is lost");
    }

    pub(crate) fn give_back(&mut self, folio: usize) {
        self.machine.give_back(folio);
    }
}
