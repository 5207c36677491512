//! What is submitted: 64 bytes that say what to do.

use std::mem::{align_of, offset_of, size_of};
use std::sync::atomic::{AtomicU64, Ordering};

use super::record::Record;
use crate::CopyJob;

/// What a descriptor asks for.
pub(crate) mod opcode {
    /// Nothing, but a completion.
    pub(crate) const NOOP: u8 = 0x00;
    /// The descriptors of a list.
    pub(crate) const BATCH: u8 = 0x01;
    /// To wait for what was submitted to the same queue before.
    pub(crate) const DRAIN: u8 = 0x02;
    /// A copy; the two sides may overlap.
    pub(crate) const MEMMOVE: u8 = 0x03;
}

/// How it is to be done.
pub(crate) mod flags {
    /// In a batch: after those before it.
    pub(crate) const FENCE: u32 = 0x0001;
    /// Page faults are waited for. Never asked for: an operation would have no bound.
    #[cfg(test)]
    pub(crate) const BLOCK_ON_FAULT: u32 = 0x0002;
    /// The address of the completion record is one.
    pub(crate) const RECORD_VALID: u32 = 0x0004;
    /// The record is written at success too.
    pub(crate) const RECORD_WANTED: u32 = 0x0008;
    /// What is written goes to the cache rather than to memory.
    pub(crate) const CACHE: u32 = 0x0100;
}

/// A descriptor as the device reads it (`struct dsa_hw_desc`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Descriptor {
    /// The address space and the privilege; the device or `ENQCMD` fills it.
    pub(crate) owner: u32,
    /// Flags in 24 bits, the opcode above.
    pub(crate) operation: u32,
    /// Where the record goes, at a multiple of 32.
    pub(crate) record: u64,
    /// Where it reads; of a batch, where the list is, at a multiple of 64.
    pub(crate) source: u64,
    /// Where it writes.
    pub(crate) destination: u64,
    /// Bytes; of a batch, descriptors.
    pub(crate) size: u32,
    pub(crate) interrupt: u16,
    pub(crate) reserved: u16,
    pub(crate) specific: [u64; 3],
}

const _: () = {
    assert!(size_of::<Descriptor>() == 64 && align_of::<Descriptor>() == 64);
    assert!(offset_of!(Descriptor, operation) == 4);
    assert!(offset_of!(Descriptor, record) == 8);
    assert!(offset_of!(Descriptor, source) == 16);
    assert!(offset_of!(Descriptor, destination) == 24);
    assert!(offset_of!(Descriptor, size) == 32);
    assert!(offset_of!(Descriptor, interrupt) == 36);
    assert!(offset_of!(Descriptor, reserved) == 38);
    assert!(offset_of!(Descriptor, specific) == 40);
};

const fn operation(opcode: u8, flags: u32) -> u32 {
    ((opcode as u32) << 24) | flags
}

/// Both, so that a record is written however the operation ends.
const REPORTED: u32 = flags::RECORD_VALID | flags::RECORD_WANTED;

impl Descriptor {
    /// The copy of a job, whose bytes the caller has made sure fit into 32 bits. What it writes
    /// goes to memory, as the streaming copier's stores do.
    pub(crate) fn copy(job: &CopyJob, record: &Record) -> Self {
        Self {
            operation: operation(opcode::MEMMOVE, REPORTED),
            record: record.address(),
            source: job.source().expose_provenance() as u64,
            destination: job.destination().expose_provenance() as u64,
            size: u32::try_from(job.bytes()).unwrap_or(0),
            ..Self::default()
        }
    }

    /// The descriptors of a list, as one.
    pub(crate) fn batch(list: &[DescriptorCell], record: &Record) -> Self {
        Self {
            operation: operation(opcode::BATCH, REPORTED),
            record: record.address(),
            source: list.as_ptr().expose_provenance() as u64,
            size: u32::try_from(list.len()).unwrap_or(0),
            ..Self::default()
        }
    }

    /// It completes when all that was submitted to the same queue before it has.
    pub(crate) fn drain(record: &Record) -> Self {
        Self {
            operation: operation(opcode::DRAIN, REPORTED),
            record: record.address(),
            ..Self::default()
        }
    }

    pub(crate) const fn opcode(&self) -> u8 {
        self.operation.to_le_bytes()[3]
    }

    pub(crate) const fn flags(&self) -> u32 {
        self.operation & 0x00FF_FFFF
    }

    const fn words(&self) -> [u64; 8] {
        [
            self.owner as u64 | (self.operation as u64) << 32,
            self.record,
            self.source,
            self.destination,
            self.size as u64 | (self.interrupt as u64) << 32 | (self.reserved as u64) << 48,
            self.specific[0],
            self.specific[1],
            self.specific[2],
        ]
    }
}

