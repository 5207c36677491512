//! What is measured.

use std::time::Duration;

use transhume_copy::SharedCopier;
use transhume_copy::swap::SharedSwapper;
use transhume_region::{Neighbours, PageSize, Pins};

use crate::args::Backing;

/// The table that a cell belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Flush,
    Scattered,
    Copy,
    Batch,
    Exchange,
}

impl Table {
    pub(crate) fn name(self) -> &'static str {
        match self {
            // Both are asked for by one name.
            Self::Flush | Self::Scattered => "flush",
            Self::Copy => "copy",
            Self::Batch => "batch",
            Self::Exchange => "exchange",
        }
    }
}

/// What a request does with its pages.
#[derive(Clone)]
pub(crate) enum Way {
    /// They go to the other tier.
    Migrate,
    /// They trade places with as many of the other tier.
    Exchange(SharedSwapper),
    /// The same by two migrations through free frames, beside which the swapper is shown by itself.
    ThereAndBack(SharedSwapper),
}

impl Way {
    /// How many pages arrive for one page of a request.
    pub(crate) fn sides(&self) -> usize {
        match self {
            Self::Migrate => 1,
            Self::Exchange(_) | Self::ThereAndBack(_) => 2,
        }
    }
}

/// One variant: pages of a region migrated in one way.
#[derive(Clone)]
pub(crate) struct Cell {
    pub(crate) variant: String,
    pub(crate) way: Way,
    /// Pages in a batch, or pairs.
    pub(crate) batch: usize,
    /// Pages in a request, or pairs.
    pub(crate) request: usize,
    /// Every so-manieth page is wanted.
    pub(crate) stride: usize,
    pub(crate) neighbours: Neighbours,
    pub(crate) copier: SharedCopier,
    /// What that one chose for batches of this size, where it chooses.
    pub(crate) chose: Option<String>,
    pub(crate) threads: usize,
}

/// Variants that take turns on one region.
#[derive(Clone)]
pub(crate) struct Group {
    pub(crate) table: Table,
    pub(crate) backing: Backing,
    pub(crate) page_size: PageSize,
    pub(crate) pages: usize,
    pub(crate) pins: Pins,
    pub(crate) cells: Vec<Cell>,
    /// How long a run lasts at least.
    pub(crate) run_time: Duration,
}

impl Group {
    /// What the application promises about pins, on which it depends whether frames serve again.
    pub(crate) fn pins(&self) -> &'static str {
        match self.pins {
            Pins::Declared => "declared",
            Pins::Undeclared => "undeclared",
        }
    }

    /// How many runs it takes, each variant `runs` times.
    pub(crate) fn runs(&self, runs: u32) -> u64 {
        self.cells.len() as u64 * u64::from(runs)
    }

    pub(crate) fn largest_batch(&self) -> usize {
        self.cells.iter().map(|cell| cell.batch).max().unwrap_or(1)
    }

    /// Whether its pages trade places, half of them being in either tier.
    pub(crate) fn is_of_pairs(&self) -> bool {
        self.table == Table::Exchange
    }
}
