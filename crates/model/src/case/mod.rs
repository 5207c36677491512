//! The cases: small scenes for every order, larger ones for many orders by chance.

mod answers;
mod named_twice;
mod panics;

use transhume_engine::Mode;

use crate::platform::Kind;
use crate::roles::{Role, load, store};
use crate::setup::{Setup, at_a_time, to_1};

/// A scene that is explored.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name on a command line.
    pub name: &'static str,
    /// What happens in it.
    pub about: &'static str,
    pub(crate) small: fn() -> Setup,
    pub(crate) large: fn() -> Setup,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

impl Case {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self {
            name: "batch",
            about: "a batch against programs that load and store",
            small: || {
                Setup::new(2, 1)
                    .moves_all()
                    .program(&[store(0), load(1)])
                    .program(&[store(1), load(0)])
                    .with(to_1(&[0, 1]).role())
            },
            large: || {
                Setup::new(4, 2)
                    .moves_all()
                    .program(&[store(0), load(1), store(2), load(0)])
                    .program(&[store(1), load(2).of_word(1), load(0)])
                    .program(&[load(3), store(3).of_word(1), load(3).of_word(1)])
                    .with(to_1(&[0, 1, 2, 3]).role())
            },
        },
        Self {
            name: "sync",
            about: "a folio whose lock is taken for a while, and a request that may wait",
            small: || {
                Setup::new(2, 1)
                    .moves_all()
                    .program(&[store(0), load(1)])
                    .with(Role::Lock { page: 0 })
                    .with(Role::Lock { page: 1 })
                    .with(to_1(&[0, 1]).sync().role())
            },
            large: || {
                Setup::new(3, 1)
                    .moves_all()
                    .program(&[store(0), load(1), store(2)])
                    .program(&[store(2), load(0), load(1)])
                    .with(Role::Lock { page: 0 })
                    .with(Role::Lock { page: 2 })
                    .with(to_1(&[0, 1, 2]).sync().role())
            },
        },
        Self {
            name: "exchange",
            about: "two folios trade places, with no free frame",
            small: || exchange().failures(1).program(&[store(0), load(1)]),
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
        },
        Self {
            name: "exchange-twice",
            about: "two requests would have the same two folios trade places",
            small: || {
                exchange()
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
        },
        Self {
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
        },
        Self {
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
        },
        Self {
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
        },
        Self {
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
        },
        Self {
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
        },
        Self {
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
        },
        Self {
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
        },
        Self {
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
        },
        Self {
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
        },
        Self {
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
        },
        Self {
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
        },
        Self {
            name: "device",
            about: "a device that copies in pieces and out of order",
            small: || {
                Setup::new(1, 3)
                    .moves_all()
                    .device(2)
                    .program(&[store(0), load(0).of_word(2)])
                    .program(&[store(0).of_word(2)])
                    .with(to_1(&[0]).by(Kind::Device).role())
            },
            large: || {
                Setup::new(3, 3)
                    .moves_all()
                    .device(2)
                    .program(&[store(0), load(1).of_word(2), store(2).of_word(1)])
                    .program(&[load(0).of_word(2), load(2), store(1)])
                    .with(to_1(&[0, 1, 2]).by(Kind::Device).role())
            },
        },
        Self {
            name: "copier-change",
            about: "the copier is changed while it copies",
            small: || {
                Setup::new(2, 1)
                    .moves_all()
                    .with(to_1(&[0]).by(Kind::InUse).role())
                    .with(to_1(&[1]).by(Kind::InUse).role())
                    .with(Role::ChangeCopier)
            },
            large: || {
                Setup::new(4, 2)
                    .moves_all()
                    .program(&[store(0), load(1), store(3)])
                    .with(to_1(&[0, 1]).by(Kind::InUse).at_a_time(1).role())
                    .with(to_1(&[2, 3]).by(Kind::InUse).at_a_time(1).role())
                    .with(Role::ChangeCopier)
            },
        },
        Self {
            name: "owners",
            about: "an application with latches on its pages, and a journal that takes two of them",
            small: || {
                Setup::new(2, 1)
                    .owned()
                    .moves_all()
                    .program(&[store(0)])
                    .with(to_1(&[0, 1]).sync().role())
                    .with(Role::Journal { pages: vec![1, 0] })
            },
            large: || {
                Setup::new(4, 1)
                    .owned()
                    .failures(2)
                    .program(&[store(0), load(2)])
                    .with(to_1(&[0, 1, 2, 3]).sync().role())
                    .with(Role::Journal {
                        pages: vec![3, 1, 0],
                    })
                    .with(Role::Journal { pages: vec![3, 2] })
            },
        },
        Self {
            name: "migrators",
            about: "two requests at once for the same memory",
            small: || {
                Setup::new(2, 1)
                    .program(&[store(0), load(1)])
                    .with(to_1(&[0]).role())
                    .with(to_1(&[1]).role())
            },
            large: || {
                Setup::new(4, 1)
                    .free(&[1, 1, 1, 1, 2, 2, 2, 2])
                    .program(&[store(0), load(1), store(2)])
                    .program(&[store(3), load(2), load(0)])
                    .with(to_1(&[0, 1, 2, 3]).role())
                    .with(to_1(&[3, 2, 1, 0]).to(2).sync().role())
                    .with(to_1(&[1, 3]).to(2).role())
            },
        },
        Self {
            name: "failures",
            about: "any call fails, once",
            small: || {
                Setup::new(1, 1)
                    .failures(2)
                    .program(&[store(0), load(0)])
                    .with(to_1(&[0]).role())
            },
            large: || {
                Setup::new(3, 2)
                    .failures(3)
                    .program(&[store(0), load(1), store(2)])
                    .program(&[store(2), load(0), store(1).of_word(1)])
                    .with(to_1(&[0, 1, 2]).sync().role())
            },
        },
        Self {
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
        },
        Self {
            name: "pins",
            about: "direct I/O that stores into a frame",
            small: || {
                Setup::new(1, 1)
                    .with(to_1(&[0]).role())
                    .with(Role::Pin { space: 0, page: 0 })
            },
            large: || {
                Setup::new(3, 1)
                    .program(&[store(0), load(1), load(2)])
                    .program(&[load(0), store(1)])
                    .with(to_1(&[0, 1, 2]).sync().role())
                    .with(Role::Pin { space: 0, page: 0 })
                    .with(Role::Pin { space: 0, page: 1 })
            },
        },
        Self {
            name: "spaces",
            about: "a folio that two address spaces map, and one that ends",
            small: || {
                Setup::new(1, 1)
                    .folio(0, 0, 0, &[0, 1])
                    .patient()
                    .program(&[store(0)])
                    .program_in(1, &[load(0), store(0)])
                    .with(to_1(&[0]).role())
                    .with(Role::Exit { space: 1 })
            },
            large: || {
                Setup::new(3, 1)
                    .folio(0, 0, 0, &[0, 1])
                    .folio(1, 0, 0, &[0, 1])
                    .program(&[store(0), load(1), store(2)])
                    .program_in(1, &[load(0), store(1)])
                    .with(to_1(&[0, 1, 2]).role())
                    .with(Role::Exit { space: 1 })
            },
        },
        Self {
            name: "orders",
            about: "folios of several orders, and a limit that one of them exceeds",
            small: || {
                Setup::new(1, 1)
                    .folio(2, 1, 0, &[0])
                    .moves_all()
                    .program(&[store(2).of_word(1), load(0)])
                    .program(&[load(2).of_word(1)])
                    .with(to_1(&[0, 2]).at_a_time(2).role())
            },
            large: || {
                Setup::new(2, 1)
                    .folio(4, 2, 0, &[0])
                    .folio(2, 1, 0, &[0])
                    .moves_all()
                    .program(&[store(4).of_word(3), load(0), store(2).of_word(1)])
                    .program(&[load(4).of_word(3), store(1), load(2)])
                    .with(to_1(&[0, 1, 2, 4]).at_a_time(3).role())
            },
        },
        Self {
            name: "exchange-stores",
            about: "what two programs store to pages that trade places",
            small: || {
                exchange()
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
        },
        answers::BATCH,
        answers::TWICE,
        answers::SYNC,
        answers::OWNERS,
        answers::EXCHANGE,
        answers::DEFERRED,
        answers::DEVICE,
        named_twice::BATCH,
        named_twice::MIGRATORS,
        named_twice::EXCHANGE,
        named_twice::DEFERRED,
        panics::BATCH,
        panics::OWNERS,
        panics::EXCHANGE,
        panics::DEFERRED,
        panics::SETTLED,
    ];

    /// The case of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|case| case.name == name)
    }
}

fn exchange() -> Setup {
    Setup::new(2, 1)
        .free(&[])
        .folio(1, 0, 1, &[0])
        .with(pairs(&[(0, 1)], Mode::Async))
}

fn pairs(pairs: &[(u64, u64)], mode: Mode) -> Role {
    pairs_at_a_time(pairs, mode, 512)
}

fn pairs_at_a_time(pairs: &[(u64, u64)], mode: Mode, base_pages: u64) -> Role {
    Role::Exchange {
        pairs: pairs.to_vec(),
        mode,
        limit: at_a_time(base_pages),
    }
}

/// Base pages that migrate with a switch that waits.
fn deferred(pages: usize) -> Setup {
    deferred_of_words(pages, 1)
}

fn deferred_of_words(pages: usize, words: usize) -> Setup {
    let all: Vec<u64> = (0..pages as u64).collect();
    Setup::new(pages, words).with(to_1(&all).deferred().role())
}
