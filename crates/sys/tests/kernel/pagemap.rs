//! `PAGEMAP_SCAN`.

use transhume_sys::advise::{self, Advice};
use transhume_sys::map::{self, HUGE_PAGE, Mapping, MemfdPages};
use transhume_sys::pagemap::{Categories, PageRegion, Pagemap, ScanArgs, ScanFlags};
use transhume_sys::uffd::{Features, Protection, RegisterMode};
use transhume_sys::{Errno, Pid};

use crate::common::{
    Needs, Pages, Suite, all, open, page_size, pages_that_are, scan_all, uffd_with,
};
use crate::uffd::thp;

pub(crate) fn add(suite: &mut Suite) {
    suite.test("pagemap::present", scan(), present);
    suite.test("pagemap::runs_out_of_room", scan(), runs_out_of_room);
    suite.test("pagemap::thousands_of_runs", scan(), thousands_of_runs);
    suite.test("pagemap::huge", all([scan(), thp()]), huge);
    suite.test("pagemap::file", scan(), file);
    suite.test(
        "pagemap::written",
        all([
            scan(),
            uffd_with(Features::WP_ASYNC | Features::WP_UNPOPULATED),
        ]),
        written,
    );
    suite.test("pagemap::open_of_this_process_by_number", scan(), by_number);
    suite.test("pagemap::errors", scan(), errors);
}

fn scan() -> Needs {
    let pages = Pages::new(1);
    Pagemap::open_self()
        .and_then(|pagemap| {
            pagemap.scan(pages.all(), &present_only(), &mut [PageRegion::default()])
        })
        .map(drop)
        .map_err(|error| error.to_string())
}

fn present_only() -> ScanArgs {
    let present = Categories::PRESENT;
    ScanArgs {
        all_of: present,
        report: present,
        ..ScanArgs::default()
    }
}

fn present() {
    let pages = Pages::new(64);
    for index in [0, 1, 10, 63] {
        pages.write(index, 1);
    }
    let pagemap = Pagemap::open_self().unwrap();
    let mut regions = [PageRegion::default(); 8];
    let scan = pagemap
        .scan(pages.all(), &present_only(), &mut regions)
        .unwrap();
    assert_eq!((scan.regions, scan.walk_end), (3, pages.addr(64)));
    let found: Vec<_> = regions[..3].iter().map(PageRegion::range).collect();
    assert_eq!(
        found,
        [pages.range(0..2), pages.range(10..11), pages.range(63..64)]
    );
    assert!(
        regions[..3]
            .iter()
            .all(|region| region.categories() == Categories::PRESENT)
    );
    // The opposite.
    let absent = ScanArgs {
        inverted: Categories::PRESENT,
        ..present_only()
    };
    let scan = pagemap.scan(pages.all(), &absent, &mut regions).unwrap();
    let absent: usize = regions[..scan.regions]
        .iter()
        .map(|region| region.range().len())
        .sum();
    assert_eq!(absent / page_size(), 60);
}

fn runs_out_of_room() {
    let pages = Pages::new(16);
    for index in (0..16).step_by(2) {
        pages.write(index, 1);
    }
    let expected: Vec<_> = (0..16)
        .step_by(2)
        .map(|index| pages.range(index..index + 1))
        .collect();
    for room in [1, 2, 3, 7, 8, 9, 100] {
        assert_eq!(
            scan_all(pages.all(), &present_only(), room),
            expected,
            "room for {room}"
        );
    }
    // A limit of pages: the scan ends before the next one that it would find.
    let mut regions = [PageRegion::default(); 3];
    let args = ScanArgs {
        max_pages: 2,
        ..present_only()
    };
    let scan = Pagemap::open_self()
        .unwrap()
        .scan(pages.all(), &args, &mut regions)
        .unwrap();
    assert_eq!(scan.regions, 2);
    assert!(
        (pages.addr(3)..=pages.addr(4)).contains(&scan.walk_end),
        "{scan:x?}"
    );
}

