//! userfaultfd: the calls.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use transhume_sys::map::{self, HUGE_PAGE, Mapping, MemfdPages};
use transhume_sys::pagemap::Categories;
use transhume_sys::uffd::{
    Access, Allowed, ContinueMode, CopyMode, Event, FaultFlags, Features, Ioctls, MoveMode,
    OpenError, Protection, RegisterMode, Uffd, Waiters, probe,
};
use transhume_sys::{Errno, Progress, advise, limits};

use crate::common::{
    Pages, Suite, all, next_event, open, page_size, pages_that_are, pattern, uffd_with,
};

pub(crate) fn add(suite: &mut Suite) {
    let moves = || uffd_with(Features::MOVE);
    let any = || uffd_with(Features::empty());
    suite.test("uffd::probe", any(), probes);
    suite.test(
        "uffd::unknown_features_are_named",
        any(),
        unknown_features_are_named,
    );
    suite.test("uffd::nothing_allowed", Ok(()), nothing_allowed);
    suite.test("uffd::move_512_pages", moves(), move_512_pages);
    suite.test(
        "uffd::move_stops_at_a_present_page",
        moves(),
        move_stops_at_a_present_page,
    );
    suite.test("uffd::move_stops_at_a_hole", moves(), move_stops_at_a_hole);
    suite.test("uffd::move_wakes", moves(), move_wakes);
    suite.test(
        "uffd::move_of_a_huge_page",
        all([moves(), thp()]),
        move_of_a_huge_page,
    );
    suite.test(
        "uffd::move_leaves_protection_behind",
        all([moves(), uffd_with(Features::PAGEFAULT_FLAG_WP)]),
        move_leaves_protection_behind,
    );
    suite.test(
        "uffd::move_of_a_huge_page_leaves_protection_behind",
        all([moves(), uffd_with(Features::PAGEFAULT_FLAG_WP), thp()]),
        move_of_a_huge_page_leaves_protection_behind,
    );
    suite.test("uffd::copy_and_zeropage", any(), copy_and_zeropage);
    suite.test(
        "uffd::outside_registered_memory",
        any(),
        outside_registered_memory,
    );
    suite.test("uffd::wake", uffd_with(Features::THREAD_ID), wake);
    suite.test(
        "uffd::write_protect",
        uffd_with(Features::PAGEFAULT_FLAG_WP),
        write_protect,
    );
    suite.test(
        "uffd::write_protect_stops_outside",
        uffd_with(Features::PAGEFAULT_FLAG_WP),
        write_protect_stops_outside,
    );
    suite.test(
        "uffd::continue_of_a_memfd",
        uffd_with(Features::MINOR_SHMEM),
        continue_of_a_memfd,
    );
    suite.test(
        "uffd::continue_of_hugetlb",
        all([uffd_with(Features::MINOR_HUGETLBFS), hugetlb()]),
        continue_of_hugetlb,
    );
    suite.test(
        "uffd::user_mode_only",
        user_mode_only(),
        kernel_accesses_fail_in_user_mode_only,
    );
}

pub(crate) fn thp() -> Result<(), String> {
    let thp = limits::thp().map_err(|error| error.to_string())?;
    match thp.anonymous {
        limits::ThpMode::Never => Err("transparent huge pages are off".to_owned()),
        _ if thp.page_size != HUGE_PAGE => Err(format!("huge pages have {}", thp.page_size)),
        _ => Ok(()),
    }
}

fn hugetlb() -> Result<(), String> {
    let pool = limits::hugetlb_pool(HUGE_PAGE).map_err(|error| error.to_string())?;
    if pool.free == 0 {
        Err("the pool of 2 MiB huge pages is empty".to_owned())
    } else {
        Ok(())
    }
}

fn user_mode_only() -> Result<(), String> {
    probe(Allowed::USER_MODE_ONLY)
        .map(drop)
        .map_err(|error| error.to_string())
}

