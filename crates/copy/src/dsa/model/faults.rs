//! What the model does wrong, and how often.

/// Something that a device can do other than copy at once and say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The queue does not take a descriptor; a shared one says so, a dedicated one is held to be
    /// full for a while.
    Refuses,
    /// A descriptor waits for up to 200 us before it is executed.
    Delays,
    /// Descriptors and members of batches are executed in another order.
    Reorders,
    /// A copy ends at a page fault on its source, part of it done.
    ReadFaults,
    /// A copy ends at a page fault on its destination, part of it done.
    WriteFaults,
    /// The list of a batch has a page fault: its later members are not executed.
    BatchFaults,
    /// A copy writes some bytes and ends with an error.
    Fails,
    /// All is done, but a record is written some milliseconds later, as the kernel does for a record
    /// that had a page fault. A drain does not wait for it.
    RecordsLate,
    /// Some is done, and the rest some milliseconds later.
    Late,
    /// Some is done, and nothing more ever happens.
    Hangs,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Refuses,
        Self::Delays,
        Self::Reorders,
        Self::ReadFaults,
        Self::WriteFaults,
        Self::BatchFaults,
        Self::Fails,
        Self::RecordsLate,
        Self::Late,
        Self::Hangs,
    ];

    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

/// How often the model does what, from a seed: the same descriptor of the same model has the same
/// fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    seed: u64,
    per_mille: [u16; Fault::ALL.len()],
}

impl Faults {
    /// None; the seed is for those that are [`with`](Self::with) it.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self {
            seed,
            per_mille: [0; Fault::ALL.len()],
        }
    }

    /// With a fault at so many of a thousand descriptors, 1000 at most; of a fault in a copy,
    /// members of batches count one by one.
    #[must_use]
    pub const fn with(mut self, fault: Fault, per_mille: u16) -> Self {
        self.per_mille[fault.index()] = per_mille;
        self
    }

    /// Whether a fault befalls the descriptor of this number.
    pub(super) fn befalls(&self, fault: Fault, number: u64) -> bool {
        let per_mille = self.per_mille.get(fault.index()).copied().unwrap_or(0);
        per_mille > 0 && self.random(number, fault as u64) % 1000 < u64::from(per_mille)
    }

    /// A number without a pattern, the same for the same seed, descriptor and purpose.
    pub(super) fn random(&self, number: u64, purpose: u64) -> u64 {
        let mut word = self
            .seed
            .wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
            .wrapping_add(purpose.wrapping_mul(0xD1B5_4A32_D192_ED03));
        for _ in 0..2 {
            word ^= word >> 30;
            word = word.wrapping_mul(0xBF58_476D_1CE4_E5B9);
            word ^= word >> 27;
            word = word.wrapping_mul(0x94D0_49BB_1331_11EB);
            word ^= word >> 31;
        }
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_befall_as_often_as_told_and_the_same_ones_each_time() {
        let faults = Faults::seeded(7)
            .with(Fault::Late, 100)
            .with(Fault::Hangs, 1000);
        let count = |fault| (0..10_000).filter(|&n| faults.befalls(fault, n)).count();
        assert!((800..1200).contains(&count(Fault::Late)));
        assert_eq!(count(Fault::Hangs), 10_000);
        assert_eq!(count(Fault::Fails), 0);
        let again = faults;
        assert!((0..1000).all(|n| again.befalls(Fault::Late, n) == faults.befalls(Fault::Late, n)));
        for (index, fault) in Fault::ALL.into_iter().enumerate() {
            assert_eq!(fault.index(), index);
        }
    }
}
