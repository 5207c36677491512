//! A variant's requests, one after the other through its region.

use std::num::NonZeroUsize;
use std::time::Duration;

use transhume_region::{Options, Pages, Region, RegionError};

use super::cell::{Cell, Group};
use super::exchange;
use super::group::other_tier;
use crate::error::CliError;

/// What one request did.
pub(super) struct Done {
    /// Pages that arrived.
    pub(super) arrived: u64,
    pub(super) stayed: u64,
    /// Why the first of them did.
    pub(super) why: Option<String>,
    pub(super) first_folio: Option<Duration>,
}

/// Those of a variant.
pub(super) struct Requests<'a> {
    cell: &'a Cell,
    region: &'a Region,
    options: Options,
    of_pairs: bool,
    at: usize,
}

impl<'a> Requests<'a> {
    pub(super) fn new(group: &Group, cell: &'a Cell, region: &'a Region) -> Self {
        // All of a batch, of either side.
        let limit = cell.way.sides() * cell.batch * group.page_size.bytes();
        let limit = NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN);
        let options = Options::new()
            .limit_bytes(limit)
            .copier(cell.copier.clone())
            .neighbours(cell.neighbours);
        Self {
            cell,
            region,
            options,
            of_pairs: group.is_of_pairs(),
            at: 0,
        }
    }

    /// Makes the next one, from the beginning again after the last.
    pub(super) fn make(&mut self) -> Result<Done, CliError> {
        let step = self.cell.request * self.cell.stride;
        if self.at + step > self.region.pages() / self.cell.way.sides() {
            self.at = 0;
        }
        let done = if self.of_pairs {
            let (way, pairs) = (&self.cell.way, self.cell.request);
            exchange::trade(self.region, way, self.at, pairs, &self.options)
        } else {
            self.migrate()
        };
        self.at += step;
        done.map_err(|refused| CliError::Failed(refused.to_string()))
    }

    /// Migrates the next pages to where they are not.
    fn migrate(&self) -> Result<Done, RegionError> {
        let tier = other_tier(self.region, self.at)?;
        let report = self.region.migrate(self.wanted(), tier, &self.options)?;
        Ok(Done {
            arrived: report.moved() as u64,
            stayed: report.stayed().count() as u64,
            why: report
                .stayed()
                .next()
                .map(|(_, failure)| failure.to_string()),
            first_folio: report.times.first_folio,
        })
    }

    fn wanted(&self) -> Pages {
        let Cell {
            stride, request, ..
        } = *self.cell;
        if stride == 1 {
            return (self.at..self.at + request).into();
        }
        let all = (self.at..self.region.pages()).step_by(stride);
        all.take(request).collect::<Vec<_>>().into()
    }
}
