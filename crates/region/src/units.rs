//! The sizes that this crate counts in, and how folios are numbered.

use transhume_engine::{Folio, Order};

/// The size of a base page.
pub(crate) const BASE_PAGE: usize = 4096;

/// What one page table of base pages maps, which is also the size of a huge page.
pub(crate) const TABLE_BYTES: usize = 2 << 20;

/// Address space that is left to the rest of the program where it is limited.
pub(crate) const SPARE_BYTES: usize = 1 << 20;

/// The number of a folio in its region, counted in folios.
pub(crate) fn index_of(folio: Folio) -> usize {
    // A folio of this region was made from such a number.
    usize::try_from(folio.page() >> folio.order().get()).unwrap_or(usize::MAX)
}

/// The folio with this number in a region of folios of this order.
pub(crate) fn folio_at(index: usize, order: Order) -> Option<Folio> {
    let page = u64::try_from(index).ok()?.checked_mul(order.base_pages())?;
    Folio::new(page, order).ok()
}
