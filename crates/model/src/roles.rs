//! What the actors of a case do.

use transhume_engine::{
    ExchangeRequest, Folio, Limit, Mode, Reason, Request, defer, exchange, migrate,
};

use crate::act::Act;
use crate::actor::Actor;
use crate::bug::Bug;
use crate::machine::{Access, CpuId, FrameId, Holder, Machine, Page, Place, Pte, SpaceId};
use crate::platform::{Copier, Kind, Migrator, SharedLedger, Swapper, Tier, flush};

/// A load or a store of a program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) page: Page,
    pub(crate) word: usize,
    pub(crate) store: bool,
}

/// Loads the first word.
pub(crate) const fn load(page: Page) -> Op {
    Op {
        page,
        word: 0,
        store: false,
    }
}

/// Stores to the first word.
pub(crate) const fn store(page: Page) -> Op {
    Op {
        page,
        word: 0,
        store: true,
    }
}

impl Op {
    /// The same with another word.
    pub(crate) const fn of_word(self, word: usize) -> Self {
        Self { word, ..self }
    }
}

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

/// What an actor does.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// Runs on a CPU in an address space.
    Program {
        cpu: CpuId,
        space: SpaceId,
        ops: Vec<Op>,
    },
    /// Migrates.
    Migrate(Move),
    /// Exchanges pairs of pages.
    Exchange {
        pairs: Vec<(Page, Page)>,
        mode: Mode,
        limit: Limit,
    },
    /// Settles all that waits, so many times, as age or pressure would have it.
    Settle { times: usize },
    /// Takes latches in this order, and gives them up.
    Journal { pages: Vec<Page> },
    /// Holds a folio's lock for a while.
    Lock { page: Page },
    /// Takes a frame of a tier, settling pairs if there is none, uses it, and gives it back.
    Grab { tier: usize, words: usize },
    /// Refers to a frame from outside, and stores into it.
    Pin { space: SpaceId, page: Page },
    /// Unmaps a page, and maps something else there.
    Replace { page: Page },
    /// A CPU translates a page without being asked to, as it may at any time.
    Prefetch { cpu: CpuId, page: Page },
    /// Makes a shootdown for a reason of its own.
    Flush { space: SpaceId },
    /// Ends an address space.
    Exit { space: SpaceId },
    /// Changes the copier in use, and takes the old one away.
    ChangeCopier,
    /// Takes the interrupts of a CPU.
    Interrupts { cpu: CpuId },
    /// Makes the copies of a channel.
    Device { channel: usize },
}

impl Role {
    /// Whether nobody waits for its end.
    pub(crate) fn serves(&self) -> bool {
        matches!(self, Self::Interrupts { .. } | Self::Device { .. })
    }

    /// Who it is: the head of its column in a timeline.
    pub(crate) fn title(&self) -> String {
        match self {
            Self::Program { cpu, .. } => format!("CPU {cpu}"),
            Self::Migrate(Move { to, .. }) => format!("migrator to {to}"),
            Self::Exchange { .. } => "exchange".to_owned(),
            Self::Settle { .. } => "settler".to_owned(),
            Self::Journal { .. } => "journal".to_owned(),
            Self::Lock { .. } => "lock holder".to_owned(),
            Self::Grab { .. } => "allocator".to_owned(),
            Self::Pin { .. } => "direct I/O".to_owned(),
            Self::Replace { .. } => "munmap, mmap".to_owned(),
            Self::Prefetch { cpu, .. } => format!("CPU {cpu}"),
            Self::Flush { .. } => "another flush".to_owned(),
            Self::Exit { space } => format!("exit of space {space}"),
            Self::ChangeCopier => "copier change".to_owned(),
            // What a CPU does is in one column, and so is the device.
            Self::Interrupts { cpu } => format!("CPU {cpu}"),
            Self::Device { .. } => "device".to_owned(),
        }
    }

    /// Does it.
    pub(crate) fn act(self, actor: &Actor) {
        match self {
            Self::Program { cpu, space, ops } => {
                for op in ops {
                    access(actor, cpu, space, op);
                }
            }
            Self::Migrate(request) => migrates(actor, request),
            Self::Exchange { pairs, mode, limit } => exchanges(actor, &pairs, mode, limit),
            Self::Settle { times } => {
                for _ in 0..times {
                    Migrator::new(actor).settle_those(|_| true);
                }
            }
            Self::Journal { pages } => journals(actor, &pages),
            Self::Lock { page } => {
                if lock(actor, page).is_some() {
                    unlock(actor, page);
                }
            }
            Self::Grab { tier, words } => grabs(actor, tier, words),
            Self::Pin { space, page } => pins(actor, space, page),
            Self::Replace { page } => replaces(actor, page),
            Self::Prefetch { cpu, page } => {
                let (space, word) = (0, 0);
                let place = Place {
                    cpu,
                    space,
                    page,
                    word,
                };
                actor.step(Act::Prefetch { place }, |step| {
                    step.machine.translate(place)
                });
            }
            Self::Flush { space } => flush(actor, &[space]),
            Self::Exit { space } => exits(actor, space),
            Self::ChangeCopier => changes_copier(actor),
            Self::Interrupts { cpu } => {
                while actor
                    .step(Act::Interrupt { cpu }, |step| step.machine.interrupt(cpu))
                    .is_some()
                {}
            }
            Self::Device { channel } => {
                while actor
                    .step(Act::Device { channel }, |step| step.machine.device(channel))
                    .is_some()
                {}
            }
        }
    }
}

