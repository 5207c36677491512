//! What is counted of a copier, where it happens.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use transhume_engine::{Copier, CopyAnswer};

use crate::CopyJob;

/// What a copier was asked for and what it answered. Of each job exactly one thing is counted, so
/// they add up to [`jobs`](Self::jobs).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Lists that it was handed: one a batch.
    pub batches: u64,
    /// Jobs that it confirmed.
    pub copied: u64,
    /// Jobs that it declined.
    pub declined: u64,
    /// Jobs that it tried and failed.
    pub failed: u64,
    /// Jobs that were not done by its deadline.
    pub timed_out: u64,
    /// Jobs that it left without an answer.
    pub unconfirmed: u64,
    /// Jobs of lists at which it panicked: their folios are put back, and nothing of it is used.
    pub panicked: u64,
    /// Bytes of the jobs that it confirmed.
    pub bytes: u64,
    /// How long it was at it, over all threads that called it.
    pub busy: Duration,
}

impl Tally {
    /// Jobs that it was handed.
    #[must_use]
    pub fn jobs(&self) -> u64 {
        self.copied + self.fell_back() + self.panicked
    }

    /// Jobs that fell back to the CPU, which copied them afterwards: all that it returned from and did
    /// not confirm.
    #[must_use]
    pub fn fell_back(&self) -> u64 {
        self.declined + self.failed + self.timed_out + self.unconfirmed
    }

    /// Bytes that it confirmed for each second that it was at it, if it was.
    #[must_use]
    pub fn bytes_per_s(&self) -> Option<f64> {
        let seconds = self.busy.as_secs_f64();
        (seconds > 0.0 && self.bytes > 0).then(|| self.bytes as f64 / seconds)
    }
}

/// The account of the copiers of one name. It is written without a lock, since folios are locked
/// then, and read at any time.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) name: String,
    batches: AtomicU64,
    copied: AtomicU64,
    declined: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
    unconfirmed: AtomicU64,
    panicked: AtomicU64,
    bytes: AtomicU64,
    busy_nanos: AtomicU64,
}

impl Account {
    pub(crate) fn new(name: &str) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            name: name.to_owned(),
            batches: zero(),
            copied: zero(),
            declined: zero(),
            failed: zero(),
            timed_out: zero(),
            unconfirmed: zero(),
            panicked: zero(),
            bytes: zero(),
            busy_nanos: zero(),
        }
    }

    pub(crate) fn tally(&self) -> Tally {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Tally {
            batches: read(&self.batches),
            copied: read(&self.copied),
            declined: read(&self.declined),
            failed: read(&self.failed),
            timed_out: read(&self.timed_out),
            unconfirmed: read(&self.unconfirmed),
            panicked: read(&self.panicked),
            bytes: read(&self.bytes),
            busy: Duration::from_nanos(read(&self.busy_nanos)),
        }
    }

    /// Has `copier` copy, and counts it.
    pub(crate) fn copy(
        &self,
        copier: &dyn Copier<CopyJob>,
        jobs: &[CopyJob],
        answers: &mut [CopyAnswer],
    ) {
        let call = Call {
            account: self,
            jobs: jobs.len() as u64,
            began: Instant::now(),
            returned: false,
        };
        copier.copy(jobs, answers);
        call.returned(jobs, answers);
    }
}

/// A copier is at it. Dropped without [`returned`](Self::returned), it has panicked.
struct Call<'a> {
    account: &'a Account,
    jobs: u64,
    began: Instant,
    returned: bool,
}

impl Call<'_> {
    fn returned(mut self, jobs: &[CopyJob], answers: &[CopyAnswer]) {
        self.returned = true;
        let mut sum = Tally::default();
        for (job, answer) in jobs.iter().zip(answers) {
            match answer {
                CopyAnswer::Copied => {
                    sum.copied += 1;
                    sum.bytes = sum.bytes.saturating_add(job.bytes() as u64);
                }
                CopyAnswer::Declined => sum.declined += 1,
                CopyAnswer::Failed => sum.failed += 1,
                CopyAnswer::TimedOut => sum.timed_out += 1,
                CopyAnswer::Unconfirmed => sum.unconfirmed += 1,
            }
        }
        let account = self.account;
        for (count, more) in [
            (&account.copied, sum.copied),
            (&account.bytes, sum.bytes),
            (&account.declined, sum.declined),
            (&account.failed, sum.failed),
            (&account.timed_out, sum.timed_out),
            (&account.unconfirmed, sum.unconfirmed),
        ] {
            if more > 0 {
                count.fetch_add(more, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let account = self.account;
        let nanos = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        account.busy_nanos.fetch_add(nanos, Ordering::Relaxed);
        account.batches.fetch_add(1, Ordering::Relaxed);
        if !self.returned {
            account.panicked.fetch_add(self.jobs, Ordering::Relaxed);
        }
    }
}
