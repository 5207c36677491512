//! Counting a tracepoint.

use std::ffi::CString;
use std::mem::{offset_of, size_of};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::ioctl::{self, IntegerSetter, NoArg, Opcode, opcode};
use rustix::process::Pid;

use super::tracefs::TlbFlush;
use crate::abi::answer;
use crate::{Call, CallError, hook};

/// Whose events are counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scope {
    /// Those of a thread, wherever it runs; `None` for the caller.
    Thread(Option<Pid>),
    /// Those of everybody, on one CPU.
    Cpu(u32),
}

/// The first version of `struct perf_event_attr`, which every kernel takes.
#[repr(C)]
#[derive(Debug, Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

const ATTR_SIZE_VER0: u32 = 64;
const TYPE_TRACEPOINT: u32 = 2;
/// The first bit of the flags; the second, `inherit`, stays off.
const FLAG_DISABLED: u64 = 1 << 0;
const FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

const IOC_ENABLE: Opcode = opcode::none(b'$', 0);
const IOC_DISABLE: Opcode = opcode::none(b'$', 1);
const IOC_SET_FILTER: Opcode = opcode::write::<*const libc::c_char>(b'$', 6);

const _: () = {
    assert!(size_of::<Attr>() == ATTR_SIZE_VER0 as usize);
    assert!(offset_of!(Attr, config) == 8 && offset_of!(Attr, sample_period) == 16);
    assert!(offset_of!(Attr, sample_type) == 24 && offset_of!(Attr, read_format) == 32);
    assert!(offset_of!(Attr, flags) == 40 && offset_of!(Attr, wakeup_events) == 48);
    assert!(offset_of!(Attr, bp_type) == 52 && offset_of!(Attr, config1) == 56);
};

#[cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
))]
const _: () = {
    assert!(IOC_ENABLE == 0x2400);
    assert!(IOC_DISABLE == 0x2401);
    assert!(IOC_SET_FILTER == 0x4008_2406);
};

/// One counter of the tracepoint.
#[derive(Debug)]
pub(super) struct Tracepoint {
    fd: OwnedFd,
}

impl Tracepoint {
    /// Opens a counter that does not count yet.
    pub(super) fn open(event: &TlbFlush, scope: Scope) -> Result<Self, CallError> {
        let open = || {
            hook::whole(Call::PerfEventOpen)?;
            let counter = Self {
                fd: perf_event_open(TYPE_TRACEPOINT, event.id, scope)?,
            };
            counter.set_filter(&format!("reason=={}", event.send_ipi))?;
            Ok(counter)
        };
        open().map_err(|errno| CallError::new(Call::PerfEventOpen, errno))
    }

    fn set_filter(&self, filter: &str) -> Result<(), Errno> {
        let filter = CString::new(filter).map_err(|_| Errno::INVAL)?;
        // SAFETY: the argument is the address of a string, which lives until after the call.
        let call = unsafe {
            IntegerSetter::<IOC_SET_FILTER>::new_pointer(filter.as_ptr().cast_mut().cast())
        };
        // SAFETY: `fd` is a perf event, and its filter reads a string.
        unsafe { ioctl::ioctl(&self.fd, call) }
    }

    pub(super) fn read(&self) -> Result<u64, CallError> {
        let mut count = [0; size_of::<u64>()];
        hook::whole(Call::PerfCounter)
            .and_then(|()| rustix::io::read(&self.fd, &mut count))
            .map_err(|errno| CallError::new(Call::PerfCounter, errno))?;
        Ok(u64::from_ne_bytes(count))
    }

    pub(super) fn enable(&self) -> Result<(), CallError> {
        // SAFETY: this number takes no argument.
        self.switch(unsafe { NoArg::<IOC_ENABLE>::new() })
    }

    pub(super) fn disable(&self) -> Result<(), CallError> {
        // SAFETY: this number takes no argument.
        self.switch(unsafe { NoArg::<IOC_DISABLE>::new() })
    }

    fn switch<const OPCODE: Opcode>(&self, call: NoArg<OPCODE>) -> Result<(), CallError> {
        hook::whole(Call::PerfCounter)
            // SAFETY: `fd` is a perf event, and the numbers switch it on and off.
            .and_then(|()| unsafe { ioctl::ioctl(&self.fd, call) })
            .map_err(|errno| CallError::new(Call::PerfCounter, errno))
    }
}

/// Opens a counter of misses in a cache of the CPU, which counts the calling thread.
pub(crate) fn open_cache_misses(cache: u64) -> Result<OwnedFd, Errno> {
    const TYPE_HW_CACHE: u32 = 3;
    const OP_READ: u64 = 0;
    const RESULT_MISS: u64 = 1;
    let config = cache | (OP_READ << 8) | (RESULT_MISS << 16);
    let fd = perf_event_open(TYPE_HW_CACHE, config, Scope::Thread(None))?;
    // SAFETY: this number takes no argument.
    let enable = unsafe { NoArg::<IOC_ENABLE>::new() };
    // SAFETY: `fd` is a perf event, and the number switches it on.
    unsafe { ioctl::ioctl(&fd, enable) }?;
    Ok(fd)
}

fn perf_event_open(kind: u32, config: u64, scope: Scope) -> Result<OwnedFd, Errno> {
    let attr = Attr {
        kind,
        size: ATTR_SIZE_VER0,
        config,
        flags: FLAG_DISABLED,
        ..Attr::default()
    };
    let (pid, cpu) = match scope {
        Scope::Thread(thread) => (thread.map_or(0, |thread| thread.as_raw_nonzero().get()), -1),
        Scope::Cpu(cpu) => (-1, i32::try_from(cpu).map_err(|_| Errno::INVAL)?),
    };
    // SAFETY: the attributes have the size they say; the answer is a new descriptor.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            pid,
            cpu,
            -1,
            FLAG_FD_CLOEXEC,
        )
    };
    let fd = RawFd::try_from(answer(ret)?).map_err(|_| Errno::IO)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