/// A descriptor of a batch, in memory that the device reads when it likes.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct DescriptorCell([AtomicU64; 8]);

const _: () = assert!(size_of::<DescriptorCell>() == 64 && align_of::<DescriptorCell>() == 64);

impl DescriptorCell {
    /// Submitting the batch is what makes it visible.
    pub(crate) fn store(&self, descriptor: &Descriptor) {
        for (place, word) in self.0.iter().zip(descriptor.words()) {
            place.store(word, Ordering::Relaxed);
        }
    }

    /// What the model reads.
    pub(crate) fn load(&self) -> Descriptor {
        let word = |n: usize| {
            self.0
                .get(n)
                .map_or(0, |word| word.load(Ordering::Relaxed))
                .to_le_bytes()
        };
        let half = |n: usize, at: usize| {
            let [a, b, c, d, e, f, g, h] = word(n);
            u32::from_le_bytes(if at == 0 { [a, b, c, d] } else { [e, f, g, h] })
        };
        let [.., e, f, g, h] = word(4);
        Descriptor {
            owner: half(0, 0),
            operation: half(0, 1),
            record: u64::from_le_bytes(word(1)),
            source: u64::from_le_bytes(word(2)),
            destination: u64::from_le_bytes(word(3)),
            size: half(4, 0),
            interrupt: u16::from_le_bytes([e, f]),
            reserved: u16::from_le_bytes([g, h]),
            specific: [5, 6, 7].map(|n| u64::from_le_bytes(word(n))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(descriptor: &Descriptor) -> Vec<u8> {
        descriptor
            .words()
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    fn job(bytes: usize) -> CopyJob {
        let (from, to) = (
            std::ptr::without_provenance(0x1122_3344_5566_7788),
            std::ptr::without_provenance_mut(0x99AA_BBCC_DDEE_FF00),
        );
        // SAFETY: it is described and never copied.
        unsafe { CopyJob::new(from, to, bytes) }
    }

    /// The tables of the specification, byte by byte.
    #[test]
    fn a_copy_has_the_specified_bits() {
        let record = Record::default();
        let seen = bytes(&Descriptor::copy(&job(0x0102_0304), &record));
        let mut wanted = vec![0_u8; 64];
        wanted[4..8].copy_from_slice(&[0b1100, 0, 0, 3]);
        wanted[8..16].copy_from_slice(&record.address().to_le_bytes());
        wanted[16..24].copy_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        wanted[24..32].copy_from_slice(&[0x00, 0xFF, 0xEE, 0xDD, 0xCC, 0xBB, 0xAA, 0x99]);
        wanted[32..36].copy_from_slice(&[4, 3, 2, 1]);
        assert_eq!(seen, wanted);
    }

    #[test]
    fn a_batch_and_a_drain_have_the_specified_bits() {
        let record = Record::default();
        let list: [DescriptorCell; 5] = Default::default();
        let seen = bytes(&Descriptor::batch(&list, &record));
        let mut wanted = vec![0_u8; 64];
        wanted[4..8].copy_from_slice(&[0b1100, 0, 0, 1]);
        wanted[8..16].copy_from_slice(&record.address().to_le_bytes());
        wanted[16..24].copy_from_slice(&(list.as_ptr().addr() as u64).to_le_bytes());
        wanted[32] = 5;
        assert_eq!(seen, wanted);
        assert_eq!(list.as_ptr().addr() % 64, 0);

        let seen = bytes(&Descriptor::drain(&record));
        let mut wanted = vec![0_u8; 64];
        wanted[4..8].copy_from_slice(&[0b1100, 0, 0, 2]);
        wanted[8..16].copy_from_slice(&record.address().to_le_bytes());
        assert_eq!(seen, wanted);
    }

    #[test]
    fn memory_of_a_value_is_what_its_words_say() {
        let descriptor = Descriptor {
            owner: 0x8765_4321,
            operation: 0x0312_3456,
            record: 1 << 60 | 2,
            source: 3,
            destination: u64::MAX - 4,
            size: 0xFEDC_BA98,
            interrupt: 0x1234,
            reserved: 0x5678,
            specific: [5, 6, u64::MAX],
        };
        // SAFETY: both are 64 bytes without padding, and any bits are a word.
        let raw: [u64; 8] = unsafe { std::mem::transmute(descriptor) };
        assert_eq!(raw, descriptor.words());
        assert_eq!(
            (descriptor.opcode(), descriptor.flags()),
            (opcode::MEMMOVE, 0x12_3456)
        );
        let cell = DescriptorCell::default();
        cell.store(&descriptor);
        assert_eq!(cell.load(), descriptor);
    }
}
