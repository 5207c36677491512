//! A scene: what there is on the machine, and who acts on it.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use transhume_engine::{Folio, Ledger, Limit, Mode, Order};

use crate::bug::Bug;
use crate::machine::{ActorId, Machine, Page, SpaceId};
use crate::platform::Kind;
use crate::roles::{Move, Op, Role};

/// What is there and who acts.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    cpus: usize,
    spaces: usize,
    words: usize,
    /// Their orders, tiers and address spaces.
    folios: BTreeMap<Page, (u8, usize, Vec<SpaceId>)>,
    /// Free frames of base pages, by tier.
    free: Vec<usize>,
    lazy: bool,
    patient: bool,
    owned: bool,
    failures: u32,
    any_answer: bool,
    panics: Option<ActorId>,
    ledger: u64,
    at_once: u64,
    channels: usize,
    pub(crate) roles: Vec<Role>,
    /// Whether nothing may stay where it is.
    pub(crate) moves_all: bool,
}

impl Setup {
    /// One address space of base pages 0 to `pages - 1` in tier 0, of so many words each, with a free
    /// frame in tier 1 for each of them.
    pub(crate) fn new(pages: usize, words: usize) -> Self {
        let folios = (0..pages as Page)
            .map(|page| (page, (0, 0, vec![0])))
            .collect();
        Self {
            cpus: 0,
            spaces: 1,
            words,
            folios,
            free: vec![1; pages],
            lazy: false,
            patient: false,
            owned: false,
            failures: 0,
            any_answer: false,
            panics: None,
            ledger: 8,
            at_once: 8,
            channels: 0,
            roles: Vec::new(),
            moves_all: false,
        }
    }

    /// Adds a folio in a tier, mapped by some address spaces.
    pub(crate) fn folio(mut self, page: Page, order: u8, tier: usize, spaces: &[SpaceId]) -> Self {
        self.spaces = self
            .spaces
            .max(spaces.iter().map(|space| space + 1).max().unwrap_or(0));
        self.folios.insert(page, (order, tier, spaces.to_vec()));
        self
    }

    /// Has so many free frames of base pages, by their tiers.
    pub(crate) fn free(mut self, tiers: &[usize]) -> Self {
        self.free = tiers.to_vec();
        self
    }

    /// So many calls may fail for no reason.
    pub(crate) fn failures(mut self, failures: u32) -> Self {
        self.failures = failures;
        self
    }

    /// And in each way that a call may.
    pub(crate) fn any_answer(mut self) -> Self {
        self.any_answer = true;
        self
    }

    /// One of the calls for who was named last panics.
    pub(crate) fn panics(mut self) -> Self {
        // Before the first is the one who sets the scene.
        self.panics = Some(self.roles.len());
        self
    }

    /// Pairs of so many base pages may wait, and are settled by one shootdown.
    pub(crate) fn ledger(mut self, base_pages: u64) -> Self {
        self.ledger = base_pages;
        self.at_once = base_pages;
        self
    }

    /// Only so many of them are settled by one shootdown.
    pub(crate) fn at_once(mut self, base_pages: u64) -> Self {
        self.at_once = base_pages;
        self
    }

    /// Folios have an owner.
    pub(crate) fn owned(mut self) -> Self {
        self.owned = true;
        self
    }

    /// Pairs are mapped at their destinations while they wait.
    pub(crate) fn lazy(mut self) -> Self {
        self.lazy = true;
        self
    }

    /// What is busy is tried again only when it may be free.
    pub(crate) fn patient(mut self) -> Self {
        self.patient = true;
        self
    }

    /// Nothing may stay.
    pub(crate) fn moves_all(mut self) -> Self {
        self.moves_all = true;
        self
    }

    /// A device with so many channels.
    pub(crate) fn device(mut self, channels: usize) -> Self {
        self.channels = channels;
        self
    }

    /// Somebody acts.
    pub(crate) fn with(mut self, role: Role) -> Self {
        self.roles.push(role);
        self
    }

