//! Calls that answer something else than that all went well: each answer that the engine's traits allow.

use transhume_engine::Mode;

use super::Case;
use super::deferral::deferred;
use super::exchange::{pairs_at_a_time, two_folios};
use crate::platform::Kind;
use crate::roles::{Role, load, store};
use crate::setup::{Setup, to_1};

pub(super) const BATCH: Case = Case {
    name: "answers",
    about: "a call of a batch gives any answer it may",
    small: || {
        Setup::new(2, 1)
            .failures(1)
            .any_answer()
            .program(&[store(0)])
            .with(to_1(&[0, 1]).role())
    },
    large: || {
        Setup::new(3, 2)
            .failures(3)
            .any_answer()
            .program(&[store(0), load(1), store(2)])
            .program(&[store(2).of_word(1), load(0), store(1)])
            .with(to_1(&[0, 1, 2]).at_a_time(2).role())
    },
};

pub(super) const TWICE: Case = Case {
    name: "answers-twice",
    about: "two calls of a batch give any answer they may",
    small: || {
        Setup::new(2, 2)
            .failures(2)
            .any_answer()
            .with(to_1(&[0, 1]).role())
    },
    large: || {
        Setup::new(3, 2)
            .free(&[1, 1, 1, 2, 2, 2])
            .failures(5)
            .any_answer()
            .program(&[store(0), store(2), load(1)])
            .with(to_1(&[0, 1, 2]).role())
            .with(to_1(&[2, 0]).to(2).sync().role())
    },
};

pub(super) const SYNC: Case = Case {
    name: "answers-sync",
    about: "a call of a request that may wait gives any answer it may",
    small: || {
        Setup::new(1, 1)
            .failures(2)
            .any_answer()
            .with(to_1(&[0]).sync().role())
    },
    large: || {
        Setup::new(3, 2)
            .failures(6)
            .any_answer()
            .program(&[store(0), load(1), store(2)])
            .with(Role::Lock { page: 0 })
            .with(to_1(&[0, 1, 2]).sync().role())
    },
};

pub(super) const OWNERS: Case = Case {
    name: "answers-owners",
    about: "an owner refuses, or a call for its pages gives any answer it may",
    small: || {
        Setup::new(2, 1)
            .owned()
            .failures(1)
            .any_answer()
            .program(&[store(0)])
            .with(to_1(&[0, 1]).role())
    },
    large: || {
        Setup::new(3, 1)
            .owned()
            .failures(5)
            .any_answer()
            .program(&[store(0), load(1), store(2)])
            .with(to_1(&[0, 1, 2]).sync().role())
            .with(Role::Journal { pages: vec![2, 0] })
    },
};

pub(super) const EXCHANGE: Case = Case {
    name: "answers-exchange",
    about: "a call of an exchange gives any answer it may",
    small: || two_folios().failures(1).any_answer().program(&[store(0)]),
    large: || {
        Setup::new(3, 2)
            .free(&[])
            .folio(3, 0, 1, &[0])
            .folio(4, 0, 1, &[0])
            .folio(5, 0, 1, &[0])
            .failures(4)
            .any_answer()
            .program(&[store(0), load(3), store(4)])
            .program(&[store(3), load(1), store(0).of_word(1)])
            .with(pairs_at_a_time(&[(0, 3), (1, 4), (5, 2)], Mode::Sync, 4))
    },
};

pub(super) const DEFERRED: Case = Case {
    name: "answers-deferred",
    about: "a call of a migration that is deferred gives any answer it may",
    small: || {
        deferred(1)
            .lazy()
            .failures(1)
            .any_answer()
            .program(&[store(0)])
    },
    large: || {
        deferred(3)
            .lazy()
            .ledger(2)
            .failures(4)
            .any_answer()
            .program(&[store(0), load(1), store(2)])
            .with(Role::Flush { space: 0 })
            .with(Role::Settle { times: 2 })
    },
};

pub(super) const DEVICE: Case = Case {
    name: "answers-device",
    about: "a device is not done in time, and what is left of its list is called off",
    small: || {
        Setup::new(2, 1)
            .device(2)
            .failures(1)
            .program(&[store(0)])
            .with(to_1(&[0, 1]).by(Kind::Device).role())
    },
    large: || {
        Setup::new(3, 3)
            .device(2)
            .failures(3)
            .any_answer()
            .program(&[store(0), load(1).of_word(2), store(2).of_word(1)])
            .program(&[load(0).of_word(2), store(1)])
            .with(to_1(&[0, 1, 2]).by(Kind::Device).role())
    },
};
