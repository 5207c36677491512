//! Machines on which others have measured, what was measured there, and what the steps cost there.
//!
//! No cost is set by hand so that a cell comes out right. Each is derived, in the code below, from the description of
//! the machine or from a published cell; a cell from which a cost is derived says so, and is not a prediction.

mod batch_flush;
mod fast_copy;
mod offload;
mod user_space;

use crate::costs::Costs;
use crate::timed::{CopyBy, NoPrediction, Plan, Prediction, predict};

/// A machine, and the table that was measured on it.
#[derive(Clone, Debug)]
pub struct Published {
    /// Its name on a command line.
    pub name: &'static str,
    /// What it is, and who measured what on it.
    pub about: &'static str,
    /// What its steps cost.
    pub costs: Costs,
    /// Where each of the costs comes from that matter for its cells: the name of the cost, and from what it is
    /// derived.
    pub derived: Vec<(&'static str, &'static str)>,
    /// Costs that nobody has published and that it cannot do without: the name of the cost, and what is assumed of it.
    pub assumed: Vec<(&'static str, &'static str)>,
    /// What was measured.
    pub cells: Vec<Cell>,
    /// What wins where, whatever the figures.
    pub shapes: Vec<Shape>,
}

/// A published figure.
#[derive(Clone, Debug)]
pub struct Cell {
    /// What was done.
    pub what: String,
    /// What was measured of it.
    pub figure: Figure,
    /// The published figure, in the unit of [`Figure::unit`].
    pub published: f64,
    /// The costs that are derived from this cell, so that it predicts nothing.
    pub calibrates: Option<&'static str>,
    /// Half of the unit of the last digit that it was published with, where that is coarse: any figure so near to it
    /// would have been published as the same.
    pub rounded_by: f64,
    plan: Plan,
    /// The plan that it is compared with, where the figure is a ratio of two.
    against: Option<Plan>,
}

/// What a cell is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Bytes migrated.
    GigabytesPerS,
    /// Pages migrated.
    PagesPerS,
    /// Shootdowns of a page.
    ShootdownsPerPage,
    /// Accesses of the programs.
    MegaAccessesPerS,
    /// Time that programs lose for a page.
    LostPerPage,
    /// The longest wait of a program.
    LongestStall,
    /// The share of the time that is spent on copying.
    CopyShare,
    /// How many more pages a second than otherwise.
    MorePages,
    /// How many of the interrupts that it takes otherwise are left.
    InterruptsLeft,
}

impl Figure {
    /// In what it is given.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::GigabytesPerS => "GB/s",
            Self::PagesPerS => "pages/s",
            Self::ShootdownsPerPage => "shootdowns/page",
            Self::MegaAccessesPerS => "M accesses/s",
            Self::LostPerPage => "us lost/page",
            Self::LongestStall => "us longest stall",
            Self::CopyShare => "% copying",
            Self::MorePages => "% more pages/s",
            Self::InterruptsLeft => "% IPIs left",
        }
    }
}

/// A published table that is not reproduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// What was published.
    pub what: &'static str,
    /// Why there is nothing beside it.
    pub why: &'static str,
}

/// By how much a prediction may be off, as a part of what was measured, and still be called right.
pub const TOLERANCE: f64 = 0.25;

impl Published {
    /// All of them.
    #[must_use]
    pub fn all() -> Vec<Self> {
        vec![
            user_space::machine(),
            offload::machine(),
            fast_copy::machine(),
            batch_flush::machine(),
        ]
    }