fn probes() {
    let probe = probe(Allowed::all()).unwrap();
    assert!(
        probe
            .ioctls
            .contains(Ioctls::API | Ioctls::REGISTER | Ioctls::UNREGISTER)
    );
    match probe.access {
        Access::Device => assert_eq!(probe.refusals.device, None),
        Access::Syscall => assert!(probe.refusals.device.is_some()),
        Access::UserModeOnly => assert!(probe.refusals.syscall.is_some()),
    }
    let uffd = open(Features::empty());
    assert_eq!(uffd.access(), probe.access);
    let flags = rustix::io::fcntl_getfd(&uffd).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    // Each way on its own: it opens, or says why not.
    for (allowed, access) in [
        (Allowed::DEVICE, Access::Device),
        (Allowed::SYSCALL, Access::Syscall),
        (Allowed::USER_MODE_ONLY, Access::UserModeOnly),
    ] {
        match Uffd::open(Features::empty(), allowed) {
            Ok(uffd) => assert_eq!(uffd.access(), access),
            Err(OpenError::Unavailable(refusals)) => {
                let reasons = [refusals.device, refusals.syscall, refusals.user_mode_only];
                assert_eq!(reasons.iter().flatten().count(), 1, "{refusals}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn unknown_features_are_named() {
    let odd = Features::from_bits_retain(1 << 60);
    match Uffd::open(Features::THREAD_ID | odd, Allowed::all()) {
        Err(OpenError::Features { missing, supported }) => {
            assert!(missing.contains(odd));
            assert!(!supported.contains(odd));
        }
        other => panic!("{other:?}"),
    }
}

fn nothing_allowed() {
    let error = Uffd::open(Features::empty(), Allowed::empty()).unwrap_err();
    assert_eq!(error.to_string(), "no userfaultfd: no way was allowed");
}

fn register(uffd: &Uffd, pages: &Pages, mode: RegisterMode) -> Ioctls {
    // SAFETY: tests reach their pages by volatile access only.
    unsafe { uffd.register(pages.all(), mode) }.unwrap()
}

fn move_pages(uffd: &Uffd, dst: usize, src: usize, len: usize, mode: MoveMode) -> Progress {
    // SAFETY: the source is a test's own, reached by volatile access only.
    unsafe { uffd.move_range(dst, src, len, mode) }
}

fn move_512_pages() {
    const COUNT: usize = 512;
    let uffd = open(Features::MOVE);
    let (src, dst) = (Pages::filled(COUNT), Pages::new(COUNT));
    let ioctls = register(&uffd, &dst, RegisterMode::MISSING);
    assert!(ioctls.contains(Ioctls::MOVE | Ioctls::COPY), "{ioctls:?}");
    let len = COUNT * page_size();
    let progress = move_pages(&uffd, dst.addr(0), src.addr(0), len, MoveMode::empty());
    assert_eq!(progress, Progress::complete(len));
    assert_eq!((src.present(), dst.present()), (0, COUNT));
    for index in 0..COUNT {
        assert_eq!(dst.read(index), pattern(index));
    }
    uffd.unregister(dst.all()).unwrap();
    assert_eq!(src.read(0), 0);
}

fn move_stops_at_a_present_page() {
    const COUNT: usize = 512;
    const PRESENT: usize = 100;
    let uffd = open(Features::MOVE);
    let (src, dst) = (Pages::filled(COUNT), Pages::new(COUNT));
    dst.write(PRESENT, 7);
    register(&uffd, &dst, RegisterMode::MISSING);
    let len = COUNT * page_size();
    let progress = move_pages(&uffd, dst.addr(0), src.addr(0), len, MoveMode::empty());
    assert_eq!(
        progress,
        Progress::partial(PRESENT * page_size(), Errno::AGAIN)
    );
    // Now it says why.
    let rest = (COUNT - PRESENT) * page_size();
    let again = || {
        move_pages(
            &uffd,
            dst.addr(PRESENT),
            src.addr(PRESENT),
            rest,
            MoveMode::empty(),
        )
    };
    assert_eq!(again(), Progress::partial(0, Errno::EXIST));
    assert_eq!(dst.read(PRESENT - 1), pattern(PRESENT - 1));
    assert_eq!(dst.read(PRESENT), 7);
    assert_eq!(src.read(PRESENT), pattern(PRESENT));
    assert_eq!(
        (src.present(), dst.present()),
        (COUNT - PRESENT, PRESENT + 1)
    );
    // SAFETY: the test's own page.
    unsafe { advise::dont_need(dst.range(PRESENT..PRESENT + 1)) }.unwrap();
    assert_eq!(again(), Progress::complete(rest));
    assert_eq!(dst.read(COUNT - 1), pattern(COUNT - 1));
}

fn move_stops_at_a_hole() {
    const COUNT: usize = 8;
    const HOLE: usize = 3;
    let uffd = open(Features::MOVE);
    let (src, dst) = (Pages::filled(COUNT), Pages::new(COUNT));
    // SAFETY: the test's own page.
    unsafe { advise::dont_need(src.range(HOLE..HOLE + 1)) }.unwrap();
    register(&uffd, &dst, RegisterMode::MISSING);
    let len = COUNT * page_size();
    let progress = move_pages(&uffd, dst.addr(0), src.addr(0), len, MoveMode::empty());
    assert_eq!(
        progress,
        Progress::partial(HOLE * page_size(), Errno::AGAIN)
    );
    let rest = len - HOLE * page_size();
    let again = |mode| move_pages(&uffd, dst.addr(HOLE), src.addr(HOLE), rest, mode);
    assert_eq!(again(MoveMode::empty()), Progress::partial(0, Errno::NOENT));
    assert_eq!(again(MoveMode::ALLOW_SRC_HOLES), Progress::complete(rest));
    assert_eq!(dst.present(), COUNT - 1);
    assert_eq!(dst.read(COUNT - 1), pattern(COUNT - 1));
}

fn move_wakes() {
    let uffd = open(Features::MOVE);
    let (src, dst) = (Pages::filled(1), Pages::new(1));
    register(&uffd, &dst, RegisterMode::MISSING);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| dst.read(0));
        let event = next_event(&uffd);
        assert!(
            matches!(event, Event::Pagefault { addr, .. } if addr == dst.addr(0)),
            "{event:?}"
        );
        let moved = move_pages(
            &uffd,
            dst.addr(0),
            src.addr(0),
            page_size(),
            MoveMode::empty(),
        );
        assert!(moved.is_complete());
        assert_eq!(reader.join().unwrap(), pattern(0));
    });
}

fn move_of_a_huge_page() {
    let count = HUGE_PAGE / page_size();
    let uffd = open(Features::MOVE);
    let (src, dst) = (Pages::aligned(count), Pages::aligned(count));
    for pages in [&src, &dst] {
        advise::advise(pages.all(), advise::Advice::HugePage).unwrap();
    }
    src.write(5, pattern(5));
    if pages_that_are(src.all(), Categories::HUGE) != count {
        // Memory is too fragmented at this moment: make it one.
        advise::advise(src.all(), advise::Advice::Collapse).unwrap();
    }
    register(&uffd, &dst, RegisterMode::MISSING);
    let moved = move_pages(
        &uffd,
        dst.addr(0),
        src.addr(0),
        HUGE_PAGE,
        MoveMode::empty(),
    );
    assert_eq!(moved, Progress::complete(HUGE_PAGE));
    assert_eq!(dst.read(5), pattern(5));
    // Both sides are aligned, so it is still one.
    assert_eq!(pages_that_are(dst.all(), Categories::HUGE), count);
}

fn move_leaves_protection_behind() {
    let (src, dst) = (Pages::aligned(8), Pages::aligned(8));
    for page in 0..8 {
        src.write(page, pattern(page));
    }
    leaves_protection_behind(&src, &dst);
}

fn move_of_a_huge_page_leaves_protection_behind() {
    let count = HUGE_PAGE / page_size();
    let (src, dst) = (Pages::aligned(count), Pages::aligned(count));
    for pages in [&src, &dst] {
        advise::advise(pages.all(), advise::Advice::HugePage).unwrap();
    }
    for page in 0..8 {
        src.write(page, pattern(page));
    }
    if pages_that_are(src.all(), Categories::HUGE) != count {
        advise::advise(src.all(), advise::Advice::Collapse).unwrap();
    }
    leaves_protection_behind(&src, &dst);
    assert_eq!(pages_that_are(src.all(), Categories::HUGE), count);
}

/// Pages that are held from stores move, there and back, and can be stored to afterwards.
fn leaves_protection_behind(src: &Pages, dst: &Pages) {
    let uffd = open(Features::MOVE | Features::PAGEFAULT_FLAG_WP);
    register(&uffd, src, RegisterMode::MISSING | RegisterMode::WP);
    register(&uffd, dst, RegisterMode::MISSING);
    let len = src.all().len();
    for (to, from) in [(dst, src), (src, dst)] {
        uffd.write_protect(src.all(), Protection::Protect).unwrap();
        let moved = move_pages(&uffd, to.addr(0), from.addr(0), len, MoveMode::empty());
        assert_eq!(moved, Progress::complete(len));
        // A store that waited would wait for ever.
        to.write(2, pattern(2) + 1);
        to.write(2, pattern(2));
        assert_eq!(to.read(3), pattern(3));
    }
}

fn copy_and_zeropage() {
    let uffd = open(Features::empty());
    let (src, dst) = (Pages::filled(4), Pages::new(8));
    register(&uffd, &dst, RegisterMode::MISSING);
    let len = 4 * page_size();
    let copy = |page| {
        // SAFETY: the source is four pages that nobody writes.
        unsafe {
            uffd.copy(
                dst.addr(page),
                src.pointer(0).cast(),
                len,
                CopyMode::empty(),
            )
        }
    };
    assert_eq!(copy(0), Progress::complete(len));
    assert_eq!(dst.read(3), pattern(3));
    assert_eq!(src.read(3), pattern(3));
    assert_eq!(copy(0), Progress::partial(0, Errno::EXIST));
    assert_eq!(
        uffd.zeropage(dst.range(6..8), Waiters::Wake),
        Progress::complete(len / 2)
    );
    assert_eq!(dst.read(7), 0);
    // Two holes, then a page that is there.
    assert_eq!(copy(4), Progress::partial(len / 2, Errno::AGAIN));
    assert_eq!(dst.read(5), pattern(1));
    assert_eq!(
        uffd.zeropage(dst.range(0..8), Waiters::LeaveAsleep),
        Progress::partial(0, Errno::EXIST)
    );
    // A source that cannot be read.
    // SAFETY: it is not read.
    unsafe { advise::dont_need(dst.all()) }.unwrap();
    let nothing = std::ptr::without_provenance(page_size());
    // SAFETY: the kernel finds out that nothing is mapped there.
    let progress = unsafe { uffd.copy(dst.addr(0), nothing, len, CopyMode::empty()) };
    assert_eq!(progress, Progress::partial(0, Errno::FAULT));
}

fn outside_registered_memory() {
    let uffd = open(Features::empty());
    let (src, dst) = (Pages::filled(1), Pages::new(1));
    // SAFETY: the source is a page that nobody writes.
    let copied = unsafe {
        uffd.copy(
            dst.addr(0),
            src.pointer(0).cast(),
            page_size(),
            CopyMode::empty(),
        )
    };
    assert_eq!(copied, Progress::partial(0, Errno::NOENT));
    let error = uffd
        .write_protect(dst.all(), Protection::Protect)
        .unwrap_err();
    assert_eq!(error.range, Some(dst.all()));
    // SAFETY: never registered, for it is not whole pages.
    let odd = unsafe { uffd.register(dst.addr(0)..dst.addr(0) + 1, RegisterMode::MISSING) };
    assert_eq!(odd.unwrap_err().errno, Errno::INVAL);
    assert_eq!(
        uffd.wake(dst.addr(0)..dst.addr(0)).unwrap_err().errno,
        Errno::INVAL
    );
}

fn wake() {
    let uffd = open(Features::THREAD_ID);
    let (src, dst) = (Pages::filled(1), Pages::new(1));
    register(&uffd, &dst, RegisterMode::MISSING);
    let woken = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (dst, woken) = (&dst, &woken);
        let reader = scope.spawn(move || {
            sender.send(rustix::thread::gettid()).unwrap();
            let value = dst.read(0);
            woken.store(true, Ordering::SeqCst);
            value
        });
        let expected = receiver.recv().unwrap();
        match next_event(&uffd) {
            Event::Pagefault {
                addr,
                flags,
                thread,
            } => {
                assert_eq!(addr, dst.addr(0));
                assert_eq!(flags, FaultFlags::empty());
                assert_eq!(thread, Some(expected));
            }
            other => panic!("{other:?}"),
        }
        // SAFETY: the source is a page that nobody writes.
        let copied = unsafe {
            uffd.copy(
                dst.addr(0),
                src.pointer(0).cast(),
                page_size(),
                CopyMode::DONTWAKE,
            )
        };
        assert!(copied.is_complete());
        // The page is there, and the reader goes on waiting all the same.
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!woken.load(Ordering::SeqCst));
        uffd.wake(dst.all()).unwrap();
        assert_eq!(reader.join().unwrap(), pattern(0));
    });
}

