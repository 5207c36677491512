//! Advice.

use transhume_sys::advise::{self, Advice, OwnProcess, Span};
use transhume_sys::map::HUGE_PAGE;
use transhume_sys::pagemap::Categories;
use transhume_sys::{Errno, Progress, map};

use crate::common::{Needs, Pages, Suite, all, kernel, page_size, pages_that_are, pattern};
use crate::uffd::thp;

pub(crate) fn add(suite: &mut Suite) {
    suite.test(
        "advise::populate_and_dont_need",
        Ok(()),
        populate_and_dont_need,
    );
    suite.test("advise::collapse", thp(), collapse);
    suite.test("advise::harmless_advice", Ok(()), harmless_advice);
    suite.test("advise::errors", Ok(()), errors);
    suite.test(
        "advise::dont_need_of_several",
        of_many(),
        dont_need_of_several,
    );
    suite.test(
        "advise::more_than_one_call_takes",
        of_many(),
        more_than_one_call_takes,
    );
    suite.test(
        "advise::dont_need_of_locked_memory",
        all([crate::map::may_lock(), kernel(5, 18)]),
        dont_need_of_locked_memory,
    );
    suite.test(
        "advise::stops_at_locked_memory",
        all([of_many(), crate::map::may_lock()]),
        stops_at_locked_memory,
    );
    suite.test(
        "advise::refuses_what_cannot_be_mapped",
        of_many(),
        refuses_what_cannot_be_mapped,
    );
    suite.test(
        "advise::collapse_of_several",
        all([of_many(), thp()]),
        collapse_of_several,
    );
    suite.test("advise::child_of_a_fork", of_many(), child_of_a_fork);
}

/// process_madvise(2) with any advice on this process.
fn of_many() -> Needs {
    let process = OwnProcess::open().map_err(|error| error.to_string())?;
    let page = Pages::filled(1);
    // SAFETY: the test's own page.
    let progress = unsafe { process.dont_need_all(&[page.all().into()]) };
    match progress.stopped {
        None => Ok(()),
        Some(errno) => Err(format!(
            "process_madvise(MADV_DONTNEED) of this process: {errno}"
        )),
    }
}

fn populate_and_dont_need() {
    let pages = Pages::new(16);
    advise::populate_write(pages.range(4..12)).unwrap();
    assert_eq!(pages.present(), 8);
    // SAFETY: the test's own pages.
    unsafe { advise::dont_need(pages.range(0..8)) }.unwrap();
    assert_eq!(pages.present(), 4);
}

fn dont_need_of_locked_memory() {
    let pages = Pages::filled(8);
    map::lock(pages.range(2..6), map::LockMode::empty()).unwrap();
    // SAFETY: the test's own pages.
    unsafe { advise::dont_need(pages.all()) }.unwrap();
    assert_eq!(pages.present(), 0);
}

fn collapse() {
    let count = HUGE_PAGE / page_size();
    let pages = Pages::aligned(count);
    advise::advise(pages.all(), Advice::NoHugePage).unwrap();
    for index in 0..count {
        pages.write(index, pattern(index));
    }
    advise::advise(pages.all(), Advice::HugePage).unwrap();
    advise::advise(pages.all(), Advice::Collapse).unwrap();
    assert_eq!(pages_that_are(pages.all(), Categories::HUGE), count);
    assert!((0..count).all(|index| pages.read(index) == pattern(index)));
}

fn harmless_advice() {
    let pages = Pages::filled(4);
    for advice in [
        Advice::DontFork,
        Advice::DoFork,
        Advice::PopulateRead,
        Advice::Cold,
        Advice::PageOut,
    ] {
        advise::advise(pages.all(), advice).unwrap();
    }
    assert_eq!(pages.read(3), pattern(3));
}

fn errors() {
    let range = Pages::new(4).all();
    // Unmapped by now, unless another test has mapped something there: too high for anybody.
    let top = (usize::MAX / 2) & !(page_size() - 1);
    let error = advise::populate_write(top..top + page_size()).unwrap_err();
    assert!(
        matches!(error.errno, Errno::NOMEM | Errno::INVAL),
        "{error}"
    );
    let error = advise::populate_write(range.start + 1..range.end).unwrap_err();
    assert_eq!(error.errno, Errno::INVAL);
    assert_eq!(error.range, Some(range.start + 1..range.end));
}

