//! Every wrapper asks the injection layer, and reports what it was told.

use transhume_sys::advise::{self, Advice, OwnProcess};
use transhume_sys::inject::{Call, Fault, Plan, arm, calls};
use transhume_sys::map::{self, LockMode, Mapping, MemfdPages, Source};
use transhume_sys::numa::{
    self, BindFlags, PageStatus, Policy, Shared, ThreadPolicy, migrate_pages, move_pages, node_at,
    policy_at, query_pages,
};
use transhume_sys::pagemap::{PageEntry, PageRegion, Pagemap, ScanArgs};
use transhume_sys::peer::Peer;
use transhume_sys::shootdown::{ShootdownCounter, Unavailable};
use transhume_sys::uffd::{
    Allowed, ContinueMode, CopyMode, Features, MoveMode, OpenError, Protection, RegisterMode, Uffd,
    Waiters,
};
use transhume_sys::{CallError, Errno, Progress};

use crate::common::{Pages, Suite, page_size, uffd_with};

pub(crate) fn add(suite: &mut Suite) {
    suite.test(
        "every::call_asks",
        uffd_with(Features::empty()),
        every_call_asks,
    );
    suite.test("every::drop_survives", Ok(()), drop_survives);
}

/// Not one that any of the calls would answer by itself.
const FAULT: Errno = Errno::XFULL;

fn every_call_asks() {
    let counts = ShootdownCounter::open_for_this_thread().ok();
    for &call in Call::ALL {
        if matches!(call, Call::PerfEventOpen | Call::PerfCounter) && counts.is_none() {
            continue;
        }
        let things = Things::new();
        let before = calls(call);
        let armed = arm(call, Plan::always(Fault::Errno(FAULT)));
        assert_eq!(
            things.try_call(call, counts.as_ref()),
            Some(FAULT),
            "{call}"
        );
        assert!(armed.fired() > 0 && calls(call) > before, "{call}");
    }
}

/// What the calls need, made before any plan is armed.
struct Things {
    uffd: Uffd,
    pages: Pages,
    file: std::os::fd::OwnedFd,
    process: OwnProcess,
    pagemap: Pagemap,
}

impl Things {
    fn new() -> Self {
        let file = map::memfd(c"every", MemfdPages::Shmem).unwrap();
        map::resize(&file, page_size() as u64).unwrap();
        Self {
            uffd: Uffd::open(Features::empty(), Allowed::all()).unwrap(),
            pages: Pages::filled(1),
            file,
            process: OwnProcess::open().unwrap(),
            pagemap: Pagemap::open_self().unwrap(),
        }
    }

