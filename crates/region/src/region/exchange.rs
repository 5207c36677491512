//! Exchange: pages of two tiers trade places.

use std::sync::Arc;

use transhume_copy::swap::{Buffered, Registers};
use transhume_engine::{ExchangeReport, ExchangeRequest, exchange};

use super::{Backing, Kept, Region, limit};
use crate::deferral::Cause;
use crate::error::RegionError;
use crate::options::{AnySwapper, Options, Pages};
use crate::runs::RunSet;
use crate::{anonymous, folio_at, mapped, owner};

impl Region {
    /// Lets the pages of `a` trade places with those of `b`, the first with the first and so on, in
    /// the way of `options` (\[fast-copy\]). A list keeps its order, a range ascends.
    ///
    /// No free frame is needed, so it works between tiers that are full. The contents are swapped in
    /// place, while both pages are cut off, by [`Options::swapper`]; copiers and
    /// [`Neighbours`](crate::Neighbours) have no part in it. [`Options::limit_bytes`] counts both pages
    /// of each pair: by default 256 pairs of 4 KiB go at a time, and pairs of 2 MiB alone.
    ///
    /// What happened to each pair stands in the report; a pair that could not be exchanged is where it
    /// was, with its data. Pairs in one tier are left alone. A page named twice, or paired with itself,
    /// is refused in the report.
    ///
    /// ```
    /// # use transhume_region::{Options, Pins, Region, Tier};
    /// let region = Region::builder()
    ///     .tier(Tier::memfd("near").capacity(64 << 12))
    ///     .tier(Tier::memfd("far").capacity(64 << 12))
    ///     .pages(64)
    ///     .pins(Pins::Declared)
    ///     .build()?;
    /// region.migrate(32.., "far", &Options::new())?;
    ///
    /// // Four pages got hot, and four others cold.
    /// let report = region.exchange(40..44, vec![7, 3, 5, 1], &Options::new())?;
    /// assert_eq!(report.exchanged(), 4);
    /// assert_eq!((region.tier_of(40)?, region.tier_of(7)?), ("near", "far"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Only for requests that are wrong as a whole, and then nothing has been moved:
    /// [`RegionError::UnequalLists`], [`RegionError::Overlap`], [`RegionError::OutsideRegion`],
    /// [`RegionError::NoPages`], [`RegionError::Forked`], [`RegionError::InsideOwner`],
    /// [`RegionError::TooManyMappings`];
    /// [`RegionError::ExchangeUndeclared`] without [`Pins::Declared`](crate::Pins::Declared), and
    /// [`RegionError::NoExchange`] where the kernel moves the pages.
    pub fn exchange(
        &self,
        a: impl Into<Pages>,
        b: impl Into<Pages>,
        options: &Options,
    ) -> Result<ExchangeReport, RegionError> {
        self.check_process()?;
        owner::check_outside()?;
        match &self.backing {
            Backing::MovePages(_) => return Err(RegionError::NoExchange(self.mechanism)),
            Backing::Anonymous(Kept { core, .. }) if !core.memory.reuses_frames() => {
                return Err(RegionError::ExchangeUndeclared);
            }
            Backing::Anonymous(_) | Backing::Mapped(_) => {}
        }
        let a = a.into().in_order(self.pages())?;
        let b = b.into().in_order(self.pages())?;
        if a.len() != b.len() {
            let (a, b) = (a.len(), b.len());
            return Err(RegionError::UnequalLists { a, b });
        }
        let mut both = RunSet::default();
        for &page in a.iter().chain(&b) {
            both.insert(page..page + 1);
        }
        let table = self.table();
        let claimed = self.claims.claim(both.clone(), table);
        let _claim = claimed.map_err(|page| RegionError::Overlap { page })?;
        self.settle_pages(&both, Cause::Request);
        let pairs = a.into_iter().zip(b);
        if let Backing::Mapped(Kept { core, .. }) = &self.backing {
            let calls = core.memory.calls_of_exchange(table, pairs.clone());
            core.memory.check_mappings(calls)?;
        }

        let order = self.page_size().order();
        let folios = |(a, b)| folio_at(a, order).zip(folio_at(b, order));
        let request = ExchangeRequest {
            mode: options.mode,
            limit: limit(options),
            reason: options.reason,
            ..ExchangeRequest::new(pairs.filter_map(folios).collect())
        };
        let swapper = options.swapper.clone().unwrap_or_else(default_swapper);
        Ok(match &self.backing {
            Backing::Anonymous(Kept { keeper, core, .. }) => {
                let mut session = anonymous::Session::of_exchange(&core.memory, table, keeper);
                exchange(&mut session, swapper.as_ref(), request)
            }
            Backing::Mapped(Kept { keeper, core, .. }) => {
                let mut session = mapped::Session::of_exchange(&core.memory, table, keeper);
                exchange(&mut session, swapper.as_ref(), request)
            }
            Backing::MovePages(_) => return Err(RegionError::NoExchange(self.mechanism)),
        })
    }
}

/// The best that needs no threads.
fn default_swapper() -> AnySwapper {
    match Registers::detect() {
        Ok(registers) => Arc::new(registers),
        Err(_) => Arc::new(Buffered),
    }
}
