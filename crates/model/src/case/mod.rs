//! The cases: small scenes for every order, larger ones for many orders by chance.

mod answers;
mod deferral;
mod exchange;
mod named_twice;
mod panics;

use crate::platform::Kind;
use crate::roles::{Role, load, store};
use crate::setup::{Setup, to_1};

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
        exchange::TWO_FOLIOS,
        exchange::TWICE,
        deferral::STORE,
        deferral::TWO,
        deferral::OWNERS,
        deferral::PINS,
        deferral::PRESSURE,
        deferral::FLUSH,
        deferral::UNMAP,
        deferral::AGAIN,
        deferral::EXCHANGE,
        deferral::EXIT,
        deferral::SPACES,
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
        deferral::FAILURES,
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
        exchange::STORES,
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
        panics::FOLLOW,
        panics::DEFERRED,
        panics::SETTLED,
        deferral::MIXED,
        deferral::OWNERS_FLUSHED,
        deferral::ROOM,
        deferral::RELIEF,
        exchange::ALONE,
        exchange::PINS,
    ];

    /// The case of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|case| case.name == name)
    }
}