fn write_protect() {
    let uffd = open(Features::PAGEFAULT_FLAG_WP);
    let pages = Pages::filled(4);
    let ioctls = register(&uffd, &pages, RegisterMode::WP);
    assert!(ioctls.contains(Ioctls::WRITEPROTECT));
    uffd.write_protect(pages.all(), Protection::Protect)
        .unwrap();
    assert_eq!(pages.read(2), pattern(2));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| pages.write(2, 99));
        match next_event(&uffd) {
            Event::Pagefault {
                addr,
                flags,
                thread,
            } => {
                assert_eq!(addr, pages.addr(2));
                assert_eq!(flags, FaultFlags::WP | FaultFlags::WRITE);
                assert_eq!(thread, None);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(pages.read(2), pattern(2));
        let freed = pages.range(2..3);
        uffd.write_protect(freed.clone(), Protection::Unprotect(Waiters::LeaveAsleep))
            .unwrap();
        uffd.wake(freed).unwrap();
        writer.join().unwrap();
    });
    assert_eq!(pages.read(2), 99);
    uffd.write_protect(pages.all(), Protection::Unprotect(Waiters::Wake))
        .unwrap();
    pages.write(3, 98);
}

fn write_protect_stops_outside() {
    let uffd = open(Features::PAGEFAULT_FLAG_WP);
    let pages = Pages::filled(4);
    register(&uffd, &pages, RegisterMode::WP);
    uffd.write_protect(pages.all(), Protection::Protect)
        .unwrap();
    uffd.unregister(pages.range(1..2)).unwrap();
    let error = uffd
        .write_protect(pages.all(), Protection::Unprotect(Waiters::Wake))
        .unwrap_err();
    assert_eq!(error.errno, Errno::NOENT);
    // Before it stores are let go, behind it they are not.
    pages.write(0, 99);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| pages.write(3, 98));
        assert!(
            matches!(next_event(&uffd), Event::Pagefault { addr, .. } if addr == pages.addr(3))
        );
        uffd.write_protect(pages.range(2..4), Protection::Unprotect(Waiters::Wake))
            .unwrap();
        writer.join().unwrap();
    });
    assert_eq!((pages.read(0), pages.read(3)), (99, 98));
}

