//! The rate of a copier by itself.

use std::time::{Duration, Instant};

use transhume_engine::{Copier, CopyAnswer};

use crate::CopyJob;

/// Makes the copies of `jobs` once, with nothing around them: no page table, no lock, no fault.
/// Says how long it took and how many bytes the copier confirmed. What a migration reaches of this
/// rate is what its other steps leave.
pub fn copy_once<C>(
    copier: &C,
    jobs: &[CopyJob],
    answers: &mut Vec<CopyAnswer>,
) -> (Duration, usize)
where
    C: Copier<CopyJob> + ?Sized,
{
    answers.clear();
    answers.resize(jobs.len(), CopyAnswer::Unconfirmed);
    let began = Instant::now();
    copier.copy(jobs, answers);
    let took = began.elapsed();
    let confirmed = jobs
        .iter()
        .zip(&*answers)
        .filter(|(_, answer)| **answer == CopyAnswer::Copied);
    (took, confirmed.map(|(job, _)| job.bytes()).sum())
}
