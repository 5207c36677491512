//! The same machine with a clock: what a migration would take where steps cost so much.
//!
//! The engine runs as it does everywhere, on the platform that the checker explores. But a step does not
//! wait for a search to choose it: it takes the time that [`Costs`] says, and what others do in that time is done
//! first. So there is one order, that of time, and one run for each question.

mod program;
#[cfg(test)]
mod tests;
mod world;

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use transhume_engine::{Limit, Mode};

pub(crate) use self::world::World;
use crate::actor::{Actor, Chooser, Run, STAGE, locked};
use crate::costs::Costs;
use crate::explore::{Ready, Strategy};
use crate::machine::{ActorId, Page};
use crate::oracle::judge;
use crate::platform::Kind;
use crate::roles::{Move, Role};
use crate::setup::Setup;

/// The most CPUs that a simulated machine has.
pub const MOST_CPUS: usize = 256;
/// The most base pages that a plan moves.
pub const MOST_BASE_PAGES: u64 = 1 << 18;

/// Who copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyBy {
    /// The CPU that migrates.
    Cpu,
    /// So many threads, that one among them.
    Threads(usize),
    /// So many channels of a device.
    Channels(usize),
}

/// What is moved, on which machine, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// All CPUs: the first migrates.
    pub cpus: usize,
    /// The nodes among which they are divided; memory moves from the first to the last.
    pub nodes: usize,
    /// How many of the CPUs have a program that loads and stores at random, beginning with the second;
    /// the others sleep.
    pub programs: usize,
    /// Folios that programs use; all of them move, one request after the other.
    pub folios: usize,
    /// How often they all move: there, back again, and so on, with nothing in between.
    pub rounds: usize,
    /// Folios of a request.
    pub request: usize,
    /// Their order: 0 is 4 KiB, 9 is 2 MiB.
    pub order: u8,
    /// Folios of a batch.
    pub batch: usize,
    /// Who copies.
    pub copier: CopyBy,
    /// Whether threads that copy are all in one core complex.
    pub one_complex: bool,
    /// How many folios may wait for their switch at once; none if they are switched at once.
    pub deferred: Option<usize>,
    /// Whether they trade places with as many others, in place; then batches are of pairs.
    pub exchange: bool,
}

/// A plan that cannot be simulated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPlan {
    /// No machine has so few, nor so many.
    #[error("{0} CPUs, and from 1 to {MOST_CPUS} can be simulated")]
    Cpus(usize),
    /// Each node has a CPU here.
    #[error("{0} nodes, and there is one at least and no more than CPUs, which are {1}")]
    Nodes(usize, usize),
    /// The first CPU migrates.
    #[error("{0} programs, and {1} CPUs are left beside the one that migrates")]
    Programs(usize, usize),
    /// Too much memory, or none.
    #[error("{0} pages of {1} KiB, and from 1 to {max} of them can be simulated",
        max = MOST_BASE_PAGES / (.1 / 4))]
    Folios(usize, u64),
    /// Requests and batches have something in them.
    #[error("a request or a batch of no pages, or no round of them")]
    Nothing,
    /// So many cannot copy.
    #[error("{0} threads, and there are {1} CPUs")]
    Threads(usize, usize),
    /// What is deferred waits by batches.
    #[error("{0} pages may wait for their switch, and a batch has {1}")]
    Waiting(usize, usize),
    /// Contents are swapped by CPUs, and nothing waits then.
    #[error("an exchange is made at once, by one CPU or by threads")]
    Exchange,
    /// A device has channels.
    #[error("{0} channels, and from 1 to 64 can be simulated, of a machine with a copying device")]
    Channels(usize),
}

impl Plan {
    /// So many folios, all in one request and one batch, by a CPU that is alone on its machine.
    #[must_use]
    pub const fn of(folios: usize, order: u8) -> Self {
        Self {
            cpus: 1,
            nodes: 1,
            programs: 0,
            folios,
            rounds: 1,
            request: folios,
            order,
            batch: folios,
            copier: CopyBy::Cpu,
            one_complex: false,
            deferred: None,
            exchange: false,
        }
    }

    /// Bytes of a folio.
    #[must_use]
    pub fn folio_bytes(&self) -> u64 {
        4096 << self.order
    }

