//! Machines on which others have measured, what was measured there, and what the steps cost there.
//!
//! No cost is set by hand so that a cell comes out right. Each is derived, in the code below, from the description of
//! the machine or from a published cell; a cell from which a cost is derived says so, and is not a prediction.

mod batch_flush;
mod fast_copy;
mod offload;
mod user_space;

use crate::costs::Costs;
use crate::timed::{CopyBy, NoPrediction, Plan, predict};

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
    /// What was measured.
    pub cells: Vec<Cell>,
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
    /// How many fewer interrupts for a page than otherwise.
    FewerInterrupts,
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
            Self::CopyShare => "% of time copying",
            Self::MorePages => "% more pages/s",
            Self::FewerInterrupts => "% fewer IPIs",
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
            what: "[offload] 8 threads in one core complex or spread over several, 11.1 and 37.1 GB/s",
            why: "the machine has nodes and no core complexes",
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
    ];
}

impl Cell {
    /// What the machine would show in place of the published figure.
    ///
    /// # Errors
    ///
    /// As [`predict`].
    pub fn predict(&self, costs: &Costs) -> Result<f64, NoPrediction> {
        let told = predict(&self.plan, costs)?;
        let other = match &self.against {
            Some(plan) => predict(plan, costs)?,
            None => told.clone(),
        };
        let pages = told.moved as f64;
        Ok(match self.figure {
            Figure::GigabytesPerS => told.bytes_per_s() / 1e9,
            Figure::PagesPerS => told.folios_per_s(),
            Figure::ShootdownsPerPage => told.shootdowns_per_folio(),
            Figure::MegaAccessesPerS => told.accesses_per_s() / 1e6,
            Figure::LostPerPage => told.lost.as_secs_f64() * 1e6 / pages,
            Figure::LongestStall => told.longest_stall.as_secs_f64() * 1e6,
            Figure::CopyShare => told.copy.as_secs_f64() * 100.0 / told.total.as_secs_f64(),
            Figure::MorePages => (told.folios_per_s() / other.folios_per_s() - 1.0) * 100.0,
            Figure::FewerInterrupts => {
                (1.0 - told.interrupts as f64 / other.interrupts.max(1) as f64) * 100.0
            }
        })
    }

    /// By how much a prediction is off: 0.1 is a tenth too high.
    #[must_use]
    pub fn off_by(&self, predicted: f64) -> f64 {
        predicted / self.published - 1.0
    }

    /// Whether a prediction is within a quarter of what was published.
    #[must_use]
    pub fn is_met_by(&self, predicted: f64) -> bool {
        self.off_by(predicted).abs() <= TOLERANCE
    }

    fn new(what: impl Into<String>, figure: Figure, published: f64, plan: &Plan) -> Self {
        Self {
            what: what.into(),
            figure,
            published,
            calibrates: None,
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

    fn against(self, plan: &Plan) -> Self {
        Self {
            against: Some(plan.clone()),
            ..self
        }
    }
}

/// A request of so many folios in one batch, by who migrates alone on a machine of two nodes.
fn alone(folios: usize, order: u8, copier: CopyBy) -> Plan {
    Plan {
        cpus: 16,
        nodes: 2,
        programs: 0,
        folios,
        request: folios,
        order,
        batch: folios,
        copier,
        deferred: None,
        exchange: false,
        rounds: 1,
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
            for cell in machine
                .cells
                .iter()
                .filter(|cell| cell.calibrates.is_some())
            {
                let predicted = cell.predict(&machine.costs).unwrap();
                assert!(
                    cell.off_by(predicted).abs() < 0.06,
                    "{}, {}: {predicted} for {}",
                    machine.name,
                    cell.what,
                    cell.published
                );
            }
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
            let used = machine.cells.iter().filter_map(|cell| cell.calibrates);
            for cost in used {
                let told = machine.derived.iter().any(|(name, _)| *name == cost);
                assert!(told, "{}: {cost}", machine.name);
            }
        }
    }

    /// The shape of the tables: what wins where, whatever the figures.
    #[test]
    fn what_won_wins() {
        let told = |name: &str| {
            let machine = Published::all();
            let machine = machine.into_iter().find(|machine| machine.name == name);
            let machine = machine.unwrap();
            move |what: &str, figure| {
                let wanted = |cell: &&Cell| cell.what == what && cell.figure == figure;
                let cell = machine.cells.iter().find(wanted).unwrap();
                cell.predict(&machine.costs).unwrap()
            }
        };
        let zen = told("offload");
        let rate = |what: &str| zen(what, Figure::GigabytesPerS);
        // Offload loses on one folio and gains on many, the more the larger they are.
        assert!(rate("one of 2 MiB, 8 threads") < rate("one of 2 MiB, CPU"));
        assert!(rate("one of 2 MiB, 16 channels") < rate("one of 2 MiB, CPU"));
        let gain = |size: &str| {
            rate(&format!("512 of {size}, 16 channels")) / rate(&format!("512 of {size}, CPU"))
        };
        assert!(1.0 < gain("4 KiB") && gain("4 KiB") < gain("64 KiB"));
        assert!(gain("64 KiB") < gain("2 MiB"));
        let user = told("user-space");
        let pages = |batch: usize| user(&format!("4 KiB, {batch} a batch"), Figure::PagesPerS);
        assert!(pages(1) < pages(8) && pages(8) < pages(64) && pages(64) < pages(512));
    }
}