fn continue_of_a_memfd() {
    let uffd = open(Features::MINOR_SHMEM);
    let count = 4;
    let file = map::memfd(c"minor", MemfdPages::Shmem).unwrap();
    map::resize(&file, (count * page_size()) as u64).unwrap();
    let view = || Pages {
        mapping: Mapping::file(&file, 0, count * page_size()).unwrap(),
    };
    let (fill, use_) = (view(), view());
    fill.write(0, pattern(0));
    fill.write(1, pattern(1));
    let ioctls = register(&uffd, &use_, RegisterMode::MINOR);
    assert!(ioctls.contains(Ioctls::CONTINUE));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| use_.read(1));
        match next_event(&uffd) {
            Event::Pagefault { addr, flags, .. } => {
                assert_eq!(addr, use_.addr(1));
                assert_eq!(flags, FaultFlags::MINOR);
            }
            other => panic!("{other:?}"),
        }
        // The third page is not in the file.
        let progress = uffd.continue_range(use_.range(0..4), ContinueMode::empty());
        assert_eq!(progress, Progress::partial(2 * page_size(), Errno::AGAIN));
        assert_eq!(reader.join().unwrap(), pattern(1));
    });
    let rest = uffd.continue_range(use_.range(2..4), ContinueMode::empty());
    assert_eq!(rest, Progress::partial(0, Errno::FAULT));
    let again = uffd.continue_range(use_.range(0..1), ContinueMode::DONTWAKE);
    assert_eq!(again, Progress::partial(0, Errno::EXIST));
}