    /// What was published too, and is not in [`all`](Self::all).
    pub const LEFT_OUT: &'static [LeftOut] = &[
        LeftOut {
            what: "[batch-flush] on ARM64, up to 78 % more pages/s",
            why: "an upper bound of unknown pages, on a machine that flushes without interrupts",
        },
        LeftOut {
            what: "[offload], threads and channels lose to the CPU on one folio of 2 MiB, one channel at every size up \
                to 1 MiB, and 6.3 times as fast by DMA; [fast-copy], DMA faster than one thread and slower than eight",
            why: "by the costs, which are derived from the cells of just that, it cannot be otherwise",
        },
        LeftOut {
            what: "[offload], 1.54 times as fast at most with 4 KiB, 3 and 33 with 2 MiB",
            why: "bounds that follow from the shares of copying by arithmetic",
        },
        LeftOut {
            what: "[deferred-flush] shootdowns -94 % and -91.4 %, run time -3.5 % and -5.7 %",
            why: "neither how many folios wait for one flush nor how many migrate a second is published",
        },
        LeftOut {
            what: "[deferred-flush] iTLB misses -45.5 % and -38 %",
            why: "what a TLB holds beyond what is migrated is not simulated",
        },
        LeftOut {
            what: "user space: memfd, hugetlb, and anonymous memory filled by UFFDIO_COPY",
            why: "the steps of these ways were not published one by one",
        },
        LeftOut {
            what: "user space: two pages of 2 MiB swapped at 18 to 39 GB/s, and other copies than memcpy",
            why: "rates of bare copies, of which a migration is made here; an exchange takes as long as two memcpy",
        },
        LeftOut {
            what: "user space: UFFDIO_MOVE of 8, 32 and 128 pages and of 2 MiB, and calls that are no part of MOVE out, \
                copy, MOVE in",
            why: "single calls, and what is simulated are migrations",
        },
    ];
}

/// Plans that have been simulated: several cells are of the same one.
struct Simulated<'a> {
    costs: &'a Costs,
    plans: Vec<(Plan, Prediction)>,
}

impl<'a> Simulated<'a> {
    fn by(costs: &'a Costs) -> Self {
        Self {
            costs,
            plans: Vec::new(),
        }
    }

    fn of(&mut self, plan: &Plan) -> Result<Prediction, NoPrediction> {
        if let Some((_, told)) = self.plans.iter().find(|(known, _)| known == plan) {
            return Ok(told.clone());
        }
        let told = predict(plan, self.costs)?;
        self.plans.push((plan.clone(), told.clone()));
        Ok(told)
    }
}

/// What a machine would show in place of what was published of it.
#[derive(Clone, Debug)]
pub struct Reproduced {
    /// The figure of each cell.
    pub cells: Vec<f64>,
    /// Whether each of the shapes is there.
    pub shapes: Vec<bool>,
}

impl Published {
    /// Simulates what was published.
    ///
    /// # Errors
    ///
    /// As [`predict`].
    pub fn reproduce(&self) -> Result<Reproduced, NoPrediction> {
        let mut simulated = Simulated::by(&self.costs);
        let cells = self.cells.iter().map(|cell| cell.predict(&mut simulated));
        let cells = cells.collect::<Result<_, _>>()?;
        let shapes = self.shapes.iter().map(|shape| shape.holds(&mut simulated));
        let shapes = shapes.collect::<Result<_, _>>()?;
        Ok(Reproduced { cells, shapes })
    }
}

impl Cell {
    fn predict(&self, simulated: &mut Simulated<'_>) -> Result<f64, NoPrediction> {
        let told = simulated.of(&self.plan)?;
        let other = simulated.of(self.against.as_ref().unwrap_or(&self.plan))?;
        Ok(match self.figure {
            Figure::GigabytesPerS => told.bytes_per_s() / 1e9,
            Figure::PagesPerS => told.folios_per_s(),
            Figure::ShootdownsPerPage => told.shootdowns_per_folio(),
            Figure::MegaAccessesPerS => told.accesses_per_s() / 1e6,
            Figure::LostPerPage => told.lost_s_per_folio() * 1e6,
            Figure::LongestStall => told.longest_stall.as_secs_f64() * 1e6,
            Figure::CopyShare => copy_share(&told),
            Figure::MorePages => (told.folios_per_s() / other.folios_per_s() - 1.0) * 100.0,
            Figure::InterruptsLeft => {
                told.interrupts as f64 * 100.0 / other.interrupts.max(1) as f64
            }
        })
    }

    /// By how much a prediction is off from what was published: 0.1 is a tenth too high.
    #[must_use]
    pub fn off_by(&self, predicted: f64) -> f64 {
        predicted / self.published - 1.0
    }

    /// Whether a prediction is within a quarter of what was published, or of a figure that would have been published
    /// as the same.
    #[must_use]
    pub fn is_met_by(&self, predicted: f64) -> bool {
        let least = self.published - self.rounded_by;
        let most = self.published + self.rounded_by;
        let nearest = predicted.clamp(least, most);
        (predicted / nearest - 1.0).abs() <= TOLERANCE
    }

