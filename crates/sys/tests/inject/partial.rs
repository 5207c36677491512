//! Calls that stop half-way have really done the first half.

use transhume_sys::advise::{self, OwnProcess};
use transhume_sys::inject::{Armed, Call, Fault, Plan, arm};
use transhume_sys::map::{self, Mapping, MemfdPages};
use transhume_sys::numa::{PageStatus, Shared, move_pages, node_at};
use transhume_sys::pagemap::Categories;
use transhume_sys::uffd::{
    ContinueMode, CopyMode, Features, MoveMode, Protection, RegisterMode, Waiters,
};
use transhume_sys::{Errno, Progress};

use crate::common::{Pages, Suite, open, page_size, pages_that_are, pattern, uffd_with};

pub(crate) fn add(suite: &mut Suite) {
    suite.test("partial::move", uffd_with(Features::MOVE), moves);
    suite.test(
        "partial::copy_and_zeropage",
        uffd_with(Features::empty()),
        copy_and_zeropage,
    );
    suite.test(
        "partial::continue",
        uffd_with(Features::MINOR_SHMEM),
        continues,
    );
    suite.test(
        "partial::write_protect",
        uffd_with(Features::WP_ASYNC | Features::WP_UNPOPULATED),
        write_protect,
    );
    suite.test(
        "partial::uncounted_moves",
        uffd_with(Features::MOVE),
        uncounted_moves,
    );
    suite.test("partial::madvise", Ok(()), madvise);
    suite.test("partial::process_madvise", Ok(()), process_madvise);
    let numa = node_at(Pages::filled(1).addr(0))
        .map(drop)
        .map_err(|error| error.to_string());
    suite.test("partial::move_pages", numa, pages_of_a_list);
}

const COUNT: usize = 8;
const DONE: usize = 3;

fn stop(call: Call) -> Armed {
    arm(
        call,
        Plan::once(Fault::Partial {
            bytes: DONE * page_size(),
            errno: Errno::BUSY,
        }),
    )
}

fn stopped() -> Progress {
    Progress::partial(DONE * page_size(), Errno::BUSY)
}

fn uncounted_moves() {
    let uffd = open(Features::MOVE);
    let (src, dst) = (Pages::filled(COUNT), Pages::new(COUNT));
    // SAFETY: tests reach their pages by volatile access only.
    unsafe { uffd.register(dst.all(), RegisterMode::MISSING) }.unwrap();
    let bytes = DONE * page_size();
    let _armed = arm(Call::UffdMove, Plan::once(Fault::Uncounted { bytes }));
    // SAFETY: the source is the test's own.
    let progress = unsafe {
        uffd.move_range(
            dst.addr(0),
            src.addr(0),
            COUNT * page_size(),
            MoveMode::empty(),
        )
    };
    assert_eq!(progress, Progress::partial(0, Errno::EXIST));
    assert_eq!((dst.present(), src.present()), (DONE, COUNT - DONE));
}

fn moves() {
    let uffd = open(Features::MOVE);
    let (src, dst) = (Pages::filled(COUNT), Pages::new(COUNT));
    // SAFETY: tests reach their pages by volatile access only.
    unsafe { uffd.register(dst.all(), RegisterMode::MISSING) }.unwrap();
    let move_from = |page| {
        let len = (COUNT - page) * page_size();
        // SAFETY: the source is the test's own.
        unsafe { uffd.move_range(dst.addr(page), src.addr(page), len, MoveMode::empty()) }
    };
    {
        let _armed = stop(Call::UffdMove);
        assert_eq!(move_from(0), stopped());
    }
    assert_eq!((dst.present(), src.present()), (DONE, COUNT - DONE));
    assert_eq!(dst.read(DONE - 1), pattern(DONE - 1));
    assert!(move_from(DONE).is_complete());
    // When the kernel stops before the plan does, its word counts.
    let _armed = stop(Call::UffdMove);
    assert_eq!(move_from(0), Progress::partial(0, Errno::EXIST));
    // Nothing at all.
    let nothing = Plan::once(Fault::Partial {
        bytes: 0,
        errno: Errno::BUSY,
    });
    let _armed = arm(Call::UffdMove, nothing);
    assert_eq!(move_from(0), Progress::partial(0, Errno::BUSY));
}