fn continue_of_hugetlb() {
    let uffd = open(Features::MINOR_HUGETLBFS);
    let file = map::memfd(c"huge", MemfdPages::Huge).unwrap();
    map::resize(&file, HUGE_PAGE as u64).unwrap();
    map::allocate(&file, 0..HUGE_PAGE).unwrap();
    let pages = Pages {
        mapping: Mapping::file(&file, 0, HUGE_PAGE).unwrap(),
    };
    register(&uffd, &pages, RegisterMode::MINOR);
    assert_eq!(
        uffd.continue_range(pages.all(), ContinueMode::empty()),
        Progress::complete(HUGE_PAGE)
    );
    assert_eq!(pages.read(1), 0);
}

fn kernel_accesses_fail_in_user_mode_only() {
    let uffd = Uffd::open(Features::empty(), Allowed::USER_MODE_ONLY).unwrap();
    assert_eq!(uffd.access(), Access::UserModeOnly);
    let pages = Pages::new(1);
    register(&uffd, &pages, RegisterMode::MISSING);
    let zero = std::fs::File::open("/dev/zero").unwrap();
    // SAFETY: the kernel writes into the test's own page, or fails.
    let read = unsafe { libc::read(zero.as_raw_fd(), pages.pointer(0).cast(), 8) };
    assert_eq!(read, -1);
    let error = std::io::Error::last_os_error();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::FAULT));
}
