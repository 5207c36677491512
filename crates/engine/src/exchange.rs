//! Exchange: two equal lists of folios trade places, with no free frame needed (\[fast-copy\]).
//!
//! Both lists are cut off by one shootdown, the contents of each pair are swapped in place, and each
//! folio is made reachable in the other's frame. That is the way of [`migrate`](crate::migrate), with
//! the same batches, passes and locks; what is different is that a pair stays or goes as one.

mod platform;
mod report;
mod swapper;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

pub use self::platform::Exchange;
pub use self::report::{ExchangeCounts, ExchangeReport, Nonsense, PairOutcome, PairReport};
pub use self::swapper::{SwapAnswer, Swapper};
use crate::batch::{Isolated, Pairs, Side, Work};
use crate::failure::{Failure, Step, Why};
use crate::folio::Folio;
use crate::limit::{Limit, StallGovernor};
use crate::migrate::Reason;
use crate::mode::{Company, Mode, Pass};
use crate::report::{Began, Outcome};

/// What is to trade places, and how.
#[derive(Clone, Debug)]
pub struct ExchangeRequest {
    /// The pairs, of any orders, in the order in which they are to go. A pair that makes no sense is
    /// refused by itself: see [`Nonsense`].
    pub pairs: Vec<(Folio, Folio)>,
    /// Whether it may block.
    pub mode: Mode,
    /// How much may be cut off at a time, both folios of each pair counted; a pair that is larger
    /// goes alone.
    pub limit: Limit,
    /// Why.
    pub reason: Reason,
}

impl ExchangeRequest {
    /// Exchanges `pairs` in the default way: [`Mode::Async`], 512 base pages at a time.
    #[must_use]
    pub fn new(pairs: Vec<(Folio, Folio)>) -> Self {
        Self {
            pairs,
            mode: Mode::default(),
            limit: Limit::default(),
            reason: Reason::default(),
        }
    }
}

/// Serves a request: every pair trades places, or stays for a reason that is reported.
///
/// There is no error: failure is per pair and stands in the report. A pair that fails is put back as
/// it was, byte for byte, and the others go on. When memory runs out, what is cut off is finished, and
/// then the request stops and [`ExchangeReport::stopped`] says so.
pub fn exchange<P, S>(platform: &mut P, swapper: &S, request: ExchangeRequest) -> ExchangeReport
where
    P: Exchange,
    S: Swapper<P::SwapJob> + ?Sized,
{
    let began = Began::now(platform);
    let mut run = Run::new(platform, swapper, &request);
    for pass in request.mode.passes() {
        run.pass(pass);
    }
    let Run {
        work,
        outcomes,
        stopped,
        first_pair,
        ..
    } = run;
    let mut times = work.times;
    let shootdowns = began.measure(platform, &mut times, first_pair);
    ExchangeReport {
        reason: request.reason,
        counts: ExchangeCounts::of(work.counts()),
        shootdowns,
        times,
        stopped,
        pairs: request.pairs,
        outcomes,
    }
}

/// An exchange under way.
struct Run<'r, P: Exchange, S: ?Sized> {
    platform: &'r mut P,
    swapper: &'r S,
    pairs: &'r [(Folio, Folio)],
    work: Work<P, Pairs>,
    governor: StallGovernor,
    outcomes: Vec<PairOutcome>,
    /// Indices of the pairs that the next pass tries.
    pending: Vec<usize>,
    is_retry: bool,
    first_pair: Option<core::time::Duration>,
    stopped: Option<Failure>,
}

impl<'r, P: Exchange, S: Swapper<P::SwapJob> + ?Sized> Run<'r, P, S> {
    fn new(platform: &'r mut P, swapper: &'r S, request: &'r ExchangeRequest) -> Self {
        let outcomes = sensible(&request.pairs);
        let is_sensible =
            |&pair: &usize| matches!(outcomes.get(pair), Some(PairOutcome::Stayed(..)));
        let pending = (0..outcomes.len()).filter(is_sensible).collect();
        Self {
            platform,
            swapper,
            pairs: &request.pairs,
            work: Work::with_capacity(0),
            governor: StallGovernor::new(request.limit),
            outcomes,
            pending,
            is_retry: false,
            first_pair: None,
            stopped: None,
        }
    }

