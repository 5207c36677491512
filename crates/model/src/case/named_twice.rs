//! Folios that are named more than once, in one request or in two.

use transhume_engine::Mode;

use super::Case;
use super::exchange::{pairs, pairs_at_a_time, two_folios};
use crate::roles::{Role, load, store};
use crate::setup::{Setup, to_1};

pub(super) const BATCH: Case = Case {
    name: "named-twice",
    about: "a request names a folio twice, in one batch or in two",
    small: || {
        Setup::new(2, 1)
            .failures(1)
            .program(&[store(0)])
            .with(to_1(&[0, 1, 0]).at_a_time(2).role())
    },
    large: || {
        Setup::new(3, 1)
            .failures(2)
            .any_answer()
            .program(&[store(0), load(1), store(2)])
            .with(Role::Lock { page: 0 })
            .with(to_1(&[0, 0, 1, 2, 0, 1]).at_a_time(2).sync().role())
    },
};

pub(super) const MIGRATORS: Case = Case {
    name: "named-by-two",
    about: "two requests name the same folio, for different tiers",
    small: || {
        Setup::new(1, 1)
            .free(&[1, 2])
            .patient()
            .program(&[store(0)])
            .with(to_1(&[0, 0]).role())
            .with(to_1(&[0]).to(2).role())
    },
    large: || {
        Setup::new(2, 1)
            .free(&[1, 1, 2, 2])
            .program(&[store(0), load(1), store(1)])
            .with(to_1(&[0, 1, 0]).at_a_time(1).role())
            .with(to_1(&[1, 0, 1]).to(2).role())
            .with(to_1(&[0, 1]).to(0).sync().role())
    },
};

pub(super) const EXCHANGE: Case = Case {
    name: "exchange-named-twice",
    about: "a folio is to trade places twice, or with itself",
    small: || {
        Setup::new(2, 1)
            .folio(1, 0, 1, &[0])
            .free(&[])
            .failures(1)
            .program(&[store(0)])
            .with(pairs(&[(0, 0), (0, 1), (1, 0), (0, 1)], Mode::Async))
    },
    large: || {
        two_folios()
            .folio(2, 0, 2, &[0])
            .folio(4, 1, 2, &[0])
            .program(&[store(0), load(1), store(2)])
            .with(pairs_at_a_time(
                &[(1, 1), (4, 0), (2, 0), (0, 1), (1, 2)],
                Mode::Sync,
                2,
            ))
    },
};

pub(super) const DEFERRED: Case = Case {
    name: "deferred-named-twice",
    about: "a request that is deferred names a folio twice, in one batch or in two",
    small: || {
        Setup::new(1, 1)
            .lazy()
            .patient()
            .program(&[store(0)])
            .with(to_1(&[0, 0, 0]).deferred().at_a_time(2).role())
    },
    large: || {
        Setup::new(2, 1)
            .free(&[1, 1, 2, 2])
            .lazy()
            .ledger(2)
            .failures(2)
            .any_answer()
            .program(&[store(0), load(1), store(1)])
            .with(to_1(&[0, 1, 0, 0]).deferred().at_a_time(2).role())
            .with(to_1(&[1, 0, 1]).to(2).deferred().role())
    },
};
