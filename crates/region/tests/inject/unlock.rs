//! Memory that is locked (`mlock`), and calls for it that fail.

use transhume_region::Options;
use transhume_sys::inject::{self, Fault, Plan};
use transhume_sys::{Call, Errno};

use crate::{Kind, herd};

/// A slot stays locked into memory when its page has left it. The pool gives back what it must all the
/// same.
pub(crate) fn fails(kind: Kind) {
    let region = kind.builder().pool_bytes(0).build().unwrap();
    herd::fill(&region);
    let page = region.page_size().bytes();
    let locked = region.as_ptr().wrapping_add(2 * page).cast();
    // SAFETY: locking changes nothing that a program can see.
    assert_eq!(unsafe { libc::mlock(locked, page) }, 0);
    // The slots are made.
    for tier in ["far", "near"] {
        let report = region.migrate(.., tier, &Options::new()).unwrap();
        assert!(report.is_complete());
    }
    let armed = inject::arm(Call::Munlock, Plan::once(Fault::Errno(Errno::NOMEM)));
    for tier in ["far", "near", "far", "near"] {
        let report = region.migrate(.., tier, &Options::new()).unwrap();
        assert!(report.is_complete(), "{:?}", report.stayed().next());
        assert_eq!(region.usage().pooled_bytes, 0);
    }
    assert_eq!(armed.fired(), 1);
    herd::sweep(region.words());
}

/// Pages that are mapped anew side by side are locked again by one call; if that fails, by one each.
pub(crate) fn runs_are_locked_again(kind: Kind) {
    const LOCKED: usize = 100;
    let region = kind.builder().build().unwrap();
    herd::fill(&region);
    let bytes = LOCKED * region.page_size().bytes();
    // SAFETY: locking changes nothing that a program can see.
    assert_eq!(unsafe { libc::mlock(region.as_ptr().cast(), bytes) }, 0);
    let calls_of_a_migration = |tier| {
        let before = inject::calls(Call::Mlock);
        let report = region.migrate(.., tier, &Options::new()).unwrap();
        assert!(report.is_complete());
        inject::calls(Call::Mlock) - before
    };
    assert_eq!(calls_of_a_migration("far"), 1);
    let armed = inject::arm(Call::Mlock, Plan::once(Fault::Errno(Errno::NOMEM)));
    assert_eq!(calls_of_a_migration("near"), 1 + LOCKED as u64);
    assert_eq!(armed.fired(), 1);
    drop(armed);
    assert_eq!(calls_of_a_migration("far"), 1, "all are locked");
    herd::sweep(region.words());
}
