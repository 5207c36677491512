//! A DAX device as a tier. The device is named in `TRANSHUME_DAX_DEVICE`; it is overwritten.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use transhume_region::{Builder, Options, PageSize, Pins, Region, Tier};

use crate::Case;
use crate::herd;
use crate::kernel::pipes;
use crate::migrate::back_and_forth;
use crate::needs::Need;

const NEEDS: &[Need] = &[Need::Blind, Need::DaxDevice];

pub(crate) const CASES: &[Case] = &[
    Case("dax::beside_a_memfd", NEEDS, || {
        to_and_fro(Tier::memfd("near"))
    }),
    Case(
        "dax::beside_hugetlb",
        &[Need::Blind, Need::DaxDevice, Need::Hugetlb(24)],
        || to_and_fro(Tier::hugetlb("near")),
    ),
    Case("dax::as_the_first_tier", NEEDS, as_the_first_tier),
    Case("dax::scattered_pages", NEEDS, scattered),
    Case("dax::system_calls", NEEDS, || {
        pipes(&beside(Tier::memfd("near"), EIGHT).build().unwrap());
    }),
    Case("dax::locked", NEEDS, locked),
    Case("dax::refusals", NEEDS, refusals),
];

fn device() -> PathBuf {
    std::env::var_os("TRANSHUME_DAX_DEVICE").unwrap().into()
}

fn beside(near: Tier, base_pages: usize) -> Builder {
    Region::builder()
        .tier(near)
        .tier(Tier::file("far", device()))
        .pages((base_pages * 4096).div_ceil(PageSize::Huge.bytes()))
        .page_size(PageSize::Huge)
        .pins(Pins::Declared)
}

const EIGHT: usize = 8 * 512;

fn to_and_fro(near: Tier) {
    let region = beside(near, EIGHT).build().unwrap();
    back_and_forth(&region, 4, &Options::new());
    let limit = NonZeroUsize::new(4 * PageSize::Huge.bytes()).unwrap();
    back_and_forth(&region, 4, &Options::new().limit_bytes(limit));
}

/// What the device held before is not seen: a region begins with zeros.
fn as_the_first_tier() {
    for _ in 0..2 {
        let region = Region::builder()
            .tier(Tier::file("dax", device()))
            .tier(Tier::memfd("memfd"))
            .pages(8)
            .page_size(PageSize::Huge)
            .pins(Pins::Declared)
            .build()
            .unwrap();
        let words = region.words().iter();
        let not_zero = words.filter(|word| word.load(Ordering::Relaxed) != 0);
        assert_eq!(not_zero.count(), 0, "words that are not zero at first");
        back_and_forth(&region, 4, &Options::new());
        let report = region.migrate(.., "dax", &Options::new()).unwrap();
        assert!(report.is_complete(), "{:?}", report.stayed().next());
        region
            .words()
            .iter()
            .for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
    }
}

fn scattered() {
    let region = beside(Tier::memfd("near"), EIGHT).build().unwrap();
    herd::fill(&region);
    let odd = [1, 3, 5, 7];
    for tier in ["far", "near", "far"] {
        let report = region
            .migrate(odd.as_slice(), tier, &Options::new())
            .unwrap();
        assert_eq!((report.moved(), report.is_complete()), (4, true));
        herd::sweep(region.words());
    }
    assert_eq!(region.usage().mappings, 8);
    let report = region.migrate(.., "far", &Options::new()).unwrap();
    assert!(report.is_complete(), "{:?}", report.stayed().next());
    assert_eq!(region.usage().mappings, 1);
    herd::sweep(region.words());
}

fn locked() {
    let region = beside(Tier::memfd("near"), EIGHT).build().unwrap();
    herd::fill(&region);
    // SAFETY: locking changes nothing that a program can see.
    let failed = unsafe { libc::mlock(region.as_ptr().cast(), region.len()) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    for tier in ["far", "near", "far"] {
        let report = region.migrate(.., tier, &Options::new()).unwrap();
        assert!(report.is_complete(), "{:?}", report.stayed().next());
        herd::sweep(region.words());
    }
}

fn refusals() {
    let refused = |builder: Builder| {
        let line = builder.build().unwrap_err().to_string();
        assert!(!line.contains('\n'), "{line}");
        line
    };
    let base = beside(Tier::memfd("near"), 512).page_size(PageSize::Base);
    assert_eq!(
        refused(base),
        "tier 'far' has pages of 2 MiB only; use PageSize::Huge"
    );
    let large = Region::builder()
        .tier(Tier::memfd("near"))
        .tier(Tier::file("far", device()).capacity(1 << 42))
        .pages(1)
        .page_size(PageSize::Huge)
        .pins(Pins::Declared);
    let line = refused(large);
    assert!(line.starts_with("tier 'far' holds "), "{line}");
    // One region at a time.
    let region = beside(Tier::memfd("near"), 512).build().unwrap();
    let line = refused(beside(Tier::memfd("near"), 512));
    assert!(line.contains("is in use by another region"), "{line}");
    drop(region);
    drop(beside(Tier::memfd("near"), 512).build().unwrap());
}
