//! The result of one variant.

use serde::Serialize;

/// Percentiles of how long one access of the application took, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Stalls {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    /// The longest of all runs.
    pub(crate) max: f64,
}

/// One row: medians over its runs, but for counts of errors and the longest stall.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) bench: &'static str,
    pub(crate) variant: String,
    pub(crate) backing: &'static str,
    pub(crate) page_size: String,
    /// Pages of one request; pairs of one exchange.
    pub(crate) pages: usize,
    pub(crate) batch: usize,
    pub(crate) threads: usize,
    pub(crate) copier: String,
    /// What that one chose, where it chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chose: Option<String>,
    /// How pages were cut off and moved.
    pub(crate) mechanism: String,
    /// Every so-manieth page of the region was asked for.
    pub(crate) stride: usize,
    /// Whether the application declares pins, so that frames serve again.
    pub(crate) pins: &'static str,
    /// Where destination frames came from: `pooled`, `fresh` or `mixed`, by what was counted.
    pub(crate) frames: &'static str,
    /// The share of destination frames that the kernel had to allocate and zero while the request
    /// waited.
    pub(crate) fresh_frames: f64,
    pub(crate) runs: u32,
    pub(crate) pages_per_s: f64,
    pub(crate) bytes_per_s: f64,
    /// The copier by itself, or for pages that trade places the swapper with the bytes of both sides
    /// counted, on pages of this size and lists of this length, in the same run and
    /// under the same application.
    pub(crate) raw_copy_bytes_per_s: f64,
    /// The same while the application sleeps: what the machine gives one copier at most.
    pub(crate) raw_copy_alone_bytes_per_s: f64,
    /// Of a run: pages moved times shootdowns a page.
    pub(crate) shootdowns: Option<f64>,
    pub(crate) shootdowns_per_page: Option<f64>,
    pub(crate) shootdown_counter: Option<String>,
    pub(crate) ipis_received: Option<f64>,
    /// The application's operations while nothing moves, and while it does.
    pub(crate) app_alone_ops_per_s: f64,
    pub(crate) app_ops_per_s: f64,
    pub(crate) stall_us: Stalls,
    /// From the beginning of a request to its first page at the destination, where another went before it.
    pub(crate) first_folio_us: f64,
    /// A whole request.
    pub(crate) request_us: f64,
    pub(crate) verified: String,
    pub(crate) errors: u64,
}
