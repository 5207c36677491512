//! What goes wrong in a machine, and when.

use transhume_engine::{Folio, Why};

use super::Call;

/// What an unwinding that a [`Trouble`] began carries.
pub(crate) const PLANNED: &str = "planned panic";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Fail(Why),
    Panic,
}

/// What goes wrong, for which folio, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trouble {
    pub(crate) call: Call,
    pub(crate) folio: Folio,
    pub(crate) what: What,
    pub(crate) times: u32,
    /// Whether it does not happen to a folio that was locked with leave to wait.
    pub(crate) gone_by_waiting: bool,
}

pub(crate) const ALWAYS: u32 = u32::MAX;

pub(crate) fn fails(call: Call, folio: Folio, why: Why, times: u32) -> Trouble {
    Trouble {
        call,
        folio,
        what: What::Fail(why),
        times,
        gone_by_waiting: false,
    }
}

pub(crate) fn panics(call: Call, folio: Folio) -> Trouble {
    Trouble {
        call,
        folio,
        what: What::Panic,
        times: 1,
        gone_by_waiting: false,
    }
}

/// What is still to go wrong.
#[derive(Debug, Default)]
pub(crate) struct Troubles(Vec<Trouble>);

impl Troubles {
    pub(crate) fn new(troubles: &[Trouble]) -> Self {
        Self(troubles.to_vec())
    }

    /// What goes wrong with this call, which counts as once.
    pub(crate) fn take(&mut self, call: Call, folio: Folio, may_wait: bool) -> Option<What> {
        let trouble = self.0.iter_mut().find(|trouble| {
            trouble.call == call
                && trouble.folio == folio
                && trouble.times > 0
                && !(trouble.gone_by_waiting && may_wait)
        })?;
        trouble.times -= 1;
        Some(trouble.what)
    }

    /// Whether a call panics that cannot be counted.
    pub(crate) fn panics(&self, call: Call, folio: Folio) -> bool {
        self.0.iter().any(|trouble| {
            trouble.call == call && trouble.folio == folio && trouble.what == What::Panic
        })
    }
}
