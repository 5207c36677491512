//! userfaultfd: page faults, and moving pages about, in user space.
//!
//! # What is safe
//!
//! [`Uffd::register`] is `unsafe` and takes one promise: nobody views the range as `&` or `&mut`.
//! What can then happen to the range (holes are filled, stores wait, pages of the file are mapped)
//! is what that promise allows for, so the calls that the kernel confines to registered memory are
//! safe: [`zeropage`](Uffd::zeropage), [`write_protect`](Uffd::write_protect),
//! [`continue_range`](Uffd::continue_range), [`wake`](Uffd::wake),
//! [`unregister`](Uffd::unregister). The kernel does not ask *which* userfaultfd a range is
//! registered with, so the promise covers those of everybody in the process.
//! [`copy`](Uffd::copy) and [`move_range`](Uffd::move_range) are `unsafe` for their sources.
//!
//! # Partial results
//!
//! Calls over many pages answer [`Progress`]. [`Errno::AGAIN`] in it means either that the call did
//! some and stopped for a reason that the next call will give, or that the address space is about
//! to change (`mmap_changing`: an event must be read first).

mod abi;
mod event;
mod flags;
mod open;

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, Updater};

use self::abi::{Fill, Message, Register, Span, Transfer, WriteProtect};
use crate::abi::{errno_in_field, len, to_u64};
use crate::{Call, CallError, Progress, hook};

pub use event::Event;
pub use flags::{
    Allowed, ContinueMode, CopyMode, FaultFlags, Features, Ioctls, MoveMode, Protection,
    RegisterMode, Waiters,
};
pub use open::{Access, OpenError, Probe, Refusals, probe};

