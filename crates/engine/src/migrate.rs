//! A request from beginning to end: cutting it into batches, the passes, the report.

use alloc::vec::Vec;

use crate::batch::{Isolated, Work};
use crate::copier::Copier;
use crate::failure::{Failure, Step, Why};
use crate::folio::Folio;
use crate::limit::{Limit, StallGovernor};
use crate::mode::{Company, Mode, Pass};
use crate::platform::Platform;
use crate::report::{Began, Outcome, Report};

/// Why one migrates; policies may depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Somebody asked for it.
    #[default]
    UserCall,
    /// Cold memory goes to a slower tier.
    Demotion,
    /// Hot memory goes to a faster tier.
    Promotion,
    /// To make a large free range.
    Compaction,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::UserCall,
        Self::Demotion,
        Self::Promotion,
        Self::Compaction,
    ];

    /// Its name on a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UserCall => "user",
            Self::Demotion => "demotion",
            Self::Promotion => "promotion",
            Self::Compaction => "compaction",
        }
    }
}

/// What is to migrate, and how.
#[derive(Clone, Debug)]
pub struct Request<T> {
    /// The folios, of any orders, in the order in which they are to go. One named twice migrates
    /// once and is already there the second time.
    pub folios: Vec<Folio>,
    /// Where to.
    pub to: T,
    /// Whether it may block.
    pub mode: Mode,
    /// How much may be cut off at a time.
    pub limit: Limit,
    /// Why.
    pub reason: Reason,
}

impl<T> Request<T> {
    /// Moves `folios` to `to` in the default way: [`Mode::Async`], 512 base pages at a time.
    #[must_use]
    pub fn new(folios: Vec<Folio>, to: T) -> Self {
        Self {
            folios,
            to,
            mode: Mode::default(),
            limit: Limit::default(),
            reason: Reason::default(),
        }
    }
}

/// Serves a request (\[batch-flush\]): every folio moves, or stays for a reason that is reported.
///
/// There is no error: failure is per folio and stands in the report. When memory runs out, what is
/// cut off is finished, and then the request stops and [`Report::stopped`] says so.
pub fn migrate<P, C>(platform: &mut P, copier: &C, request: Request<P::Tier>) -> Report<P::Tier>
where
    P: Platform,
    C: Copier<P::Job> + ?Sized,
{
    serve(platform, copier, request, AtOnce)
}

/// How a batch goes on once it is isolated.
pub(crate) trait Walk<P: Platform, C: ?Sized> {
    /// Before the folios of a batch are provided for, while nothing is locked.
    fn begin(&mut self, _platform: &mut P, _folios: &[Folio]) {}

    /// There was no memory for a batch, and nothing is locked: gives up what can be given up; says
    /// whether that was something.
    fn relieve(&mut self, _platform: &mut P) -> bool {
        false
    }

    /// Walks the batch to its end; returns how many folios are at the destination. `ahead` is what the
    /// request names next.
    fn walk(&mut self, isolated: Isolated<'_, P>, ahead: &[Folio], copier: &C) -> usize;
}

/// From its source to its destination in one go.
struct AtOnce;

impl<P: Platform, C: Copier<P::Job> + ?Sized> Walk<P, C> for AtOnce {
    fn walk(&mut self, isolated: Isolated<'_, P>, _ahead: &[Folio], copier: &C) -> usize {
        isolated.walk(copier)
    }
}

/// Serves a request whose batches go this way.
pub(crate) fn serve<P, C>(
    platform: &mut P,
    copier: &C,
    request: Request<P::Tier>,
    walk: impl Walk<P, C>,
) -> Report<P::Tier>
where
    P: Platform,
    C: Copier<P::Job> + ?Sized,
{
    let began = Began::now(platform);
    let mut run = Run::new(platform, copier, &request, walk);
    for pass in request.mode.passes() {
        run.pass(pass);
    }
    run.settle_duplicates();
    let Run {
        work,
        outcomes,
        stopped,
        first_folio,
        ..
    } = run;
    let mut times = work.times;
    let shootdowns = began.measure(platform, &mut times, first_folio);
    Report {
        to: request.to,
        reason: request.reason,
        counts: work.counts,
        reshaped: platform.reshaped(),
        shootdowns,
        times,
        stopped,
        folios: request.folios,
        outcomes,
    }
}

/// A request under way.
struct Run<'r, P: Platform, C: ?Sized, W> {
    platform: &'r mut P,
    copier: &'r C,
    walk: W,
    request: &'r Request<P::Tier>,
    work: Work<P>,
    governor: StallGovernor,
    outcomes: Vec<Outcome>,
    /// Indices of the folios that the next pass tries; `None` stands for all of them, which the
    /// first pass does, so that no list as long as the request is made for it.
    pending: Option<Vec<usize>>,
    first_folio: Option<core::time::Duration>,
    stopped: Option<Failure>,
}

