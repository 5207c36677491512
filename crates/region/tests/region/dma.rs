//! Migration by a DMA copier whose device does everything wrong, over its software model.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use transhume_copy::dsa::{DsaOptions, Fault, Faults, ModelOptions, ModelQueue, QueueMode};
use transhume_copy::{Dsa, DsaModel};
use transhume_engine::Counts;
use transhume_region::{Mode, Options, PageSize, Pins, Region};

use crate::Case;
use crate::herd::{self, Herd};
use crate::migrate::{back_and_forth, two_memfds, two_nodes};
use crate::needs::Need;

pub(crate) const CASES: &[Case] = &[
    Case(
        "dma::ten_thousand_batches_with_faults_of_every_kind",
        &[Need::Move],
        || {
            let region = two_nodes(512).pins(Pins::Declared).build().unwrap();
            with_faults(&region, every_kind(1, 4), 10_000);
        },
    ),
    Case(
        "dma::mapped_with_faults_of_every_kind",
        &[Need::Blind],
        || {
            let region = two_memfds(256).build().unwrap();
            with_faults(&region, every_kind(2, 6), 1_000);
        },
    ),
    Case("dma::each_kind_alone", &[Need::Move], || {
        let region = two_nodes(256).pins(Pins::Declared).build().unwrap();
        for (n, fault) in Fault::ALL.into_iter().enumerate() {
            with_faults(&region, Faults::seeded(n as u64).with(fault, 100), 96);
        }
    }),
    Case(
        "dma::huge_pages",
        &[Need::Move, Need::HugePages],
        huge_pages,
    ),
];

/// All that can go wrong; what costs a deadline in so many of a thousand descriptors.
fn every_kind(seed: u64, deadlines: u16) -> Faults {
    Fault::ALL
        .into_iter()
        .fold(Faults::seeded(seed), |faults, fault| {
            let rare = matches!(fault, Fault::Hangs | Fault::Late | Fault::RecordsLate);
            faults.with(fault, if rare { deadlines } else { 60 })
        })
}

/// Two queues that a batch does not fit into at once, and little patience.
fn unruly(faults: Faults) -> (DsaModel, Arc<Dsa>) {
    let queue = ModelQueue {
        size: 2,
        max_batch: 3,
        ..ModelQueue::default()
    };
    let model = DsaModel::start(&ModelOptions {
        queues: vec![
            queue,
            ModelQueue {
                mode: QueueMode::Shared,
                ..queue
            },
        ],
        faults,
        ..ModelOptions::default()
    })
    .unwrap();
    let options = DsaOptions {
        floor: Duration::from_millis(2),
        ..DsaOptions::for_tests()
    };
    let dsa = Arc::new(Dsa::over_model(&model, options));
    (model, dsa)
}

/// Moves the region to and fro until there were so many batches, under a thread of an application that
/// sees any byte that is not as it left it.
fn with_faults(region: &Region, faults: Faults, batches: u64) {
    let (model, dsa) = unruly(faults);
    let eight = NonZeroUsize::new(8 * PageSize::Base.bytes()).unwrap();
    let options = Options::new()
        .mode(Mode::Sync)
        .limit_bytes(eight)
        .copier(dsa);
    herd::fill(region);
    let stop = AtomicBool::new(false);
    let (mut all, mut moved) = (Counts::default(), 0);
    std::thread::scope(|scope| {
        let herd = Herd::graze(scope, region, 1, &stop);
        for round in 1.. {
            let tier = region.tiers()[round % 2].name();
            let report = region.migrate(.., tier, &options).unwrap();
            assert!(report.is_complete(), "{:?}", report.stayed().next());
            assert_eq!(report.folios().count(), region.pages());
            assert_eq!(report.moved() + report.already_there(), region.pages());
            assert!((0..region.pages()).all(|page| region.tier_of(page) == Ok(tier)));
            moved += report.moved() as u64;
            all.batches += report.counts.batches;
            all.copied_by_copier += report.counts.copied_by_copier;
            all.copied_by_cpu += report.counts.copied_by_cpu;
            all.copy_failures += report.counts.copy_failures;
            all.timed_out += report.counts.timed_out;
            all.declined += report.counts.declined;
            all.unconfirmed += report.counts.unconfirmed;
            if all.batches >= batches {
                break;
            }
        }
        assert!(herd.gather() > 0);
    });
    herd::sweep(region.words());
    // Each folio was copied by one or the other, and for each that the CPU copied there is an answer.
    assert_eq!(all.unconfirmed, 0);
    assert!(all.copied_by_copier > 0);
    assert!(all.copied_by_copier + all.copied_by_cpu >= moved);
    assert!(all.copy_failures + all.timed_out + all.declined <= all.copied_by_cpu);
    for fault in Fault::ALL {
        assert_eq!(
            model.injected(fault) > 0,
            faults.with(fault, 0) != faults,
            "{fault:?}"
        );
    }
}

fn huge_pages() {
    let region = two_nodes(8)
        .page_size(PageSize::Huge)
        .pins(Pins::Declared)
        .build()
        .unwrap();
    let four = NonZeroUsize::new(4 * PageSize::Huge.bytes()).unwrap();
    let model = DsaModel::start(&ModelOptions::default()).unwrap();
    let dsa = Arc::new(Dsa::over_model(&model, DsaOptions::for_tests()));
    back_and_forth(&region, 4, &Options::new().limit_bytes(four).copier(dsa));
    with_faults(&region, every_kind(3, 60), 100);
}
