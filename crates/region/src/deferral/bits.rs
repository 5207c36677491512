//! A bit for each folio of a region.

use crate::sync::{AtomicU64, Ordering};

/// Bits that threads set and clear.
#[derive(Debug)]
pub(crate) struct Bits(Box<[AtomicU64]>);

impl Bits {
    /// So many, all clear.
    pub(crate) fn new(count: usize) -> Self {
        Self((0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn place(&self, at: usize) -> (&AtomicU64, u64) {
        (&self.0[at / 64], 1 << (at % 64))
    }

    pub(crate) fn set(&self, at: usize) {
        let (word, bit) = self.place(at);
        word.fetch_or(bit, Ordering::SeqCst);
    }

    pub(crate) fn clear(&self, at: usize) {
        let (word, bit) = self.place(at);
        word.fetch_and(!bit, Ordering::SeqCst);
    }

    /// Clears it; says whether it was set.
    pub(crate) fn take(&self, at: usize) -> bool {
        let (word, bit) = self.place(at);
        word.fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    pub(crate) fn is_set(&self, at: usize) -> bool {
        let (word, bit) = self.place(at);
        word.load(Ordering::SeqCst) & bit != 0
    }

    /// Memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_is_its_own() {
        let bits = Bits::new(130);
        for at in [0, 63, 64, 129] {
            bits.set(at);
        }
        bits.clear(63);
        bits.set(70);
        assert!(bits.take(70) && !bits.take(70));
        let set: Vec<usize> = (0..130).filter(|&at| bits.is_set(at)).collect();
        assert_eq!((set, bits.bytes()), (vec![0, 64, 129], 24));
    }
}
