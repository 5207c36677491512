//! Where the mappings of a mapped region begin.

use super::budget::Charge;

/// Counts mappings. Neighbours that continue each other in one file become one mapping, except in
/// files whose mappings the kernel never merges (hugetlb); there it counts where a call began.
#[derive(Debug)]
pub(super) struct Seams {
    /// Whether a call that mapped pages began with this folio, or ended before it.
    cut: Vec<u64>,
    charge: Charge,
}

impl Seams {
    /// One mapping of `folios` folios.
    pub(super) fn new(folios: usize) -> Self {
        let mut charge = Charge::default();
        charge.set(1);
        Self {
            cut: vec![0; (folios + 1).div_ceil(64)],
            charge,
        }
    }

    pub(super) fn mappings(&self) -> usize {
        self.charge.count()
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.cut)
    }

    /// Whether a call began with this folio, or ended before it.
    pub(super) fn is_cut(&self, folio: usize) -> bool {
        self.cut[folio / 64] >> (folio % 64) & 1 == 1
    }

    /// Records that a call did, or did not.
    pub(super) fn set_cut(&mut self, folio: usize, cut: bool) {
        let bit = 1 << (folio % 64);
        if cut {
            self.cut[folio / 64] |= bit;
        } else {
            self.cut[folio / 64] &= !bit;
        }
    }

    /// So many seams have come, so many have gone.
    pub(super) fn count(&mut self, come: usize, gone: usize) {
        self.charge
            .set((self.charge.count() + come).saturating_sub(gone));
    }
}
