//! A process that gets no huge pages, as where memory is fragmented: the kernel is told to give it none.

use transhume_region::{Options, PageSize, Pins, Region, Reshaped, Step, Tier, Why};

use crate::herd::under_a_herd;
use crate::needs::Need;
use crate::{Case, reasons};

pub(crate) const CASES: &[Case] = &[
    Case(
        "huge_pages::none_for_base_pages",
        &[Need::Move, Need::HugePages, Need::FreesTables],
        none_for_base_pages,
    ),
    Case(
        "huge_pages::none_for_huge_pages",
        &[Need::Move, Need::HugePages, Need::FreesTables],
        || {
            for pins in [Pins::Undeclared, Pins::Declared] {
                none_for_huge_pages(pins);
            }
        },
    ),
];

const HUGE: usize = 2 << 20;

fn forbid_huge_pages(forbid: bool) {
    // SAFETY: it changes what the kernel allocates from now on, and nothing that is there.
    let failed = unsafe {
        libc::prctl(
            libc::PR_SET_THP_DISABLE,
            libc::c_ulong::from(forbid),
            0,
            0,
            0,
        )
    };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
}

fn region(page_size: PageSize, pages: usize, pins: Pins) -> Region {
    Region::builder()
        .tier(Tier::node("near", 0))
        .tier(Tier::node("far", 0))
        .page_size(page_size)
        .pages(pages)
        .pins(pins)
        .build()
        .unwrap()
}

fn huge_pages(region: &Region) -> usize {
    region.usage().huge_bytes.unwrap() / HUGE
}

/// All of these pages move; says what became of huge pages.
fn migrate(region: &Region, tier: &str, options: &Options) -> Reshaped {
    let report = region.migrate(.., tier, options).unwrap();
    assert!(report.is_complete(), "to {tier}: {}", reasons(&report));
    report.reshaped
}

fn none_for_base_pages() {
    let region = region(PageSize::Base, 2048, Pins::Undeclared);
    let collapse = Options::new().collapse();
    under_a_herd(&region, 1, || {
        forbid_huge_pages(true);
        // Nor is there one to try with.
        assert_eq!(migrate(&region, "far", &collapse), Reshaped::default());
        assert_eq!(huge_pages(&region), 0);
        forbid_huge_pages(false);
        assert_eq!(migrate(&region, "near", &collapse).collapsed, 4);
        assert_eq!(huge_pages(&region), 4);
        forbid_huge_pages(true);
        assert_eq!(migrate(&region, "far", &collapse), Reshaped::default());
        assert_eq!(huge_pages(&region), 0);
    });
}

fn none_for_huge_pages(pins: Pins) {
    let region = region(PageSize::Huge, 8, pins);
    let whole = Options::new().whole();
    let counts = |collapsed, split| Reshaped { collapsed, split };
    under_a_herd(&region, 1, || {
        assert_eq!(migrate(&region, "far", &whole), counts(0, 0));
        assert_eq!(huge_pages(&region), 8);
        forbid_huge_pages(true);
        // What waits in the pool is huge still.
        let report = region.migrate(.., "near", &whole).unwrap();
        let moved = report.moved();
        assert!(moved < 8);
        let stopped = report.stopped.unwrap();
        assert_eq!((stopped.step, stopped.why), (Step::Reserve, Why::NoMemory));
        assert_eq!(report.reshaped, counts(0, 0));
        assert_eq!(huge_pages(&region), 8);
        assert_eq!(region.usage().tiers[0].pages, moved);
        // All of them, as base pages where it must be.
        let split = migrate(&region, "near", &Options::new()).split;
        assert_eq!(huge_pages(&region), 8 - split as usize);
        let split = migrate(&region, "far", &Options::new()).split;
        let left = huge_pages(&region);
        assert!(left < 8, "{split}");
        // Nor do those arrive as base pages that are so already.
        let report = region.migrate(.., "near", &whole).unwrap();
        assert_eq!(report.reshaped.split, 0);
        assert!(report.moved() < 8);
        assert_eq!(
            huge_pages(&region),
            left + report.reshaped.collapsed as usize
        );
        forbid_huge_pages(false);
        migrate(&region, "near", &Options::new());
        let left = huge_pages(&region) as u64;
        let made = migrate(&region, "far", &Options::new().collapse());
        assert_eq!(made, counts(8 - left, 0));
        assert_eq!(huge_pages(&region), 8);
    });
}