    /// Whether it [is met](Self::is_met_by) only because what was published is coarse.
    #[must_use]
    pub fn is_met_by_rounding(&self, predicted: f64) -> bool {
        self.is_met_by(predicted) && self.off_by(predicted).abs() > TOLERANCE
    }

    fn new(what: impl Into<String>, figure: Figure, published: f64, plan: &Plan) -> Self {
        Self {
            what: what.into(),
            figure,
            published,
            calibrates: None,
            rounded_by: 0.0,
            plan: plan.clone(),
            against: None,
        }
    }

    fn calibrates(self, what: &'static str) -> Self {
        Self {
            calibrates: Some(what),
            ..self
        }
    }

    /// Its last digit is of this unit.
    fn exact_to(self, digit: f64) -> Self {
        Self {
            rounded_by: digit / 2.0,
            ..self
        }
    }

    fn against(self, plan: &Plan) -> Self {
        Self {
            against: Some(plan.clone()),
            ..self
        }
    }
}

/// How many per cent of the time are spent on copying.
fn copy_share(told: &Prediction) -> f64 {
    told.copy.as_secs_f64() * 100.0 / told.total.as_secs_f64()
}

/// What won where: whatever the figures are, they rise.
#[derive(Clone, Debug)]
pub struct Shape {
    /// In words.
    pub says: &'static str,
    /// Each of the lists rises from one to the next.
    rising: Vec<Vec<Speed>>,
}

impl Published {
    /// Of how many plans the shape is, and how many of them no cost is derived from: of the others it could not be
    /// otherwise.
    #[must_use]
    pub fn predicted_of(&self, shape: &Shape) -> (usize, usize) {
        let mut plans = Vec::new();
        for plan in shape.rising.iter().flatten().flat_map(Speed::plans) {
            if !plans.contains(&plan) {
                plans.push(plan);
            }
        }
        let rates = [Figure::GigabytesPerS, Figure::PagesPerS];
        let gives = |plan: &Plan| {
            let mut cells = self.cells.iter();
            cells.any(|cell| {
                cell.calibrates.is_some() && rates.contains(&cell.figure) && cell.plan == *plan
            })
        };
        let predicted = plans.iter().filter(|plan| !gives(plan)).count();
        (predicted, plans.len())
    }
}

impl Shape {
    fn holds(&self, simulated: &mut Simulated<'_>) -> Result<bool, NoPrediction> {
        for list in &self.rising {
            let mut below = f64::NEG_INFINITY;
            for speed in list {
                let speed = speed.predict(simulated)?;
                if speed <= below {
                    return Ok(false);
                }
                below = speed;
            }
        }
        Ok(true)
    }
}

/// What is compared in a shape.
#[derive(Clone, Debug)]
enum Speed {
    /// Bytes a second of a plan.
    Of(Plan),
    /// How many times as fast as the second the first is.
    Gain(Plan, Plan),
    /// How many per cent of its time a plan copies.
    CopyShare(Plan),
    /// What was published.
    Figure(f64),
}

impl Speed {
    fn predict(&self, simulated: &mut Simulated<'_>) -> Result<f64, NoPrediction> {
        let mut speed = |plan| simulated.of(plan).map(|told| told.bytes_per_s());
        match self {
            Self::Of(plan) => speed(plan),
            Self::Gain(plan, over) => Ok(speed(plan)? / speed(over)?),
            Self::CopyShare(plan) => simulated.of(plan).map(|told| copy_share(&told)),
            Self::Figure(figure) => Ok(*figure),
        }
    }

    fn plans(&self) -> Vec<&Plan> {
        match self {
            Self::Of(plan) | Self::CopyShare(plan) => vec![plan],
            Self::Gain(plan, over) => vec![plan, over],
            Self::Figure(_) => Vec::new(),
        }
    }
}

/// What is assumed of programs where none was published.
const NO_PROGRAM: (&str, &str) = (
    "access_ns",
    "100 ns, and that an interrupt and being woken take a program nothing: none at work was published there",
);

/// A request of so many folios in one batch, by who migrates alone on a machine of two nodes.
fn alone(folios: usize, order: u8, copier: CopyBy) -> Plan {
    Plan {
        cpus: 16,
        nodes: 2,
        copier,
        ..Plan::of(folios, order)
    }
}

const BASE: f64 = 4096.0;
const HUGE: f64 = 512.0 * BASE;