    /// A program runs on a CPU of its own in the first address space.
    pub(crate) fn program(self, ops: &[Op]) -> Self {
        self.program_in(0, ops)
    }

    /// A program runs on a CPU of its own.
    pub(crate) fn program_in(mut self, space: SpaceId, ops: &[Op]) -> Self {
        let cpu = self.cpus;
        self.cpus += 1;
        self.with(Role::Program {
            cpu,
            space,
            ops: ops.to_vec(),
        })
    }

    /// All who act, with those who serve them.
    pub(crate) fn all_roles(&self) -> Vec<Role> {
        let interrupts = (0..self.cpus).map(|cpu| Role::Interrupts { cpu });
        let device = (0..self.channels).map(|channel| Role::Device { channel });
        self.roles
            .iter()
            .cloned()
            .chain(interrupts)
            .chain(device)
            .collect()
    }

    /// The machine before anybody has acted.
    pub(crate) fn machine(&self, bug: Option<Bug>) -> Machine {
        let number = |n| NonZeroU64::new(n).unwrap_or(NonZeroU64::MIN);
        let ledger = Ledger::new(number(self.ledger), number(self.at_once));
        let mut machine = Machine::new(bug, self.cpus, self.spaces, ledger);
        machine.lazy = self.lazy;
        machine.patient = self.patient;
        machine.owned = self.owned;
        machine.failures = self.failures;
        machine.any_answer = self.any_answer;
        machine.panics = self.panics;
        machine.channels = vec![Default::default(); self.channels];
        machine.defers = self
            .roles
            .iter()
            .any(|role| matches!(role, Role::Migrate(Move { deferred: true, .. })));
        for (page, (order, tier, spaces)) in &self.folios {
            let order = Order::new(*order).unwrap_or_default();
            if let Ok(folio) = Folio::new(*page, order) {
                let words = self.words_of(folio);
                machine.add_folio(folio, *tier, spaces, words);
            }
        }
        for &tier in &self.free {
            machine.add_frame(tier, self.words);
        }
        // Folios of other orders get a frame each, in every tier where there are free ones.
        let larger = self.folios.iter().filter(|(_, (order, ..))| *order > 0);
        for (page, (order, tier, _)) in larger {
            let order = Order::new(*order).unwrap_or_default();
            if let Ok(folio) = Folio::new(*page, order) {
                machine.add_frame(1 - tier.min(&1), self.words_of(folio));
            }
        }
        machine
    }

    fn words_of(&self, folio: Folio) -> usize {
        usize::try_from(folio.base_pages())
            .unwrap_or(usize::MAX)
            .saturating_mul(self.words)
    }
}

/// Moves those pages to tier 1, by the CPU, in the default way.
pub(crate) fn to_1(pages: &[Page]) -> Move {
    Move {
        pages: pages.to_vec(),
        to: 1,
        mode: Mode::Async,
        limit: Limit::default(),
        copier: Kind::Cpu,
        deferred: false,
    }
}

impl Move {
    pub(crate) fn to(self, to: usize) -> Self {
        Self { to, ..self }
    }

    pub(crate) fn sync(self) -> Self {
        Self {
            mode: Mode::Sync,
            ..self
        }
    }

    pub(crate) fn deferred(self) -> Self {
        Self {
            deferred: true,
            ..self
        }
    }

    pub(crate) fn by(self, copier: Kind) -> Self {
        Self { copier, ..self }
    }

    /// So many base pages at a time.
    pub(crate) fn at_a_time(self, base_pages: u64) -> Self {
        Self {
            limit: at_a_time(base_pages),
            ..self
        }
    }

    pub(crate) fn role(self) -> Role {
        Role::Migrate(self)
    }
}

/// So many base pages at a time.
pub(crate) fn at_a_time(base_pages: u64) -> Limit {
    Limit {
        base_pages: NonZeroU64::new(base_pages).unwrap_or(NonZeroU64::MIN),
        max_stall: None,
    }
}
