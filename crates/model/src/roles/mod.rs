//! What the actors of a case do.

mod bystander;
mod program;
mod request;

use transhume_engine::{Folio, Limit, Mode};

pub(crate) use self::program::{Op, load, store};
pub(crate) use self::request::Move;
use crate::act::Act;
use crate::actor::Actor;
use crate::machine::{CpuId, Page, Place, SpaceId};
use crate::platform::{Migrator, flush};

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

    /// Whether it is what a CPU or a device does, one thing after the other whoever wants it done.
    pub(crate) fn is_hardware(&self) -> bool {
        matches!(self, Self::Program { .. } | Self::Prefetch { .. }) || self.serves()
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
                    program::access(actor, cpu, space, op);
                }
            }
            Self::Migrate(request) => request::migrates(actor, request),
            Self::Exchange { pairs, mode, limit } => request::exchanges(actor, &pairs, mode, limit),
            Self::Settle { times } => {
                for _ in 0..times {
                    request::until_it_returns(actor, || Migrator::new(actor).settle_all());
                }
            }
            Self::Journal { pages } => bystander::journals(actor, &pages),
            Self::Lock { page } => {
                if bystander::lock(actor, page).is_some() {
                    bystander::unlock(actor, page);
                }
            }
            Self::Grab { tier, words } => bystander::grabs(actor, tier, words),
            Self::Pin { space, page } => bystander::pins(actor, space, page),
            Self::Replace { page } => bystander::replaces(actor, page),
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
            Self::Exit { space } => bystander::exits(actor, space),
            Self::ChangeCopier => bystander::changes_copier(actor),
            Self::Interrupts { cpu } => {
                while actor
                    .step(Act::Interrupt { cpu }, |step| {
                        if let Some(&flush) = step.machine.cpus[cpu].inbox.front() {
                            step.note(|| format!("flushes its TLB for shootdown {flush}"));
                        }
                        step.machine.interrupt(cpu);
                    })
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

fn folio(actor: &Actor, page: Page) -> Option<Folio> {
    actor.look(|machine| machine.objects.get(&page).map(|object| object.folio))
}

fn settle_page(actor: &Actor, page: Page) {
    if let Some(folio) = folio(actor, page) {
        Migrator::new(actor).settle_run_of(folio);
    }
}
