//! userfaultfd: what it reports when the address space changes.

use transhume_sys::map::{self, Source};
use transhume_sys::uffd::{Event, Features, RegisterMode, Uffd};
use transhume_sys::{Errno, advise};

use crate::common::{Pages, Suite, next_event, open, page_size, uffd_with};

pub(crate) fn add(suite: &mut Suite) {
    suite.test("events::none", uffd_with(Features::empty()), none);
    suite.test("events::many", uffd_with(Features::empty()), many);
    suite.test("events::remove", uffd_with(Features::EVENT_REMOVE), remove);
    suite.test("events::remap", uffd_with(Features::EVENT_REMAP), remap);
    suite.test("events::unmap", uffd_with(Features::EVENT_UNMAP), unmap);
    suite.test("events::fork", uffd_with(Features::EVENT_FORK), fork);
}

fn watched(features: Features, count: usize) -> (Uffd, Pages) {
    let (uffd, pages) = (open(features), Pages::new(count));
    // SAFETY: tests reach their pages by volatile access only.
    unsafe { uffd.register(pages.all(), RegisterMode::MISSING) }.unwrap();
    (uffd, pages)
}

fn none() {
    let (uffd, _pages) = watched(Features::empty(), 1);
    let mut events = Vec::new();
    assert_eq!(uffd.read_events(&mut events).unwrap(), 0);
    assert!(events.is_empty());
}

fn many() {
    const THREADS: usize = 3;
    let (uffd, pages) = watched(Features::empty(), THREADS);
    std::thread::scope(|scope| {
        for index in 0..THREADS {
            let pages = &pages;
            scope.spawn(move || assert_eq!(pages.read(index), 0));
        }
        let mut seen: Vec<usize> = (0..THREADS)
            .map(|_| match next_event(&uffd) {
                Event::Pagefault { addr, .. } => addr,
                other => panic!("{other:?}"),
            })
            .collect();
        seen.sort_unstable();
        let expected: Vec<usize> = (0..THREADS).map(|index| pages.addr(index)).collect();
        // Each is told once: threads that wait are not told again.
        assert_eq!(seen, expected);
        assert!(
            uffd.zeropage(pages.all(), transhume_sys::uffd::Waiters::Wake)
                .is_complete()
        );
    });
}

fn remove() {
    let (uffd, pages) = watched(Features::EVENT_REMOVE, 4);
    assert!(
        uffd.zeropage(pages.all(), transhume_sys::uffd::Waiters::Wake)
            .is_complete()
    );
    std::thread::scope(|scope| {
        // SAFETY: the test's own pages.
        let remover = scope.spawn(|| unsafe { advise::dont_need(pages.range(1..3)) });
        match next_event(&uffd) {
            Event::Remove(range) => assert_eq!(range, pages.range(1..3)),
            other => panic!("{other:?}"),
        }
        remover.join().unwrap().unwrap();
    });
    // While a removal is not read yet, the kernel asks to try again.
    std::thread::scope(|scope| {
        // SAFETY: the test's own pages.
        let remover = scope.spawn(|| unsafe { advise::dont_need(pages.range(1..3)) });
        let stopped = || {
            let filled = uffd.zeropage(pages.range(1..2), transhume_sys::uffd::Waiters::Wake);
            filled.stopped
        };
        crate::common::eventually("EAGAIN", || stopped() == Some(Errno::AGAIN));
        let event = next_event(&uffd);
        assert!(matches!(event, Event::Remove(_)), "{event:?}");
        remover.join().unwrap().unwrap();
    });
}

fn remap() {
    let (uffd, pages) = watched(Features::EVENT_REMAP, 4);
    assert!(
        uffd.zeropage(pages.all(), transhume_sys::uffd::Waiters::Wake)
            .is_complete()
    );
    let other = Pages::new(4);
    std::thread::scope(|scope| {
        let (from, to) = (pages.all(), other.addr(0));
        // SAFETY: both are the test's own.
        let mover = scope.spawn(move || unsafe { map::remap(from, to, Source::LeftEmpty) });
        match next_event(&uffd) {
            Event::Remap { from, to, len } => {
                assert_eq!((from, to), (pages.addr(0), other.addr(0)));
                assert_eq!(len, 4 * page_size());
            }
            other => panic!("{other:?}"),
        }
        mover.join().unwrap().unwrap();
    });
}

fn unmap() {
    let (uffd, pages) = watched(Features::EVENT_UNMAP, 2);
    let range = pages.mapping.into_range();
    std::thread::scope(|scope| {
        // SAFETY: the test's own pages, which nobody uses any more.
        let unmapper = scope.spawn(|| unsafe { map::unmap(range.clone()) });
        match next_event(&uffd) {
            Event::Unmap(unmapped) => assert_eq!(unmapped, range),
            other => panic!("{other:?}"),
        }
        unmapper.join().unwrap().unwrap();
    });
}

fn fork() {
    let (uffd, _pages) = watched(Features::EVENT_FORK, 2);
    std::thread::scope(|scope| {
        let forker = scope.spawn(|| {
            // SAFETY: the child does nothing but end.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: it runs nothing of the parent's on the way out.
                unsafe { libc::_exit(0) };
            }
            child
        });
        match next_event(&uffd) {
            // The child's memory: nothing has happened there, and it may be gone already.
            Event::Fork { uffd: child } => {
                assert_eq!(child.access(), uffd.access());
                assert_eq!(child.read_events(&mut Vec::new()).unwrap_or(0), 0);
            }
            other => panic!("{other:?}"),
        }
        let child = forker.join().unwrap();
        assert!(child > 0);
        let mut status = 0;
        // SAFETY: the status is ours to write.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
    });
}