/// A load or a store, with the faults that it meets.
fn access(actor: &Actor, cpu: CpuId, space: SpaceId, op: Op) {
    let Op { page, word, store } = op;
    let place = Place {
        cpu,
        space,
        page,
        word,
    };
    let id = actor.id;
    loop {
        let accessed = actor.step(Act::Access { place, store }, |step| {
            let accessed = step.machine.access(id, place, store);
            let machine = &*step.machine;
            let text = machine.text_of(accessed, place);
            step.note(|| text);
            accessed
        });
        match accessed {
            None | Some(Access::Done) => return,
            Some(Access::Nothing) => {
                actor.change(|machine| machine.expect_absent(place));
                return;
            }
            Some(Access::Translated) => {}
            Some(Access::Waits { source }) => {
                actor.step(Act::Fault { space, page }, |_| {});
                if actor.look(|machine| machine.has(Bug::FaultTakesReference)) {
                    actor.step(Act::Unpin { frame: source }, |step| {
                        step.machine.frames[source].references -= 1;
                    });
                }
            }
            Some(Access::Held) => {
                let there = actor.step(Act::StoreFault { space, page }, |step| {
                    step.machine.waits(page)
                });
                if there == Some(true) {
                    settle_page(actor, page);
                }
            }
        }
    }
}

impl Machine {
    fn text_of(&self, accessed: Access, place: Place) -> String {
        match accessed {
            Access::Done => {
                let entry = self.translation(place, false);
                entry.map_or("done".to_owned(), |entry| {
                    let value = self.frames[entry.frame].words[place.word];
                    format!("frame {}: {}", entry.frame, crate::machine::name(value))
                })
            }
            Access::Translated => "a walk of the page table".to_owned(),
            Access::Waits { .. } => "fault, waits".to_owned(),
            Access::Held => "fault, stores are held off".to_owned(),
            Access::Nothing => "nothing there".to_owned(),
        }
    }
}

fn folio(actor: &Actor, page: Page) -> Option<Folio> {
    actor.look(|machine| machine.objects.get(&page).map(|object| object.folio))
}

