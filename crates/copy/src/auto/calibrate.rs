//! The measurement.
//!
//! Copiers take turns on each shape, over and over, so that what else the machine does in these seconds
//! falls on all of them; each has the lower quartile of the times of its lists. Lists are copied as in a
//! migration, see [`RawArea`], on two areas by turns, because the frames that one area got can suit
//! one copier better. A copier that never was as fast as the best one mostly is, is dropped from a
//! shape after a few rounds.

use std::time::{Duration, Instant};

use transhume_sys::limits;
use transhume_sys::numa::{nodes_with_memory, topology};

use super::candidate::Candidate;
use super::figures::{Figure, Figures, NodePair, OfPair};
use super::shape::{BASE, HUGE, SHAPES, Shape};
use crate::{RawArea, SharedCopier, Unavailable};

/// So long all measurements take, but for the first round of each, which is always made.
const PATIENCE: Duration = Duration::from_millis(2400);
/// More rounds tell nothing new.
const MOST_ROUNDS: usize = 100;
/// After so many, copiers can be dropped.
const SURE_ROUNDS: usize = 8;
/// In a round lists are copied until they have so many bytes, or are so many.
const BYTES_A_TURN: usize = 4 << 20;
const LISTS_A_TURN: usize = 32;
/// Pairs of nodes that are measured: those of three nodes.
const MOST_PAIRS: usize = 6;

const AREAS: usize = 2;
/// What an area has: three lists of the longest.
const AREA_BYTES: usize = 96 << 20;
/// So much must be free, on each node of a pair.
const NEEDS: u64 = 2 * (AREAS * AREA_BYTES) as u64;

/// Times lists.
pub(super) trait Meter {
    /// How long a list of this shape takes a candidate. `None` if it does not confirm all of it.
    fn list(&mut self, candidate: usize, shape: Shape) -> Option<Duration>;

    /// A round begins.
    fn turn(&mut self);
}

/// Measures this machine.
pub(super) fn measure(candidates: Vec<Candidate>) -> Result<Figures, Unavailable> {
    let available = limits::memory_available().unwrap_or(u64::MAX);
    if available < NEEDS {
        return Err(Unavailable(format!(
            "to measure the copiers takes {} MiB of memory, and {} MiB are free",
            NEEDS >> 20,
            available >> 20
        )));
    }
    // What cannot be made is not chosen.
    let copiers = candidates.iter().map(|one| one.make().ok());
    let copiers = copiers.collect::<Vec<_>>();
    let pairs = std::iter::once(None).chain(pairs().into_iter().map(Some));
    let pairs = pairs.collect::<Vec<_>>();
    // A pair is measured for either size of jobs.
    let share = u32::try_from(2 * pairs.len()).map_or(Duration::ZERO, |parts| PATIENCE / parts);
    let mut figures = Vec::new();
    for pair in pairs {
        let mut of_pair = OfPair::empty(pair, candidates.len());
        for size in [BASE, HUGE] {
            let areas = (0..AREAS).map(|_| match pair {
                None => RawArea::allocate(AREA_BYTES / size, size),
                Some(NodePair { from, to }) => RawArea::between(from, to, AREA_BYTES / size, size),
            });
            let areas = areas.collect::<Result<Vec<_>, _>>();
            let mut meter = Machine {
                copiers: &copiers,
                areas: areas.map_err(|error| {
                    Unavailable(format!("cannot allocate memory to copy: {error}"))
                })?,
            };
            rounds(&candidates, size, share, &mut meter, &mut of_pair);
        }
        figures.push(of_pair);
    }
    Ok(Figures {
        candidates,
        pairs: figures,
    })
}

/// The pairs of different nodes that have room for it.
fn pairs() -> Vec<NodePair> {
    let nodes = nodes_with_memory().unwrap_or_default();
    let has_room = |&node: &u32| topology::memory_size(node).is_ok_and(|size| size.free > NEEDS);
    let nodes = nodes.into_iter().filter(has_room).collect::<Vec<_>>();
    pairs_of(&nodes)
}

/// Those of the first nodes first.
fn pairs_of(nodes: &[u32]) -> Vec<NodePair> {
    let both = |(&a, &b): (&u32, &u32)| [NodePair { from: a, to: b }, NodePair { from: b, to: a }];
    let pairs = nodes.iter().enumerate().flat_map(|(index, b)| {
        let before = nodes.iter().take(index);
        before.flat_map(move |a| both((a, b)))
    });
    pairs.take(MOST_PAIRS).collect()
}

