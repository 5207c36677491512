//! The limits on what is cut off at a time.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use transhume_copy::CopyJob;
use transhume_engine::{Copier, CopyAnswer};
use transhume_region::{Options, PageSize};

use crate::Case;
use crate::migrate::two_nodes;
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case(
        "stalls::at_most_the_limit_is_cut_off",
        &[Need::Move],
        at_most_the_limit,
    ),
    Case(
        "stalls::a_huge_page_goes_alone",
        &[Need::Move],
        a_huge_page_goes_alone,
    ),
    Case(
        "stalls::batches_adapt_to_max_stall",
        &[Need::Move],
        batches_adapt,
    ),
];

/// Copies nothing and takes a fixed time for each job, so that a batch's size decides how long it
/// is cut off.
struct Slow {
    per_job: Duration,
    batches: Mutex<Vec<usize>>,
}

impl Slow {
    fn new(per_job: Duration) -> Arc<Self> {
        Arc::new(Self {
            per_job,
            batches: Mutex::default(),
        })
    }

    fn batches(&self) -> Vec<usize> {
        self.batches.lock().unwrap().clone()
    }
}

impl Copier<CopyJob> for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn copy(&self, jobs: &[CopyJob], _answers: &mut [CopyAnswer]) {
        self.batches.lock().unwrap().push(jobs.len());
        let until = std::time::Instant::now() + self.per_job * u32::try_from(jobs.len()).unwrap();
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
    }
}

fn at_most_the_limit() {
    let region = two_nodes(1200).build().unwrap();
    for (limit, expected) in [
        (None, vec![512, 512, 176]),
        (Some(100 * 4096), vec![100; 12]),
        (Some(1), vec![1; 1200]),
    ] {
        let slow = Slow::new(Duration::ZERO);
        let mut options = Options::new().copier(slow.clone());
        options.limit_bytes = limit.and_then(NonZeroUsize::new);
        let tier = if region.tier_of(0) == Ok("near") {
            "far"
        } else {
            "near"
        };
        assert!(region.migrate(.., tier, &options).unwrap().is_complete());
        assert_eq!(slow.batches(), expected);
    }
}

fn a_huge_page_goes_alone() {
    let region = two_nodes(3).page_size(PageSize::Huge).build().unwrap();
    let slow = Slow::new(Duration::ZERO);
    let options = Options::new()
        .copier(slow.clone())
        .limit_bytes(NonZeroUsize::MIN);
    assert!(region.migrate(.., "far", &options).unwrap().is_complete());
    assert_eq!(slow.batches(), [1, 1, 1]);
}

fn batches_adapt() {
    let region = two_nodes(2048).build().unwrap();
    let slow = Slow::new(Duration::from_micros(50));
    let options = Options::new()
        .copier(slow.clone())
        .max_stall(Duration::from_millis(2));
    assert!(region.migrate(.., "far", &options).unwrap().is_complete());
    let batches = slow.batches();
    // A batch of 40 takes the whole 2 ms; how near to it they come is the machine's affair.
    assert!(batches.iter().all(|&batch| batch <= 48), "{batches:?}");
    assert!(batches.len() >= 2048 / 48);
}
