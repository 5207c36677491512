//! Folios that trade places.

use transhume_engine::Mode;

use super::Case;
use crate::roles::{Role, load, store};
use crate::setup::{Setup, at_a_time};

pub(super) const TWO_FOLIOS: Case = Case {
    name: "exchange",
    about: "two folios trade places, with no free frame",
    small: || two_folios().failures(1).program(&[store(0), load(1)]),
    large: || {
        Setup::new(4, 2)
            .free(&[])
            .folio(2, 0, 1, &[0])
            .folio(3, 0, 1, &[0])
            .failures(2)
            .program(&[store(0), load(2), store(1)])
            .program(&[store(2), load(0), store(3)])
            .with(Role::Prefetch { cpu: 0, page: 2 })
            .with(pairs_at_a_time(&[(0, 2), (1, 3)], Mode::Sync, 2))
    },
};

pub(super) const TWICE: Case = Case {
    name: "exchange-twice",
    about: "two requests would have the same two folios trade places",
    small: || {
        two_folios()
            .patient()
            .program(&[store(0)])
            .with(pairs(&[(1, 0)], Mode::Async))
    },
    large: || {
        Setup::new(4, 1)
            .free(&[])
            .folio(2, 0, 1, &[0])
            .folio(3, 0, 1, &[0])
            .program(&[store(0), load(3), store(2)])
            .with(pairs(&[(0, 2), (1, 3)], Mode::Sync))
            .with(pairs(&[(2, 0), (3, 1)], Mode::Sync))
            .with(Role::Pin { space: 0, page: 1 })
    },
};

pub(super) const STORES: Case = Case {
    name: "exchange-stores",
    about: "what two programs store to pages that trade places",
    small: || {
        two_folios()
            .moves_all()
            .program(&[store(0), load(1)])
            .program(&[store(1), load(0)])
    },
    large: || {
        Setup::new(2, 2)
            .free(&[])
            .moves_all()
            .folio(2, 0, 1, &[0])
            .folio(3, 0, 1, &[0])
            .with(pairs_at_a_time(&[(0, 2), (1, 3)], Mode::Async, 2))
            .program(&[store(0), store(2).of_word(1), load(0)])
            .program(&[store(1), load(2), store(0).of_word(1)])
            .program(&[store(3), load(3)])
    },
};

pub(super) const ALONE: Case = Case {
    name: "exchange-alone",
    about: "an exchange that waits for the locks of a pair by turns",
    small: || {
        Setup::new(1, 1)
            .free(&[])
            .folio(1, 0, 1, &[0])
            .with(pairs(&[(0, 1)], Mode::Sync))
            .with(Role::Lock { page: 0 })
            .with(Role::Lock { page: 1 })
            .with(Role::Lock { page: 0 })
            .with(Role::Lock { page: 1 })
    },
    large: || {
        Setup::new(2, 1)
            .free(&[])
            .folio(2, 0, 1, &[0])
            .folio(3, 0, 1, &[0])
            .program(&[store(0), load(3), store(2)])
            .with(pairs(&[(0, 2), (3, 1)], Mode::Sync))
            .with(Role::Lock { page: 0 })
            .with(Role::Lock { page: 1 })
            .with(Role::Lock { page: 2 })
            .with(Role::Lock { page: 3 })
            .with(Role::Lock { page: 0 })
            .with(Role::Lock { page: 2 })
    },
};

pub(super) const PINS: Case = Case {
    name: "exchange-pins",
    about: "direct I/O to one of two folios that trade places",
    small: || two_folios().with(Role::Pin { space: 0, page: 1 }),
    large: || {
        Setup::new(2, 2)
            .free(&[])
            .folio(2, 0, 1, &[0])
            .folio(3, 0, 1, &[0])
            .program(&[store(0), load(2), store(3)])
            .with(pairs(&[(0, 2), (1, 3)], Mode::Sync))
            .with(Role::Pin { space: 0, page: 2 })
            .with(Role::Pin { space: 0, page: 1 })
    },
};

/// Two folios that trade places, with no free frame.
pub(super) fn two_folios() -> Setup {
    Setup::new(2, 1)
        .free(&[])
        .folio(1, 0, 1, &[0])
        .with(pairs(&[(0, 1)], Mode::Async))
}

pub(super) fn pairs(pairs: &[(u64, u64)], mode: Mode) -> Role {
    pairs_at_a_time(pairs, mode, 512)
}

pub(super) fn pairs_at_a_time(pairs: &[(u64, u64)], mode: Mode, base_pages: u64) -> Role {
    Role::Exchange {
        pairs: pairs.to_vec(),
        mode,
        limit: at_a_time(base_pages),
    }
}
