//! What an actor can do in one step: when it can, what it touches, and how a timeline shows it.
//!
//! What a step touches decides which orders are the same: two steps of which neither writes what the
//! other touches can be made in either order, so one of them is enough. So whatever a step looks at
//! or changes must be named here, and what it looks at when it finds out whether it can be made.

use std::fmt;

use crate::bug::Bug;
use crate::machine::{CpuId, FrameId, Machine, Page, Place, Pte, SpaceId};

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// A CPU loads or stores, or walks the page table for that.
    Access { place: Place, store: bool },
    /// A CPU walks the page table without being asked to.
    Prefetch { place: Place },
    /// A fault waits until the page is not being moved any more.
    Fault { space: SpaceId, page: Page },
    /// A fault waits until stores are allowed, or the pair can be had.
    StoreFault { space: SpaceId, page: Page },
    /// A CPU takes an interrupt.
    Interrupt { cpu: CpuId },
    /// A shootdown begins.
    Send,
    /// It has to be acknowledged by all.
    AwaitFlush { flush: usize },
    /// Takes a folio's lock if it is free.
    TryLock { page: Page },
    /// Takes it, and waits for it.
    Lock { page: Page },
    /// Waits until the lock is free or can be had, and takes nothing.
    AwaitLock { page: Page },
    /// Gives it up.
    Unlock { page: Page },
    /// Takes a free frame.
    Allocate { tier: usize, page: Page },
    /// Cuts a page off in one page table.
    Unmap { space: SpaceId, page: Page },
    /// Looks whether somebody else refers to the frame.
    References { frame: FrameId },
    /// What a call answers for the folio in the frame.
    Answer { frame: FrameId },
    /// Copies one word.
    Copy {
        from: FrameId,
        to: FrameId,
        word: usize,
    },
    /// Swaps one word.
    Swap { a: FrameId, b: FrameId, word: usize },
    /// Makes a page reachable in one page table.
    Remap {
        space: SpaceId,
        page: Page,
        frame: FrameId,
    },
    /// Makes it reachable at its source again.
    Putback {
        space: SpaceId,
        page: Page,
        frame: FrameId,
    },
    /// Frees a frame.
    Free { frame: FrameId },
    /// Holds stores off in one page table.
    Protect { space: SpaceId, page: Page },
    /// Leaves a folio to the ledger.
    Park { page: Page },
    /// Has it back.
    TakeUp { page: Page },
    /// Reads the number of shootdowns that have begun.
    Moment,
    /// Asks whether a later one has ended.
    HasFlushed,
    /// Looks into the ledger or changes it.
    Ledger { what: &'static str },
    /// Takes a latch if it is free.
    TryLatch { page: Page },
    /// Takes it, and waits for it.
    Latch { page: Page },
    /// Gives it up.
    Unlatch { page: Page },
    /// Hands a list to the device.
    Submit,
    /// The device makes the next copy of a channel.
    Device { channel: usize },
    /// Waits for the device.
    AwaitCopies { list: usize },
    /// Does not wait any longer, and has it make no more of them.
    CallOff { list: usize },
    /// Takes the copier in use.
    TakeCopier,
    /// Gives it back.
    LeaveCopier { copier: usize },
    /// Makes another copier the one in use.
    ChangeCopier,
    /// Waits for the copies by one that is not in use any more, and takes it away.
    RetireCopier { copier: usize },
    /// Refers to a page's frame from outside the page tables.
    Pin { space: SpaceId, page: Page },
    /// A device stores into it.
    StorePinned { frame: FrameId, page: Page },
    /// Lets go of it.
    Unpin { frame: FrameId },
    /// Takes the page away from an address space.
    Clear { space: SpaceId, page: Page },
    /// Maps something new there.
    MapNew { space: SpaceId, page: Page },
    /// Stores into a frame of its own.
    Scribble { frame: FrameId },
    /// Looks whether what was stored there is there.
    ReadBack { frame: FrameId },
    /// Comes to a place where a call can unwind.
    MayPanic,
}

/// What a step touches, as sets of things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touch {
    reads: u128,
    writes: u128,
}