fn copy_and_zeropage() {
    let uffd = open(Features::empty());
    let (src, dst) = (Pages::filled(COUNT), Pages::new(2 * COUNT));
    // SAFETY: tests reach their pages by volatile access only.
    unsafe { uffd.register(dst.all(), RegisterMode::MISSING) }.unwrap();
    let _copy = stop(Call::UffdCopy);
    let _zeropage = stop(Call::UffdZeropage);
    let len = COUNT * page_size();
    // SAFETY: the source is pages that nobody writes.
    let copied = unsafe { uffd.copy(dst.addr(0), src.pointer(0).cast(), len, CopyMode::empty()) };
    assert_eq!(copied, stopped());
    assert_eq!(dst.present(), DONE);
    let zeroed = uffd.zeropage(dst.range(COUNT..2 * COUNT), Waiters::Wake);
    assert_eq!(zeroed, stopped());
    assert_eq!(dst.present(), 2 * DONE);
}

fn continues() {
    let uffd = open(Features::MINOR_SHMEM);
    let len = COUNT * page_size();
    let file = map::memfd(c"partial", MemfdPages::Shmem).unwrap();
    map::resize(&file, len as u64).unwrap();
    map::allocate(&file, 0..len).unwrap();
    let view = Pages {
        mapping: Mapping::file(&file, 0, len).unwrap(),
    };
    // SAFETY: tests reach their pages by volatile access only.
    unsafe { uffd.register(view.all(), RegisterMode::MINOR) }.unwrap();
    let _armed = stop(Call::UffdContinue);
    assert_eq!(
        uffd.continue_range(view.all(), ContinueMode::empty()),
        stopped()
    );
    assert_eq!(view.present(), DONE);
}

fn write_protect() {
    let uffd = open(Features::WP_ASYNC | Features::WP_UNPOPULATED);
    let pages = Pages::filled(COUNT);
    // SAFETY: tests reach their pages by volatile access only.
    unsafe { uffd.register(pages.all(), RegisterMode::WP) }.unwrap();
    let _armed = stop(Call::UffdWriteProtect);
    let error = uffd
        .write_protect(pages.all(), Protection::Protect)
        .unwrap_err();
    assert_eq!((error.errno, error.range), (Errno::BUSY, Some(pages.all())));
    assert_eq!(
        pages_that_are(pages.all(), Categories::WRITTEN),
        COUNT - DONE
    );
}

fn madvise() {
    let pages = Pages::new(COUNT);
    let _populate = stop(Call::MadvisePopulate);
    assert_eq!(
        advise::populate_write(pages.all()).unwrap_err().errno,
        Errno::BUSY
    );
    assert_eq!(pages.present(), DONE);
    advise::populate_write(pages.all()).unwrap();
    let _dont_need = stop(Call::MadviseDontNeed);
    // SAFETY: the test's own pages.
    let error = unsafe { advise::dont_need(pages.all()) }.unwrap_err();
    assert_eq!((error.errno, pages.present()), (Errno::BUSY, COUNT - DONE));
}

fn process_madvise() {
    let pages = Pages::filled(2 * COUNT);
    let process = OwnProcess::open().unwrap();
    let spans = [0..1, 4..12].map(|range| pages.range(range).into());
    let _armed = stop(Call::ProcessMadvise);
    // `COLD` is what the oldest kernels take.
    assert_eq!(process.advise_all(&spans, advise::Advice::Cold), stopped());
    let _armed = stop(Call::ProcessMadvise);
    // SAFETY: the test's own pages.
    let progress = unsafe { process.dont_need_all(&spans) };
    if progress.stopped == Some(Errno::BUSY) {
        assert_eq!(progress, stopped());
        assert_eq!((pages.read(0), pages.read(4), pages.read(5)), (0, 0, 0));
        assert_eq!(pages.read(6), pattern(6));
    }
}

fn pages_of_a_list() {
    let pages = Pages::filled(COUNT);
    let node = node_at(pages.addr(0)).unwrap();
    let list: Vec<usize> = (0..COUNT).map(|index| pages.addr(index)).collect();
    let mut status = [PageStatus::UNKNOWN; COUNT];
    let _armed = stop(Call::MovePages);
    let moved = move_pages(None, &list, &[node; COUNT], &mut status, Shared::Leave).unwrap();
    assert_eq!(
        (moved.not_attempted, moved.left),
        (COUNT - DONE, COUNT - DONE)
    );
    assert!(
        status[..DONE]
            .iter()
            .all(|status| status.node() == Some(node)),
        "{status:?}"
    );
    assert!(
        status[DONE..].iter().all(|status| status.is_unknown()),
        "{status:?}"
    );
}