fn settle_page(actor: &Actor, page: Page) {
    if let Some(folio) = folio(actor, page) {
        Migrator::new(actor).settle_those(|other| other == folio);
    }
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

fn migrates(actor: &Actor, request: Move) {
    let Move {
        pages,
        to,
        mode,
        limit: most,
        copier: kind,
        deferred,
    } = request;
    limit(actor, most);
    let mut platform = Migrator::new(actor);
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
    let report = if deferred {
        let mut ledger = SharedLedger {
            actor: actor.clone(),
        };
        defer(&mut platform, &copier, request, &mut ledger)
    } else {
        migrate(&mut platform, &copier, request)
    };
    if !actor.is_over() {
        let id = actor.id;
        actor.change(|machine| {
            machine.compare(id, count, &report, platform.calls);
            machine.reports.push((id, report));
        });
    }
}

fn exchanges(actor: &Actor, pairs: &[(Page, Page)], mode: Mode, most: Limit) {
    limit(actor, most);
    let mut platform = Migrator::new(actor);
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
    let report = exchange(&mut platform, &swapper, request);
    if !actor.is_over() {
        let id = actor.id;
        actor.change(|machine| machine.compare_pairs(id, count, &report, platform.calls));
    }
}

fn journals(actor: &Actor, pages: &[Page]) {
    let id = actor.id;
    for &page in pages {
        actor.step(Act::Latch { page }, |step| {
            step.machine.latches.insert(page, id);
        });
    }
    for &page in pages.iter().rev() {
        actor.step(Act::Unlatch { page }, |step| {
            step.machine.latches.remove(&page);
        });
    }
}

/// Takes a folio's lock, and has its pair settled if that is what holds it; the frame that it is in.
fn lock(actor: &Actor, page: Page) -> Option<FrameId> {
    let id = actor.id;
    loop {
        let locked = actor.step(Act::Lock { page }, |step| {
            let machine = &mut *step.machine;
            if machine.waits(page) {
                return Err(());
            }
            let frame = machine.frame_of(page);
            if machine.objects.contains_key(&page) {
                machine.locks.insert(page, Holder::Actor(id));
            }
            Ok(frame)
        })?;
        match locked {
            Ok(frame) => return frame,
            Err(()) => settle_page(actor, page),
        }
    }
}

fn unlock(actor: &Actor, page: Page) {
    actor.step(Act::Unlock { page }, |step| {
        step.machine.locks.remove(&page);
    });
}

fn grabs(actor: &Actor, tier: usize, words: usize) {
    let page = Page::MAX;
    let id = actor.id;
    // Pairs may be on their way into the ledger or out of it, so it looks more than once.
    for _ in 0..3 {
        let frame = actor.step(Act::Allocate { tier, page }, |step| {
            step.machine.allocate(tier, words, page)
        });
        let Some(Some(frame)) = frame else {
            if actor.look(|machine| machine.defers) {
                Migrator::new(actor).settle_those(|_| true);
            }
            continue;
        };
        let value = actor.step(Act::Scribble { frame }, |step| {
            let value = step.machine.fresh(id);
            step.machine.frames[frame].words.fill(value);
            value
        });
        actor.step(Act::ReadBack { frame }, |step| {
            let words = &step.machine.frames[frame].words;
            if value.is_some_and(|value| words.iter().any(|word| *word != value)) {
                let what = format!("frame {frame} was given away and is still written to");
                step.machine.violated(what);
            }
        });
        actor.step(Act::Free { frame }, |step| step.machine.free(frame));
        return;
    }
}

fn pins(actor: &Actor, space: SpaceId, page: Page) {
    let pinned = actor.step(Act::Pin { space, page }, |step| {
        let pte = step.machine.spaces[space].get(&page).copied();
        let Some(Pte::Present {
            frame,
            writable: true,
        }) = pte
        else {
            step.note(|| "not now".to_owned());
            return None;
        };
        step.machine.frames[frame].references += 1;
        step.machine.frames[frame].pins += 1;
        Some(frame)
    });
    let Some(Some(frame)) = pinned else { return };
    let id = actor.id;
    actor.step(Act::StorePinned { frame, page }, |step| {
        let version = step.machine.fresh(id);
        step.machine.frames[frame].words[0] = version;
        step.machine.record_store(page, 0, version);
    });
    actor.step(Act::Unpin { frame }, |step| {
        step.machine.frames[frame].references -= 1;
        step.machine.frames[frame].pins -= 1;
    });
}

fn replaces(actor: &Actor, page: Page) {
    let Some(folio) = folio(actor, page) else {
        return;
    };
    // What the bug does not know: that a shootdown is still owed for the page.
    let owes = actor.look(|machine| machine.has(Bug::UnmappedWhileDeferred))
        && actor.step(Act::Lock { page }, |step| step.machine.waits(page)) == Some(true);
    let old = if owes { None } else { lock(actor, page) };
    if old.is_none() && !owes {
        return;
    }
    actor.step(Act::Clear { space: 0, page }, |step| {
        step.machine.replaced.insert(page);
        step.machine.spaces[0].remove(&page);
    });
    if let Some(frame) = old {
        flush(actor, &[0]);
        actor.step(Act::Free { frame }, |step| step.machine.free(frame));
    }
    let id = actor.id;
    actor.step(Act::MapNew { space: 0, page }, |step| {
        let machine = &mut *step.machine;
        machine.replaced.remove(&page);
        let words = machine.objects[&page].stored.len();
        let frame = machine.allocate(0, words, page);
        match frame {
            Some(frame) => machine.fill(folio, frame, &[0], id),
            None => {
                machine.objects.remove(&page);
            }
        }
    });
    if !owes {
        unlock(actor, page);
    }
}

fn exits(actor: &Actor, space: SpaceId) {
    let pages: Vec<Page> = actor.look(|machine| machine.spaces[space].keys().copied().collect());
    for page in pages {
        let Some(frame) = lock(actor, page) else {
            return;
        };
        let last = actor.step(Act::Clear { space, page }, |step| {
            let machine = &mut *step.machine;
            machine.spaces[space].remove(&page);
            let object = machine.objects.get_mut(&page)?;
            object.spaces.retain(|other| *other != space);
            Some(object.spaces.is_empty())
        });
        flush(actor, &[space]);
        if last.flatten() == Some(true) {
            actor.step(Act::Free { frame }, |step| {
                step.machine.objects.remove(&page);
                step.machine.free(frame);
            });
        }
        unlock(actor, page);
    }
}

fn changes_copier(actor: &Actor) {
    let old = actor.step(Act::ChangeCopier, |step| {
        let old = step.machine.copier;
        step.machine.copier = 1 - old;
        old
    });
    if let Some(copier) = old {
        actor.step(Act::RetireCopier { copier }, |step| {
            step.machine.copies_by[copier] = None;
        });
    }
}
