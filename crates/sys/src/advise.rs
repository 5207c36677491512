//! Advice on memory: one range by madvise(2), many by process_madvise(2).

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::abi::{answer, len, pointer};
use crate::{Call, CallError, Progress, hook};

const MADV_COLLAPSE: i32 = 25;

/// Advice that leaves the contents of memory as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Advice {
    /// The child of a fork does not get it.
    DontFork,
    /// The child of a fork does get it.
    DoFork,
    /// Transparent huge pages are welcome.
    HugePage,
    /// No transparent huge pages.
    NoHugePage,
    /// Make it huge pages now.
    Collapse,
    /// Map all of it now, as if it were read.
    PopulateRead,
    /// Allocate and map all of it now, as if it were written.
    PopulateWrite,
    /// It is not used for now.
    Cold,
    /// Swap it out now.
    PageOut,
}

impl Advice {
    const fn raw(self) -> i32 {
        match self {
            Self::DontFork => libc::MADV_DONTFORK,
            Self::DoFork => libc::MADV_DOFORK,
            Self::HugePage => libc::MADV_HUGEPAGE,
            Self::NoHugePage => libc::MADV_NOHUGEPAGE,
            Self::Collapse => MADV_COLLAPSE,
            Self::PopulateRead => libc::MADV_POPULATE_READ,
            Self::PopulateWrite => libc::MADV_POPULATE_WRITE,
            Self::Cold => libc::MADV_COLD,
            Self::PageOut => libc::MADV_PAGEOUT,
        }
    }

    const fn call(self) -> Call {
        match self {
            Self::Collapse => Call::MadviseCollapse,
            Self::PopulateRead | Self::PopulateWrite => Call::MadvisePopulate,
            _ => Call::Madvise,
        }
    }
}

/// Advises on a range.
///
/// # Errors
///
/// `EINVAL` for advice that the kernel does not know or that does not suit the memory, also where
/// huge pages do not fit (collapse); `ENOMEM` where nothing is mapped, or without memory; `EAGAIN`
/// or `EBUSY` for a collapse that may work later; `EFAULT` and `EHWPOISON` where populating meets
/// `SIGBUS`. The range may be done in part.
///
/// # References
///
/// madvise(2).
pub fn advise(range: Range<usize>, advice: Advice) -> Result<(), CallError> {
    // SAFETY: none of these changes what memory contains.
    unsafe { madvise(range, advice.raw(), advice.call()) }
}

/// Allocates and maps all of a range, as if it were written.
///
/// # Errors
///
/// As [`advise`] with [`Advice::PopulateWrite`].
///
/// # References
///
/// madvise(2), Linux 5.14.
pub fn populate_write(range: Range<usize>) -> Result<(), CallError> {
    advise(range, Advice::PopulateWrite)
}

/// Gives up the pages of a range, locked or not: anonymous memory then reads as zeros, memory of a
/// file as the file.
///
/// # Safety
///
/// The caller owns the memory, and nobody views it as `&` or `&mut`.
///
/// # Errors
///
/// `EINVAL` for no whole pages, and before Linux 5.18 for locked memory; `ENOMEM` where nothing is
/// mapped, after the rest has been done.
///
/// # References
///
/// madvise(2), `MADV_DONTNEED` and `MADV_DONTNEED_LOCKED`.
pub unsafe fn dont_need(range: Range<usize>) -> Result<(), CallError> {
    hook::silent(Call::MadviseDontNeed, len(&range), |len| {
        // SAFETY: the caller gives up the contents.
        match unsafe { madvise_raw(range.start, len, libc::MADV_DONTNEED) } {
            // SAFETY: as above.
            Err(Errno::INVAL) => unsafe { madvise_raw(range.start, len, MADV_DONTNEED_LOCKED) },
            answer => answer,
        }
    })
    .map_err(|errno| CallError::at(Call::MadviseDontNeed, range, errno))
}

/// Of `<asm-generic/mman-common.h>`: as `MADV_DONTNEED`, on locked memory too.
const MADV_DONTNEED_LOCKED: i32 = 24;

/// # Safety
///
/// The caller allows what the advice does to the contents of the range.
unsafe fn madvise(range: Range<usize>, advice: i32, call: Call) -> Result<(), CallError> {
    hook::silent(call, len(&range), |len| {
        // SAFETY: by this function's contract.
        unsafe { madvise_raw(range.start, len, advice) }
    })
    .map_err(|errno| CallError::at(call, range, errno))
}

