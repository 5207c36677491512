//! The result of one variant.

use serde::Serialize;

/// How long one access of the herd's threads took, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Stalls {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// The longest of all runs.
    pub(crate) max: f64,
    /// The median of the runs' longest.
    pub(crate) max_median: f64,
}

/// One row: medians over its runs, but for counts of errors and the longest stall. A run is there and
/// back; where every second page is in its place already, it is there only.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) bench: &'static str,
    pub(crate) table: &'static str,
    pub(crate) variant: String,
    pub(crate) page_size: String,
    /// How many pages moved in a run, by the kernel's count; of the whole process by their bytes.
    pub(crate) pages: f64,
    pub(crate) workers: usize,
    pub(crate) app_threads: usize,
    pub(crate) runs: u32,
    pub(crate) seconds: f64,
    /// The same while all threads of the process are stopped.
    pub(crate) alone_seconds: f64,
    pub(crate) pages_per_s: f64,
    pub(crate) bytes_per_s: f64,
    /// System calls that moved pages.
    pub(crate) calls: f64,
    /// Shootdowns that the threads asked for which moved.
    pub(crate) shootdowns: Option<f64>,
    pub(crate) shootdowns_per_page: Option<f64>,
    /// On the whole machine, while pages moved.
    pub(crate) ipis_received: Option<f64>,
    pub(crate) app_ops_per_s: f64,
    pub(crate) stall_us: Stalls,
    /// Pages that did not arrive, in all runs, by the kernel's count.
    pub(crate) left_behind_pages: u64,
    /// Words that the herd found wrong, and pages that a planned move left without a reason.
    pub(crate) errors: u64,
}
