//! Memory of the slots of files: how often it is got and given back where batches are tiny.

use std::num::NonZeroUsize;
use std::sync::Arc;

use transhume_region::owner::{Alone, FolioOwner, Place, Refused};
use transhume_region::{Folio, Mode, Options, Region};
use transhume_sys::{Call, inject};

use crate::{Kind, herd};

/// As many pages as are migrated; no more than a batch of the usual size.
const PAGES: usize = 300;

/// Migrates pages one at a time; says how many moved, how many slots got memory while it waited, and
/// how many calls gave memory back.
fn one_at_a_time(region: &Region, tier: &str) -> (usize, usize, u64) {
    let page = region.page_size().bytes();
    let options = Options::new().limit_bytes(NonZeroUsize::new(page).unwrap());
    let (fresh, punched) = (region.usage().fresh_frames, inject::calls(Call::PunchHole));
    let report = region.migrate(..PAGES, tier, &options).unwrap();
    (
        report.moved(),
        (region.usage().fresh_frames - fresh) as usize,
        inject::calls(Call::PunchHole) - punched,
    )
}

/// Memory that pages leave one by one is given back by few calls.
pub(crate) fn is_given_back_by_runs(kind: Kind) {
    let region = kind.builder().pool_bytes(0).build().unwrap();
    herd::fill(&region);
    for tier in ["far", "near"] {
        let (moved, _, punched) = one_at_a_time(&region, tier);
        assert_eq!((moved, punched), (PAGES, 1), "{tier}");
        assert_eq!(region.usage().pooled_bytes, 0);
    }
    herd::sweep(region.words());
}

/// No memory is got for pages that will be found pinned, and all is right when they are not any more.
pub(crate) fn is_not_got_for_pinned_pages(kind: Kind) {
    let region = kind.builder().pool_bytes(0).build().unwrap();
    herd::fill(&region);
    let pin = region.pin(1..).unwrap();
    assert_eq!(one_at_a_time(&region, "far"), (1, 1, 1));
    drop(pin);
    let (moved, fresh, _) = one_at_a_time(&region, "far");
    assert_eq!((moved, fresh), (PAGES - 1, PAGES - 1));
    herd::sweep(region.words());
}

/// A page that is pinned, and for which it is waited, gets memory before that.
pub(crate) fn is_got_before_a_pin_is_waited_for(kind: Kind) {
    let region = kind.builder().pool_bytes(0).build().unwrap();
    herd::fill(&region);
    let pin = region.pin(0).unwrap();
    let options = Options::new().mode(Mode::Sync);
    std::thread::scope(|scope| {
        let request = scope.spawn(|| region.migrate(0, "far", &options).unwrap());
        while region.usage().fresh_frames == 0 && !request.is_finished() {
            std::thread::yield_now();
        }
        drop(pin);
        let report = request.join().unwrap();
        assert_eq!(report.moved(), 1, "{:?}", report.stayed().next());
    });
    herd::sweep(region.words());
}

/// Lets go of no page.
struct Keeps;

impl FolioOwner for Keeps {
    fn try_detach(&self, _folio: Folio) -> Result<(), Refused> {
        Err(Refused)
    }

    fn detach(&self, _folio: Folio, _alone: &Alone) -> Result<(), Refused> {
        Err(Refused)
    }

    fn attach(&self, _folio: Folio, _at: Place) {}
}

/// What is got for pages that cannot move serves them in the next pass.
pub(crate) fn serves_the_next_pass(kind: Kind) {
    let builder = kind.builder().pool_bytes(0).owner(Arc::new(Keeps));
    let region = builder.build().unwrap();
    herd::fill(&region);
    assert_eq!(one_at_a_time(&region, "far"), (0, PAGES, 1));
    herd::sweep(region.words());
}
