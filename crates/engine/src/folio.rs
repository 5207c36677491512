//! Folios: what migrates as one.

use core::fmt;

/// How large a folio is: 2^order base pages.
///
/// Order 0 is one base page (4 KiB on most machines), order 9 a 2 MiB huge page there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Order(u8);

impl Order {
    /// One base page.
    pub const BASE: Self = Self(0);
    /// 512 base pages: the 2 MiB huge page of x86-64 and of arm64 with 4 KiB base pages.
    pub const HUGE: Self = Self(9);
    /// The largest order that can be named.
    pub const MAX: Self = Self(40);

    /// The order `order`, or `None` above [`Order::MAX`].
    #[must_use]
    pub const fn new(order: u8) -> Option<Self> {
        if order <= Self::MAX.0 {
            Some(Self(order))
        } else {
            None
        }
    }

    /// The exponent, 0 to 40.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// How many base pages a folio of this order has.
    #[must_use]
    pub const fn base_pages(self) -> u64 {
        1 << self.0
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "order {}", self.0)
    }
}

/// A folio: `2^order` base pages, migrated as a unit, named by the number of its first base page.
///
/// The number is the platform's: a page of an address space, of a region or of a model. A folio is
/// naturally aligned: its first page is a multiple of its size. Eight bytes, because requests hold
/// one for every folio.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Folio(u64);

const ORDER_BITS: u32 = 6;

impl Folio {
    /// The largest page number that can be named, inclusive.
    pub const MAX_PAGE: u64 = (1 << (u64::BITS - ORDER_BITS)) - 1;

    /// The folio of `order` that begins at base page `page`.
    ///
    /// # Errors
    ///
    /// [`FolioError::Misaligned`] if `page` is not a multiple of the folio's size,
    /// [`FolioError::OutOfRange`] above [`Folio::MAX_PAGE`].
    pub const fn new(page: u64, order: Order) -> Result<Self, FolioError> {
        if page > Self::MAX_PAGE {
            return Err(FolioError::OutOfRange { page });
        }
        if !page.is_multiple_of(order.base_pages()) {
            return Err(FolioError::Misaligned { page, order });
        }
        Ok(Self((page << ORDER_BITS) | order.0 as u64))
    }

    /// The order-0 folio of base page `page`, or `None` above [`Folio::MAX_PAGE`].
    #[must_use]
    pub const fn base(page: u64) -> Option<Self> {
        if page > Self::MAX_PAGE {
            return None;
        }
        Some(Self(page << ORDER_BITS))
    }

    /// The number of its first base page.
    #[must_use]
    pub const fn page(self) -> u64 {
        self.0 >> ORDER_BITS
    }

    /// Its order.
    #[must_use]
    pub const fn order(self) -> Order {
        Order((self.0 & ((1 << ORDER_BITS) - 1)) as u8)
    }

    /// How many base pages it has.
    #[must_use]
    pub const fn base_pages(self) -> u64 {
        self.order().base_pages()
    }
}

impl fmt::Debug for Folio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "folio {}+{}", self.page(), self.base_pages())
    }
}

/// Why a folio cannot be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolioError {
    /// The first page is not a multiple of the folio's size.
    Misaligned {
        /// The page that was given.
        page: u64,
        /// The order that was given.
        order: Order,
    },
    /// The page number is too large.
    OutOfRange {
        /// The page that was given.
        page: u64,
    },
}

impl fmt::Display for FolioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned { page, order } => write!(
                f,
                "page {page} cannot begin a folio of {} base pages: it is not a multiple of that",
                order.base_pages()
            ),
            Self::OutOfRange { page } => {
                write!(f, "page {page} is above the largest, {}", Folio::MAX_PAGE)
            }
        }
    }
}

impl core::error::Error for FolioError {}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_folio_keeps_its_page_and_order() {
        for raw in 0..=40 {
            let order = Order::new(raw).unwrap();
            assert_eq!(order.get(), raw);
            for n in [0, 1, 7] {
                let folio = Folio::new(n * order.base_pages(), order).unwrap();
                assert_eq!(folio.page(), n * order.base_pages());
                assert_eq!(folio.order(), order);
            }
        }
    }

    #[test]
    fn a_folio_is_naturally_aligned_and_in_range() {
        assert_eq!(
            Folio::new(5, Order::HUGE),
            Err(FolioError::Misaligned {
                page: 5,
                order: Order::HUGE
            })
        );
        let page = Folio::MAX_PAGE;
        let last = Folio::base(page).unwrap();
        assert_eq!(Folio::new(page, Order::BASE), Ok(last));
        assert_eq!((last.page(), last.order()), (page, Order::BASE));
        let page = 1 << 58;
        assert_eq!(
            Folio::new(page, Order::BASE),
            Err(FolioError::OutOfRange { page })
        );
        assert_eq!(Folio::base(page), None);
        assert_eq!(Order::new(41), None);
    }

    #[test]
    fn they_say_what_they_are() {
        let folio = Folio::new(1024, Order::HUGE).unwrap();
        assert_eq!(format!("{folio:?}"), "folio 1024+512");
        assert_eq!(format!("{:?}", folio.order()), "order 9");
        assert_eq!(
            Folio::new(5, Order::HUGE).unwrap_err().to_string(),
            "page 5 cannot begin a folio of 512 base pages: it is not a multiple of that"
        );
        assert_eq!(
            Folio::new(1 << 58, Order::BASE).unwrap_err().to_string(),
            "page 288230376151711744 is above the largest, 288230376151711743"
        );
    }
}
