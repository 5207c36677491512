//! A machine in memory: tiers, frames with contents, a page table, and CPUs that go on using stale
//! translations until a shootdown reaches them. Between any two calls its programs load and store.
//!
//! Each call asserts what the engine promises there; [`Machine::check`] asserts the rest at the end.

mod exchange;
mod trouble;

pub(crate) use exchange::{ScriptedSwapper, SwapAct};
pub(crate) use trouble::{ALWAYS, PLANNED, Trouble, Troubles, What, fails, panics};

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use transhume_engine::{
    ASYNC_PASSES, Alone, Copier, CopyAnswer, Deferral, Entry, Failure, Folio, FolioOwner,
    Generation, Generations, Mode, Order, Outcome, Place, Platform, Report, Request,
    SYNC_BATCH_PASSES, Step, Wait, Why, migrate,
};

use crate::witness::Witness;

const CPUS: usize = 3;
const POISON: u64 = u64::MAX;

pub(crate) fn folio(page: u64, order: u8) -> Folio {
    Folio::new(page, Order::new(order).unwrap()).unwrap()
}

pub(crate) fn base(page: u64) -> Folio {
    folio(page, 0)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tier(pub(crate) usize);

pub(crate) const NEAR: Tier = Tier(0);
pub(crate) const FAR: Tier = Tier(1);
pub(crate) const TIERS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FrameId(usize);

/// One word stands for the bytes of one base page.
type Words = Arc<[AtomicU64]>;

#[derive(Debug)]
struct Frame {
    tier: Tier,
    words: Words,
    /// The page of the folio that has it, be it only reserved; free if `None`.
    used_by: Option<u64>,
}

#[derive(Debug)]
struct Mapping {
    folio: Folio,
    frame: FrameId,
    /// What the programs stored last, word by word.
    stored: Vec<u64>,
    reachable: bool,
    /// Whether stores wait.
    held: bool,
}

/// The calls that can be made to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Lock,
    Tier,
    Reserve,
    Detach,
    Hold,
    Park,
    TakeUp,
    Unmap,
    Shootdown,
    IsEligible,
    Job,
    CopyOnCpu,
    Remap,
    Putback,
    Attach,
    Release,
    Pair,
    SwapJob,
    SwapBack,
    Follow,
}

