//! What the tests against the running kernel share.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::ops::Range;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use transhume_sys::map::Mapping;
use transhume_sys::pagemap::{Categories, PageRegion, Pagemap, ScanArgs};
use transhume_sys::uffd::{Allowed, Event, Features, Uffd, probe};

/// What a test needs of the machine: nothing that is missing, or what is missing.
pub(crate) type Needs = Result<(), String>;

/// Tests, of which those that the machine cannot run are reported as ignored, with the reason.
#[derive(Debug, Default)]
pub(crate) struct Suite {
    trials: Vec<Trial>,
}

impl Suite {
    pub(crate) fn test(&mut self, name: &str, needs: Needs, body: fn()) {
        let trial = match needs {
            Ok(()) => Trial::test(name, move || {
                body();
                Ok(())
            }),
            Err(reason) => {
                let name = format!("{name} [ignored: {reason}]");
                // Whoever asks for ignored tests as well gets the reason and no pass.
                Trial::test(name, move || Err(Failed::from(reason))).with_ignored_flag(true)
            }
        };
        self.trials.push(trial);
    }

    /// Runs the tests one at a time: they share what belongs to the process. After a fork all its
    /// pages are shared, which `UFFDIO_MOVE` refuses; whoever watches for forks meets them all; and
    /// a plan of the injection layer spoils the calls of everybody.
    pub(crate) fn run(self) -> ! {
        let mut arguments = libtest_mimic::Arguments::from_args();
        arguments.test_threads = Some(1);
        libtest_mimic::run(&arguments, self.trials).exit()
    }
}

/// All of these.
pub(crate) fn all<const N: usize>(needs: [Needs; N]) -> Needs {
    needs.into_iter().collect()
}

/// A userfaultfd with these features.
/// A kernel from this version on.
#[allow(dead_code, reason = "not every suite has such a need")]
pub(crate) fn kernel(major: u32, minor: u32) -> Needs {
    let release = transhume_sys::limits::kernel_release();
    if release.is_at_least(major, minor) {
        Ok(())
    } else {
        Err(format!("this kernel is older than {major}.{minor}"))
    }
}

pub(crate) fn uffd_with(features: Features) -> Needs {
    let probe = probe(Allowed::all()).map_err(|error| error.to_string())?;
    let missing = features.difference(probe.features);
    if !missing.is_empty() {
        return Err(format!("this kernel's userfaultfd lacks {missing:?}"));
    }
    match Uffd::open(features, Allowed::all()) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) fn open(features: Features) -> Uffd {
    Uffd::open(features, Allowed::all()).unwrap()
}

pub(crate) fn page_size() -> usize {
    rustix::param::page_size()
}

/// Memory of so many pages, not one of them there yet.
#[derive(Debug)]
pub(crate) struct Pages {
    pub(crate) mapping: Mapping,
}

impl Pages {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            mapping: Mapping::reserve(count * page_size()).unwrap(),
        }
    }

    /// At a multiple of 2 MiB, so that whole huge pages and page tables line up.
    pub(crate) fn aligned(count: usize) -> Self {
        let len = count * page_size();
        Self {
            mapping: Mapping::reserve_aligned(len, transhume_sys::map::HUGE_PAGE).unwrap(),
        }
    }

    pub(crate) fn filled(count: usize) -> Self {
        let pages = Self::new(count);
        for index in 0..count {
            pages.write(index, pattern(index));
        }
        pages
    }

    pub(crate) fn addr(&self, index: usize) -> usize {
        self.mapping.range().start + index * page_size()
    }

    pub(crate) fn range(&self, pages: Range<usize>) -> Range<usize> {
        self.addr(pages.start)..self.addr(pages.end)
    }

    pub(crate) fn all(&self) -> Range<usize> {
        self.mapping.range()
    }

    pub(crate) fn pointer(&self, index: usize) -> *mut u64 {
        assert!(index * page_size() < self.mapping.len());
        self.mapping
            .as_ptr()
            .wrapping_add(index * page_size())
            .cast()
    }

    pub(crate) fn write(&self, index: usize, value: u64) {
        // SAFETY: inside the mapping, which nobody views by reference.
        unsafe { self.pointer(index).write_volatile(value) }
    }

    pub(crate) fn read(&self, index: usize) -> u64 {
        // SAFETY: inside the mapping, which nobody views by reference.
        unsafe { self.pointer(index).read_volatile() }
    }

    /// How many of its pages are in memory and mapped.
    pub(crate) fn present(&self) -> usize {
        pages_that_are(self.all(), Categories::PRESENT)
    }
}

/// How many pages of a range are all of these.
pub(crate) fn pages_that_are(range: Range<usize>, categories: Categories) -> usize {
    let mut regions = vec![PageRegion::default(); range.len() / page_size()];
    let args = ScanArgs {
        all_of: categories,
        report: categories,
        ..ScanArgs::default()
    };
    let pagemap = Pagemap::open_self().unwrap();
    let scan = pagemap.scan(range.clone(), &args, &mut regions).unwrap();
    assert_eq!(scan.walk_end, range.end);
    let bytes: usize = regions[..scan.regions]
        .iter()
        .map(|region| region.range().len())
        .sum();
    bytes / page_size()
}

/// Scans a range to its end, with room for so many runs at a time.
pub(crate) fn scan_all(range: Range<usize>, args: &ScanArgs, room: usize) -> Vec<Range<usize>> {
    let pagemap = Pagemap::open_self().unwrap();
    let mut regions = vec![PageRegion::default(); room];
    let (mut from, mut found) = (range.start, Vec::new());
    while from < range.end {
        let scan = pagemap.scan(from..range.end, args, &mut regions).unwrap();
        assert!(
            scan.walk_end > from && scan.walk_end <= range.end,
            "{scan:x?}"
        );
        found.extend(regions[..scan.regions].iter().map(PageRegion::range));
        from = scan.walk_end;
    }
    found
}

pub(crate) fn pattern(index: usize) -> u64 {
    0x5eed_0000_0000_0000 | u64::try_from(index).unwrap()
}

/// Waits for one event; the machine may be busy.
pub(crate) fn next_event(uffd: &Uffd) -> Event {
    let mut events = Vec::with_capacity(1);
    eventually("an event", || uffd.read_events(&mut events).unwrap() > 0);
    assert_eq!(events.len(), 1);
    events.remove(0)
}

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::yield_now();
    }
}