    /// Does nothing where nothing is left, or the request has stopped.
    fn pass(&mut self, pass: Pass) {
        let pending = core::mem::take(&mut self.pending);
        let mut left = Vec::new();
        let mut batch: Vec<(usize, (Folio, Folio))> = Vec::new();
        let mut folios: Vec<(Folio, Folio)> = Vec::new();
        let mut rest = pending.as_slice();
        while !rest.is_empty() && self.stopped.is_none() {
            batch.clear();
            folios.clear();
            let room = self.governor.room(pass.company);
            let mut base_pages: u64 = 0;
            while let [pair, others @ ..] = rest {
                let both = self.pairs[*pair];
                // Both are of one order.
                base_pages = base_pages.saturating_add(2 * both.0.base_pages());
                // A pair larger than the room goes alone.
                if !batch.is_empty() && base_pages > room {
                    break;
                }
                batch.push((*pair, both));
                folios.push(both);
                self.outcomes[*pair] = stayed(Why::Abandoned);
                rest = others;
            }
            if self.is_retry {
                self.work.counts.retries += batch.len() as u64;
            }
            self.platform.provision_pairs(&folios);
            self.one_batch(pass.company, &batch);
            self.governor.learn(self.work.last_cut_off.take());
            self.settle_ended(&batch, pass, &mut left);
        }
        self.is_retry = true;
        // Pairs end in the order in which their steps failed; the next pass keeps the request's.
        left.sort_unstable();
        self.pending = left;
    }

    fn one_batch(&mut self, company: Company, batch: &[(usize, (Folio, Folio))]) {
        self.work.counts.batches += 1;
        let isolated = match (company, batch) {
            (Company::Alone, &[(pair, folios)]) => {
                Isolated::pair_alone(self.platform, &mut self.work, pair, folios)
            }
            _ => Isolated::pairs(self.platform, &mut self.work, batch),
        };
        let moved = isolated
            .unmap()
            .shootdown()
            .swap(self.swapper)
            .remap()
            .finish();
        if moved > 0 && self.first_pair.is_none() {
            self.first_pair = Some(self.platform.now());
        }
    }

    /// Makes one outcome a pair of those of its folios, and finds the pairs that are worth another try.
    fn settle_ended(
        &mut self,
        batch: &[(usize, (Folio, Folio))],
        pass: Pass,
        left: &mut Vec<usize>,
    ) {
        for (index, outcome) in self.work.ended.drain(..) {
            let (pair, side) = Side::of_index(index);
            let known = &mut self.outcomes[pair];
            match outcome {
                Outcome::Moved => *known = PairOutcome::Exchanged,
                // An exchange defers nothing.
                Outcome::AlreadyThere | Outcome::Deferred => *known = PairOutcome::SameTier,
                Outcome::Stayed(failure) => {
                    if failure.why == Why::NoMemory {
                        self.stopped.get_or_insert(failure);
                    }
                    // One that left with its partner says nothing of why the pair stayed: the
                    // partner does, before it or after it.
                    if is_abandoned(known) {
                        *known = PairOutcome::Stayed(failure, side);
                    }
                }
            }
        }
        if let Some(failure) = self.work.ran_out.take() {
            self.stopped.get_or_insert(failure);
        }
        for &(pair, _) in batch {
            if let PairOutcome::Stayed(failure, _) = self.outcomes[pair]
                && (pass.worth_retrying)(failure.why)
            {
                left.push(pair);
            }
        }
    }
}

const fn stayed(why: Why) -> PairOutcome {
    PairOutcome::Stayed(Failure::new(Step::Lock, why), Side::A)
}

const fn is_abandoned(outcome: &PairOutcome) -> bool {
    matches!(outcome, PairOutcome::Stayed(failure, _) if matches!(failure.why, Why::Abandoned))
}

/// What can be said of pairs before they are tried: which of them make no sense.
fn sensible(pairs: &[(Folio, Folio)]) -> Vec<PairOutcome> {
    // What is named so far: the first page of each folio, and the page after its last.
    let mut named = BTreeMap::new();
    let mut judge = |&(a, b): &(Folio, Folio)| {
        let range = |folio: Folio| (folio.page(), folio.page() + folio.base_pages());
        let is_named = |named: &BTreeMap<u64, u64>, folio: Folio| {
            let (start, end) = range(folio);
            // They do not overlap each other, so the last that begins before the end tells.
            let before = named.range(..end).next_back();
            before.is_some_and(|(_, &other_end)| other_end > start)
        };
        let refused = if a == b {
            Nonsense::WithItself
        } else if a.order() != b.order() {
            Nonsense::UnequalOrders
        } else if is_named(&named, a) || is_named(&named, b) {
            Nonsense::NamedTwice
        } else {
            named.extend([range(a), range(b)]);
            return stayed(Why::NotTried);
        };
        PairOutcome::Refused(refused)
    };
    pairs.iter().map(&mut judge).collect()
}