impl Call {
    fn step(self) -> Step {
        match self {
            Self::Lock | Self::Tier => Step::Lock,
            Self::Reserve | Self::Pair => Step::Reserve,
            Self::Detach | Self::Hold | Self::TakeUp | Self::Unmap => Step::Unmap,
            Self::Shootdown => Step::Shootdown,
            Self::IsEligible | Self::Job | Self::SwapJob | Self::CopyOnCpu => Step::Copy,
            Self::Park
            | Self::Remap
            | Self::Putback
            | Self::Attach
            | Self::Release
            | Self::SwapBack
            | Self::Follow => Step::Remap,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Locked,
    Reserved,
    Holding,
    Parked,
    Unmapped,
    Flushed,
    Remapped,
    PutBack,
}

/// What the machine keeps for a locked folio.
#[derive(Debug)]
pub(crate) struct Held {
    page: u64,
    source: FrameId,
    destination: Option<FrameId>,
    stage: Stage,
    /// In an exchange shared with the partner's: whether their contents have changed places.
    copied: Arc<AtomicBool>,
    /// The page of the folio that it trades places with.
    partner: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Job {
    source: Words,
    destination: Words,
    copied: Arc<AtomicBool>,
}

impl Job {
    fn copy(&self, words: usize) {
        for (from, to) in self.source.iter().zip(&*self.destination).take(words) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// What a [`ScriptedCopier`] does with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Answer(CopyAnswer),
    Panic,
}

/// Goes through its script again and again, one act a job.
#[derive(Debug)]
pub(crate) struct ScriptedCopier {
    script: Vec<Act>,
    next: AtomicUsize,
}

impl ScriptedCopier {
    pub(crate) fn new(script: &[Act]) -> Self {
        Self {
            script: script.to_vec(),
            next: AtomicUsize::new(0),
        }
    }

    /// One that copies everything.
    pub(crate) fn good() -> Self {
        Self::new(&[Act::Answer(CopyAnswer::Copied)])
    }
}

impl Copier<Job> for ScriptedCopier {
    fn name(&self) -> &str {
        "scripted"
    }

    fn copy(&self, jobs: &[Job], answers: &mut [CopyAnswer]) {
        assert_eq!(jobs.len(), answers.len());
        assert!(!jobs.is_empty(), "a copier is not called for nothing");
        for (job, answer) in jobs.iter().zip(answers) {
            assert_eq!(*answer, CopyAnswer::Unconfirmed);
            let next = self.next.fetch_add(1, Ordering::Relaxed);
            let words = job.source.len();
            match self.script[next % self.script.len()] {
                Act::Answer(CopyAnswer::Copied) => {
                    job.copy(words);
                    job.copied.store(true, Ordering::Relaxed);
                    *answer = CopyAnswer::Copied;
                }
                Act::Answer(CopyAnswer::Declined) => *answer = CopyAnswer::Declined,
                // Half of it may be there.
                Act::Answer(other) => {
                    job.copy(words / 2);
                    *answer = other;
                }
                Act::Panic => {
                    job.copy(words / 2);
                    resume_unwind(Box::new(PLANNED));
                }
            }
        }
    }
}

/// How often each thing happened, to hold against the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) batches: u64,
    pub(crate) shootdowns: u64,
    pub(crate) putbacks: u64,
    pub(crate) jobs: u64,
    pub(crate) copied_on_cpu: u64,
    pub(crate) holds: u64,
}

#[derive(Debug)]
pub(crate) struct Machine {
    capacity: [u64; TIERS],
    frames: Vec<Frame>,
    table: BTreeMap<u64, Mapping>,
    /// What each CPU's TLB holds: the frame by the folio's first page.
    cpus: [BTreeMap<u64, FrameId>; CPUS],
    /// The pages that each CPU may store to by what its TLB holds.
    writable: [BTreeSet<u64>; CPUS],
    /// Whether a parked folio is mapped at its destination already, as the owner of page tables can do.
    pub(crate) lazy: bool,
    generations: Generations,
    /// Pages of folios that wait in a ledger.
    parked: BTreeSet<u64>,
    /// The frames of those and of the ones taken out, of which either may be read.
    pairs: BTreeMap<u64, [FrameId; 2]>,
    /// The most base pages in frames that were beyond those of the folios.
    pub(crate) most_beside: u64,
    /// Pages of locked folios.
    locks: BTreeSet<u64>,
    may_wait: bool,
    /// The owner of all folios.
    pub(crate) owner: Witness,
    troubles: Troubles,
    limit: u64,
    /// Up to how many base pages apart two folios are cut off with what lies between them.
    pub(crate) reach: u64,
    /// So many base pages gain by one batch, from each multiple of that on.
    pub(crate) together: u64,
    cut_off: BTreeSet<u64>,
    /// Whether folios go in pairs.
    in_pairs: bool,
    origins: BTreeMap<u64, Tier>,
    random: u64,
    clock: Cell<Duration>,
    pub(crate) unmap_cost: Duration,
    pub(crate) shootdown_cost: Duration,
    pub(crate) copy_cost: Duration,
    pub(crate) release_cost: Duration,
    /// Whether the next call to release panics before it takes a folio.
    pub(crate) release_panics: bool,
    pub(crate) tally: Tally,
    /// Every failure that was told, by page, in order.
    told: BTreeMap<u64, Vec<Failure>>,
    out_of_memory: bool,
    /// How often a folio was asked for, by try-lock and by lock.
    asked: BTreeMap<u64, (u32, u32)>,
    /// The base pages of each shootdown.
    pub(crate) flushed: Vec<u64>,
    /// The folios of each batch.
    pub(crate) batches: Vec<Vec<Folio>>,
    /// The folios that each hold was told come next.
    pub(crate) aheads: Vec<Vec<Folio>>,
    /// The folios whose locks were given up, in order.
    pub(crate) released: Vec<Folio>,
}

/// The pages that wait for a shootdown.
#[derive(Debug, Default)]
pub(crate) struct Gather(BTreeSet<u64>);

impl Machine {
    /// A machine with those folios in those tiers, and room for everything everywhere.
    pub(crate) fn new(folios: &[(Folio, Tier)]) -> Self {
        let mut machine = Self {
            capacity: [u64::MAX; TIERS],
            frames: Vec::new(),
            table: BTreeMap::new(),
            cpus: Default::default(),
            writable: Default::default(),
            lazy: false,
            generations: Generations::new(),
            parked: BTreeSet::new(),
            pairs: BTreeMap::new(),
            most_beside: 0,
            locks: BTreeSet::new(),
            may_wait: false,
            owner: Witness::default(),
            troubles: Troubles::default(),
            limit: u64::MAX,
            reach: 0,
            together: 1,
            cut_off: BTreeSet::new(),
            in_pairs: false,
            origins: BTreeMap::new(),
            random: 0x9e37_79b9_7f4a_7c15,
            clock: Cell::new(Duration::from_secs(1)),
            unmap_cost: Duration::ZERO,
            shootdown_cost: Duration::from_micros(10),
            copy_cost: Duration::from_micros(1),
            release_cost: Duration::ZERO,
            release_panics: false,
            tally: Tally::default(),
            told: BTreeMap::new(),
            out_of_memory: false,
            asked: BTreeMap::new(),
            flushed: Vec::new(),
            batches: Vec::new(),
            aheads: Vec::new(),
            released: Vec::new(),
        };
        for &(folio, tier) in folios {
            let page = folio.page();
            let frame = machine.allocate(folio, tier).unwrap();
            let words = &machine.frames[frame.0].words;
            let stored: Vec<u64> = (page..).take(words.len()).collect();
            for (word, value) in words.iter().zip(&stored) {
                word.store(*value, Ordering::Relaxed);
            }
            for cpu in &mut machine.cpus {
                cpu.insert(page, frame);
            }
            let mapping = Mapping {
                folio,
                frame,
                stored,
                reachable: true,
                held: false,
            };
            assert!(machine.table.insert(page, mapping).is_none());
            machine.origins.insert(page, tier);
        }
        machine
    }

    /// `count` base pages, all in [`NEAR`].
    pub(crate) fn with_base_pages(count: u64) -> Self {
        let folios: Vec<_> = (0..count).map(|page| (base(page), NEAR)).collect();
        Self::new(&folios)
    }

    pub(crate) fn folios(&self) -> Vec<Folio> {
        self.table.values().map(|mapping| mapping.folio).collect()
    }

    pub(crate) fn set_troubles(&mut self, troubles: &[Trouble]) {
        self.troubles = Troubles::new(troubles);
        self.owner.set_troubles(troubles);
    }

    /// Leaves `tier` room for `base_pages` more.
    pub(crate) fn leave_room(&mut self, tier: Tier, base_pages: u64) {
        self.capacity[tier.0] = self.used(tier) + base_pages;
    }

    pub(crate) fn tier_of(&self, folio: Folio) -> Tier {
        self.frames[self.table[&folio.page()].frame.0].tier
    }

    /// How often `folio` was asked for, by try-lock and by lock.
    pub(crate) fn asked(&self, folio: Folio) -> (u32, u32) {
        self.asked.get(&folio.page()).copied().unwrap_or_default()
    }

    /// Migrates, and checks everything that must hold whatever the request and the troubles.
    pub(crate) fn migrate(
        &mut self,
        copier: &ScriptedCopier,
        request: Request<Tier>,
    ) -> Report<Tier> {
        self.limit = request.limit.base_pages.get();
        let mode = request.mode;
        let began = self.now();
        let report = migrate(self, copier, request);
        assert_eq!(report.times.total, self.now() - began);
        self.check();
        self.check_outcomes(&report);
        self.check_counts(&report);
        self.check_retries(&report, mode);
        report
    }

    /// What must hold whenever no batch is open.
    pub(crate) fn check(&self) {
        assert!(self.locks.is_empty(), "locks left: {:?}", self.locks);
        assert!(self.cut_off.is_empty(), "left cut off: {:?}", self.cut_off);
        self.owner.check();
        let mut mapped = BTreeSet::new();
        for (page, mapping) in &self.table {
            assert!(mapping.reachable, "page {page} is mapped nowhere");
            assert!(mapped.insert(mapping.frame), "a frame is mapped twice");
            let frame = &self.frames[mapping.frame.0];
            assert_eq!(frame.used_by, Some(*page));
            for (word, stored) in frame.words.iter().zip(&mapping.stored) {
                assert_eq!(word.load(Ordering::Relaxed), *stored, "page {page}");
            }
            let pair = self.pairs.get(page);
            assert_eq!(mapping.held, self.parked.contains(page), "page {page}");
            for cpu in &self.cpus {
                let cached = cpu.get(page);
                assert!(
                    cached.is_none_or(|cached| {
                        *cached == mapping.frame || pair.is_some_and(|pair| pair.contains(cached))
                    }),
                    "a CPU still has the old translation of page {page}"
                );
            }
        }
        assert!(self.pairs.keys().eq(&self.parked));
        for (page, frames) in &self.pairs {
            let stored = &self.table[page].stored;
            for frame in frames {
                mapped.insert(*frame);
                let words = self.frames[frame.0].words.iter();
                let words = words.map(|word| word.load(Ordering::Relaxed));
                assert!(
                    words.eq(stored.iter().copied()),
                    "both frames of page {page} hold"
                );
            }
        }
        for (n, frame) in self.frames.iter().enumerate() {
            let leaked = frame.used_by.is_some() && !mapped.contains(&FrameId(n));
            assert!(!leaked, "frame {n} is leaked by page {:?}", frame.used_by);
        }
        for tier in (0..TIERS).map(Tier) {
            assert!(self.used(tier) <= self.capacity[tier.0]);
        }
    }

    /// One true outcome for each folio of the request.
    fn check_outcomes(&self, report: &Report<Tier>) {
        let mut moved = BTreeSet::new();
        let mut ran_out = false;
        for one in report.folios() {
            let page = one.folio.page();
            let (from, at) = (self.origins[&page], self.tier_of(one.folio));
            match one.outcome {
                Outcome::Moved => {
                    assert_ne!(from, report.to);
                    assert_eq!(at, report.to);
                    assert!(moved.insert(page), "moved twice");
                }
                Outcome::AlreadyThere => assert_eq!(at, report.to),
                Outcome::Deferred => panic!("{:?} is deferred by migrate", one.folio),
                Outcome::Stayed(failure) => {
                    assert_eq!(at, from, "{:?} stayed: {failure}", one.folio);
                    ran_out |= failure.why == Why::NoMemory;
                    let not_tried = failure.why == Why::NotTried;
                    assert!(!not_tried || report.stopped.is_some());
                    let told = self.told.get(&page).and_then(|told| told.last());
                    assert!(
                        not_tried || told == Some(&failure) || self.is_asked_twice(report, page),
                        "{:?}: told {told:?}, reported {failure:?}",
                        one.folio
                    );
                }
            }
        }
        assert_eq!(report.stopped.is_some(), self.out_of_memory);
        assert!(report.stopped.is_some() || !ran_out);
        // The name for which memory ran out may be settled by the folio's other name.
        assert!(report.stopped.is_none() || ran_out || self.has_duplicates(report));
        assert!(
            report
                .stopped
                .is_none_or(|failure| failure.why == Why::NoMemory)
        );
        for (page, mapping) in &self.table {
            let at = self.tier_of(mapping.folio);
            assert!(
                at == self.origins[page] || moved.contains(page),
                "page {page} moved unreported"
            );
        }
        assert_eq!(report.moved(), moved.len());
        let stayed = report.stayed().count();
        assert_eq!(
            report.moved() + report.already_there() + stayed,
            report.folios().len()
        );
        assert_eq!(report.is_complete(), stayed == 0);
        assert_eq!(report.times.first_folio.is_some(), !moved.is_empty());
        assert!(report.times.first_folio <= Some(report.times.total));
        assert!(report.times.longest_cut_off <= report.times.total);
        assert!(report.times.copy <= report.times.total);
    }

    fn check_counts(&self, report: &Report<Tier>) {
        let counts = report.counts;
        let asked: u64 = self
            .asked
            .values()
            .map(|&(tried, waited)| u64::from(tried + waited))
            .sum();
        let never_asked = report
            .stayed()
            .filter(|(_, failure)| *failure == Failure::new(Step::Lock, Why::NotTried))
            .count();
        let once = (report.folios().len() - never_asked) as u64;
        // One that was never asked for may have been settled by its other name.
        assert!(self.has_duplicates(report) || asked == once + counts.retries);
        assert!(asked <= once + counts.retries);
        assert_eq!(counts.batches, self.tally.batches);
        assert_eq!(counts.rounds, self.tally.shootdowns);
        assert_eq!(report.shootdowns, Some(self.tally.shootdowns));
        assert_eq!(counts.putbacks, self.tally.putbacks);
        assert_eq!(counts.copied_by_cpu, self.tally.copied_on_cpu);
        assert_eq!(
            counts.copied_by_copier
                + counts.declined
                + counts.copy_failures
                + counts.timed_out
                + counts.unconfirmed,
            self.tally.jobs
        );
    }

    /// Each failure but the last was worth a retry; the last was not, or the passes were used up.
    fn check_retries(&self, report: &Report<Tier>, mode: Mode) {
        for one in report.folios() {
            let page = one.folio.page();
            if self.is_asked_twice(report, page) {
                continue;
            }
            let told = self.told.get(&page).map_or(&[][..], Vec::as_slice);
            let (tried, waited) = self.asked(one.folio);
            let asked = tried + waited;
            let in_batches = match mode {
                Mode::Async => asked,
                Mode::Sync => asked.min(SYNC_BATCH_PASSES),
            };
            assert_eq!(tried, in_batches);
            assert!(asked <= ASYNC_PASSES, "10 passes in either mode");
            let worth_it = |failure: &Failure| match failure.why {
                Why::Busy | Why::Again | Why::Pinned | Why::CopyFailed => true,
                Why::Shared => mode == Mode::Sync,
                _ => false,
            };
            match one.outcome {
                Outcome::Stayed(_) => {
                    let earlier = &told[..told.len().saturating_sub(1)];
                    assert!(earlier.iter().all(worth_it), "{told:?}");
                    let given_up = told.last().is_some_and(|last| !worth_it(last));
                    assert!(
                        given_up || asked == ASYNC_PASSES || report.stopped.is_some(),
                        "{:?} was given up after {asked}: {told:?}",
                        one.folio
                    );
                }
                Outcome::Moved | Outcome::AlreadyThere | Outcome::Deferred => {
                    assert!(told.iter().all(worth_it), "{told:?}");
                    assert_eq!(asked as usize, told.len() + 1);
                }
            }
        }
    }

    fn is_asked_twice(&self, report: &Report<Tier>, page: u64) -> bool {
        report
            .folios()
            .filter(|one| one.folio.page() == page)
            .nth(1)
            .is_some()
    }

    fn has_duplicates(&self, report: &Report<Tier>) -> bool {
        report
            .folios()
            .any(|one| self.is_asked_twice(report, one.folio.page()))
    }

    fn used(&self, tier: Tier) -> u64 {
        self.frames
            .iter()
            .filter(|frame| frame.tier == tier && frame.used_by.is_some())
            .map(|frame| frame.words.len() as u64)
            .sum()
    }

    fn allocate(&mut self, folio: Folio, tier: Tier) -> Option<FrameId> {
        let room = self.capacity[tier.0] - self.used(tier);
        if room < folio.base_pages() {
            return None;
        }
        let words = usize::try_from(folio.base_pages()).unwrap();
        let free = self.frames.iter().position(|frame| {
            frame.tier == tier && frame.words.len() == words && frame.used_by.is_none()
        });
        let id = FrameId(free.unwrap_or(self.frames.len()));
        if free.is_none() {
            self.frames.push(Frame {
                tier,
                words: (0..words).map(|_| AtomicU64::new(0)).collect(),
                used_by: None,
            });
        }
        assert!(
            self.cpus
                .iter()
                .all(|cpu| cpu.values().all(|cached| *cached != id)),
            "a frame is reused while a CPU can still reach it"
        );
        let frame = &mut self.frames[id.0];
        frame.used_by = Some(folio.page());
        for word in &*frame.words {
            word.store(POISON, Ordering::Relaxed);
        }
        Some(id)
    }

    fn free(&mut self, id: FrameId) {
        let frame = &mut self.frames[id.0];
        assert!(frame.used_by.take().is_some(), "a frame is freed twice");
        assert_eq!(
            Arc::strong_count(&frame.words),
            1,
            "a frame is freed while a job has it"
        );
    }

    /// What is to go wrong now, if anything.
    fn trouble(&mut self, call: Call, folio: Folio) -> Option<Failure> {
        match self.troubles.take(call, folio, self.may_wait)? {
            What::Panic => resume_unwind(Box::new(PLANNED)),
            What::Fail(why) => Some(Failure::new(call.step(), why)),
        }
    }

    /// Remembers that the engine was told so.
    fn tell(&mut self, folio: Folio, failure: Failure) -> Failure {
        self.out_of_memory |= failure.why == Why::NoMemory;
        self.told.entry(folio.page()).or_default().push(failure);
        failure
    }

    fn fails(&mut self, call: Call, folio: Folio) -> Option<Failure> {
        self.trouble(call, folio)
            .map(|failure| self.tell(folio, failure))
    }

    /// Lets the programs run: each CPU loads a word somewhere, and stores there.
    fn programs_run(&mut self) {
        for folio in self.owner.take_refused() {
            self.tell(folio, Failure::new(Step::Unmap, Why::Busy));
        }
        let pages = self.table.len() as u64;
        for cpu in 0..CPUS {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let value = self.random;
            let nth = usize::try_from(value % pages.max(1)).unwrap();
            let Some((page, mapping)) = self.table.iter_mut().nth(nth) else {
                return;
            };
            let cached = self.cpus[cpu].get(page).copied();
            let Some(frame) = cached.or(mapping.reachable.then_some(mapping.frame)) else {
                continue; // It faults, and waits.
            };
            self.cpus[cpu].insert(*page, frame);
            let pair = self.pairs.get(page);
            assert!(
                frame == mapping.frame || pair.is_some_and(|pair| pair.contains(&frame)),
                "a CPU reaches an old frame"
            );
            let word = usize::try_from(value >> 32).unwrap() % mapping.stored.len();
            let place = &self.frames[frame.0].words[word];
            assert_eq!(place.load(Ordering::Relaxed), mapping.stored[word]);
            if !mapping.held {
                self.writable[cpu].insert(*page);
            } else if !self.writable[cpu].contains(page) {
                continue; // The store faults, and waits.
            }
            place.store(value, Ordering::Relaxed);
            mapping.stored[word] = value;
        }
    }

    fn is_cached(&self, page: u64) -> bool {
        self.cpus.iter().any(|cpu| cpu.contains_key(&page))
    }

    fn hold(&mut self, folio: Folio) -> Result<Held, Failure> {
        let page = folio.page();
        if self.locks.contains(&page) || self.parked.contains(&page) {
            return Err(self.tell(folio, Failure::new(Step::Lock, Why::Busy)));
        }
        if let Some(failure) = self.fails(Call::Lock, folio) {
            return Err(failure);
        }
        self.locks.insert(page);
        self.owner.locked(page, self.may_wait);
        Ok(Held {
            page,
            source: self.table[&page].frame,
            destination: None,
            stage: Stage::Locked,
            copied: Arc::default(),
            partner: None,
        })
    }

    fn assert_held(&self, folio: Folio, held: &Held, stage: Stage) {
        assert_eq!(held.page, folio.page());
        assert!(self.locks.contains(&held.page), "{folio:?} is not locked");
        assert_eq!(held.stage, stage, "{folio:?}");
        let is_cut_off = matches!(stage, Stage::Unmapped | Stage::Flushed);
        assert!(!is_cut_off || self.owner.has_detached(held.page));
    }

    /// Nobody reaches it, or nobody stores to it.
    fn assert_copyable(&self, folio: Folio, held: &Held) {
        if held.stage == Stage::Holding {
            let stores = self.writable.iter().any(|cpu| cpu.contains(&held.page));
            assert!(!stores, "copied before stores were held off");
        } else {
            self.assert_held(folio, held, Stage::Flushed);
            assert!(!self.is_cached(held.page), "copied before its shootdown");
        }
    }

    /// No CPU has a translation of the page any more.
    fn forget(&mut self, page: u64) {
        for cpu in 0..CPUS {
            self.cpus[cpu].remove(&page);
            self.writable[cpu].remove(&page);
        }
    }

    /// A shootdown of everything, for another reason.
    pub(crate) fn foreign_shootdown(&mut self) {
        let shootdown = self.generations.begin();
        self.cpus.iter_mut().for_each(BTreeMap::clear);
        self.writable.iter_mut().for_each(BTreeSet::clear);
        self.generations.finish(shootdown);
    }

    pub(crate) fn let_programs_run(&mut self, times: usize) {
        (0..times).for_each(|_| self.programs_run());
    }

    /// A store by a program, for which the folio has been settled.
    pub(crate) fn store_to(&mut self, folio: Folio) {
        let mapping = self.table.get_mut(&folio.page()).unwrap();
        assert!(!mapping.held, "the store would wait for ever");
        self.random = self.random.wrapping_mul(5).wrapping_add(1);
        mapping.stored[0] = self.random;
        self.frames[mapping.frame.0].words[0].store(self.random, Ordering::Relaxed);
    }

    pub(crate) fn parked(&self) -> usize {
        self.parked.len()
    }

    pub(crate) fn set_limit(&mut self, base_pages: u64) {
        self.limit = base_pages;
    }

    fn count_beside(&mut self) {
        let used = (0..TIERS).map(|tier| self.used(Tier(tier))).sum::<u64>();
        let folios = self
            .table
            .values()
            .map(|mapping| mapping.folio.base_pages());
        self.most_beside = self.most_beside.max(used - folios.sum::<u64>());
    }

    fn assert_wait(&self, wait: &Wait) {
        let may_wait = matches!(wait, Wait::May(_));
        assert_eq!(may_wait, self.may_wait);
        assert!(
            !may_wait || self.locks.len() == 1,
            "waits while others are locked"
        );
    }
}

impl Platform for Machine {
    type Tier = Tier;
    type Held = Held;
    type Gather = Gather;
    type Job = Job;

    fn now(&self) -> Duration {
        self.clock.get()
    }

    fn shootdowns(&self) -> Option<u64> {
        Some(1000 + self.tally.shootdowns)
    }

    fn owner(&self) -> Option<&dyn FolioOwner> {
        Some(&self.owner)
    }

    fn cut_off_with(&self, before: Option<Folio>, folio: Folio) -> u64 {
        let between = before.and_then(|before| {
            let end = before.page() + before.base_pages();
            folio
                .page()
                .checked_sub(end)
                .filter(|&gap| gap < self.reach)
        });
        folio.base_pages() + between.unwrap_or(0)
    }

    fn together(&self, folio: Folio) -> u64 {
        if folio.page().is_multiple_of(self.together) {
            self.together
        } else {
            folio.base_pages()
        }
    }

    fn provision(&mut self, folios: &[Folio], _to: Tier) {
        assert!(self.locks.is_empty(), "may block, so nothing is locked");
        assert!(!self.out_of_memory, "no batch begins without memory");
        let mut before = None;
        let with_each = |folio: &Folio| self.cut_off_with(before.replace(*folio), *folio);
        let base_pages: u64 = folios.iter().map(with_each).sum();
        assert!(folios.len() == 1 || base_pages <= self.limit);
        self.tally.batches += 1;
        self.batches.push(folios.to_vec());
    }

    fn try_lock(&mut self, folio: Folio) -> Result<Held, Failure> {
        self.programs_run();
        self.may_wait = false;
        self.asked.entry(folio.page()).or_default().0 += 1;
        self.hold(folio)
    }

    fn lock(&mut self, folio: Folio, _alone: &Alone) -> Result<Held, Failure> {
        self.programs_run();
        assert!(self.locks.is_empty(), "waits for a lock while it holds one");
        self.may_wait = true;
        self.asked.entry(folio.page()).or_default().1 += 1;
        self.hold(folio)
    }

    fn is_in(&self, folio: Folio, held: &Held, tier: Tier) -> bool {
        self.assert_held(folio, held, Stage::Locked);
        if self.troubles.panics(Call::Tier, folio) {
            resume_unwind(Box::new(PLANNED));
        }
        self.frames[held.source.0].tier == tier
    }

    fn reserve(&mut self, entries: &mut [Entry<Held>], to: Tier, wait: &Wait) {
        self.programs_run();
        self.assert_wait(wait);
        assert!(!entries.is_empty());
        for entry in entries {
            let folio = entry.folio();
            assert!(entry.is_alive());
            self.assert_held(folio, &entry.held, Stage::Locked);
            if let Some(failure) = self.fails(Call::Reserve, folio) {
                entry.fail(failure);
            } else if let Some(frame) = self.allocate(folio, to) {
                entry.held.destination = Some(frame);
                entry.held.stage = Stage::Reserved;
                self.count_beside();
            } else {
                entry.fail(self.tell(folio, Failure::new(Step::Reserve, Why::NoMemory)));
            }
        }
    }

    fn unmap(
        &mut self,
        folio: Folio,
        held: &mut Held,
        gather: &mut Gather,
        wait: &Wait,
    ) -> Result<(), Failure> {
        self.programs_run();
        self.assert_wait(wait);
        let taken_up = held.stage == Stage::Parked;
        self.assert_held(
            folio,
            held,
            if taken_up {
                Stage::Parked
            } else {
                Stage::Reserved
            },
        );
        let ran_out_here = self.told.values().flatten().any(|failure| {
            *failure == Failure::new(Step::Unmap, Why::NoMemory) && self.out_of_memory
        });
        assert!(!ran_out_here, "nothing more is cut off without memory");
        self.clock.set(self.clock.get() + self.unmap_cost);
        if let Some(failure) = self.fails(Call::Unmap, folio) {
            return Err(failure);
        }
        assert!(self.owner.has_detached(held.page), "{folio:?} is in use");
        self.table.get_mut(&held.page).unwrap().reachable = false;
        self.cut_off.insert(held.page);
        self.owner.cut_off(held.page);
        let cut_off: u64 = self
            .cut_off
            .iter()
            .map(|page| self.table[page].folio.base_pages())
            .sum();
        assert!(
            cut_off <= self.limit || self.cut_off.len() <= 1 + usize::from(self.in_pairs),
            "{cut_off} base pages are cut off"
        );
        assert!(gather.0.insert(held.page));
        held.stage = Stage::Unmapped;
        Ok(())
    }

    fn shootdown(&mut self, gather: Gather, entries: &mut [Entry<Held>]) {
        self.programs_run();
        self.tally.shootdowns += 1;
        self.clock.set(self.clock.get() + self.shootdown_cost);
        let gathered: Vec<u64> = entries.iter().map(|entry| entry.held.page).collect();
        assert!(!gathered.is_empty(), "a shootdown of nothing");
        let gathered: BTreeSet<u64> = gathered.into_iter().collect();
        // A folio leaves with its partner, whose unmap failed after its own.
        assert!(gather.0 == gathered || (self.in_pairs && gather.0.is_superset(&gathered)));
        let mut base_pages = 0;
        for entry in entries {
            let folio = entry.folio();
            assert!(entry.is_alive());
            self.assert_held(folio, &entry.held, Stage::Unmapped);
            base_pages += folio.base_pages();
            if let Some(failure) = self.fails(Call::Shootdown, folio) {
                // It reached one CPU, but not the others.
                self.cpus[0].remove(&entry.held.page);
                entry.fail(failure);
                continue;
            }
            self.forget(entry.held.page);
            entry.held.stage = Stage::Flushed;
        }
        self.flushed.push(base_pages);
    }

    fn is_eligible(&mut self, folio: Folio, held: &Held) -> bool {
        self.programs_run();
        self.assert_copyable(folio, held);
        self.trouble(Call::IsEligible, folio).is_none()
    }

    fn job(&mut self, folio: Folio, held: &mut Held) -> Job {
        self.programs_run();
        self.assert_copyable(folio, held);
        assert!(self.trouble(Call::Job, folio).is_none());
        self.tally.jobs += 1;
        self.clock
            .set(self.clock.get() + self.copy_cost * u32::try_from(folio.base_pages()).unwrap());
        Job {
            source: Arc::clone(&self.frames[held.source.0].words),
            destination: Arc::clone(&self.frames[held.destination.unwrap().0].words),
            copied: Arc::clone(&held.copied),
        }
    }

    fn copy_on_cpu(&mut self, folio: Folio, held: &mut Held) -> Result<(), Failure> {
        self.programs_run();
        self.assert_copyable(folio, held);
        assert!(
            !held.copied.load(Ordering::Relaxed),
            "{folio:?} is copied twice"
        );
        self.clock
            .set(self.clock.get() + self.copy_cost * u32::try_from(folio.base_pages()).unwrap());
        if let Some(failure) = self.fails(Call::CopyOnCpu, folio) {
            return Err(failure);
        }
        self.tally.copied_on_cpu += 1;
        let source = &self.frames[held.source.0].words;
        let destination = &self.frames[held.destination.unwrap().0].words;
        for (from, to) in source.iter().zip(&**destination) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        held.copied.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn remap(&mut self, entries: &mut [Entry<Held>]) {
        self.programs_run();
        assert!(!entries.is_empty());
        // A platform that panics here has made none reachable.
        for entry in &mut *entries {
            let folio = entry.folio();
            assert!(entry.is_alive());
            if entry.held.stage == Stage::Parked {
                // A shootdown for another reason has flushed it. New translations are right.
                assert!(self.lazy, "nothing else flushes it");
                entry.held.stage = Stage::Flushed;
            } else {
                assert!(
                    !self.is_cached(entry.held.page),
                    "remapped before its shootdown"
                );
            }
            self.assert_held(folio, &entry.held, Stage::Flushed);
            if let Some(failure) = self.fails(Call::Remap, folio) {
                entry.fail(failure);
            }
        }
        for entry in entries.iter_mut().filter(|entry| entry.is_alive()) {
            let (folio, held) = (entry.folio(), &mut entry.held);
            let destination = held.destination.unwrap();
            assert!(
                held.copied.load(Ordering::Relaxed),
                "{folio:?} is not copied"
            );
            let mapping = self.table.get_mut(&held.page).unwrap();
            for (word, stored) in self.frames[destination.0].words.iter().zip(&mapping.stored) {
                assert_eq!(word.load(Ordering::Relaxed), *stored, "{folio:?}");
            }
            mapping.frame = destination;
            mapping.reachable = true;
            mapping.held = false;
            self.pairs.remove(&held.page);
            self.frames[destination.0].used_by = Some(held.page);
            self.cut_off.remove(&held.page);
            self.owner.reachable(held.page);
            held.stage = Stage::Remapped;
        }
        self.programs_run();
    }

    fn putback(&mut self, entries: &mut [Entry<Held>]) {
        self.programs_run();
        assert!(!entries.is_empty());
        for entry in entries {
            let (folio, held) = (entry.folio(), &mut entry.held);
            assert!(self.locks.contains(&held.page), "{folio:?} is not locked");
            assert_ne!(held.stage, Stage::Remapped, "its new bytes would be lost");
            assert!(self.trouble(Call::Putback, folio).is_none());
            if held.stage != Stage::PutBack {
                self.tally.putbacks += 1;
            }
            let mapping = self.table.get_mut(&held.page).unwrap();
            mapping.reachable = true;
            mapping.held = false;
            if mapping.frame != held.source {
                // Programs may have its translation to the destination.
                mapping.frame = held.source;
                self.forget(held.page);
            }
            self.pairs.remove(&held.page);
            if held.partner.is_some() {
                let swapped = held.copied.load(Ordering::Relaxed);
                assert!(!swapped, "{folio:?} is put back with its partner's bytes");
            } else if let Some(frame) = held.destination.take() {
                self.free(frame);
            }
            self.cut_off.remove(&held.page);
            self.owner.reachable(held.page);
            held.stage = Stage::PutBack;
            if !entry.is_alive() {
                // What failed first is what counts.
                entry.fail(Failure::new(Step::Remap, Why::System));
            }
        }
    }

    fn release(&mut self, folios: &mut dyn Iterator<Item = (Folio, Held)>, at: Place) {
        self.programs_run();
        self.clock.set(self.clock.get() + self.release_cost);
        if core::mem::take(&mut self.release_panics) {
            resume_unwind(Box::new(PLANNED));
        }
        for (folio, held) in folios {
            assert_eq!(held.page, folio.page());
            self.released.push(folio);
            match at {
                Place::Destination => {
                    assert_eq!(held.stage, Stage::Remapped);
                    if held.partner.is_none() {
                        self.free(held.source);
                    }
                }
                Place::Source => {
                    let put_back = matches!(held.stage, Stage::Locked | Stage::PutBack);
                    assert!(put_back, "{folio:?} is released at {:?}", held.stage);
                }
            }
            assert!(
                self.locks.remove(&held.page),
                "{folio:?} is unlocked but not locked"
            );
            self.owner.unlocked(held.page, at);
            assert!(self.trouble(Call::Release, folio).is_none());
        }
    }
}

impl Deferral for Machine {
    fn hold(&mut self, entries: &mut [Entry<Held>], ahead: &[Folio]) {
        self.programs_run();
        assert!(!entries.is_empty());
        self.tally.holds += 1;
        self.aheads.push(ahead.to_vec());
        for entry in entries {
            let folio = entry.folio();
            assert!(entry.is_alive());
            self.assert_held(folio, &entry.held, Stage::Reserved);
            if let Some(failure) = self.fails(Call::Hold, folio) {
                entry.fail(failure);
                continue;
            }
            self.table.get_mut(&entry.held.page).unwrap().held = true;
            for cpu in &mut self.writable {
                cpu.remove(&entry.held.page);
            }
            entry.held.stage = Stage::Holding;
        }
    }

    fn park(&mut self, entries: &mut [Entry<Held>]) {
        self.programs_run();
        for entry in &mut *entries {
            let folio = entry.folio();
            self.assert_held(folio, &entry.held, Stage::Holding);
            assert!(
                entry.held.copied.load(Ordering::Relaxed),
                "{folio:?} is not copied"
            );
            if let Some(failure) = self.fails(Call::Park, folio) {
                entry.fail(failure);
            }
        }
        for entry in entries.iter_mut().filter(|entry| entry.is_alive()) {
            let held = &mut entry.held;
            let destination = held.destination.unwrap();
            self.locks.remove(&held.page);
            self.parked.insert(held.page);
            self.pairs.insert(held.page, [held.source, destination]);
            if self.lazy {
                self.table.get_mut(&held.page).unwrap().frame = destination;
            }
            held.stage = Stage::Parked;
        }
    }

    fn take_up(&mut self, entries: &mut [Entry<Held>]) {
        // Settling gives frames back.
        self.out_of_memory = false;
        self.programs_run();
        for entry in &mut *entries {
            assert_eq!(entry.held.stage, Stage::Parked);
            assert!(self.parked.remove(&entry.held.page));
            assert!(self.locks.insert(entry.held.page));
        }
        for entry in entries {
            let folio = entry.folio();
            if let Some(failure) = self.fails(Call::TakeUp, folio) {
                entry.fail(failure);
            }
        }
    }

    fn generation(&self) -> Generation {
        self.generations.now()
    }

    fn has_flushed(&self, since: Generation) -> bool {
        self.lazy && self.generations.has_flushed(since)
    }
}
