//! Memory that is locked (`mlock`), and calls for it that fail.

use transhume_region::{Options, Region};
use transhume_sys::inject::{self, Fault, Plan};
use transhume_sys::{Call, Errno};

use crate::{Kind, herd, unprotect};

/// As many pages are locked.
const LOCKED: usize = 100;

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

/// As many calls as slots may take that lie in a few pieces.
const FEW: u64 = 8;

/// How many calls lock memory, and how many unlock it, while this is done.
fn calls(work: impl FnOnce()) -> [u64; 2] {
    let now = || [Call::Mlock, Call::Munlock].map(inject::calls);
    let before = now();
    work();
    let after = now();
    [after[0] - before[0], after[1] - before[1]]
}

/// Locks the first pages; those that wait for their switch go on waiting.
fn lock(region: &Region) {
    let bytes = LOCKED * region.page_size().bytes();
    // SAFETY: locking changes nothing that a program can see.
    let locked = unsafe { libc::mlock2(region.as_ptr().cast(), bytes, libc::MLOCK_ONFAULT) };
    assert_eq!(locked, 0);
}

/// The slots of pages that are locked are locked and unlocked by few calls; if one is refused, by one
/// each, and no page stays for that.
pub(crate) fn slots_go_by_runs(kind: Kind) {
    let region = kind.builder().build().unwrap();
    herd::fill(&region);
    lock(&region);
    let migrate = |tier| {
        calls(|| {
            let report = region.migrate(..LOCKED, tier, &Options::new()).unwrap();
            assert!(report.is_complete(), "{:?}", report.stayed().next());
        })
    };
    let few = |tier| {
        let calls = migrate(tier);
        assert!(calls.iter().all(|&calls| calls <= FEW), "{calls:?}");
    };
    few("far");
    few("near");
    for call in [Call::Mlock, Call::Munlock] {
        let armed = inject::arm(call, Plan::once(Fault::Errno(Errno::NOMEM)));
        let calls = migrate("far");
        assert_eq!(armed.fired(), 1);
        let most = LOCKED as u64 + FEW;
        assert!(calls.iter().all(|&calls| calls <= most), "{calls:?}");
        drop(armed);
        few("near");
    }
    herd::sweep(region.words());
}

/// So are those of pages that trade places with others that are not locked.
pub(crate) fn slots_of_pairs_go_by_runs(kind: Kind) {
    let region = kind.builder().build().unwrap();
    herd::fill(&region);
    lock(&region);
    let partners = LOCKED..2 * LOCKED;
    let report = region.migrate(partners.clone(), "far", &Options::new());
    assert!(report.unwrap().is_complete());
    for _ in 0..2 {
        let calls = calls(|| {
            let report = region.exchange(..LOCKED, partners.clone(), &Options::new());
            assert!(report.unwrap().is_complete());
        });
        assert!(calls.iter().all(|&calls| calls <= FEW), "{calls:?}");
        assert!(calls[0] > 0 && calls[1] > 0, "{calls:?}");
    }
    herd::sweep(region.words());
}

/// And those of pages that are locked, or unlocked, while they wait for their switch.
pub(crate) fn slots_of_waiting_pages_go_by_runs(kind: Kind) {
    let region = unprotect::builder(kind).build().unwrap();
    herd::fill(&region);
    let wait = |tier| {
        let options = Options::new().deferred();
        let report = region.migrate(..LOCKED, tier, &options).unwrap();
        assert_eq!(report.deferred(), LOCKED);
    };
    let settle = || {
        let calls = calls(|| drop(region.settle(..).unwrap()));
        assert!(calls.iter().all(|&calls| calls <= FEW), "{calls:?}");
        calls
    };
    wait("far");
    lock(&region);
    assert!(settle()[0] > 0, "they are locked now");
    wait("near");
    let bytes = LOCKED * region.page_size().bytes();
    // SAFETY: unlocking changes nothing that a program can see.
    assert_eq!(unsafe { libc::munlock(region.as_ptr().cast(), bytes) }, 0);
    assert!(settle()[1] > 0, "they are not any more");
    assert!(region.take_stayed().is_empty());
    herd::sweep(region.words());
}