/// A userfaultfd of this process, closed on exec, never blocking.
///
/// Dropping it unregisters all its ranges, and wakes everybody who waits: accesses to missing pages
/// then find zeros.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    access: Access,
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Uffd {
    /// Opens a userfaultfd with just the features of `want`, by the best of the `allowed` ways.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says which ways were tried, or which features are missing.
    ///
    /// # References
    ///
    /// userfaultfd(2), ioctl_userfaultfd(2), `Documentation/admin-guide/mm/userfaultfd.rst`.
    pub fn open(want: Features, allowed: Allowed) -> Result<Self, OpenError> {
        let (fd, access) = open::open(want, allowed)?;
        Ok(Self { fd, access })
    }

    /// How it was got.
    #[must_use]
    pub const fn access(&self) -> Access {
        self.access
    }

    /// Starts to catch the faults of a range, and says what can be done to it.
    ///
    /// # Safety
    ///
    /// The caller owns the memory. From now on, for as long as it is mapped, nobody views it as `&`
    /// or `&mut`: it is reached by raw or volatile access only, by threads that may be made to wait
    /// in any access and may find zeros after the userfaultfd is gone.
    ///
    /// # Errors
    ///
    /// `EINVAL` for memory or a mode that cannot be registered, `EBUSY` where another userfaultfd
    /// has it, `EPERM` for files that cannot be written.
    ///
    /// # References
    ///
    /// UFFDIO_REGISTER(2const).
    pub unsafe fn register(
        &self,
        range: Range<usize>,
        mode: RegisterMode,
    ) -> Result<Ioctls, CallError> {
        let mut register = Register {
            range: span(&range),
            mode: mode.bits(),
            ioctls: 0,
        };
        hook::whole(Call::UffdRegister)
            // SAFETY: `Register` is the structure for this number.
            .and_then(|()| unsafe { self.ioctl::<{ abi::UFFDIO_REGISTER }, _>(&mut register) })
            .map_err(|errno| CallError::at(Call::UffdRegister, range, errno))?;
        Ok(Ioctls::from_bits_retain(register.ioctls))
    }

    /// Stops catching the faults of a range, lifts its write protection, and wakes who waits.
    ///
    /// # Errors
    ///
    /// `EINVAL` for memory that could not be registered.
    ///
    /// # References
    ///
    /// UFFDIO_UNREGISTER(2const).
    pub fn unregister(&self, range: Range<usize>) -> Result<(), CallError> {
        let mut raw = span(&range);
        hook::whole(Call::UffdUnregister)
            // SAFETY: `Span` is the structure for this number.
            .and_then(|()| unsafe { self.ioctl::<{ abi::UFFDIO_UNREGISTER }, _>(&mut raw) })
            .map_err(|errno| CallError::at(Call::UffdUnregister, range, errno))
    }

    /// Wakes the threads that wait for pages of a range; they try again.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a range that is empty or not of whole pages.
    ///
    /// # References
    ///
    /// UFFDIO_WAKE(2const).
    pub fn wake(&self, range: Range<usize>) -> Result<(), CallError> {
        let mut raw = span(&range);
        hook::whole(Call::UffdWake)
            // SAFETY: `Span` is the structure for this number.
            .and_then(|()| unsafe { self.ioctl::<{ abi::UFFDIO_WAKE }, _>(&mut raw) })
            .map_err(|errno| CallError::at(Call::UffdWake, range, errno))
    }

    /// Fills holes of a registered range with copies of `len` bytes at `src`.
    ///
    /// Stops with `EEXIST` at a page that is there, `ENOENT` outside registered memory, `EFAULT` at
    /// a source that cannot be read, `ENOSPC` where the child process of a fork cannot have it.
    ///
    /// # Safety
    ///
    /// `src` may be read for `len` bytes, and nobody writes there meanwhile unless stores and this
    /// copy may mix.
    ///
    /// # References
    ///
    /// UFFDIO_COPY(2const).
    pub unsafe fn copy(&self, dst: usize, src: *const u8, len: usize, mode: CopyMode) -> Progress {
        let src = to_u64(src.expose_provenance());
        hook::stepwise(Call::UffdCopy, len, |len| {
            let mut copy = Transfer {
                dst: to_u64(dst),
                src,
                len: to_u64(len),
                mode: mode.bits(),
                done: 0,
            };
            // SAFETY: `Transfer` is the structure for this number, and the source may be read.
            let result = unsafe { self.ioctl::<{ abi::UFFDIO_COPY }, _>(&mut copy) };
            outcome(result, copy.done, len)
        })
    }

    /// Fills holes of a registered range with zeros.
    ///
    /// Stops with `EEXIST` at a page that is there, `ENOENT` outside registered memory. `EINVAL` on
    /// hugetlbfs, which has no zero page.
    ///
    /// # References
    ///
    /// UFFDIO_ZEROPAGE(2const).
    pub fn zeropage(&self, range: Range<usize>, waiters: Waiters) -> Progress {
        let mode = match waiters {
            Waiters::Wake => 0,
            Waiters::LeaveAsleep => abi::ZEROPAGE_MODE_DONTWAKE,
        };
        hook::stepwise(Call::UffdZeropage, len(&range), |len| {
            let mut fill = Fill {
                range: front(&range, len),
                mode,
                done: 0,
            };
            // SAFETY: `Fill` is the structure for this number.
            let result = unsafe { self.ioctl::<{ abi::UFFDIO_ZEROPAGE }, _>(&mut fill) };
            outcome(result, fill.done, len)
        })
    }

    /// Maps the pages that the file has for a range registered for minor faults.
    ///
    /// Stops with `EEXIST` at a page that is mapped, `EFAULT` where the file has none, `ENOENT`
    /// outside registered memory.
    ///
    /// # References
    ///
    /// UFFDIO_CONTINUE(2const).
    pub fn continue_range(&self, range: Range<usize>, mode: ContinueMode) -> Progress {
        hook::stepwise(Call::UffdContinue, len(&range), |len| {
            let mut fill = Fill {
                range: front(&range, len),
                mode: mode.bits(),
                done: 0,
            };
            // SAFETY: `Fill` is the structure for this number.
            let result = unsafe { self.ioctl::<{ abi::UFFDIO_CONTINUE }, _>(&mut fill) };
            outcome(result, fill.done, len)
        })
    }

    /// Moves the pages of `src` into holes of a registered range: the frames change their address
    /// and are not copied, and `src` is left empty.
    ///
    /// Stops with `EEXIST` at a page that is there, `ENOENT` at a hole in the source or outside
    /// registered memory, `EBUSY` at a page that is shared since a fork or pinned, `EINVAL` for
    /// memory that is not private and anonymous, or not locked alike, `EAGAIN` (with nothing done)
    /// at a race that another try will win.
    ///
    /// Linux 6.18 can move pages and not count them: after a race that the call has won inside, it
    /// forgets to advance, and stops with `EEXIST` at the first of the pages that it has just moved.
    /// Then the source has a hole there, which tells this from a destination that was never empty.
    ///
    /// # Safety
    ///
    /// The caller owns `src`, and nobody views it as `&` or `&mut`: its contents go away, and an
    /// access finds zeros, or waits if it is registered. Nobody has an address of it that must stay
    /// bound to the same contents.
    ///
    /// # References
    ///
    /// UFFDIO_MOVE(2const), Linux 6.8.
    pub unsafe fn move_range(
        &self,
        dst: usize,
        src: usize,
        len: usize,
        mode: MoveMode,
    ) -> Progress {
        hook::stepwise(Call::UffdMove, len, |len| {
            let mut transfer = Transfer {
                dst: to_u64(dst),
                src: to_u64(src),
                len: to_u64(len),
                mode: mode.bits(),
                done: 0,
            };
            // SAFETY: `Transfer` is the structure for this number, and the source may be taken.
            let result = unsafe { self.ioctl::<{ abi::UFFDIO_MOVE }, _>(&mut transfer) };
            outcome(result, transfer.done, len)
        })
    }

    /// Stops or frees the stores to a range registered for write protection.
    ///
    /// # Errors
    ///
    /// `ENOENT` outside such memory, at which the kernel stops: what lies before it is done, and what lies
    /// behind it is not. `EAGAIN` when the address space is about to change and nothing was done. After
    /// other errors the range may be done in part.
    ///
    /// # References
    ///
    /// UFFDIO_WRITEPROTECT(2const).
    pub fn write_protect(
        &self,
        range: Range<usize>,
        protection: Protection,
    ) -> Result<(), CallError> {
        let mode = protection.bits();
        hook::silent(Call::UffdWriteProtect, len(&range), |len| {
            let mut protect = WriteProtect {
                range: front(&range, len),
                mode,
            };
            // SAFETY: `WriteProtect` is the structure for this number.
            unsafe { self.ioctl::<{ abi::UFFDIO_WRITEPROTECT }, _>(&mut protect) }
        })
        .map_err(|errno| CallError::at(Call::UffdWriteProtect, range, errno))
    }

    /// Takes what is reported so far, without waiting; appends it to `events` and says how much it
    /// was.
    ///
    /// Takes no more than fit into the spare capacity of `events`, which is not made larger unless
    /// it has none, and no more than a few dozen at once. So zero means that nothing is left.
    ///
    /// # Errors
    ///
    /// Whatever read(2) says, other than `EAGAIN`.
    ///
    /// # References
    ///
    /// userfaultfd(2), "Reading from the userfaultfd structure".
    pub fn read_events(&self, events: &mut Vec<Event>) -> Result<usize, CallError> {
        const AT_ONCE: usize = 32;
        let mut messages = [Message::default(); AT_ONCE];
        let fit = (events.capacity() - events.len()).clamp(1, AT_ONCE);
        let bytes = size_of_val(&messages[..fit]);
        // SAFETY: `Message` has no padding, and any bytes make a valid one.
        let buffer =
            unsafe { std::slice::from_raw_parts_mut(messages.as_mut_ptr().cast::<u8>(), bytes) };
        let read = hook::whole(Call::UffdRead).and_then(|()| rustix::io::read(&self.fd, buffer));
        let count = match read {
            Ok(bytes) => bytes / size_of::<Message>(),
            Err(Errno::AGAIN) => 0,
            Err(errno) => return Err(CallError::new(Call::UffdRead, errno)),
        };
        for message in &messages[..count] {
            // SAFETY: the kernel has just written this message, and it is dropped here.
            events.push(unsafe { Event::decode(message, self.access) });
        }
        Ok(count)
    }

    /// # Safety
    ///
    /// `T` is the structure for the number `OPCODE`, and what the kernel will do is allowed.
    unsafe fn ioctl<const OPCODE: Opcode, T>(&self, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: by this function's contract.
        let call = unsafe { Updater::<OPCODE, T>::new(argument) };
        // SAFETY: by this function's contract.
        unsafe { ioctl::ioctl(&self.fd, call) }
    }
}

