//! Names for the calls, and the error of a call that failed as a whole.

use std::fmt;
use std::ops::Range;

use rustix::io::Errno;

macro_rules! calls {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Every kernel call that this crate wraps.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Call {
            $($(#[$doc])* $variant,)*
        }

        impl Call {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name that the manual pages use.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

calls! {
    /// Opening a userfaultfd, by the device or by the system call.
    UffdOpen = "userfaultfd",
    /// The handshake of a userfaultfd.
    UffdApi = "UFFDIO_API",
    /// [`Uffd::register`](crate::uffd::Uffd::register).
    UffdRegister = "UFFDIO_REGISTER",
    /// [`Uffd::unregister`](crate::uffd::Uffd::unregister).
    UffdUnregister = "UFFDIO_UNREGISTER",
    /// [`Uffd::wake`](crate::uffd::Uffd::wake).
    UffdWake = "UFFDIO_WAKE",
    /// [`Uffd::copy`](crate::uffd::Uffd::copy).
    UffdCopy = "UFFDIO_COPY",
    /// [`Uffd::zeropage`](crate::uffd::Uffd::zeropage).
    UffdZeropage = "UFFDIO_ZEROPAGE",
    /// [`Uffd::move_range`](crate::uffd::Uffd::move_range).
    UffdMove = "UFFDIO_MOVE",
    /// [`Uffd::write_protect`](crate::uffd::Uffd::write_protect).
    UffdWriteProtect = "UFFDIO_WRITEPROTECT",
    /// [`Uffd::continue_range`](crate::uffd::Uffd::continue_range).
    UffdContinue = "UFFDIO_CONTINUE",
    /// [`Uffd::read_events`](crate::uffd::Uffd::read_events).
    UffdRead = "read of a userfaultfd",
    /// Opening `/proc/PID/pagemap`.
    PagemapOpen = "open of pagemap",
    /// [`Pagemap::scan`](crate::pagemap::Pagemap::scan).
    PagemapScan = "PAGEMAP_SCAN",
    /// [`Pagemap::entries`](crate::pagemap::Pagemap::entries).
    PagemapRead = "read of pagemap",
    /// [`move_pages`](crate::numa::move_pages).
    MovePages = "move_pages",
    /// [`query_pages`](crate::numa::query_pages): the same system call, asking only.
    QueryPages = "move_pages (query)",
    /// [`migrate_pages`](crate::numa::migrate_pages).
    MigratePages = "migrate_pages",
    /// [`mbind`](crate::numa::mbind).
    Mbind = "mbind",
    /// [`ThreadPolicy`](crate::numa::ThreadPolicy).
    SetMempolicy = "set_mempolicy",
    /// [`node_at`](crate::numa::node_at) and [`policy_at`](crate::numa::policy_at).
    GetMempolicy = "get_mempolicy",
    /// [`dont_need`](crate::advise::dont_need).
    MadviseDontNeed = "madvise(MADV_DONTNEED)",
    /// [`Advice::PopulateRead`](crate::advise::Advice::PopulateRead) and its sibling for writing.
    MadvisePopulate = "madvise(MADV_POPULATE_*)",
    /// [`Advice::Collapse`](crate::advise::Advice::Collapse).
    MadviseCollapse = "madvise(MADV_COLLAPSE)",
    /// All other advice.
    Madvise = "madvise",
    /// Finding a handle of this process for `process_madvise`.
    PidfdOpen = "pidfd_open",
    /// [`OwnProcess::dont_need_all`](crate::advise::OwnProcess::dont_need_all) and its siblings.
    ProcessMadvise = "process_madvise",
    /// A new mapping where the kernel finds room.
    Mmap = "mmap",
    /// A mapping over what is there.
    MmapFixed = "mmap(MAP_FIXED)",
    /// [`remap`](crate::map::remap).
    Mremap = "mremap",
    /// [`unmap`](crate::map::unmap), and the drop of a [`Mapping`](crate::map::Mapping).
    Munmap = "munmap",
    /// [`lock`](crate::map::lock).
    Mlock = "mlock2",
    /// [`unlock`](crate::map::unlock).
    Munlock = "munlock",
    /// [`memfd`](crate::map::memfd).
    MemfdCreate = "memfd_create",
    /// [`resize`](crate::map::resize).
    Ftruncate = "ftruncate",
    /// [`punch_hole`](crate::map::punch_hole).
    PunchHole = "fallocate(PUNCH_HOLE)",
    /// [`allocate`](crate::map::allocate).
    Fallocate = "fallocate",
    /// Opening a counter of shootdowns.
    PerfEventOpen = "perf_event_open",
    /// Reading and switching such a counter.
    PerfCounter = "perf event",
    /// [`Peer::of`](crate::peer::Peer::of).
    PeerCredentials = "getsockopt(SO_PEERCRED)",
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A call failed as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}{}: {errno}", At(range))]
pub struct CallError {
    /// What was tried.
    pub call: Call,
    /// The addresses, or the file offsets, that it was tried on; `None` if it has none.
    pub range: Option<Range<usize>>,
    /// What the kernel said.
    pub errno: Errno,
}

impl CallError {
    pub(crate) const fn new(call: Call, errno: Errno) -> Self {
        Self {
            call,
            range: None,
            errno,
        }
    }

    pub(crate) const fn at(call: Call, range: Range<usize>, errno: Errno) -> Self {
        Self {
            call,
            range: Some(range),
            errno,
        }
    }
}

struct At<'a>(&'a Option<Range<usize>>);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(range) => write!(f, " of {:#x}..{:#x}", range.start, range.end),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_where_and_why() {
        let error = CallError::at(Call::UffdRegister, 0x1000..0x3000, Errno::INVAL);
        let text = error.to_string();
        assert!(
            text.starts_with("UFFDIO_REGISTER of 0x1000..0x3000: "),
            "{text}"
        );
        let text = CallError::new(Call::MemfdCreate, Errno::NOMEM).to_string();
        assert!(text.starts_with("memfd_create: "), "{text}");
    }
}
