//! Mappings and files.

use transhume_sys::Errno;
use transhume_sys::map::{self, HUGE_PAGE, LockMode, Mapping, MemfdPages, Source};

use crate::common::{Needs, Pages, Suite, page_size, pattern};

pub(crate) fn add(suite: &mut Suite) {
    suite.test("map::reserve_aligned", Ok(()), reserve_aligned);
    suite.test("map::files_over_memory", Ok(()), files_over_memory);
    suite.test("map::remap", Ok(()), remap);
    suite.test("map::punch_hole", Ok(()), punch_hole);
    suite.test("map::lock", may_lock(), lock);
    suite.test("map::errors", Ok(()), errors);
}

pub(crate) fn may_lock() -> Needs {
    let pages = Pages::new(1);
    map::lock(pages.all(), LockMode::empty()).map_err(|error| error.to_string())
}

fn reserve_aligned() {
    for len in [page_size(), HUGE_PAGE, 3 * HUGE_PAGE + page_size(), 12345] {
        let mapping = Mapping::reserve_aligned(len, HUGE_PAGE).unwrap();
        let range = mapping.range();
        assert_eq!(range.start % HUGE_PAGE, 0);
        assert_eq!(range.len(), len.next_multiple_of(page_size()));
        assert_eq!(mapping.len(), range.len());
        assert!(!mapping.is_empty());
        let pages = Pages { mapping };
        let last = range.len() / page_size() - 1;
        pages.write(last, 1);
        assert_eq!(pages.read(last), 1);
    }
    for align in [0, 1, 3 * page_size()] {
        let error = Mapping::reserve_aligned(page_size(), align).unwrap_err();
        assert_eq!(error.errno, Errno::INVAL);
    }
    assert_eq!(
        Mapping::reserve_aligned(usize::MAX, HUGE_PAGE)
            .unwrap_err()
            .errno,
        Errno::NOMEM
    );
}

fn files_over_memory() {
    let file = map::memfd(c"over", MemfdPages::Shmem).unwrap();
    map::resize(&file, 2 * page_size() as u64).unwrap();
    let view = Pages {
        mapping: Mapping::file(&file, 0, 2 * page_size()).unwrap(),
    };
    view.write(1, 42);
    let pages = Pages::filled(4);
    // SAFETY: the test's own page.
    unsafe { map::map_file_fixed(pages.range(2..3), &file, page_size() as u64) }.unwrap();
    assert_eq!(
        (pages.read(1), pages.read(2), pages.read(3)),
        (pattern(1), 42, pattern(3))
    );
    pages.write(2, 43);
    assert_eq!(view.read(1), 43);
    // SAFETY: the test's own page.
    unsafe { map::map_anonymous_fixed(pages.range(2..3)) }.unwrap();
    assert_eq!(pages.read(2), 0);
    assert_eq!(view.read(1), 43);
}

fn remap() {
    let (from, to) = (Pages::filled(4), Pages::new(4));
    // SAFETY: both are the test's own.
    unsafe { map::remap(from.all(), to.addr(0), Source::LeftEmpty) }.unwrap();
    assert_eq!((from.read(3), to.read(3)), (0, pattern(3)));
    let range = from.mapping.into_range();
    // SAFETY: both are the test's own.
    unsafe { map::remap(range, to.addr(0), Source::Unmapped) }.unwrap();
    assert_eq!(to.read(3), 0);
}

fn punch_hole() {
    let file = map::memfd(c"hole", MemfdPages::Shmem).unwrap();
    map::resize(&file, 4 * page_size() as u64).unwrap();
    map::allocate(&file, 0..4 * page_size()).unwrap();
    let view = Pages {
        mapping: Mapping::file(&file, 0, 4 * page_size()).unwrap(),
    };
    view.write(0, 1);
    view.write(1, 2);
    assert_eq!(rustix::fs::fstat(&file).unwrap().st_blocks * 512, 4 * 4096);
    map::punch_hole(&file, page_size()..2 * page_size()).unwrap();
    assert_eq!((view.read(0), view.present()), (1, 1));
    assert_eq!(view.read(1), 0);
}

fn lock() {
    let pages = Pages::new(4);
    map::lock(pages.range(0..2), LockMode::empty()).unwrap();
    assert_eq!(pages.present(), 2);
    map::lock(pages.range(2..4), LockMode::ON_FAULT).unwrap();
    assert_eq!(pages.present(), 2);
    map::unlock(pages.all()).unwrap();
}

fn errors() {
    assert_eq!(Mapping::reserve(0).unwrap_err().errno, Errno::INVAL);
    let error = Mapping::reserve(1 << 60).unwrap_err();
    assert_eq!(error.errno, Errno::NOMEM);
    let file = map::memfd(c"errors", MemfdPages::Shmem).unwrap();
    assert_eq!(
        map::punch_hole(&file, 0..0).unwrap_err().errno,
        Errno::INVAL
    );
    assert_eq!(
        Mapping::file(&file, 1, page_size()).unwrap_err().errno,
        Errno::INVAL
    );
    let pages = Pages::new(1);
    // SAFETY: fails, for the addresses are not whole pages.
    let odd = unsafe { map::unmap(pages.addr(0) + 1..pages.addr(1)) };
    assert_eq!(odd.unwrap_err().errno, Errno::INVAL);
}