/// # Safety
///
/// The caller allows what the advice does to the contents of the range.
unsafe fn madvise_raw(start: usize, len: usize, advice: i32) -> Result<(), Errno> {
    // SAFETY: by this function's contract; the kernel checks the addresses.
    let ret = unsafe { libc::madvise(pointer(start), len, advice) };
    answer(ret.into()).map(drop)
}

/// A range of memory in a list for [`OwnProcess`], in the form that the kernel reads.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Span(libc::iovec);

// SAFETY: a span is two numbers.
unsafe impl Send for Span {}
// SAFETY: a span is two numbers.
unsafe impl Sync for Span {}

impl Span {
    /// The addresses of the range.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        let start = self.0.iov_base.addr();
        start..start.saturating_add(self.0.iov_len)
    }

    fn front(&self, len: usize) -> Self {
        Self(libc::iovec {
            iov_len: self.0.iov_len.min(len),
            ..self.0
        })
    }

    fn back(&self, from: usize) -> Self {
        let from = from.min(self.0.iov_len);
        Self(libc::iovec {
            iov_base: self.0.iov_base.wrapping_byte_add(from),
            iov_len: self.0.iov_len - from,
        })
    }
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        Self(libc::iovec {
            iov_base: pointer(range.start),
            iov_len: len(&range),
        })
    }
}

impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Range { start, end } = self.range();
        write!(f, "Span({start:#x}..{end:#x})")
    }
}

/// This process, as process_madvise(2) wants it named.
#[derive(Debug)]
pub struct OwnProcess {
    handle: Handle,
}

#[derive(Debug)]
enum Handle {
    /// The kernel's word for the caller itself, Linux 6.14; it holds across a fork.
    Myself,
    /// A pidfd would name the parent to the child of a fork, so it goes with the process it is for.
    Pidfd(OwnedFd, Pid),
}

impl OwnProcess {
    /// `PIDFD_SELF_THREAD_GROUP` of `<linux/pidfd.h>`.
    const MYSELF: RawFd = -20_000;

    /// Finds out how this kernel lets a process name itself.
    ///
    /// # Errors
    ///
    /// `ENOSYS` before Linux 5.10 or behind a filter; whatever pidfd_open(2) says.
    ///
    /// # References
    ///
    /// process_madvise(2), pidfd_open(2).
    pub fn open() -> Result<Self, CallError> {
        let open = || {
            hook::whole(Call::PidfdOpen)?;
            // SAFETY: no ranges, so nothing is done; it only looks at the name.
            if unsafe { process_madvise(Self::MYSELF, &[], libc::MADV_COLD) }.is_ok() {
                return Ok(Handle::Myself);
            }
            let pid = rustix::process::getpid();
            Ok(Handle::Pidfd(
                rustix::process::pidfd_open(pid, PidfdFlags::empty())?,
                pid,
            ))
        };
        match open() {
            Ok(handle) => Ok(Self { handle }),
            Err(errno) => Err(CallError::new(Call::PidfdOpen, errno)),
        }
    }

    /// Gives up the pages of many ranges, with one flush for as many as the kernel takes at once
    /// (`IOV_MAX`, 1,024; longer lists take several calls).
    ///
    /// Stops as [`dont_need`] fails, and with `EINVAL` or `EPERM` where the kernel allows no such
    /// advice (before Linux 6.13). `ESRCH` in the child of a fork, where the kernel is too old for
    /// a name that holds across it.
    ///
    /// # Safety
    ///
    /// The caller owns the memory, and nobody views it as `&` or `&mut`.
    ///
    /// # References
    ///
    /// process_madvise(2).
    pub unsafe fn dont_need_all(&self, spans: &[Span]) -> Progress {
        // SAFETY: the caller gives up the contents.
        unsafe { self.advise_raw(spans, libc::MADV_DONTNEED) }
    }

    /// Advises on many ranges.
    ///
    /// Stops as [`advise`] fails. Before Linux 6.13 there are [`Advice::Cold`],
    /// [`Advice::PageOut`] and [`Advice::Collapse`] only.
    ///
    /// # References
    ///
    /// process_madvise(2).
    pub fn advise_all(&self, spans: &[Span], advice: Advice) -> Progress {
        // SAFETY: none of these changes what memory contains.
        unsafe { self.advise_raw(spans, advice.raw()) }
    }

