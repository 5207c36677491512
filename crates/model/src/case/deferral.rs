//! Pairs whose switch waits, against every event that must settle them.

use transhume_engine::Mode;

use super::Case;
use super::exchange::pairs;
use crate::roles::{Role, load, store};
use crate::setup::{Setup, to_1};

pub(super) const STORE: Case = Case {
    name: "deferred-store",
    about: "a store to a page whose switch waits",
    small: || {
        deferred(1)
            .moves_all()
            .program(&[store(0), load(0)])
            .program(&[load(0), store(0)])
    },
    large: || {
        deferred(3)
            .lazy()
            .moves_all()
            .program(&[load(0), store(0), load(1)])
            .program(&[store(1), load(0), store(2)])
            .with(Role::Prefetch { cpu: 1, page: 0 })
            .with(Role::Settle { times: 1 })
    },
};

pub(super) const TWO: Case = Case {
    name: "deferred-two",
    about: "two requests that are deferred, and room for one pair",
    small: || {
        Setup::new(2, 1)
            .ledger(1)
            .moves_all()
            .program(&[load(0)])
            .with(to_1(&[0]).deferred().role())
            .with(to_1(&[1]).deferred().role())
    },
    large: || {
        Setup::new(4, 1)
            .ledger(3)
            .at_once(1)
            .lazy()
            .moves_all()
            .program(&[load(0), store(2), load(1)])
            .program(&[load(3), store(1)])
            .with(to_1(&[0, 1]).deferred().at_a_time(1).role())
            .with(to_1(&[2, 3]).deferred().role())
            .with(Role::Settle { times: 1 })
    },
};

pub(super) const OWNERS: Case = Case {
    name: "deferred-owners",
    about: "folios with an owner whose switch waits, and failures",
    small: || {
        deferred(1)
            .owned()
            .program(&[store(0)])
            .with(Role::Journal { pages: vec![0] })
    },
    large: || {
        deferred(3)
            .owned()
            .lazy()
            .failures(2)
            .program(&[store(0), load(1), store(2)])
            .with(Role::Journal { pages: vec![2, 0] })
            .with(Role::Journal { pages: vec![1] })
            .with(Role::Flush { space: 0 })
            .with(Role::Settle { times: 2 })
    },
};

pub(super) const PINS: Case = Case {
    name: "deferred-pins",
    about: "direct I/O to a page whose switch waits",
    small: || deferred(1).with(Role::Pin { space: 0, page: 0 }),
    large: || {
        deferred(2)
            .lazy()
            .program(&[load(0), store(1), load(0)])
            .with(Role::Pin { space: 0, page: 0 })
            .with(Role::Pin { space: 0, page: 1 })
            .with(Role::Settle { times: 1 })
    },
};

pub(super) const PRESSURE: Case = Case {
    name: "deferred-pressure",
    about: "somebody wants the frames that pairs hold",
    small: || {
        deferred(1)
            .program(&[load(0)])
            .with(Role::Grab { tier: 0, words: 1 })
    },
    large: || {
        deferred(3)
            .lazy()
            .ledger(2)
            .at_once(1)
            .program(&[load(0), load(1), store(2)])
            .program(&[load(2), store(1)])
            .with(Role::Grab { tier: 0, words: 1 })
            .with(Role::Settle { times: 2 })
    },
};

pub(super) const FLUSH: Case = Case {
    name: "deferred-flush",
    about: "shootdowns for other reasons, which spare a pair its own",
    small: || {
        deferred(1)
            .lazy()
            .moves_all()
            .with(Role::Prefetch { cpu: 0, page: 0 })
            .program(&[])
            .with(Role::Flush { space: 0 })
            .with(Role::Flush { space: 0 })
            .with(Role::Settle { times: 1 })
    },
    large: || {
        Setup::new(3, 1)
            .free(&[1, 1, 1, 0])
            .lazy()
            .program(&[load(0), load(1), load(0)])
            .program(&[load(1), store(2), load(0)])
            .with(to_1(&[0, 1]).deferred().at_a_time(1).role())
            .with(Role::Prefetch { cpu: 1, page: 0 })
            .with(Role::Replace { page: 2 })
            .with(Role::Flush { space: 0 })
            .with(Role::Settle { times: 2 })
    },
};

