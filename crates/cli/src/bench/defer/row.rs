//! The result of one variant.

use serde::Serialize;

use crate::bench::row::Stalls;

/// One row: medians over its runs, but for counts of errors and the longest of anything.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) bench: &'static str,
    /// `immediate` or `deferred`.
    pub(crate) variant: &'static str,
    pub(crate) backing: &'static str,
    pub(crate) page_size: String,
    /// Pages of one request.
    pub(crate) pages: usize,
    /// Pages that are copied, and at once cut off, together.
    pub(crate) batch: usize,
    pub(crate) copier: String,
    /// How pages are cut off.
    pub(crate) mechanism: String,
    pub(crate) app_threads: usize,
    pub(crate) runs: u32,
    /// How often all pages moved in a run.
    pub(crate) moves: usize,
    pub(crate) pages_per_s: f64,
    pub(crate) bytes_per_s: f64,
    /// Of a run.
    pub(crate) shootdowns: Option<f64>,
    pub(crate) shootdowns_per_page: Option<f64>,
    /// How often the kernel flushes at least in a run, where that is given by the memory. A flush is a
    /// shootdown if a thread of the process runs on another CPU.
    pub(crate) kernel_flushes: Option<u64>,
    pub(crate) shootdown_counter: Option<String>,
    pub(crate) ipis_received: Option<f64>,
    /// Lookups a second of all threads.
    pub(crate) app_ops_per_s: f64,
    /// How long a million lookups take while the tables move as often as they did here.
    pub(crate) seconds_per_million_lookups: f64,
    /// How long a part of a lookup took: a search, or one nuclide.
    pub(crate) stall_us: Stalls,
    /// Parts over 10 us in a million, while nothing happens, while a request is under way, while
    /// pairs wait, and while they are switched; and the longest of all runs.
    pub(crate) long_rest: PerPhase,
    pub(crate) long_request: PerPhase,
    pub(crate) long_pending: Option<PerPhase>,
    pub(crate) long_switch: Option<PerPhase>,
    /// The longest that a switch, or a batch, cut pages off.
    pub(crate) longest_cut_off_us: f64,
    /// The most memory held beyond the pages, and what was allowed.
    pub(crate) held_bytes: usize,
    pub(crate) limit_bytes: usize,
    /// A million lookups' misses of the translation caches; none where the machine does not count them.
    pub(crate) dtlb_misses: Option<f64>,
    pub(crate) itlb_misses: Option<f64>,
    pub(crate) verified: String,
    pub(crate) errors: u64,
}

/// What the threads saw in one phase.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct PerPhase {
    pub(crate) parts: u64,
    pub(crate) over_10us_per_million: f64,
    pub(crate) longest_us: f64,
    pub(crate) faults: u64,
}