impl Touch {
    /// Whether the two steps can be made in either order with the same result.
    pub(crate) fn is_independent_of(self, other: Self) -> bool {
        self.writes & (other.reads | other.writes) == 0 && other.writes & self.reads == 0
    }
}

// More things than there are bits share some: then more orders are tried than need be.
const fn pte(space: SpaceId, page: Page) -> u128 {
    1 << ((space as u128 * 8 + page as u128) % 16)
}
const fn cpu(cpu: CpuId) -> u128 {
    1 << (16 + cpu % 8)
}
const CPUS: u128 = 0xff << 16;
const fn frame(frame: FrameId) -> u128 {
    1 << (24 + frame % 16)
}
const fn lock(page: Page) -> u128 {
    1 << (40 + page % 8)
}
const fn tier(tier: usize) -> u128 {
    1 << (48 + tier % 4)
}
fn ptes(machine: &Machine, page: Page) -> u128 {
    (0..machine.spaces.len()).fold(0, |all, space| all | pte(space, page))
}
const LEDGER: u128 = 1 << 52;
const FLUSHES: u128 = 1 << 53;
const COPIER: u128 = 1 << 54;
const FAILURES: u128 = 1 << 55;
const fn latch(page: Page) -> u128 {
    1 << (56 + page % 8)
}
const fn object(page: Page) -> u128 {
    1 << (64 + page % 8)
}
const fn channel(channel: usize) -> u128 {
    1 << (72 + channel % 4)
}
const CHANNELS: u128 = 0xf << 72;
const fn acknowledged(cpu: CpuId) -> u128 {
    1 << (80 + cpu % 8)
}
const ACKNOWLEDGED: u128 = 0xff << 80;
const PAIRS: u128 = 1 << 88;

impl Act {
    /// Whether it can be made now.
    pub(crate) fn is_enabled(self, machine: &Machine) -> bool {
        let pte = |space: SpaceId, page| machine.spaces[space].get(&page);
        match self {
            Self::Fault { space, page } => !matches!(pte(space, page), Some(Pte::Migrating { .. })),
            Self::StoreFault { space, page } => {
                let held = matches!(
                    pte(space, page),
                    Some(Pte::Present {
                        writable: false,
                        ..
                    })
                );
                !held || machine.waits(page)
            }
            Self::Interrupt { cpu } => !machine.cpus[cpu].inbox.is_empty(),
            Self::AwaitFlush { flush } => machine.is_flushed(flush),
            Self::Lock { page } | Self::AwaitLock { page } => {
                !machine.locks.contains_key(&page)
                    || machine.waits(page)
                    || !machine.objects.contains_key(&page)
            }
            Self::Latch { page } => !machine.latches.contains_key(&page),
            Self::Device { channel } => !machine.channels[channel].is_empty(),
            Self::AwaitCopies { list } => machine.is_copied(list),
            Self::RetireCopier { copier } => {
                machine.copies_by[copier] == Some(0) || machine.has(Bug::CopierNotAwaited)
            }
            _ => true,
        }
    }