pub(super) const UNMAP: Case = Case {
    name: "deferred-unmap",
    about: "a range that is unmapped while its pair waits, and something else mapped there",
    small: || {
        Setup::new(1, 1)
            .free(&[1, 0])
            .lazy()
            .program(&[load(0)])
            .with(to_1(&[0]).deferred().role())
            .with(Role::Replace { page: 0 })
    },
    large: || {
        Setup::new(2, 1)
            .free(&[1, 1, 0, 0])
            .program(&[load(0), store(1), load(0)])
            .program(&[load(1), load(0), store(0)])
            .with(Role::Prefetch { cpu: 0, page: 1 })
            .with(to_1(&[0, 1]).deferred().role())
            .with(Role::Replace { page: 0 })
            .with(Role::Replace { page: 1 })
    },
};

pub(super) const AGAIN: Case = Case {
    name: "deferred-again",
    about: "a pair is migrated again before it has settled",
    small: || {
        Setup::new(1, 1)
            .free(&[1, 2])
            .lazy()
            .patient()
            .program(&[load(0)])
            .with(to_1(&[0]).deferred().role())
            .with(to_1(&[0]).to(2).role())
    },
    large: || {
        Setup::new(2, 1)
            .free(&[1, 1, 2, 2])
            .lazy()
            .program(&[load(0), store(1), load(0)])
            .program(&[load(1), load(0), store(0)])
            .with(Role::Prefetch { cpu: 0, page: 0 })
            .with(to_1(&[0, 1]).deferred().role())
            .with(to_1(&[1, 0]).to(2).sync().role())
    },
};

pub(super) const EXCHANGE: Case = Case {
    name: "deferred-exchange",
    about: "one of a pair that is to trade places waits for its switch",
    small: || {
        Setup::new(2, 1)
            .folio(1, 0, 2, &[0])
            .free(&[1])
            .patient()
            .program(&[load(0)])
            .with(to_1(&[0]).deferred().role())
            .with(pairs(&[(0, 1)], Mode::Async))
    },
    large: || {
        Setup::new(3, 1)
            .folio(2, 0, 2, &[0])
            .free(&[1, 1])
            .lazy()
            .program(&[load(0), store(2), load(1)])
            .program(&[store(0), load(2)])
            .with(to_1(&[0, 1]).deferred().role())
            .with(pairs(&[(0, 2)], Mode::Sync))
    },
};

pub(super) const EXIT: Case = Case {
    name: "deferred-exit",
    about: "a process that ends while its pairs wait",
    small: || {
        deferred(1)
            .program(&[load(0)])
            .with(Role::Exit { space: 0 })
    },
    large: || {
        deferred(2)
            .folio(0, 0, 0, &[0, 1])
            .lazy()
            .program(&[load(0), store(1)])
            .program_in(1, &[load(0), store(0)])
            .with(Role::Exit { space: 0 })
    },
};

pub(super) const SPACES: Case = Case {
    name: "deferred-spaces",
    about: "a pair that two address spaces map",
    small: || {
        deferred(1)
            .folio(0, 0, 0, &[0, 1])
            .program(&[load(0)])
            .program_in(1, &[store(0)])
    },
    large: || {
        deferred(2)
            .folio(0, 0, 0, &[0, 1])
            .folio(1, 0, 0, &[0, 1])
            .lazy()
            .failures(1)
            .program(&[load(0), store(1), load(0)])
            .program_in(1, &[store(0), load(1)])
            .with(Role::Settle { times: 1 })
    },
};