impl<'r, P: Platform, C: Copier<P::Job> + ?Sized, W: Walk<P, C>> Run<'r, P, C, W> {
    fn new(platform: &'r mut P, copier: &'r C, request: &'r Request<P::Tier>, walk: W) -> Self {
        let not_tried = Outcome::Stayed(Failure::new(Step::Lock, Why::NotTried));
        Self {
            platform,
            copier,
            walk,
            request,
            work: Work::with_capacity(0),
            governor: StallGovernor::new(request.limit),
            outcomes: alloc::vec![not_tried; request.folios.len()],
            pending: None,
            first_folio: None,
            stopped: None,
        }
    }

    /// Does nothing where nothing is left, or the request has stopped.
    fn pass(&mut self, pass: Pass) {
        let retry = self.pending.take();
        let mut left = Vec::new();
        let mut batch: Vec<(usize, Folio)> = Vec::new();
        let mut folios: Vec<Folio> = Vec::new();
        let total = retry.as_ref().map_or(self.request.folios.len(), Vec::len);
        let index_of = |n: usize| retry.as_ref().map_or(n, |list| list[n]);
        let mut next = 0;
        while next < total && self.stopped.is_none() {
            batch.clear();
            folios.clear();
            let room = self.governor.room(pass.company);
            let mut base_pages: u64 = 0;
            while next < total {
                let index = index_of(next);
                let folio = self.request.folios[index];
                let with_it = self.platform.cut_off_with(folios.last().copied(), folio);
                let together = self.platform.together(folio);
                let lacks_room = |pages: u64| base_pages.saturating_add(pages) > room;
                // A folio larger than the room goes alone.
                let full = lacks_room(with_it) || (together <= room && lacks_room(together));
                if !batch.is_empty() && full {
                    break;
                }
                base_pages = base_pages.saturating_add(with_it);
                batch.push((index, folio));
                folios.push(folio);
                next += 1;
            }
            if retry.is_some() {
                self.work.counts.retries += batch.len() as u64;
            }
            self.walk.begin(self.platform, &folios);
            self.platform.provision(&folios, self.request.to);
            // What a later pass comes to has gaps, so it names nothing.
            let ahead = match retry {
                None => &self.request.folios[next..],
                Some(_) => &[],
            };
            self.one_batch(pass.company, &batch, ahead);
            self.governor.learn(self.work.last_cut_off.take());
            self.settle_ended(pass, &mut left);
        }
        // Folios end in the order in which their steps failed; the next pass keeps the request's.
        left.sort_unstable();
        self.pending = Some(left);
    }

    fn one_batch(&mut self, company: Company, batch: &[(usize, Folio)], ahead: &[Folio]) {
        self.work.counts.batches += 1;
        let isolated = match (company, batch) {
            (Company::Alone, &[(index, folio)]) => {
                Isolated::alone(self.platform, &mut self.work, index, folio, self.request.to)
            }
            _ => Isolated::gather(self.platform, &mut self.work, batch, self.request.to),
        };
        let moved = self.walk.walk(isolated, ahead, self.copier);
        if moved > 0 && self.first_folio.is_none() {
            self.first_folio = Some(self.platform.now());
        }
    }

    /// A folio named twice may be at the destination under one name, when its other name was busy
    /// in the same batch and never came to its turn again.
    fn settle_duplicates(&mut self) {
        let folios = &self.request.folios;
        let mut stayed: Vec<usize> = (0..folios.len())
            .filter(|&index| matches!(self.outcomes[index], Outcome::Stayed(_)))
            .collect();
        if stayed.is_empty() {
            return;
        }
        stayed.sort_unstable_by_key(|&index| folios[index]);
        for (index, folio) in folios.iter().enumerate() {
            if matches!(self.outcomes[index], Outcome::Stayed(_)) {
                continue;
            }
            let first = stayed.partition_point(|&other| folios[other] < *folio);
            for &other in &stayed[first..] {
                if folios[other] != *folio {
                    break;
                }
                self.outcomes[other] = match self.outcomes[index] {
                    Outcome::Deferred => Outcome::Deferred,
                    _ => Outcome::AlreadyThere,
                };
            }
        }
    }

    fn settle_ended(&mut self, pass: Pass, left: &mut Vec<usize>) {
        let mut ran_out = None;
        // Those that memory was lacking for, and those that were not tried for that.
        let mut starved = Vec::new();
        for (index, outcome) in self.work.ended.drain(..) {
            self.outcomes[index] = outcome;
            if let Outcome::Stayed(failure) = outcome {
                match failure.why {
                    Why::NoMemory => {
                        ran_out.get_or_insert(failure);
                        starved.push(index);
                    }
                    Why::NotTried => starved.push(index),
                    why if (pass.worth_retrying)(why) => left.push(index),
                    _ => {}
                }
            }
        }
        if ran_out.is_some() && self.walk.relieve(self.platform) {
            left.append(&mut starved);
        } else {
            self.stopped = self.stopped.or(ran_out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_name() {
        let names = Reason::ALL.map(Reason::name);
        assert_eq!(names, ["user", "demotion", "promotion", "compaction"]);
    }
}
