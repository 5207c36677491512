//! Whether a migration may block, and the passes that follow from it.

use crate::failure::Why;

/// Passes over what is left in [`Mode::Async`].
pub const ASYNC_PASSES: u32 = 10;
/// Batched passes in [`Mode::Sync`], before folios go one at a time.
pub const SYNC_BATCH_PASSES: u32 = 3;
/// Passes one folio at a time in [`Mode::Sync`].
pub const SYNC_ALONE_PASSES: u32 = 7;

/// Whether a migration may block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It never waits for a folio: what is busy is tried again, in up to [`ASYNC_PASSES`] passes.
    #[default]
    Async,
    /// First [`SYNC_BATCH_PASSES`] passes as in `Async`, then what is left goes one folio at a
    /// time and may wait, in up to [`SYNC_ALONE_PASSES`] passes.
    Sync,
}

/// Whether folios, or pairs of them, go together or one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Company {
    Batch,
    Alone,
}

/// One pass over what is left of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    pub(crate) company: Company,
    /// What of it a later pass tries again.
    pub(crate) worth_retrying: fn(Why) -> bool,
}

impl Mode {
    /// The most passes that a request has, in order.
    pub(crate) fn passes(self) -> impl Iterator<Item = Pass> {
        let worth_retrying: fn(Why) -> bool = match self {
            Self::Async => Why::is_transient,
            Self::Sync => Why::is_curable_by_waiting,
        };
        let (batched, alone) = match self {
            Self::Async => (ASYNC_PASSES, 0),
            Self::Sync => (SYNC_BATCH_PASSES, SYNC_ALONE_PASSES),
        };
        (0..batched + alone).map(move |pass| Pass {
            company: if pass < batched {
                Company::Batch
            } else {
                Company::Alone
            },
            worth_retrying,
        })
    }
}