pub(super) const FAILURES: Case = Case {
    name: "deferred-failures",
    about: "any call of a migration that is deferred fails, once",
    small: || deferred(1).lazy().failures(2).program(&[load(0), store(0)]),
    large: || {
        deferred_of_words(3, 2)
            .failures(3)
            .ledger(2)
            .program(&[store(0), load(1), store(2)])
            .program(&[store(2), load(0), store(1)])
            .with(Role::Settle { times: 2 })
    },
};

pub(super) const MIXED: Case = Case {
    name: "deferred-mixed",
    about: "a settlement of pairs of which a shootdown has spared some their own",
    small: || {
        Setup::new(2, 1)
            .lazy()
            .program(&[])
            .with(Role::Prefetch { cpu: 0, page: 0 })
            .with(to_1(&[1, 0]).deferred().at_a_time(1).role())
            .with(Role::Flush { space: 0 })
    },
    large: || {
        Setup::new(4, 1)
            .lazy()
            .at_once(3)
            .program(&[load(1), store(3), load(2)])
            .program(&[load(0), load(3), store(1)])
            .with(to_1(&[0, 1, 2, 3]).deferred().at_a_time(1).role())
            .with(Role::Prefetch { cpu: 1, page: 2 })
            .with(Role::Flush { space: 0 })
            .with(Role::Flush { space: 0 })
            .with(Role::Settle { times: 2 })
    },
};

pub(super) const OWNERS_FLUSHED: Case = Case {
    name: "deferred-owners-flushed",
    about: "owners of pages whose pairs need no shootdown of their own",
    small: || {
        deferred(1)
            .owned()
            .lazy()
            .with(Role::Journal { pages: vec![0] })
            .with(Role::Flush { space: 0 })
            .with(Role::Settle { times: 1 })
    },
    large: || {
        deferred(3)
            .owned()
            .lazy()
            .at_once(2)
            .program(&[load(0), load(1)])
            .with(Role::Journal { pages: vec![1, 2] })
            .with(Role::Flush { space: 0 })
            .with(Role::Flush { space: 0 })
            .with(Role::Settle { times: 2 })
    },
};

pub(super) const ROOM: Case = Case {
    name: "deferred-room",
    about: "room for one pair, wanted by two requests while one is settled",
    small: || {
        Setup::new(2, 1)
            .ledger(1)
            .with(to_1(&[0]).deferred().role())
            .with(to_1(&[1]).deferred().role())
            .with(Role::Settle { times: 1 })
    },
    large: || {
        Setup::new(4, 1)
            .ledger(2)
            .at_once(1)
            .program(&[load(0), store(2), load(3)])
            .with(to_1(&[0, 1]).deferred().role())
            .with(to_1(&[2]).deferred().role())
            .with(to_1(&[3]).deferred().role())
            .with(Role::Settle { times: 2 })
            .with(Role::Settle { times: 1 })
    },
};

pub(super) const RELIEF: Case = Case {
    name: "deferred-relief",
    about: "a request that finds no frame until a pair that waits gives up its own",
    small: || {
        Setup::new(1, 1)
            .folio(1, 0, 1, &[0])
            .free(&[0])
            .program(&[load(0)])
            .with(to_1(&[1]).to(0).deferred().role())
            .with(to_1(&[0]).deferred().role())
    },
    large: || {
        Setup::new(2, 1)
            .folio(2, 0, 1, &[0])
            .folio(3, 0, 1, &[0])
            .free(&[0, 0])
            .lazy()
            .program(&[load(0), store(2), load(1)])
            .program(&[store(1), load(3), store(0)])
            .with(to_1(&[2, 3]).to(0).deferred().role())
            .with(to_1(&[0, 1]).deferred().at_a_time(1).role())
    },
};

/// Base pages that migrate with a switch that waits.
pub(super) fn deferred(pages: usize) -> Setup {
    deferred_of_words(pages, 1)
}

fn deferred_of_words(pages: usize, words: usize) -> Setup {
    let all: Vec<u64> = (0..pages as u64).collect();
    Setup::new(pages, words).with(to_1(&all).deferred().role())
}
