//! A slot stays locked into memory when its page has left it.

use transhume_region::Options;
use transhume_sys::inject::{self, Fault, Plan};
use transhume_sys::{Call, Errno};

use crate::{Kind, herd};

/// The pool gives back what it must all the same.
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