/// Measures the shapes of one size of jobs.
fn rounds(
    candidates: &[Candidate],
    size: usize,
    patience: Duration,
    meter: &mut impl Meter,
    of_pair: &mut OfPair,
) {
    let mut contests = SHAPES
        .iter()
        .enumerate()
        .filter(|(_, shape)| shape.job_bytes == size)
        .map(|(index, &shape)| (index, Contest::new(candidates, shape)))
        .collect::<Vec<_>>();
    let began = Instant::now();
    for round in 0..MOST_ROUNDS {
        meter.turn();
        for (_, contest) in &mut contests {
            if round > 0 && began.elapsed() > patience {
                continue;
            }
            contest.round(meter);
            if round + 1 >= SURE_ROUNDS {
                contest.drop_the_hopeless();
            }
        }
        if began.elapsed() > patience {
            break;
        }
    }
    for (index, contest) in contests {
        of_pair.figures[index] = contest.figures();
    }
}

/// The candidates at one shape.
struct Contest {
    shape: Shape,
    runners: Vec<Runner>,
}

/// A candidate at it.
struct Runner {
    runs: bool,
    times: Vec<u64>,
}

impl Contest {
    fn new(candidates: &[Candidate], shape: Shape) -> Self {
        let runner = |candidate: &Candidate| Runner {
            runs: candidate.is_for(shape),
            times: Vec::new(),
        };
        Self {
            shape,
            runners: candidates.iter().map(runner).collect(),
        }
    }

    /// Each of them has a turn.
    fn round(&mut self, meter: &mut impl Meter) {
        let lists = (BYTES_A_TURN / self.shape.bytes()).clamp(1, LISTS_A_TURN);
        let running = self.runners.iter_mut().enumerate();
        for (candidate, runner) in running.filter(|(_, runner)| runner.runs) {
            for _ in 0..lists {
                let Some(time) = meter.list(candidate, self.shape) else {
                    // Who leaves something to others is not timed by what he did.
                    runner.runs = false;
                    runner.times.clear();
                    break;
                };
                runner
                    .times
                    .push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            }
        }
    }

    fn drop_the_hopeless(&mut self) {
        let figures = self.figures();
        let best = self.runners.iter().zip(&figures);
        let best = best.filter_map(|(runner, figure)| Some((runner, (*figure)?.nanos)));
        let best = best.min_by_key(|&(_, nanos)| nanos);
        let Some(mostly) = best.and_then(|(runner, _)| median(&runner.times)) else {
            return;
        };
        for runner in &mut self.runners {
            runner.runs &= runner
                .times
                .iter()
                .min()
                .is_some_and(|&least| least <= mostly);
        }
    }

    fn figures(&self) -> Vec<Option<Figure>> {
        let of = |runner: &Runner| Figure::of(&mut runner.times.clone());
        self.runners.iter().map(of).collect()
    }
}

fn median(times: &[u64]) -> Option<u64> {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// This machine, by its copiers.
struct Machine<'c> {
    copiers: &'c [Option<SharedCopier>],
    areas: Vec<RawArea>,
}