fn dont_need_of_several() {
    let pages = Pages::filled(16);
    let spans: Vec<Span> = [1..2, 4..7, 15..16]
        .into_iter()
        .map(|range| pages.range(range).into())
        .collect();
    let process = OwnProcess::open().unwrap();
    // SAFETY: the test's own pages.
    let progress = unsafe { process.dont_need_all(&spans) };
    assert_eq!(progress, Progress::complete(5 * page_size()));
    assert_eq!(pages.present(), 11);
    assert_eq!(
        (pages.read(0), pages.read(1), pages.read(7)),
        (pattern(0), 0, pattern(7))
    );
    assert_eq!(process.advise_all(&[], Advice::Cold), Progress::complete(0));
}

fn more_than_one_call_takes() {
    const COUNT: usize = 5000;
    let pages = Pages::filled(COUNT);
    let spans: Vec<Span> = (0..COUNT)
        .step_by(2)
        .map(|index| pages.range(index..index + 1).into())
        .collect();
    let process = OwnProcess::open().unwrap();
    // SAFETY: the test's own pages.
    let progress = unsafe { process.dont_need_all(&spans) };
    assert_eq!(progress, Progress::complete(COUNT / 2 * page_size()));
    assert_eq!(pages.present(), COUNT / 2);
    assert_eq!(pages.read(4999), pattern(4999));
}

fn stops_at_locked_memory() {
    let pages = Pages::filled(16);
    map::lock(pages.range(3..4), map::LockMode::empty()).unwrap();
    let process = OwnProcess::open().unwrap();
    let spans = [0..2, 3..4, 4..6].map(|range| pages.range(range).into());
    // SAFETY: the test's own pages.
    let progress = unsafe { process.dont_need_all(&spans) };
    assert_eq!(progress, Progress::partial(2 * page_size(), Errno::INVAL));
    assert_eq!(pages.present(), 14);
}

fn refuses_what_cannot_be_mapped() {
    let pages = Pages::filled(16);
    let process = OwnProcess::open().unwrap();
    // Nothing can be mapped beyond the end of user space, and the kernel sees that before it
    // begins.
    let top = usize::MAX & !(page_size() - 1);
    let spans = [pages.range(0..2).into(), (top - page_size()..top).into()];
    // SAFETY: the test's own pages.
    let progress = unsafe { process.dont_need_all(&spans) };
    assert_eq!(progress, Progress::partial(0, Errno::FAULT));
    assert_eq!(pages.present(), 16);
}

fn collapse_of_several() {
    let count = HUGE_PAGE / page_size();
    let pages = Pages::aligned(2 * count);
    advise::advise(pages.all(), Advice::NoHugePage).unwrap();
    for index in 0..2 * count {
        pages.write(index, pattern(index));
    }
    advise::advise(pages.all(), Advice::HugePage).unwrap();
    let process = OwnProcess::open().unwrap();
    let spans = [
        pages.range(0..count).into(),
        pages.range(count..2 * count).into(),
    ];
    let progress = process.advise_all(&spans, Advice::Collapse);
    assert_eq!(progress, Progress::complete(2 * HUGE_PAGE));
    assert_eq!(pages_that_are(pages.all(), Categories::HUGE), 2 * count);
}

fn child_of_a_fork() {
    let pages = Pages::filled(1);
    let process = OwnProcess::open().unwrap();
    // SAFETY: the child makes a system call on its own memory and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the child's own page.
        let progress = unsafe { process.dont_need_all(&[pages.all().into()]) };
        let own = progress.is_complete() && pages.read(0) == 0;
        let refused = progress == Progress::partial(0, Errno::SRCH);
        // SAFETY: it runs nothing of the parent's on the way out.
        unsafe { libc::_exit(i32::from(!(own || refused))) };
    }
    let mut status = 0;
    // SAFETY: the status is ours to write.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    // The parent's page is as it was.
    assert_eq!(pages.read(0), pattern(0));
}