    /// What it touches if it is made now.
    pub(crate) fn touch(self, machine: &Machine) -> Touch {
        let mut reads = 0;
        let mut writes = 0;
        match self {
            Self::Access { place, store } => {
                match machine.translation(place, store) {
                    Some(entry) => {
                        reads |= cpu(place.cpu) | PAIRS;
                        let touched = frame(entry.frame) | object(place.page);
                        if store {
                            writes |= touched;
                        } else {
                            reads |= touched;
                        }
                    }
                    None => {
                        reads |= pte(place.space, place.page);
                        writes |= cpu(place.cpu);
                        // A waiting fault may take a reference, if that is the bug.
                        writes |= machine.reference_of_fault(place).map_or(0, frame);
                    }
                }
            }
            Self::Prefetch { place } => {
                reads |= pte(place.space, place.page);
                writes |= cpu(place.cpu);
            }
            Self::Fault { space, page } => reads |= pte(space, page),
            Self::StoreFault { space, page } => reads |= pte(space, page) | LEDGER | object(page),
            Self::Interrupt { cpu: id } => writes |= cpu(id) | acknowledged(id),
            Self::Send => writes |= FLUSHES | CPUS | ACKNOWLEDGED,
            Self::AwaitFlush { .. } => {
                reads |= ACKNOWLEDGED;
                writes |= FLUSHES | CPUS;
            }
            Self::TryLock { page } | Self::Lock { page } => {
                writes |= lock(page);
                reads |= object(page) | LEDGER | ptes(machine, page) | PAIRS;
                // The bug that forgets a pair does so here.
                if machine.has(Bug::DestinationBecomesSource) {
                    writes |= u128::MAX;
                }
            }
            Self::AwaitLock { page } => reads |= lock(page) | object(page) | LEDGER,
            Self::Unlock { page } => writes |= lock(page),
            Self::Allocate { tier: from, .. } => writes |= tier(from),
            Self::Unmap { space, page } | Self::Protect { space, page } => {
                writes |= pte(space, page);
                reads |= object(page);
            }
            Self::References { frame: id } | Self::Answer { frame: id } => reads |= frame(id),
            Self::Copy { from, to, .. } => {
                reads |= frame(from) | COPIER;
                writes |= frame(to);
            }
            Self::Swap { a, b, .. } => writes |= frame(a) | frame(b),
            Self::Remap { space, page, .. } | Self::Putback { space, page, .. } => {
                writes |= pte(space, page) | PAIRS;
                reads |= object(page);
            }
            Self::Free { frame: id } => {
                let of = machine.frames[id].tier;
                writes |= frame(id) | tier(of);
                reads |= CPUS | PAIRS;
                // Who ends a process frees what was its last.
                writes |= machine.frames[id].page.map_or(0, object);
            }
            Self::Park { page } | Self::TakeUp { page } => {
                writes |= lock(page) | PAIRS | ptes(machine, page);
            }
            Self::Moment | Self::HasFlushed => reads |= FLUSHES | ACKNOWLEDGED,
            Self::Ledger { .. } => writes |= LEDGER,
            Self::TryLatch { page } | Self::Latch { page } | Self::Unlatch { page } => {
                writes |= latch(page);
            }
            Self::Submit | Self::CallOff { .. } => writes |= CHANNELS,
            Self::Device { channel: id } => {
                writes |= channel(id);
                if let Some(next) = machine.channels[id].front() {
                    reads |= frame(next.from);
                    writes |= frame(next.to);
                }
            }
            Self::AwaitCopies { .. } => reads |= CHANNELS,
            Self::TakeCopier
            | Self::LeaveCopier { .. }
            | Self::ChangeCopier
            | Self::RetireCopier { .. } => writes |= COPIER,
            Self::Pin { space, page } => {
                reads |= pte(space, page);
                writes |= machine.frame_of(page).map_or(0, frame);
            }
            Self::StorePinned { frame: id, page } => writes |= frame(id) | object(page),
            Self::Unpin { frame: id } => writes |= frame(id),
            Self::Clear { space, page } | Self::MapNew { space, page } => {
                writes |= pte(space, page) | object(page) | PAIRS;
                writes |= machine
                    .free
                    .iter()
                    .flatten()
                    .fold(0, |all, id| all | frame(*id));
                writes |= tier(0);
            }
            Self::Scribble { frame: id } => writes |= frame(id),
            Self::ReadBack { frame: id } => reads |= frame(id),
            // Only one actor can panic, and nobody sees whether it will.
            Self::MayPanic => {}
        }
        if machine.failures > 0 && self.can_fail() {
            writes |= FAILURES;
        }
        Touch { reads, writes }
    }