    fn check(&self, costs: &Costs) -> Result<(), BadPlan> {
        if !(1..=MOST_CPUS).contains(&self.cpus) {
            return Err(BadPlan::Cpus(self.cpus));
        }
        if !(1..=self.cpus).contains(&self.nodes) {
            return Err(BadPlan::Nodes(self.nodes, self.cpus));
        }
        if self.programs >= self.cpus {
            return Err(BadPlan::Programs(self.programs, self.cpus - 1));
        }
        let most = MOST_BASE_PAGES >> self.order.min(20);
        let folios = self.folios.saturating_mul(self.sides());
        if !(1..=most).contains(&(folios as u64)) {
            return Err(BadPlan::Folios(self.folios, self.folio_bytes() >> 10));
        }
        if [self.batch, self.request, self.rounds].contains(&0) || self.deferred == Some(0) {
            return Err(BadPlan::Nothing);
        }
        let by_device = matches!(self.copier, CopyBy::Channels(_));
        if self.exchange && (by_device || self.deferred.is_some()) {
            return Err(BadPlan::Exchange);
        }
        let batch = self.batch.min(self.folios);
        if let Some(waiting) = self.deferred.filter(|waiting| *waiting < batch) {
            return Err(BadPlan::Waiting(waiting, batch));
        }
        match self.copier {
            CopyBy::Cpu => Ok(()),
            CopyBy::Threads(count) if (1..=self.cpus).contains(&count) => Ok(()),
            CopyBy::Threads(count) => Err(BadPlan::Threads(count, self.cpus)),
            CopyBy::Channels(count)
                if (1..=64).contains(&count) && costs.channel_rate.is_some() =>
            {
                Ok(())
            }
            CopyBy::Channels(count) => Err(BadPlan::Channels(count)),
        }
    }

    /// How many folios arrive for one that is named.
    fn sides(&self) -> usize {
        1 + usize::from(self.exchange)
    }

    /// How many copy beside the CPU that migrates, or in its place.
    fn channels(&self) -> usize {
        match self.copier {
            // The threads of a swap are taken together.
            _ if self.exchange => 0,
            CopyBy::Cpu | CopyBy::Threads(1) => 0,
            CopyBy::Threads(count) | CopyBy::Channels(count) => count,
        }
    }
}

/// What a plan would take.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// All requests, and the switch of what was deferred.
    pub total: Duration,
    /// From the beginning of the first request until its first batch was at its destination; where it is deferred,
    /// until its first folio was switched.
    pub first_folio: Option<Duration>,
    /// The longest time that a folio was cut off.
    pub longest_cut_off: Duration,
    /// The longest time that a program waited for a page, or for its CPU.
    pub longest_stall: Duration,
    /// All copying together.
    pub copy: Duration,
    /// Folios that are at their destination.
    pub moved: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Shootdowns that were asked for.
    pub shootdowns: u64,
    /// Interrupts that CPUs took for them.
    pub interrupts: u64,
    /// The time that all programs lost together: waiting, by interrupts, and because a thread of the
    /// copier was on their CPU.
    pub lost: Duration,
    /// Accesses that all programs made together.
    pub accesses: f64,
}

impl Prediction {
    /// Folios a second.
    #[must_use]
    pub fn folios_per_s(&self) -> f64 {
        self.moved as f64 / self.total.as_secs_f64().max(1e-12)
    }

    /// Bytes a second.
    #[must_use]
    pub fn bytes_per_s(&self) -> f64 {
        self.bytes as f64 / self.total.as_secs_f64().max(1e-12)
    }

    /// Shootdowns a folio.
    #[must_use]
    pub fn shootdowns_per_folio(&self) -> f64 {
        self.shootdowns as f64 / self.moved.max(1) as f64
    }

    /// Seconds that all programs lost together by a folio: less than a nanosecond is told too.
    #[must_use]
    pub fn lost_s_per_folio(&self) -> f64 {
        self.lost.as_secs_f64() / self.moved.max(1) as f64
    }

    /// Accesses a second of all programs together.
    #[must_use]
    pub fn accesses_per_s(&self) -> f64 {
        self.accesses / self.total.as_secs_f64().max(1e-12)
    }
}

