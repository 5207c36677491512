//! Every system call that an exchange makes fails: each pair has traded places or is as it was.

use std::num::NonZeroUsize;

use transhume_region::{ExchangeReport, Mode, Options, PairOutcome, Region};
use transhume_sys::Call;
use transhume_sys::inject::{self, Plan};

use crate::herd;
use crate::{Kind, faults, mappings_and_frames};

/// The kinds that can exchange.
pub(crate) const KINDS: [Kind; 5] = [
    Kind::Pooled,
    Kind::Huge,
    Kind::Memfd,
    Kind::Hugetlb,
    Kind::File,
];

fn tiers(region: &Region) -> Vec<String> {
    let tier = |page| region.tier_of(page).unwrap().to_owned();
    (0..region.pages()).map(tier).collect()
}

fn exchange(region: &Region, options: &Options) -> ExchangeReport {
    let half = region.pages() / 2;
    let was = tiers(region);
    let report = region.exchange(..half, half.., options).unwrap();
    let now = tiers(region);
    for (n, pair) in report.pairs().enumerate() {
        let pages = (n, half + n);
        let from = match pair.outcome {
            PairOutcome::Exchanged => (half + n, n),
            _ => pages,
        };
        assert_eq!(
            (&now[pages.0], &now[pages.1]),
            (&was[from.0], &was[from.1]),
            "{pair:?}"
        );
    }
    report
}

/// Which calls an exchange makes, found out by counting.
fn calls_of(region: &Region) -> Vec<Call> {
    let before = Call::ALL.iter().map(|&call| inject::calls(call));
    let before = before.collect::<Vec<_>>();
    assert!(exchange(region, &Options::new()).is_complete());
    let made = Call::ALL.iter().zip(before);
    let made = made.filter(|&(&call, before)| inject::calls(call) > before);
    made.map(|(&call, _)| call).collect()
}

pub(crate) fn every_call_fails(kind: Kind, mode: Mode) {
    let region = kind.region();
    let half = region.pages() / 2;
    assert!(
        region
            .migrate(half.., "far", &Options::new())
            .unwrap()
            .is_complete()
    );
    let calls = calls_of(&region);
    assert!(!calls.is_empty());
    let page = region.page_size().bytes();
    let limit = NonZeroUsize::new(64 * page).unwrap();
    let options = Options::new().mode(mode).limit_bytes(limit);
    let (mut fired, mut stayed) = (0, 0);
    herd::under_a_herd(&region, 1, || {
        for &call in &calls {
            for fault in faults(page) {
                for (skip, times) in [(0, 1), (2, 1), (3, 3)] {
                    let armed = inject::arm(call, Plan { skip, times, fault });
                    stayed += exchange(&region, &options).stayed().count();
                    fired += u64::from(armed.fired() > 0);
                    drop(armed);
                    // Nothing is left locked or lost: all can go now.
                    let report = exchange(&region, &Options::new().mode(Mode::Sync));
                    let left = report.stayed().next();
                    assert!(
                        left.is_none(),
                        "after {call:?} {fault:?} {skip} {times}: {left:?}"
                    );
                }
            }
        }
    });
    assert!(fired > calls.len() as u64, "the faults were met");
    assert!(stayed > 0, "and some made a difference");
    // In their tiers pages lie side by side again, if they were brought there one way.
    for tier in ["near", "far"] {
        let options = Options::new().mode(Mode::Sync);
        assert!(region.migrate(.., tier, &options).unwrap().is_complete());
    }
    mappings_and_frames(&region);
    println!(
        "{kind:?} {mode:?} exchange: {} calls, {fired} faults met",
        calls.len()
    );
}