    /// # Safety
    ///
    /// The caller allows what the advice does to the contents of the ranges.
    unsafe fn advise_raw(&self, spans: &[Span], advice: i32) -> Progress {
        let total = spans.iter().map(|span| span.0.iov_len).sum();
        hook::stepwise(Call::ProcessMadvise, total, |limit| {
            let mut list = Remaining { spans, skip: 0 };
            let mut done = 0;
            while done < limit {
                // SAFETY: by this function's contract.
                match unsafe { self.advise_some(&list, limit - done, advice) } {
                    Ok(0) => return Progress::partial(done, Errno::AGAIN),
                    Ok(bytes) => {
                        done += bytes;
                        list.advance(bytes);
                    }
                    Err(errno) => return Progress::partial(done, errno),
                }
            }
            Progress::complete(done)
        })
    }

    /// One call, for no more than `limit` bytes; says how many it did.
    ///
    /// # Safety
    ///
    /// As [`advise_raw`](Self::advise_raw).
    unsafe fn advise_some(
        &self,
        list: &Remaining<'_>,
        limit: usize,
        advice: i32,
    ) -> Result<usize, Errno> {
        let handle = match &self.handle {
            Handle::Myself => Self::MYSELF,
            Handle::Pidfd(_, pid) if *pid != rustix::process::getpid() => return Err(Errno::SRCH),
            Handle::Pidfd(fd, _) => fd.as_raw_fd(),
        };
        let (whole, part) = list.next_call(limit);
        let spans = match &part {
            Some(part) => std::slice::from_ref(part),
            None => whole,
        };
        // SAFETY: by this function's contract.
        unsafe { process_madvise(handle, spans, advice) }
    }
}

/// The rest of a list, the first `skip` bytes of whose first span are done.
struct Remaining<'a> {
    spans: &'a [Span],
    skip: usize,
}

impl<'a> Remaining<'a> {
    /// What the next call takes: a run of whole spans, or a part of one.
    fn next_call(&self, limit: usize) -> (&'a [Span], Option<Span>) {
        const IOV_MAX: usize = 1024;
        let Some(first) = self.spans.first() else {
            return (&[], None);
        };
        if self.skip > 0 || first.0.iov_len > limit {
            return (&[], Some(first.back(self.skip).front(limit)));
        }
        let mut left = limit;
        let fits = self.spans.iter().take(IOV_MAX).take_while(|span| {
            let fits = span.0.iov_len <= left;
            left = left.saturating_sub(span.0.iov_len);
            fits
        });
        (&self.spans[..fits.count()], None)
    }

    fn advance(&mut self, bytes: usize) {
        self.skip += bytes;
        while let Some(first) = self.spans.first()
            && self.skip >= first.0.iov_len
        {
            self.skip -= first.0.iov_len;
            self.spans = &self.spans[1..];
        }
    }
}

/// # Safety
///
/// The caller allows what the advice does to the contents of the ranges.
unsafe fn process_madvise(pidfd: RawFd, spans: &[Span], advice: i32) -> Result<usize, Errno> {
    // SAFETY: `Span` is an `iovec`; for the rest by this function's contract.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            pidfd,
            spans.as_ptr(),
            spans.len(),
            advice,
            0_u32,
        )
    };
    answer(ret)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(mut list: Remaining<'_>, mut limit: usize, step: usize) -> Vec<(usize, usize)> {
        let mut seen = Vec::new();
        while limit > 0 {
            let (whole, part) = list.next_call(limit);
            let spans = part.as_ref().map_or(whole, std::slice::from_ref);
            let bytes: usize = spans.iter().map(|span| span.range().len()).sum();
            seen.push((spans[0].range().start, bytes));
            let done = bytes.min(step);
            list.advance(done);
            limit -= done;
        }
        seen
    }

    #[test]
    fn lists_are_cut_where_calls_stop() {
        let spans: Vec<Span> = vec![(0..10).into(), (20..30).into(), (40..50).into()];
        let list = || Remaining {
            spans: &spans,
            skip: 0,
        };
        assert_eq!(calls(list(), 30, 30), [(0, 30)]);
        // A limit inside a span: the whole ones first.
        assert_eq!(calls(list(), 15, 30), [(0, 10), (20, 5)]);
        assert_eq!(calls(list(), 5, 30), [(0, 5)]);
        // The kernel stops inside the second span.
        assert_eq!(calls(list(), 30, 15), [(0, 30), (25, 5), (40, 10)]);
    }

    #[test]
    fn long_lists_take_several_calls() {
        let spans: Vec<Span> = (0..2000_usize).map(|i| (i * 2..i * 2 + 1).into()).collect();
        let list = Remaining {
            spans: &spans,
            skip: 0,
        };
        assert_eq!(calls(list, 2000, usize::MAX), [(0, 1024), (2048, 976)]);
    }
}
