//! What the device answers: 32 bytes that say how it went.

use std::mem::{align_of, offset_of, size_of};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// How an operation ended. Zero means that it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u8);

impl Status {
    pub(crate) const SUCCESS: Self = Self(0x01);
    /// A page was missing, and the operation was not told to wait for it.
    pub(crate) const PAGE_FAULT: Self = Self(0x03);
    /// A member of the batch did not succeed.
    pub(crate) const BATCH_FAILED: Self = Self(0x05);
    /// A page of the list of descriptors was missing.
    pub(crate) const BATCH_PAGE_FAULT: Self = Self(0x06);
    pub(crate) const BAD_OPCODE: Self = Self(0x10);
    pub(crate) const INVALID_FLAGS: Self = Self(0x11);
    pub(crate) const RESERVED_FIELD: Self = Self(0x12);
    pub(crate) const TRANSFER_SIZE: Self = Self(0x13);
    pub(crate) const BATCH_SIZE: Self = Self(0x14);
    pub(crate) const LIST_ALIGNMENT: Self = Self(0x18);
    pub(crate) const HARDWARE_ERROR: Self = Self(0x20);
    pub(crate) const TRANSLATION_FAILED: Self = Self(0x22);
    /// Beside a page fault: it was a write.
    pub(crate) const ON_WRITE: u8 = 0x80;

    /// Without the bit that says whether a fault was on a write.
    pub(crate) const fn code(self) -> Self {
        Self(self.0 & !Self::ON_WRITE)
    }
}

/// A completion record (`struct dsa_completion_record`). The device writes it when it likes, so every
/// field is an atomic; it writes the status last.
#[derive(Debug, Default)]
#[repr(C, align(32))]
pub(crate) struct Record {
    status: AtomicU8,
    result: AtomicU8,
    reserved: AtomicU16,
    done: AtomicU32,
    fault: AtomicU64,
    invalid_flags: AtomicU32,
    specific: [AtomicU32; 3],
}

const _: () = {
    assert!(size_of::<Record>() == 32 && align_of::<Record>() == 32);
    assert!(offset_of!(Record, status) == 0);
    assert!(offset_of!(Record, result) == 1);
    assert!(offset_of!(Record, done) == 4);
    assert!(offset_of!(Record, fault) == 8);
    assert!(offset_of!(Record, invalid_flags) == 16);
};

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) status: Status,
    /// Of a copy that a fault ended: 1 if it went from the end to the beginning.
    pub(crate) result: u8,
    /// Bytes; of a batch, descriptors.
    pub(crate) done: u32,
    /// The address at which there was a fault.
    pub(crate) fault: u64,
    /// Which flags were not allowed.
    pub(crate) invalid_flags: u32,
}

impl Completion {
    pub(crate) const fn of(status: Status) -> Self {
        Self {
            status,
            result: 0,
            done: 0,
            fault: 0,
            invalid_flags: 0,
        }
    }
}

impl Record {
    pub(crate) fn address(&self) -> u64 {
        std::ptr::from_ref(self).expose_provenance() as u64
    }

    /// Makes it ready for an operation, which submitting orders after this.
    pub(crate) fn clear(&self) {
        self.status.store(0, Ordering::Relaxed);
    }

    /// What it says, once something has.
    pub(crate) fn read(&self) -> Option<Completion> {
        // Acquire: what the device wrote before the status, the data among it, is seen after it.
        let status = self.status.load(Ordering::Acquire);
        (status != 0).then(|| Completion {
            status: Status(status),
            result: self.result.load(Ordering::Relaxed),
            done: self.done.load(Ordering::Relaxed),
            fault: self.fault.load(Ordering::Relaxed),
            invalid_flags: self.invalid_flags.load(Ordering::Relaxed),
        })
    }

    /// What the model does at the end of an operation.
    pub(crate) fn write(&self, completion: Completion) {
        self.result.store(completion.result, Ordering::Relaxed);
        self.reserved.store(0, Ordering::Relaxed);
        self.done.store(completion.done, Ordering::Relaxed);
        self.fault.store(completion.fault, Ordering::Relaxed);
        self.invalid_flags
            .store(completion.invalid_flags, Ordering::Relaxed);
        for word in &self.specific {
            word.store(0, Ordering::Relaxed);
        }
        // Release: everything before it is seen by who sees it.
        self.status.store(completion.status.0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_the_specified_bits() {
        let record = Record::default();
        assert_eq!(record.read(), None);
        let completion = Completion {
            status: Status(0x83),
            result: 1,
            done: 0x0403_0201,
            fault: 0x1817_1615_1413_1211,
            invalid_flags: 0x0021_4365,
        };
        record.write(completion);
        assert_eq!(record.read(), Some(completion));
        assert_eq!(completion.status.code(), Status::PAGE_FAULT);
        // SAFETY: both are 32 bytes without padding, and any bits are a byte.
        let raw: [u8; 32] = unsafe { std::mem::transmute(record) };
        let mut wanted = [0_u8; 32];
        wanted[..8].copy_from_slice(&[0x83, 1, 0, 0, 1, 2, 3, 4]);
        wanted[8..16].copy_from_slice(&[0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
        wanted[16..20].copy_from_slice(&[0x65, 0x43, 0x21, 0]);
        assert_eq!(raw, wanted);
    }
}
