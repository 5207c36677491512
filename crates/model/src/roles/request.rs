//! Requests to the engine.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use transhume_engine::{
    ExchangeRequest, Folio, Limit, Mode, Reason, Request, defer, exchange, migrate,
};

use super::folio;
use crate::actor::{Actor, Planned};
use crate::machine::Page;
use crate::platform::{Copier, Kind, Migrator, SharedLedger, Swapper, Tier};

/// A request to migrate.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub(crate) pages: Vec<Page>,
    pub(crate) to: usize,
    pub(crate) mode: Mode,
    pub(crate) limit: Limit,
    pub(crate) copier: Kind,
    /// Whether the switch may wait.
    pub(crate) deferred: bool,
}

fn folios(actor: &Actor, pages: &[Page]) -> Vec<Folio> {
    pages
        .iter()
        .filter_map(|&page| folio(actor, page))
        .collect()
}

fn limit(actor: &Actor, limit: Limit) {
    let id = actor.id;
    actor.change(|machine| machine.limits.insert(id, limit.base_pages.get()));
}

pub(super) fn migrates(actor: &Actor, request: Move) {
    let Move {
        pages,
        to,
        mode,
        limit: most,
        copier: kind,
        deferred,
    } = request;
    limit(actor, most);
    let copier = Copier {
        actor: actor.clone(),
        kind,
    };
    let named = folios(actor, &pages);
    let count = named.len();
    let request = Request {
        folios: named,
        to: Tier(to),
        mode,
        limit: most,
        reason: Reason::UserCall,
    };
    let report = until_it_returns(actor, || {
        let mut platform = Migrator::new(actor);
        if deferred {
            let mut ledger = SharedLedger {
                actor: actor.clone(),
            };
            defer(&mut platform, &copier, request.clone(), &mut ledger)
        } else {
            migrate(&mut platform, &copier, request.clone())
        }
    });
    // It waits for nothing if its switch may wait.
    let mode = if deferred { Mode::Async } else { mode };
    if !actor.is_over() {
        let id = actor.id;
        actor.change(|machine| {
            machine.compare(id, count, mode, &report);
            machine.reports.push((id, report));
        });
    }
}

/// Makes a request, and again if it unwinds as it was meant to: nothing may be left of the first time.
pub(super) fn until_it_returns<R>(actor: &Actor, make: impl Fn() -> R) -> R {
    loop {
        match catch_unwind(AssertUnwindSafe(&make)) {
            Ok(report) => return report,
            Err(panic) if panic.is::<Planned>() => {
                let id = actor.id;
                actor.change(|machine| machine.accounts.remove(&id));
            }
            Err(panic) => resume_unwind(panic),
        }
    }
}

pub(super) fn exchanges(actor: &Actor, pairs: &[(Page, Page)], mode: Mode, most: Limit) {
    limit(actor, most);
    let swapper = Swapper {
        actor: actor.clone(),
    };
    let pair = |&(a, b): &(Page, Page)| Some((folio(actor, a)?, folio(actor, b)?));
    let request = ExchangeRequest {
        mode,
        limit: most,
        ..ExchangeRequest::new(pairs.iter().filter_map(pair).collect())
    };
    let count = request.pairs.len();
    let report = until_it_returns(actor, || {
        exchange(&mut Migrator::new(actor), &swapper, request.clone())
    });
    if !actor.is_over() {
        let id = actor.id;
        actor.change(|machine| machine.compare_pairs(id, count, &report));
    }
}