impl Meter for Machine<'_> {
    fn list(&mut self, candidate: usize, shape: Shape) -> Option<Duration> {
        let copier = self.copiers.get(candidate)?.as_ref()?;
        let (time, bytes) = self.areas.first_mut()?.pass(&**copier, shape.jobs);
        (bytes == shape.bytes()).then_some(time)
    }

    fn turn(&mut self) {
        self.areas.rotate_left(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Candidates whose lists take times that the test says.
    struct Told<F> {
        time: F,
        lists: Vec<usize>,
        rounds: usize,
    }

    impl<F: FnMut(usize, Shape) -> Option<u64>> Meter for Told<F> {
        fn list(&mut self, candidate: usize, shape: Shape) -> Option<Duration> {
            self.lists[candidate] += 1;
            (self.time)(candidate, shape).map(Duration::from_nanos)
        }

        fn turn(&mut self) {
            self.rounds += 1;
        }
    }

    fn all(names: &[&str]) -> Vec<Candidate> {
        names.iter().map(|&name| Candidate::new(name, 1)).collect()
    }

    fn run<F: FnMut(usize, Shape) -> Option<u64>>(
        candidates: &[Candidate],
        patience: Duration,
        time: F,
    ) -> (OfPair, Vec<usize>, usize) {
        let mut told = Told {
            time,
            lists: vec![0; candidates.len()],
            rounds: 0,
        };
        let mut of_pair = OfPair::empty(None, candidates.len());
        for size in [BASE, HUGE] {
            rounds(candidates, size, patience, &mut told, &mut of_pair);
        }
        (of_pair, told.lists, told.rounds)
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn each_shape_has_the_undisturbed_time_of_its_lists() {
        let candidates = all(&["a", "b"]);
        let mut odd = 0;
        let (of_pair, _, _) = run(&candidates, LONG, |candidate, shape| {
            odd += 1;
            // Every ninth list is disturbed.
            let disturbed = if odd % 9 == 0 { 1_000_000 } else { 0 };
            Some(100 * (candidate as u64 + 1) + shape.jobs as u64 + disturbed)
        });
        assert!(of_pair.is_whole());
        for (shape, figures) in SHAPES.iter().zip(&of_pair.figures) {
            let times = figures.iter().flatten().map(|figure| figure.nanos);
            let jobs = shape.jobs as u64;
            assert_eq!(times.collect::<Vec<_>>(), [100 + jobs, 200 + jobs]);
        }
    }

    #[test]
    fn who_was_never_as_fast_is_dropped_and_who_sometimes_was_is_not() {
        let candidates = all(&["slow", "fast", "moody"]);
        let mut moods = 0;
        let (_, lists, rounds) = run(&candidates, LONG, |candidate, _| {
            Some(match candidate {
                0 => 300,
                1 => 100,
                _ => {
                    moods += 1;
                    if moods % 3 == 0 { 100 } else { 500 }
                }
            })
        });
        assert_eq!(rounds, 2 * MOST_ROUNDS);
        assert_eq!(lists[0] * MOST_ROUNDS, lists[1] * SURE_ROUNDS);
        assert_eq!(lists[1], lists[2]);
    }

    #[test]
    fn who_leaves_jobs_to_others_is_out() {
        let candidates = all(&["a", "declines"]);
        let mut first = true;
        let (of_pair, lists, _) = run(&candidates, LONG, |candidate, shape| {
            let declines = candidate == 1 && (shape.jobs == 1 || !std::mem::take(&mut first));
            (!declines).then_some(100)
        });
        assert!(of_pair.figures.iter().all(|figures| figures[1].is_none()));
        assert!(of_pair.is_whole());
        assert!(lists[1] <= 2 * SHAPES.len());
        let nobody = run(&candidates, LONG, |_, _| None);
        assert!(!nobody.0.is_whole());
    }

    #[test]
    fn one_round_is_made_in_any_case() {
        let candidates = all(&["a", "b"]);
        let (of_pair, _, rounds) = run(&candidates, Duration::ZERO, |_, _| {
            std::thread::sleep(Duration::from_micros(1));
            Some(5)
        });
        assert_eq!(rounds, 2);
        let known = of_pair.figures.iter().flatten();
        assert!(known.clone().count() == 14 && known.into_iter().all(Option::is_some));
    }

    #[test]
    fn threads_run_where_they_are_for_something() {
        let candidates = [Candidate::new("memcpy", 1), Candidate::new("threads", 8)];
        let (of_pair, _, _) = run(&candidates, LONG, |_, _| Some(5));
        let ran = of_pair.figures.iter().map(|figures| figures[1].is_some());
        let ran = ran.collect::<Vec<_>>();
        assert_eq!(ran, [false, false, false, false, false, true, true]);
    }

    #[test]
    fn pairs_of_the_first_nodes() {
        let pair = |from, to| NodePair { from, to };
        assert_eq!(pairs_of(&[]), []);
        assert_eq!(pairs_of(&[3]), []);
        assert_eq!(pairs_of(&[0, 2]), [pair(0, 2), pair(2, 0)]);
        let many = pairs_of(&[0, 1, 2, 3, 4]);
        assert_eq!(many.len(), MOST_PAIRS);
        assert!(many.iter().all(|pair| pair.from < 3 && pair.to < 3));
    }
}
