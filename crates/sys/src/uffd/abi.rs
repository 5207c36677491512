//! The structures and numbers of `<linux/userfaultfd.h>`, each held against its value by the
//! compiler.

use std::mem::{offset_of, size_of};

use rustix::ioctl::{Opcode, opcode};

/// The first field of the handshake.
pub(super) const UFFD_API: u64 = 0xaa;
/// A flag of userfaultfd(2).
pub(super) const USER_MODE_ONLY: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Api {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Register {
    pub(super) range: Span,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}

/// The structure of `UFFDIO_COPY`, and of `UFFDIO_MOVE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Transfer {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    /// Written by the kernel: bytes done, or a negated errno.
    pub(super) done: i64,
}

/// The structure of `UFFDIO_ZEROPAGE`, and of `UFFDIO_CONTINUE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fill {
    pub(super) range: Span,
    pub(super) mode: u64,
    /// Written by the kernel: bytes done, or a negated errno.
    pub(super) done: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WriteProtect {
    pub(super) range: Span,
    pub(super) mode: u64,
}

/// What a read delivers. The union of the events is three words here, of which each event uses
/// some.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Message {
    pub(super) event: u8,
    pub(super) reserved1: u8,
    pub(super) reserved2: u16,
    pub(super) reserved3: u32,
    pub(super) words: [u64; 3],
}

pub(super) const EVENT_PAGEFAULT: u8 = 0x12;
pub(super) const EVENT_FORK: u8 = 0x13;
pub(super) const EVENT_REMAP: u8 = 0x14;
pub(super) const EVENT_REMOVE: u8 = 0x15;
pub(super) const EVENT_UNMAP: u8 = 0x16;

pub(super) const COPY_MODE_DONTWAKE: u64 = 1 << 0;
pub(super) const COPY_MODE_WP: u64 = 1 << 1;
pub(super) const ZEROPAGE_MODE_DONTWAKE: u64 = 1 << 0;
pub(super) const CONTINUE_MODE_DONTWAKE: u64 = 1 << 0;
pub(super) const CONTINUE_MODE_WP: u64 = 1 << 1;
pub(super) const MOVE_MODE_DONTWAKE: u64 = 1 << 0;
pub(super) const MOVE_MODE_ALLOW_SRC_HOLES: u64 = 1 << 1;
pub(super) const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
pub(super) const WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;

/// The ioctl of `/dev/userfaultfd`.
pub(super) const USERFAULTFD_IOC_NEW: Opcode = opcode::none(0xaa, 0x00);

pub(super) const UFFDIO_API: Opcode = opcode::read_write::<Api>(0xaa, 0x3f);
pub(super) const UFFDIO_REGISTER: Opcode = opcode::read_write::<Register>(0xaa, 0x00);
pub(super) const UFFDIO_UNREGISTER: Opcode = opcode::read::<Span>(0xaa, 0x01);
pub(super) const UFFDIO_WAKE: Opcode = opcode::read::<Span>(0xaa, 0x02);
pub(super) const UFFDIO_COPY: Opcode = opcode::read_write::<Transfer>(0xaa, 0x03);
pub(super) const UFFDIO_ZEROPAGE: Opcode = opcode::read_write::<Fill>(0xaa, 0x04);
pub(super) const UFFDIO_MOVE: Opcode = opcode::read_write::<Transfer>(0xaa, 0x05);
pub(super) const UFFDIO_WRITEPROTECT: Opcode = opcode::read_write::<WriteProtect>(0xaa, 0x06);
pub(super) const UFFDIO_CONTINUE: Opcode = opcode::read_write::<Fill>(0xaa, 0x07);

const _: () = {
    assert!(size_of::<Api>() == 24);
    assert!(offset_of!(Api, features) == 8 && offset_of!(Api, ioctls) == 16);
    assert!(size_of::<Span>() == 16 && offset_of!(Span, len) == 8);
    assert!(size_of::<Register>() == 32);
    assert!(offset_of!(Register, mode) == 16 && offset_of!(Register, ioctls) == 24);
    assert!(size_of::<Transfer>() == 40);
    assert!(offset_of!(Transfer, src) == 8 && offset_of!(Transfer, len) == 16);
    assert!(offset_of!(Transfer, mode) == 24 && offset_of!(Transfer, done) == 32);
    assert!(size_of::<Fill>() == 32);
    assert!(offset_of!(Fill, mode) == 16 && offset_of!(Fill, done) == 24);
    assert!(size_of::<WriteProtect>() == 24 && offset_of!(WriteProtect, mode) == 16);
    assert!(size_of::<Message>() == 32 && offset_of!(Message, words) == 8);
};

// The generic encoding of ioctl numbers, which x86, arm64 and riscv share.
#[cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
))]
const _: () = {
    assert!(USERFAULTFD_IOC_NEW == 0x0000_aa00);
    assert!(UFFDIO_API == 0xc018_aa3f);
    assert!(UFFDIO_REGISTER == 0xc020_aa00);
    assert!(UFFDIO_UNREGISTER == 0x8010_aa01);
    assert!(UFFDIO_WAKE == 0x8010_aa02);
    assert!(UFFDIO_COPY == 0xc028_aa03);
    assert!(UFFDIO_ZEROPAGE == 0xc020_aa04);
    assert!(UFFDIO_MOVE == 0xc028_aa05);
    assert!(UFFDIO_WRITEPROTECT == 0xc018_aa06);
    assert!(UFFDIO_CONTINUE == 0xc020_aa07);
};