    /// Makes a call and says how it failed.
    fn try_call(&self, call: Call, counts: Option<&ShootdownCounter>) -> Option<Errno> {
        let all = self.pages.all();
        let page = [self.pages.addr(0)];
        let mut status = [PageStatus::UNKNOWN];
        let uffd = &self.uffd;
        match call {
            Call::UffdOpen => match Uffd::open(Features::empty(), Allowed::all()) {
                Err(OpenError::Unavailable(refusals)) => refusals.device,
                _ => None,
            },
            Call::UffdApi => match Uffd::open(Features::empty(), Allowed::all()) {
                Err(OpenError::Handshake { errno, .. }) => Some(errno),
                _ => None,
            },
            Call::UffdUnregister => failed(uffd.unregister(all)),
            Call::UffdWake => failed(uffd.wake(all)),
            Call::UffdZeropage => stopped(uffd.zeropage(all, Waiters::Wake)),
            Call::UffdWriteProtect => failed(uffd.write_protect(all, Protection::Protect)),
            Call::UffdContinue => stopped(uffd.continue_range(all, ContinueMode::empty())),
            Call::UffdRead => failed(uffd.read_events(&mut Vec::new())),
            Call::UffdRegister | Call::UffdCopy | Call::UffdMove => self.try_unsafe_uffd(call),
            Call::PagemapOpen => failed(Pagemap::open_self()),
            Call::PagemapScan => {
                let mut regions = [PageRegion::default()];
                failed(self.pagemap.scan(all, &ScanArgs::default(), &mut regions))
            }
            Call::PagemapRead => failed(self.pagemap.entries(1, &mut [PageEntry::default()])),
            Call::MovePages => failed(move_pages(None, &page, &[0], &mut status, Shared::Leave)),
            Call::QueryPages => failed(query_pages(None, &page, &mut status)),
            Call::MigratePages => failed(migrate_pages(None, &[0], &[0])),
            Call::Mbind => failed(numa::mbind(all, Policy::Default, BindFlags::empty())),
            Call::SetMempolicy => failed(ThreadPolicy::set(Policy::Default)),
            Call::GetMempolicy => failed(policy_at(page[0])).and(failed(node_at(page[0]))),
            Call::MadvisePopulate => failed(advise::populate_write(all)),
            Call::MadviseCollapse => failed(advise::advise(all, Advice::Collapse)),
            Call::Madvise => failed(advise::advise(all, Advice::Cold)),
            Call::PidfdOpen => failed(OwnProcess::open()),
            Call::ProcessMadvise => stopped(self.process.advise_all(&[all.into()], Advice::Cold)),
            Call::Mmap => failed(Mapping::reserve(page_size())).and(failed(Mapping::file(
                &self.file,
                0,
                page_size(),
            ))),
            Call::Mlock => failed(map::lock(all, LockMode::empty())),
            Call::Munlock => failed(map::unlock(all)),
            Call::MemfdCreate => failed(map::memfd(c"no", MemfdPages::Shmem)),
            Call::Ftruncate => failed(map::resize(&self.file, 0)),
            Call::PunchHole => failed(map::punch_hole(&self.file, 0..page_size())),
            Call::Fallocate => failed(map::allocate(&self.file, 0..page_size())),
            Call::PerfEventOpen => match ShootdownCounter::open_for_this_thread() {
                Err(Unavailable::Refused(error)) => Some(error.errno),
                _ => None,
            },
            Call::PerfCounter => {
                let counter = counts?;
                failed(counter.read())
                    .and(failed(counter.enable()))
                    .and(failed(counter.disable()))
            }
            Call::PeerCredentials => failed(Peer::of(&self.file)),
            Call::MadviseDontNeed | Call::MmapFixed | Call::Mremap | Call::Munmap => {
                self.try_unsafe_map(call)
            }
            other => panic!("no test calls {other}"),
        }
    }

    fn try_unsafe_uffd(&self, call: Call) -> Option<Errno> {
        let (uffd, pages) = (&self.uffd, &self.pages);
        let (addr, len) = (pages.addr(0), page_size());
        let missing = RegisterMode::MISSING;
        let bytes = pages.pointer(0).cast();
        match call {
            // SAFETY: the test's own page.
            Call::UffdRegister => failed(unsafe { uffd.register(pages.all(), missing) }),
            // SAFETY: the test's own page, which nobody writes.
            Call::UffdCopy => stopped(unsafe { uffd.copy(addr, bytes, len, CopyMode::empty()) }),
            // SAFETY: the test's own page.
            _ => stopped(unsafe { uffd.move_range(addr, addr, len, MoveMode::empty()) }),
        }
    }

    fn try_unsafe_map(&self, call: Call) -> Option<Errno> {
        let all = self.pages.all();
        match call {
            // SAFETY: the test's own page.
            Call::MadviseDontNeed => failed(unsafe { advise::dont_need(all) }),
            Call::MmapFixed => {
                // SAFETY: the test's own page.
                let file = failed(unsafe { map::map_file_fixed(all.clone(), &self.file, 0) });
                // SAFETY: the test's own page.
                file.and(failed(unsafe { map::map_anonymous_fixed(all) }))
            }
            Call::Mremap => {
                // SAFETY: the test's own page.
                failed(unsafe { map::remap(all.clone(), all.start, Source::LeftEmpty) })
            }
            // SAFETY: it fails before anything is unmapped.
            _ => failed(unsafe { map::unmap(all) }),
        }
    }
}

fn failed<T>(result: Result<T, CallError>) -> Option<Errno> {
    result.err().map(|error| error.errno)
}

fn stopped(progress: Progress) -> Option<Errno> {
    assert_eq!(progress.done, 0);
    progress.stopped
}

fn drop_survives() {
    let mapping = Mapping::reserve(page_size()).unwrap();
    let range = mapping.range();
    let armed = arm(Call::Munmap, Plan::always(Fault::Errno(FAULT)));
    drop(mapping);
    assert_eq!(armed.fired(), 1);
    drop(armed);
    // It is a leak, so it can still be unmapped.
    // SAFETY: nobody else has these addresses.
    unsafe { map::unmap(range) }.unwrap();
}