    /// Whether a call in this step may fail for no reason.
    fn can_fail(self) -> bool {
        matches!(
            self,
            Self::TryLock { .. }
                | Self::Lock { .. }
                | Self::Allocate { .. }
                | Self::Unmap { .. }
                | Self::Protect { .. }
                | Self::Send
                | Self::References { .. }
                | Self::Answer { .. }
                | Self::Copy { .. }
                | Self::Remap { .. }
                | Self::Park { .. }
                | Self::TakeUp { .. }
                | Self::TryLatch { .. }
                | Self::Latch { .. }
                | Self::Submit
                | Self::HasFlushed
                | Self::Ledger { .. }
        )
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Access { place, store } => {
                let what = if *store { "store to" } else { "load from" };
                write!(f, "{what} page {}", place.page)?;
                match place.word {
                    0 => Ok(()),
                    word => write!(f, ", word {word}"),
                }
            }
            Self::Prefetch { place } => write!(f, "translates page {}", place.page),
            Self::Fault { page, .. } => write!(f, "page {page} is back"),
            Self::StoreFault { page, .. } => write!(f, "page {page}: hold ends or settles"),
            Self::Interrupt { .. } => f.write_str("takes an interrupt"),
            Self::Send => f.write_str("sends a shootdown"),
            Self::AwaitFlush { flush } => write!(f, "shootdown {flush} is acknowledged"),
            Self::TryLock { page } => write!(f, "try-locks page {page}"),
            Self::Lock { page } => write!(f, "locks page {page}"),
            Self::AwaitLock { page } => write!(f, "page {page} is not locked"),
            Self::Unlock { page } => write!(f, "unlocks page {page}"),
            Self::Allocate { tier, page } => write!(f, "a frame of tier {tier} for page {page}"),
            Self::Unmap { space, page } => write!(f, "unmaps page {page}{}", Of(*space)),
            Self::References { frame } => write!(f, "who refers to frame {frame}?"),
            Self::Answer { frame } => write!(f, "answer for frame {frame}"),
            Self::Copy { from, to, word } => write!(f, "copies {from} to {to}, word {word}"),
            Self::Swap { a, b, word } => write!(f, "swaps {a} and {b}, word {word}"),
            Self::Remap { space, page, frame } => {
                write!(f, "maps page {page} to frame {frame}{}", Of(*space))
            }
            Self::Putback { space, page, frame } => {
                write!(f, "puts page {page} back to {frame}{}", Of(*space))
            }
            Self::Free { frame } => write!(f, "frees frame {frame}"),
            Self::Protect { space, page } => write!(f, "holds stores to {page} off{}", Of(*space)),
            Self::Park { page } => write!(f, "parks page {page}"),
            Self::TakeUp { page } => write!(f, "takes page {page} up"),
            Self::Moment => f.write_str("notes the moment"),
            Self::HasFlushed => f.write_str("flushed since?"),
            Self::Ledger { what } => write!(f, "ledger: {what}"),
            Self::TryLatch { page } => write!(f, "try-latches page {page}"),
            Self::Latch { page } => write!(f, "latches page {page}"),
            Self::Unlatch { page } => write!(f, "unlatches page {page}"),
            Self::Submit => f.write_str("submits copies"),
            Self::Device { channel } => write!(f, "channel {channel} copies a word"),
            Self::AwaitCopies { .. } => f.write_str("copies are complete"),
            Self::CallOff { .. } => f.write_str("calls the rest of its copies off"),
            Self::TakeCopier => f.write_str("takes the copier"),
            Self::LeaveCopier { copier } => write!(f, "is done with copier {copier}"),
            Self::ChangeCopier => f.write_str("changes the copier"),
            Self::RetireCopier { copier } => write!(f, "takes copier {copier} away"),
            Self::Pin { page, .. } => write!(f, "pins page {page}"),
            Self::StorePinned { frame, .. } => write!(f, "stores into frame {frame}"),
            Self::Unpin { frame } => write!(f, "unpins frame {frame}"),
            Self::Clear { space, page } => write!(f, "takes page {page} away{}", Of(*space)),
            Self::MapNew { page, .. } => write!(f, "maps something new at {page}"),
            Self::Scribble { frame } => write!(f, "uses frame {frame}"),
            Self::ReadBack { frame } => write!(f, "reads frame {frame}"),
            Self::MayPanic => f.write_str("may panic"),
        }
    }
}

/// An address space, unless it is the first.
struct Of(SpaceId);

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            space => write!(f, " of space {space}"),
        }
    }
}