/// Why there is no prediction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPrediction {
    /// The plan cannot be simulated.
    #[error(transparent)]
    Plan(#[from] BadPlan),
    /// A cost cannot be.
    #[error(transparent)]
    Cost(#[from] crate::costs::BadCost),
    /// The simulated machine did something that must not happen, so it cannot be believed.
    #[error("the simulated machine went wrong: {0}")]
    Violated(String),
}

/// Decides nothing: time does, and nothing fails.
#[derive(Debug)]
struct Time;

impl Strategy for Time {
    fn begin(&mut self) -> bool {
        false
    }

    fn pick(&mut self, _ready: &[Ready]) -> Option<usize> {
        None
    }

    fn choose(&mut self, _count: u32) -> u32 {
        0
    }
}

/// Who migrates; the actors after it are the programs.
pub(crate) const MIGRATOR: ActorId = 1;

/// Runs the engine through the plan on the simulated machine, in its time. The same plan and the same
/// costs give the same prediction.
///
/// # Errors
///
/// Where the plan or the costs cannot be, or the machine did what it must not.
pub fn predict(plan: &Plan, costs: &Costs) -> Result<Prediction, NoPrediction> {
    costs.check()?;
    plan.check(costs)?;
    let base_pages = 1_u64 << plan.order;
    let waiting = plan.deferred.unwrap_or(0).max(1) as u64 * base_pages;
    let mut setup = if plan.order == 0 && !plan.exchange {
        Setup::new(plan.folios, 1)
    } else {
        let count = plan.folios * plan.sides();
        let folio = |setup: Setup, n: usize| {
            let tier = usize::from(n >= plan.folios);
            setup.folio(n as Page * base_pages, plan.order, tier, &[0])
        };
        (0..count).fold(Setup::new(0, 1), folio)
    };
    setup = setup.ledger(waiting).device(plan.channels());
    for _ in 0..plan.programs {
        setup = setup.program(&[]);
    }
    let pages: Vec<Page> = (0..plan.folios as Page).map(|n| n * base_pages).collect();
    let at_a_time = (plan.batch * plan.sides()) as u64 * base_pages;
    let limit = Limit {
        base_pages: NonZeroU64::new(at_a_time).unwrap_or(NonZeroU64::MIN),
        max_stall: None,
    };
    let partner = |page: &Page| (*page, page + plan.folios as Page * base_pages);
    let rounds = (0..plan.rounds).flat_map(|round| {
        let chunks = pages.chunks(plan.request);
        chunks.map(move |pages| (1 - round % 2, pages))
    });
    let rounds: Vec<(usize, &[Page])> = rounds.collect();
    let requests = rounds.iter().map(|&(to, pages)| {
        if plan.exchange {
            return Role::Exchange {
                pairs: pages.iter().map(partner).collect(),
                mode: Mode::Async,
                limit,
            };
        }
        Role::Migrate(Move {
            pages: pages.to_vec(),
            to,
            mode: Mode::Async,
            limit,
            copier: if plan.channels() == 0 {
                Kind::Cpu
            } else {
                Kind::Device
            },
            deferred: plan.deferred.is_some(),
        })
    });
    let requests: Vec<Role> = requests.collect();
    setup = requests.iter().cloned().fold(setup, Setup::with);
    let mut machine = setup.machine(None);
    machine.remap_flushes = costs.remaps_by_call;
    machine.flushes_per_table = costs.flushes_per_table;
    machine.splits_folios = costs.splits_folios;
    let mut run = Run::new(machine, &requests, false);
    let mut world = World::new(plan, costs);
    world.begin(&mut run.machine);
    run.timed = Some(Box::new(world));
    let run = Arc::new(Mutex::new(run));
    let chooser: Chooser = Arc::new(Mutex::new(Time));
    let actor = Actor {
        run: Arc::clone(&run),
        chooser,
        id: MIGRATOR,
    };
    // The engine's clock of the first request begins when that has been set up.
    let mut set_up = None;
    for (request, (_, pages)) in requests.into_iter().zip(rounds) {
        if let Some(world) = &mut locked(&run).timed {
            world.begin_request(pages.len());
            set_up.get_or_insert(world.now());
        }
        request.act(&actor);
    }
    if plan.deferred.is_some() {
        Role::Settle { times: 1 }.act(&actor);
    }
    let world = locked(&run).timed.take();
    let shootdowns = locked(&run).machine.flushes.len() as u64;
    // What the checker asks of the machine at the end of an order is asked here too.
    let stage = Actor { id: STAGE, ..actor };
    judge(&stage, false);
    let mut run = locked(&run);
    if let Some(what) = run.machine.violation.take() {
        return Err(NoPrediction::Violated(what));
    }
    let arrived = run.machine.in_tier(&pages, plan.rounds % 2);
    if arrived != plan.folios {
        let what = format!("{arrived} of {} folios moved", plan.folios);
        return Err(NoPrediction::Violated(what));
    }
    let Some(world) = world else {
        return Err(NoPrediction::Violated("the clock is gone".to_owned()));
    };
    let reports = &run.machine.reports;
    let first_folio = reports
        .first()
        .and_then(|(_, first)| first.times.first_folio);
    let copy: Duration = reports.iter().map(|(_, report)| report.times.copy).sum();
    let told = world.end();
    let moved = plan.folios * plan.sides() * plan.rounds;
    Ok(Prediction {
        total: told.total,
        first_folio: first_folio
            .map(|first| first + set_up.unwrap_or_default())
            .or(told.first_back),
        longest_cut_off: told.longest_cut_off,
        longest_stall: told.longest_stall,
        copy: copy + told.swapping,
        moved,
        bytes: moved as u64 * plan.folio_bytes(),
        shootdowns,
        interrupts: told.interrupts,
        lost: told.lost,
        accesses: told.accesses,
    })
}
