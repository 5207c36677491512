//! The page map entry by entry, as every kernel has it, and what the kernel knows of a frame.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::slice;

use super::Pagemap;
use crate::{Call, CallError, Errno, hook};

/// One page of a process, as `/proc/PID/pagemap` has it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageEntry(u64);

/// An entry as the kernel writes it.
impl From<u64> for PageEntry {
    fn from(word: u64) -> Self {
        Self(word)
    }
}

impl PageEntry {
    /// Whether the page is in memory.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.0 & (1 << 63) != 0
    }

    /// Whether it is of a file or of shared memory.
    #[must_use]
    pub const fn is_file(self) -> bool {
        self.0 & (1 << 61) != 0
    }

    /// Whether it is mapped here and nowhere else, neither by another process nor twice by this one.
    /// The kernel says so only of memory that it keeps count of: not of the page of zeros, and not of
    /// what a device has.
    #[must_use]
    pub const fn is_exclusive(self) -> bool {
        self.is_present() && self.0 & (1 << 56) != 0
    }

    /// The number of its frame. Zero without `CAP_SYS_ADMIN`.
    #[must_use]
    pub const fn frame(self) -> u64 {
        if self.is_present() {
            self.0 & ((1 << 55) - 1)
        } else {
            0
        }
    }
}

impl Pagemap {
    /// Reads the entries of the pages from number `first` on (address over page size), as many as
    /// there is room for; answers how many there were before the end of the address space.
    ///
    /// # Errors
    ///
    /// `ESRCH` for a process that has ended, `ENOMEM`.
    ///
    /// # References
    ///
    /// proc_pid_pagemap(5), `Documentation/admin-guide/mm/pagemap.rst`.
    pub fn entries(&self, first: u64, entries: &mut [PageEntry]) -> Result<usize, CallError> {
        let size = size_of::<PageEntry>();
        let length = size_of_val(entries);
        // SAFETY: an entry is a word and may have any value; the bytes are those of the slice, which
        // is borrowed for as long as they are.
        let bytes = unsafe { slice::from_raw_parts_mut(entries.as_mut_ptr().cast::<u8>(), length) };
        let mut filled = 0;
        while filled < bytes.len() {
            let at = first * 8 + crate::abi::to_u64(filled);
            let read = hook::whole(Call::PagemapRead)
                .and_then(|()| rustix::io::pread(&self.fd, &mut bytes[filled..], at));
            match read {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(CallError::new(Call::PagemapRead, errno)),
            }
        }
        Ok(filled / size)
    }
}

/// What the kernel knows of a frame.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameFlags(u64);

impl FrameFlags {
    const REFERENCED: u64 = 1 << 2;
    const ACTIVE: u64 = 1 << 6;
    const THP: u64 = 1 << 22;

    /// Whether it was used lately, as far as the kernel has noticed.
    #[must_use]
    pub const fn is_warm(self) -> bool {
        self.0 & (Self::REFERENCED | Self::ACTIVE) != 0
    }

    /// Whether it is part of a transparent huge page.
    #[must_use]
    pub const fn is_huge(self) -> bool {
        self.0 & Self::THP != 0
    }
}

/// The kernel's account of frames, `/proc/kpageflags`.
#[derive(Debug)]
pub struct Frames {
    file: File,
}

impl Frames {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// Permission is denied to all but root.
    ///
    /// # References
    ///
    /// `Documentation/admin-guide/mm/pagemap.rst`.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/kpageflags").map(|file| Self { file })
    }

    /// What the kernel knows of the frame of a number; `None` where there is no such frame.
    #[must_use]
    pub fn flags(&self, frame: u64) -> Option<FrameFlags> {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, frame * 8).ok()?;
        Some(FrameFlags(u64::from_ne_bytes(word)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_a_frame_only_in_memory() {
        assert_eq!(PageEntry((1 << 63) | 77).frame(), 77);
        assert_eq!(
            PageEntry((1 << 62) | 77).frame(),
            0,
            "that is a place in swap"
        );
        assert!(PageEntry(1 << 61).is_file());
        assert!(PageEntry((1 << 63) | (1 << 56)).is_exclusive());
        assert!(!PageEntry(1 << 63).is_exclusive() && !PageEntry(1 << 56).is_exclusive());
    }
}