/// More runs than the kernel holds at once, which it handles in rounds.
fn thousands_of_runs() {
    const COUNT: usize = 5000;
    let pages = Pages::new(COUNT);
    advise::advise(pages.all(), Advice::NoHugePage).unwrap();
    // Runs of 1 to 4 pages with gaps of 1 to 3.
    let (mut expected, mut from) = (Vec::new(), 1);
    while from + 4 < COUNT {
        let run = from..from + 1 + from % 4;
        run.clone().for_each(|index| pages.write(index, 1));
        expected.push(pages.range(run.clone()));
        from = run.end + 1 + run.end % 3;
    }
    assert!(expected.len() > 1024);
    for room in [1, 2, 511, 512, 513, 1023, 1024, 1025, expected.len(), COUNT] {
        let found = scan_all(pages.all(), &present_only(), room);
        // Where a scan ends in the middle of a run, the next one goes on there.
        let mut merged: Vec<std::ops::Range<usize>> = Vec::new();
        for run in found {
            match merged.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => merged.push(run),
            }
        }
        assert!(merged == expected, "room for {room}");
    }
    // Limits of pages end in the middle of runs.
    for max_pages in [1, 2, 3, 700, 1500] {
        let args = ScanArgs {
            max_pages,
            ..present_only()
        };
        let found: usize = scan_all(pages.all(), &args, COUNT)
            .iter()
            .map(std::ops::Range::len)
            .sum();
        let all: usize = expected.iter().map(std::ops::Range::len).sum();
        assert_eq!(found, all, "{max_pages} pages at a time");
    }
}

fn huge() {
    let count = HUGE_PAGE / page_size();
    let pages = Pages::aligned(2 * count);
    advise::advise(pages.range(0..count), Advice::HugePage).unwrap();
    advise::advise(pages.range(count..2 * count), Advice::NoHugePage).unwrap();
    pages.write(0, 1);
    pages.write(count, 1);
    if pages_that_are(pages.range(0..count), Categories::HUGE) == 0 {
        advise::advise(pages.range(0..count), Advice::Collapse).unwrap();
    }
    assert_eq!(pages_that_are(pages.all(), Categories::HUGE), count);
    assert_eq!(pages_that_are(pages.all(), Categories::PRESENT), count + 1);
    // A base page less, and it is no longer huge.
    // SAFETY: the test's own page.
    unsafe { advise::dont_need(pages.range(7..8)) }.unwrap();
    assert_eq!(pages_that_are(pages.all(), Categories::HUGE), 0);
    assert_eq!(pages_that_are(pages.all(), Categories::PRESENT), count);
}

fn file() {
    let file = map::memfd(c"scan", MemfdPages::Shmem).unwrap();
    map::resize(&file, 4 * page_size() as u64).unwrap();
    let pages = Pages {
        mapping: Mapping::file(&file, 0, 4 * page_size()).unwrap(),
    };
    pages.write(1, 1);
    assert_eq!(
        pages_that_are(pages.all(), Categories::PRESENT | Categories::FILE),
        1
    );
}

fn written() {
    let uffd = open(Features::WP_ASYNC | Features::WP_UNPOPULATED);
    let pages = Pages::filled(32);
    // SAFETY: tests reach their pages by volatile access only.
    unsafe { uffd.register(pages.all(), RegisterMode::WP) }.unwrap();
    let args = ScanArgs {
        flags: ScanFlags::WP_MATCHING | ScanFlags::CHECK_WPASYNC,
        all_of: Categories::WRITTEN,
        report: Categories::WRITTEN,
        ..ScanArgs::default()
    };
    uffd.write_protect(pages.all(), Protection::Protect)
        .unwrap();
    assert_eq!(pages_that_are(pages.all(), Categories::WRITTEN), 0);
    pages.write(3, 1);
    pages.write(4, 1);
    let pagemap = Pagemap::open_self().unwrap();
    let mut regions = [PageRegion::default(); 4];
    let scan = pagemap.scan(pages.all(), &args, &mut regions).unwrap();
    assert_eq!(scan.regions, 1);
    assert_eq!(regions[0].range(), pages.range(3..5));
    // It is told once.
    assert_eq!(
        pagemap
            .scan(pages.all(), &args, &mut regions)
            .unwrap()
            .regions,
        0
    );
    // Where nothing is registered the check says so.
    let other = Pages::filled(1);
    let error = pagemap.scan(other.all(), &args, &mut regions).unwrap_err();
    assert_eq!(error.errno, Errno::PERM);
}

fn by_number() {
    let pages = Pages::filled(2);
    let own = Pid::from_raw(i32::try_from(std::process::id()).unwrap()).unwrap();
    let mut regions = [PageRegion::default(); 2];
    let scan = Pagemap::open(own)
        .unwrap()
        .scan(pages.all(), &present_only(), &mut regions);
    assert_eq!(scan.unwrap().regions, 1);
}

fn errors() {
    let pagemap = Pagemap::open_self().unwrap();
    let odd = Pages::new(1).addr(0) + 1;
    let error = pagemap
        .scan(odd..odd + 1, &present_only(), &mut [])
        .unwrap_err();
    assert_eq!(error.errno, Errno::INVAL);
    assert_eq!(error.range, Some(odd..odd + 1));
    let nobody = Pid::from_raw(i32::MAX).unwrap();
    assert_eq!(Pagemap::open(nobody).unwrap_err().errno, Errno::NOENT);
}
