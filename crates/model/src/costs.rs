//! What the steps of a machine cost.

use serde::{Deserialize, Serialize};

/// What each thing costs on a machine, in nanoseconds and bytes a second.
///
/// All of it can be measured on a running machine or taken from somebody's table; the simulation
/// adds nothing of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// Once a request, before its first batch.
    pub request_ns: f64,
    /// Once for each folio that a request names, before its first batch too.
    pub named_ns: f64,
    /// Once for each call that cuts pages off, and where [`remaps_by_call`](Self::remaps_by_call) for
    /// each that maps them again: what it costs beside its pages and beside interrupts.
    pub call_ns: f64,
    /// Once a folio: locks, frames, accounts.
    pub folio_ns: f64,
    /// Once a page table entry, to take it away and again to write it. Base pages have one each, a
    /// folio of 2 MiB or more one for each 2 MiB.
    pub entry_ns: f64,
    /// From the moment that a shootdown is sent until a CPU that must flush has said that it has.
    pub ipi_ns: f64,
    /// The same for a CPU of another node than the sender's.
    pub far_ipi_ns: f64,
    /// For each further CPU that has to flush.
    pub next_ipi_ns: f64,
    /// What an interrupt takes from the program on its CPU, with the translations that it has to
    /// look up again.
    pub handler_ns: f64,
    /// From the moment that a page is back until a program that waited for it runs.
    pub wake_ns: f64,
    /// What waking it costs who migrates.
    pub waker_ns: f64,
    /// One access of a program that nothing disturbs.
    pub access_ns: f64,
    /// The longest that something else has the CPU of a program: a hypervisor, a device, the kernel's own work. The
    /// longest wait is no shorter, whatever migrates.
    pub away_ns: f64,
    /// Bytes a second that one CPU copies.
    pub copy_rate: f64,
    /// Bytes a second that all copying CPUs reach together at most.
    pub copy_limit: f64,
    /// The same of CPUs of one core complex; none if it is no less.
    pub complex_limit: Option<f64>,
    /// Before the other threads of a copier have begun.
    pub thread_ns: f64,
    /// Whether threads and channels share a folio; else each folio is copied by one of them.
    pub splits_folios: bool,
    /// Bytes a second of one channel of a copying device; none if there is no such device.
    pub channel_rate: Option<f64>,
    /// Bytes a second that all its channels reach together at most.
    pub channels_limit: f64,
    /// Before a channel has begun.
    pub channel_ns: f64,
    /// Bytes a second between two nodes, in either way; none if it is no less than the others.
    pub link_limit: Option<f64>,
    /// Whether the pages of a batch are mapped again by a call, as in user space: it needs a shootdown too, and
    /// whoever waits for one of them is woken when all are there. Else who waits is woken page by page.
    pub remaps_by_call: bool,
    /// Whether each page table of 512 base pages needs a shootdown of its own, as in user space, so
    /// that folios of 2 MiB are never shot down together.
    pub flushes_per_table: bool,
}

/// A cost that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` is {value}, and must be {wanted}")]
pub struct BadCost {
    field: &'static str,
    value: String,
    wanted: &'static str,
}

/// A day: what takes longer is a mistake.
const MOST_NS: f64 = 86_400e9;

impl Costs {
    /// Whether all of them can be: times from zero to a day, rates above a byte a second.
    ///
    /// # Errors
    ///
    /// The first that cannot.
    pub fn check(&self) -> Result<(), BadCost> {
        let times = [
            ("request_ns", self.request_ns),
            ("named_ns", self.named_ns),
            ("call_ns", self.call_ns),
            ("folio_ns", self.folio_ns),
            ("entry_ns", self.entry_ns),
            ("ipi_ns", self.ipi_ns),
            ("far_ipi_ns", self.far_ipi_ns),
            ("next_ipi_ns", self.next_ipi_ns),
            ("handler_ns", self.handler_ns),
            ("wake_ns", self.wake_ns),
            ("waker_ns", self.waker_ns),
            ("away_ns", self.away_ns),
            ("thread_ns", self.thread_ns),
            ("channel_ns", self.channel_ns),
        ];
        let bad = |field, value: f64, wanted| BadCost {
            field,
            value: value.to_string(),
            wanted,
        };
        for (field, value) in times {
            if !(0.0..=MOST_NS).contains(&value) {
                return Err(bad(field, value, "nanoseconds from 0 to a day"));
            }
        }
        // A program that makes an access in no time at all would never come to an end.
        if !(0.01..=MOST_NS).contains(&self.access_ns) {
            return Err(bad(
                "access_ns",
                self.access_ns,
                "nanoseconds from 0.01 to a day",
            ));
        }
        let rates = [
            ("copy_rate", Some(self.copy_rate)),
            ("copy_limit", Some(self.copy_limit)),
            ("complex_limit", self.complex_limit),
            ("channel_rate", self.channel_rate),
            ("channels_limit", Some(self.channels_limit)),
            ("link_limit", self.link_limit),
        ];
        for (field, value) in rates {
            if let Some(value) = value
                && !(1e3..=1e18).contains(&value)
            {
                return Err(bad(field, value, "bytes a second, from a thousand on"));
            }
        }
        Ok(())
    }
}
