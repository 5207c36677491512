//! The machine's side of an exchange: two folios get each other's frames.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use transhume_engine::{
    Entry, Exchange, ExchangeReport, ExchangeRequest, Failure, Folio, Nonsense, PairOutcome,
    Platform, Side, Step, SwapAnswer, Swapper, Why, exchange,
};

use super::{Call, FrameId, Held, Machine, PLANNED, Stage, Words};

/// Two frames that trade contents.
#[derive(Debug)]
pub(crate) struct Swap {
    a: Words,
    b: Words,
    swapped: Arc<AtomicBool>,
}

impl Swap {
    fn make(&self) {
        for (a, b) in self.a.iter().zip(&*self.b) {
            b.store(
                a.swap(b.load(Ordering::Relaxed), Ordering::Relaxed),
                Ordering::Relaxed,
            );
        }
        self.swapped.fetch_xor(true, Ordering::Relaxed);
    }
}

/// What a [`ScriptedSwapper`] does with a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SwapAct {
    Swap,
    Leave,
    Panic,
}

/// Goes through its script again and again, one act a pair.
#[derive(Debug)]
pub(crate) struct ScriptedSwapper {
    script: Vec<SwapAct>,
    next: AtomicUsize,
}

impl ScriptedSwapper {
    pub(crate) fn new(script: &[SwapAct]) -> Self {
        Self {
            script: script.to_vec(),
            next: AtomicUsize::new(0),
        }
    }

    /// One that swaps everything.
    pub(crate) fn good() -> Self {
        Self::new(&[SwapAct::Swap])
    }
}

impl Swapper<Swap> for ScriptedSwapper {
    fn name(&self) -> &str {
        "scripted"
    }

    fn swap(&self, pairs: &[Swap], answers: &mut [SwapAnswer]) {
        assert_eq!(pairs.len(), answers.len());
        assert!(!pairs.is_empty(), "a swapper is not called for nothing");
        for (pair, answer) in pairs.iter().zip(answers) {
            assert_eq!(*answer, SwapAnswer::Untouched);
            let next = self.next.fetch_add(1, Ordering::Relaxed);
            match self.script[next % self.script.len()] {
                SwapAct::Swap => {
                    pair.make();
                    *answer = SwapAnswer::Swapped;
                }
                SwapAct::Leave => {}
                SwapAct::Panic => resume_unwind(Box::new(PLANNED)),
            }
        }
    }
}

impl Machine {
    /// Exchanges, and checks everything that must hold whatever the request and the troubles.
    pub(crate) fn exchange(
        &mut self,
        swapper: &ScriptedSwapper,
        request: ExchangeRequest,
    ) -> ExchangeReport {
        self.expect_pairs(&request);
        let before = self.frames_now();
        let frames = self.frames.len();
        let began = self.now();
        let report = exchange(self, swapper, request);
        assert_eq!(report.times.total, self.now() - began);
        assert_eq!(self.frames.len(), frames, "a frame was allocated");
        self.check();
        self.check_pairs(&report, &before);
        self.check_counts_of_pairs(&report);
        report
    }

    /// What a request of pairs may do from now on.
    pub(crate) fn expect_pairs(&mut self, request: &ExchangeRequest) {
        self.in_pairs = true;
        self.limit = request.limit.base_pages.get();
    }

    fn frames_now(&self) -> BTreeMap<u64, FrameId> {
        let frames = self.table.iter();
        frames
            .map(|(page, mapping)| (*page, mapping.frame))
            .collect()
    }

    fn check_pairs(&self, report: &ExchangeReport, before: &BTreeMap<u64, FrameId>) {
        let after = self.frames_now();
        let mut traded = BTreeSet::new();
        let mut ran_out = false;
        for pair in report.pairs() {
            let (a, b) = (pair.a.page(), pair.b.page());
            match pair.outcome {
                PairOutcome::Exchanged => {
                    assert!(traded.insert(a) && traded.insert(b), "traded twice");
                    assert_eq!((after[&a], after[&b]), (before[&b], before[&a]));
                    assert_ne!(self.tier_of(pair.a), self.tier_of(pair.b));
                }
                PairOutcome::SameTier => {
                    assert_eq!(self.tier_of(pair.a), self.tier_of(pair.b));
                }
                PairOutcome::Stayed(failure, side) => {
                    ran_out |= failure.why == Why::NoMemory;
                    let not_tried = failure == Failure::new(Step::Lock, Why::NotTried);
                    assert!(!not_tried || report.stopped.is_some());
                    let page = if side == Side::A { a } else { b };
                    let told = self.told.get(&page).and_then(|told| told.last());
                    // Where memory ran out, what comes after is not cut off any more.
                    let not_cut_off = failure == Failure::new(Step::Unmap, Why::NotTried);
                    assert!(
                        not_tried || not_cut_off || told == Some(&failure),
                        "{pair:?}: told {told:?}"
                    );
                }
                PairOutcome::Refused(nonsense) => match nonsense {
                    Nonsense::WithItself => assert_eq!(a, b),
                    Nonsense::UnequalOrders => assert_ne!(pair.a.order(), pair.b.order()),
                    _ => assert!(a != b && pair.a.order() == pair.b.order()),
                },
            }
        }
        let stayed = |page: &&u64| !traded.contains(page);
        assert!(
            before
                .keys()
                .filter(stayed)
                .all(|page| before[page] == after[page])
        );
        assert_eq!(2 * report.exchanged(), traded.len());
        assert_eq!(report.is_complete(), report.stayed().count() == 0);
        assert_eq!(report.stopped.is_some(), self.out_of_memory);
        assert!(report.stopped.is_some() || !ran_out);
        assert_eq!(report.times.first_folio.is_some(), !traded.is_empty());
        assert!(report.times.longest_cut_off <= report.times.total);
    }