fn span(range: &Range<usize>) -> Span {
    front(range, len(range))
}

/// The first `len` bytes of a range.
fn front(range: &Range<usize>, len: usize) -> Span {
    Span {
        start: to_u64(range.start),
        len: to_u64(len),
    }
}

/// Reads the answer of a call over many pages.
///
/// The kernel leaves the bytes done, or a negated errno, in the structure. It fails with `EAGAIN`
/// when it did less than all, and where it fails early it leaves the field alone.
fn outcome(result: Result<(), Errno>, field: i64, len: usize) -> Progress {
    match (result, usize::try_from(field)) {
        (Ok(()), Ok(done)) if done < len => Progress::partial(done, Errno::AGAIN),
        (Ok(()), Ok(_)) => Progress::complete(len),
        (Ok(()), Err(_)) => Progress::partial(0, errno_in_field(field).unwrap_or(Errno::IO)),
        (Err(errno), Ok(done)) => Progress::partial(done.min(len), errno),
        (Err(errno), Err(_)) => Progress::partial(0, errno_in_field(field).unwrap_or(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes() {
        let fails = Err(Errno::AGAIN);
        assert_eq!(outcome(Ok(()), 8192, 8192), Progress::complete(8192));
        assert_eq!(
            outcome(fails, 4096, 8192),
            Progress::partial(4096, Errno::AGAIN)
        );
        // The field is untouched: the errno of the ioctl is all there is.
        assert_eq!(
            outcome(Err(Errno::INVAL), 0, 8192),
            Progress::partial(0, Errno::INVAL)
        );
        // The field is more precise than the ioctl.
        let exist = -i64::from(Errno::EXIST.raw_os_error());
        assert_eq!(
            outcome(fails, exist, 8192),
            Progress::partial(0, Errno::EXIST)
        );
        assert_eq!(
            outcome(fails, i64::MIN, 8192),
            Progress::partial(0, Errno::AGAIN)
        );
        assert_eq!(
            outcome(Ok(()), 4096, 8192),
            Progress::partial(4096, Errno::AGAIN)
        );
    }
}
