//! What is measured.

use std::time::Duration;

use transhume_region::PageSize;

/// The table that a cell belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// Every second page is where it is to go.
    EverySecond,
    /// The whole process.
    Whole,
    /// Huge pages.
    Huge,
    /// How long the herd waits.
    Stall,
}

impl Table {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::EverySecond => "every second",
            Self::Whole => "whole",
            Self::Huge => "huge",
            Self::Stall => "stall",
        }
    }
}

/// How memory is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// move_pages(2) with the address of every base page, whatever the kernel says of them; again, if
    /// some have not arrived.
    EveryAddress,
    /// move_pages(2) with one page.
    OnePageACall,
    /// migrate_pages(2), which is all that migratepages(8) does.
    MigratePages,
    /// As `transhume move` does it.
    Planned {
        workers: usize,
        max_stall: Option<Duration>,
    },
}

impl Way {
    pub(crate) const PLANNED: Self = Self::planned_by(1);

    pub(crate) const fn planned_by(workers: usize) -> Self {
        Self::Planned {
            workers,
            max_stall: None,
        }
    }

    pub(crate) fn workers(self) -> usize {
        match self {
            Self::Planned { workers, .. } => workers,
            _ => 1,
        }
    }
}

/// What of the herd is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All that the process has, which migrate_pages(2) cannot but move.
    Process,
    /// The memory that its threads use.
    Memory,
    /// So many pages of that.
    Pages(usize),
}

/// One variant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) variant: &'static str,
    pub(crate) way: Way,
    pub(crate) scope: Scope,
}

/// Variants that take turns on one herd.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) table: Table,
    pub(crate) page_size: PageSize,
    pub(crate) pages: usize,
    pub(crate) cells: Vec<Cell>,
}

impl Group {
    pub(crate) fn bytes(&self) -> usize {
        self.pages.saturating_mul(self.page_size.bytes())
    }

    /// How many runs it takes, each variant `runs` times.
    pub(crate) fn runs(&self, runs: u32) -> u64 {
        self.cells.len() as u64 * u64::from(runs)
    }
}
