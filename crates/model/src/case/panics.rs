//! A call of the platform, the copier or the owner panics: every folio is put back, and no lock stays.

use transhume_engine::Mode;

use super::Case;
use super::deferral::deferred;
use super::exchange::{pairs, pairs_at_a_time, two_folios};
use crate::platform::Kind;
use crate::roles::{Role, load, store};
use crate::setup::{Setup, to_1};

pub(super) const BATCH: Case = Case {
    name: "panics",
    about: "a call panics in the midst of a batch",
    small: || {
        Setup::new(2, 1)
            .folio(1, 0, 1, &[0])
            .with(to_1(&[0, 1]).role())
            .panics()
            .failures(1)
            .program(&[store(0)])
    },
    large: || {
        Setup::new(5, 1)
            .folio(4, 0, 1, &[0])
            .with(to_1(&[0, 4, 1, 2, 3]).at_a_time(3).sync().role())
            .panics()
            .failures(2)
            .any_answer()
            .program(&[store(0), load(1), store(3)])
            .program(&[store(2), load(0), store(1)])
            .with(Role::Lock { page: 1 })
    },
};

pub(super) const OWNERS: Case = Case {
    name: "panics-owners",
    about: "a call panics while an owner has let go of folios, or the owner does",
    small: || {
        Setup::new(2, 1)
            .owned()
            .moves_all()
            .with(to_1(&[0, 1]).role())
            .panics()
            .program(&[store(0)])
    },
    large: || {
        Setup::new(3, 2)
            .owned()
            .device(2)
            .with(to_1(&[0, 1, 2]).by(Kind::Device).sync().role())
            .panics()
            .failures(2)
            .program(&[store(0), load(1), store(2)])
            .with(Role::Journal { pages: vec![2, 0] })
    },
};

pub(super) const EXCHANGE: Case = Case {
    name: "panics-exchange",
    about: "a call panics in the midst of an exchange",
    small: || two_folios().panics().failures(1).program(&[store(0)]),
    large: || {
        Setup::new(3, 2)
            .free(&[])
            .folio(3, 0, 1, &[0])
            .folio(4, 0, 1, &[0])
            .folio(5, 0, 1, &[0])
            .with(pairs_at_a_time(&[(0, 3), (1, 4), (5, 2)], Mode::Sync, 4))
            .panics()
            .failures(3)
            .program(&[store(0), load(3), store(4)])
            .program(&[store(3), load(1), store(0).of_word(1)])
    },
};

pub(super) const FOLLOW: Case = Case {
    name: "panics-follow",
    about: "a call panics while folios are brought in whose partners have arrived",
    small: || {
        Setup::new(2, 1)
            .free(&[])
            .folio(2, 0, 1, &[0])
            .folio(3, 0, 1, &[0])
            .with(pairs(&[(0, 2), (1, 3)], Mode::Async))
            .panics()
            .failures(2)
    },
    large: || {
        Setup::new(2, 1)
            .free(&[])
            .folio(2, 0, 1, &[0])
            .folio(3, 0, 1, &[0])
            .with(pairs(&[(0, 2), (1, 3)], Mode::Sync))
            .panics()
            .failures(3)
            .program(&[store(0), load(3), store(2)])
            .program(&[store(3), load(1), store(0)])
    },
};

pub(super) const DEFERRED: Case = Case {
    name: "panics-deferred",
    about: "a call panics in the midst of a migration that is deferred",
    small: || deferred(1).panics().program(&[store(0)]),
    large: || {
        deferred(3)
            .panics()
            .lazy()
            .ledger(2)
            .failures(2)
            .program(&[store(0), load(1), store(2)])
            .program(&[load(2), store(1)])
            .with(Role::Settle { times: 2 })
    },
};

pub(super) const SETTLED: Case = Case {
    name: "panics-settled",
    about: "a call panics in the midst of a settlement",
    small: || {
        deferred(2)
            .at_once(1)
            .with(Role::Settle { times: 1 })
            .panics()
            .program(&[load(0)])
    },
    large: || {
        deferred(4)
            .at_once(2)
            .with(Role::Settle { times: 3 })
            .panics()
            .failures(1)
            .program(&[store(0), load(1), store(2)])
            .program(&[load(2), store(3)])
    },
};