    fn check_counts_of_pairs(&self, report: &ExchangeReport) {
        let counts = report.counts;
        assert_eq!(counts.batches, self.tally.batches);
        assert_eq!(counts.rounds, self.tally.shootdowns);
        assert_eq!(report.shootdowns, Some(self.tally.shootdowns));
        assert_eq!(counts.putbacks, self.tally.putbacks);
        assert_eq!(counts.swapped_by_cpu, self.tally.copied_on_cpu);
        assert_eq!(
            counts.swapped_by_swapper + counts.untouched,
            self.tally.jobs
        );
    }

    fn folio_of(&self, held: &Held) -> Folio {
        self.table[&held.page].folio
    }

    fn swap(&self, a: &Held, b: &Held) -> Swap {
        assert_eq!((a.partner, b.partner), (Some(b.page), Some(a.page)));
        for held in [a, b] {
            self.assert_held(self.folio_of(held), held, Stage::Flushed);
            assert!(!self.is_cached(held.page), "swapped before its shootdown");
        }
        Swap {
            a: Arc::clone(&self.frames[a.source.0].words),
            b: Arc::clone(&self.frames[b.source.0].words),
            swapped: Arc::clone(&a.copied),
        }
    }
}

impl Exchange for Machine {
    type SwapJob = Swap;

    fn provision_pairs(&mut self, pairs: &[(Folio, Folio)]) {
        assert!(self.locks.is_empty(), "may block, so nothing is locked");
        assert!(!self.out_of_memory, "no batch begins without memory");
        let base_pages: u64 = pairs
            .iter()
            .map(|(a, b)| a.base_pages() + b.base_pages())
            .sum();
        assert!(pairs.len() == 1 || base_pages <= self.limit);
        self.tally.batches += 1;
        self.batches
            .push(pairs.iter().flat_map(|&(a, b)| [a, b]).collect());
    }

    fn are_alike(&self, a: &Held, b: &Held) -> bool {
        self.frames[a.source.0].tier == self.frames[b.source.0].tier
    }

    fn pair(&mut self, a: &mut [Entry<Held>], b: &mut [Entry<Held>]) {
        self.programs_run();
        assert!(!a.is_empty());
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter_mut().zip(b) {
            assert_eq!(a.folio().order(), b.folio().order());
            b.held.copied = Arc::clone(&a.held.copied);
            let frames = (a.held.source, b.held.source);
            let pages = (a.held.page, b.held.page);
            for (entry, partner, frame) in [(a, pages.1, frames.1), (b, pages.0, frames.0)] {
                let folio = entry.folio();
                assert!(entry.is_alive());
                self.assert_held(folio, &entry.held, Stage::Locked);
                entry.held.partner = Some(partner);
                entry.held.destination = Some(frame);
                entry.held.stage = Stage::Reserved;
                if let Some(failure) = self.fails(Call::Pair, folio) {
                    entry.fail(failure);
                }
            }
        }
    }

    fn swap_job(&mut self, a: &mut Held, b: &mut Held) -> Swap {
        self.programs_run();
        for held in [&*a, &*b] {
            assert!(self.trouble(Call::SwapJob, self.folio_of(held)).is_none());
        }
        self.tally.jobs += 1;
        self.clock.set(self.clock.get() + self.copy_cost);
        self.swap(a, b)
    }

    fn swap_on_cpu(&mut self, a: &mut Held, b: &mut Held) -> Result<(), (Side, Failure)> {
        self.programs_run();
        assert!(!a.copied.load(Ordering::Relaxed), "swapped twice");
        for (side, held) in [(Side::A, &*a), (Side::B, &*b)] {
            if let Some(failure) = self.fails(Call::CopyOnCpu, self.folio_of(held)) {
                return Err((side, failure));
            }
        }
        self.tally.copied_on_cpu += 1;
        self.swap(a, b).make();
        Ok(())
    }

    fn swap_back(&mut self, a: &mut Held, b: &mut Held) {
        self.programs_run();
        assert!(
            a.copied.load(Ordering::Relaxed),
            "there is nothing to swap back"
        );
        assert!(self.trouble(Call::SwapBack, self.folio_of(a)).is_none());
        self.swap(a, b).make();
    }

    fn follow(&mut self, held: &mut Held) {
        self.programs_run();
        let folio = self.folio_of(held);
        if held.stage == Stage::Remapped && std::thread::panicking() {
            return;
        }
        self.assert_held(folio, held, Stage::Flushed);
        let partner = held.partner.unwrap();
        assert!(self.table[&partner].reachable, "there is a way back");
        assert_eq!(self.table[&partner].frame, held.source);
        let frame = held.destination.unwrap();
        let mapping = self.table.get_mut(&held.page).unwrap();
        mapping.frame = frame;
        mapping.reachable = true;
        self.frames[frame.0].used_by = Some(held.page);
        self.cut_off.remove(&held.page);
        self.owner.reachable(held.page);
        held.stage = Stage::Remapped;
        assert!(self.trouble(Call::Follow, folio).is_none());
        self.programs_run();
    }
}