/// How long so many bytes take at so many gigabytes a second, in nanoseconds.
fn ns(bytes: f64, gigabytes_per_s: f64) -> f64 {
    bytes / gigabytes_per_s
}

/// Bytes a second, of bytes in so many nanoseconds.
fn rate(bytes: f64, ns: f64) -> f64 {
    bytes * 1e9 / ns
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    #[test]
    fn what_a_cost_is_derived_from_comes_out_again() {
        for machine in Published::all() {
            machine.costs.check().unwrap();
            let predictions = machine.reproduce().unwrap().cells;
            for (cell, predicted) in machine.cells.iter().zip(predictions) {
                assert!(
                    cell.calibrates.is_none() || cell.off_by(predicted).abs() < 0.06,
                    "{}, {}: {predicted} for {}",
                    machine.name,
                    cell.what,
                    cell.published
                );
            }
        }
    }

    #[test]
    fn what_is_off_is_counted_from_what_was_published_and_rounding_only_forgives() {
        let cell = Cell::new("", Figure::PagesPerS, 0.3, &Plan::of(1, 0)).exact_to(0.1);
        for (predicted, off, met, by_rounding) in [
            (0.33, 0.1, true, false),
            (0.42, 0.4, true, true),
            (0.45, 0.5, false, false),
            (0.21, -0.3, true, true),
            (0.15, -0.5, false, false),
        ] {
            assert!((cell.off_by(predicted) - off).abs() < 1e-9, "{predicted}");
            assert_eq!(cell.is_met_by(predicted), met, "{predicted}");
            assert_eq!(
                cell.is_met_by_rounding(predicted),
                by_rounding,
                "{predicted}"
            );
        }
    }

    #[test]
    fn every_machine_predicts_something_and_says_where_its_costs_are_from() {
        for machine in Published::all() {
            let predictions = machine
                .cells
                .iter()
                .filter(|cell| cell.calibrates.is_none());
            assert!(predictions.count() > 0, "{}", machine.name);
            // A program has a speed, and somebody has said which or nobody has.
            let mut told = machine.derived.iter().chain(&machine.assumed);
            assert!(
                told.any(|(name, _)| *name == "access_ns"),
                "{}",
                machine.name
            );
            let used = machine.cells.iter().filter_map(|cell| cell.calibrates);
            for cost in used {
                let told = machine.derived.iter().any(|(name, _)| *name == cost);
                assert!(told, "{}: {cost}", machine.name);
            }
        }
    }

    #[test]
    fn what_won_wins() {
        for machine in Published::all() {
            let holds = machine.reproduce().unwrap().shapes;
            // Of that one two figures were published and nothing that rises.
            assert_eq!(holds.is_empty(), machine.name == "batch-flush");
            for (shape, holds) in machine.shapes.iter().zip(holds) {
                assert!(holds, "{}: {}", machine.name, shape.says);
            }
        }
    }

    #[test]
    fn a_shape_has_plans_that_no_cost_is_derived_from() {
        let mut machines = Published::all();
        for machine in &machines {
            for shape in &machine.shapes {
                let (predicted, all) = machine.predicted_of(shape);
                assert!(predicted > 0 && predicted <= all, "{}", shape.says);
            }
        }
        // What was published of a single folio gives the costs of threads and of the CPU.
        let offload = machines.remove(1);
        let given = Shape {
            says: "",
            rising: vec![vec![
                Speed::Of(alone(1, 9, CopyBy::Threads(8))),
                Speed::Of(alone(1, 9, CopyBy::Cpu)),
            ]],
        };
        assert_eq!(offload.predicted_of(&given), (0, 2));
    }

    #[test]
    fn what_does_not_rise_is_no_such_shape() {
        let machine = Published::all().remove(1);
        let by = |copier| Speed::Of(alone(1, 9, copier));
        let shape = |rising| Shape {
            says: "",
            rising: vec![rising],
        };
        let holds = |rising| {
            shape(rising)
                .holds(&mut Simulated::by(&machine.costs))
                .unwrap()
        };
        assert!(holds(vec![by(CopyBy::Threads(8)), by(CopyBy::Cpu)]));
        assert!(!holds(vec![by(CopyBy::Cpu), by(CopyBy::Threads(8))]));
        assert!(!holds(vec![by(CopyBy::Cpu), by(CopyBy::Cpu)]));
    }
}
