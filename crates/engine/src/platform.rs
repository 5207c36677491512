//! What the engine asks of whoever owns the page tables.

use core::time::Duration;

use crate::failure::{Failure, Step, Why};
use crate::folio::Folio;
use crate::owner::FolioOwner;
use crate::report::Reshaped;

/// The owner of some page tables: how unmap, shootdown and remap are really done there.
///
/// The engine calls in the order of the pipeline and never twice for the same step of the same
/// folio, except [`putback`](Platform::putback), which must be idempotent. A platform knows nothing
/// of retry policy: it says what happened and the engine decides.
///
/// Steps that the machine can do for many folios at once take a slice of [`Entry`]; a folio for
/// which the step failed is marked with [`Entry::fail`], and the others go on. Every entry of the
/// slice is alive when the call begins.
pub trait Platform {
    /// Names a kind of memory.
    type Tier: Copy + Eq + core::fmt::Debug;
    /// What the platform keeps for a folio between lock and release: its lock, its reserved frame.
    type Held;
    /// The ranges that wait for one shootdown. Made while folios are locked, so making it allocates
    /// nothing; the platform lends it memory when it gathers the first folio.
    type Gather: Default;
    /// What a copier is handed for one folio.
    type Job;

    /// A monotonic clock, from any origin.
    fn now(&self) -> Duration;

    /// What the machine's own counter says of shootdowns requested by this migration's thread so
    /// far, or `None` if the machine has no such counter. Never an estimate.
    fn shootdowns(&self) -> Option<u64> {
        None
    }

    /// Who else must let go of a folio before it is cut off, if there is anybody: always the same.
    /// The engine asks the owner before [`unmap`](Platform::unmap) and tells it before
    /// [`release`](Platform::release); a platform only says who it is. For what it cuts off of its own
    /// accord, beyond the folios of the batch, it asks by [`FolioOwner::try_detach`] and tells itself.
    fn owner(&self) -> Option<&dyn FolioOwner> {
        None
    }

    /// How many base pages are cut off for a folio that is in a batch after `before`, or first: its
    /// own, and what lies between the two where the platform cuts off both in one piece. Batches are
    /// cut by it ([`Limit::base_pages`](crate::Limit::base_pages)). At least the folio's own.
    fn cut_off_with(&self, _before: Option<Folio>, folio: Folio) -> u64 {
        folio.base_pages()
    }

    /// How many base pages, from this folio on in the order of the request, gain by being cut off in
    /// one batch. Where a batch of their own would hold them and what is left of this one does not,
    /// they begin the next. At least the folio's own.
    fn together(&self, folio: Folio) -> u64 {
        folio.base_pages()
    }

    /// How many huge pages this request has made and how many it has split, as far as the machine
    /// tells. Never an estimate.
    fn reshaped(&self) -> Reshaped {
        Reshaped::default()
    }

    /// Called before each batch while nothing is held: the place to allocate, which may block, so
    /// that [`reserve`](Platform::reserve) need not. What could not be had is found out there.
    fn provision(&mut self, _folios: &[Folio], _to: Self::Tier) {}

    /// Takes the folio's lock if it is free; must not wait for anything (\[batch-deadlock\]).
    ///
    /// # Errors
    ///
    /// [`Why::Busy`] if the lock is taken; any other cause that makes the folio ineligible.
    fn try_lock(&mut self, folio: Folio) -> Result<Self::Held, Failure>;

    /// Takes the folio's lock and may wait for it: no other folio is held, which `alone` proves.
    ///
    /// # Errors
    ///
    /// As [`try_lock`](Platform::try_lock); [`Why::Busy`] once a bounded wait has passed.
    fn lock(&mut self, folio: Folio, alone: &Alone) -> Result<Self::Held, Failure>;

    /// Whether the folio is in this tier already, and nothing is to be done about it.
    fn is_in(&self, folio: Folio, held: &Self::Held, tier: Self::Tier) -> bool;

    /// Finds each folio a frame at `to`. In a batch ([`Wait::Never`]) it must not wait.
    fn reserve(&mut self, entries: &mut [Entry<Self::Held>], to: Self::Tier, wait: &Wait);

    /// Makes the folio unreachable for every access that must not happen during its copy, and adds
    /// its range to `gather`. Where cutting off and invalidating are one call, it only gathers, and
    /// [`shootdown`](Platform::shootdown) does both. It waits only if `wait` says so. If the folio
    /// has an owner, it has detached the folio.
    ///
    /// # Errors
    ///
    /// Whatever keeps the folio mapped. It must then still be reachable as before.
    fn unmap(
        &mut self,
        folio: Folio,
        held: &mut Self::Held,
        gather: &mut Self::Gather,
        wait: &Wait,
    ) -> Result<(), Failure>;

    /// Invalidates the stale translations of everything gathered. When it returns, no CPU can reach
    /// a folio whose entry is still alive by an old translation.
    fn shootdown(&mut self, gather: Self::Gather, entries: &mut [Entry<Self::Held>]);

    /// Whether nobody else holds a reference to the folio, so that its bytes may be copied now
    /// together with the others'. What is not eligible is copied alone in the remap step.
    fn is_eligible(&mut self, _folio: Folio, _held: &Self::Held) -> bool {
        true
    }

    /// The copy that this folio needs. The job is dropped before the folio is released.
    fn job(&mut self, folio: Folio, held: &mut Self::Held) -> Self::Job;

    /// Copies one folio on this CPU: what the copier did not confirm comes here.
    ///
    /// # Errors
    ///
    /// [`Why::CopyFailed`], or [`Why::Pinned`] if somebody holds a reference to it.
    fn copy_on_cpu(&mut self, folio: Folio, held: &mut Self::Held) -> Result<(), Failure>;

    /// Makes each folio reachable at its destination, with the right to store as before, and lets
    /// those go on who waited for it. An entry marked as failed must not be reachable at the
    /// destination, nor may any if this call unwinds: they are put back then.
    fn remap(&mut self, entries: &mut [Entry<Self::Held>]);

    /// Makes each folio reachable at its source again, with its bytes as they were, and gives up
    /// its reserved frame. Called for folios at any step before they are reachable at the
    /// destination, cut off or not, in any order; may be called twice.
    ///
    /// There is no error: a folio must end mapped exactly once, so this does what it takes.
    fn putback(&mut self, entries: &mut [Entry<Self::Held>]);

    /// Gives up the locks. The folios are at [`Place::Destination`], and their source frames may be
    /// reused, or at [`Place::Source`], and everything has been put back. Takes every folio that
    /// the iterator gives; what it has not taken when it unwinds it is given again.
    fn release(&mut self, folios: &mut dyn Iterator<Item = (Folio, Self::Held)>, at: Place);
}

/// Proof that exactly one folio lock is being taken and none is held, so that waiting is allowed.
///
/// Only the engine makes one, on its path for single folios (\[batch-deadlock\]).
#[derive(Debug)]
pub struct Alone(pub(crate) ());

/// Whether a step may wait.
#[derive(Debug)]
pub enum Wait {
    /// It may not: other folios are locked.
    Never,
    /// It may: this folio is the only one.
    May(Alone),
}

/// Where a folio ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where it came from.
    Source,
    /// Where it was to go.
    Destination,
}

/// One folio of a batch, with what the platform keeps for it.
#[derive(Debug)]
pub struct Entry<H> {
    pub(crate) index: usize,
    /// In an exchange the first of a pair has it for both.
    pub(crate) copied: bool,
    /// Whether the owner has let go of it and is to be told when it is back.
    pub(crate) detached: bool,
    /// In an exchange: its pair's job is in the list, or it is to follow its partner.
    pub(crate) marked: bool,
    pub(crate) failure: Option<Failure>,
    folio: Folio,
    /// What the platform keeps.
    pub held: H,
}

impl<H> Entry<H> {
    pub(crate) fn new(index: usize, folio: Folio, held: H) -> Self {
        Self {
            index,
            copied: false,
            detached: false,
            marked: false,
            failure: None,
            folio,
            held,
        }
    }

    /// Which folio.
    pub fn folio(&self) -> Folio {
        self.folio
    }

    /// Marks the folio as failed at the present step. The first failure stays.
    pub fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// Whether no step has failed for it.
    pub fn is_alive(&self) -> bool {
        self.failure.is_none()
    }

    pub(crate) fn failure_or(&self, step: Step) -> Failure {
        self.failure.unwrap_or(Failure::new(step, Why::Abandoned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folio::Order;

    /// A platform that says only what it must.
    struct Least;

    impl Platform for Least {
        type Tier = ();
        type Held = ();
        type Gather = ();
        type Job = ();

        fn now(&self) -> Duration {
            Duration::ZERO
        }

        fn try_lock(&mut self, _folio: Folio) -> Result<(), Failure> {
            Ok(())
        }

        fn lock(&mut self, _folio: Folio, _alone: &Alone) -> Result<(), Failure> {
            Ok(())
        }

        fn is_in(&self, _folio: Folio, (): &(), (): ()) -> bool {
            false
        }

        fn reserve(&mut self, _entries: &mut [Entry<()>], (): (), _wait: &Wait) {}

        fn unmap(
            &mut self,
            _folio: Folio,
            (): &mut (),
            (): &mut (),
            _wait: &Wait,
        ) -> Result<(), Failure> {
            Ok(())
        }

        fn shootdown(&mut self, (): (), _entries: &mut [Entry<()>]) {}

        fn job(&mut self, _folio: Folio, (): &mut ()) {}

        fn copy_on_cpu(&mut self, _folio: Folio, (): &mut ()) -> Result<(), Failure> {
            Ok(())
        }

        fn remap(&mut self, _entries: &mut [Entry<()>]) {}

        fn putback(&mut self, _entries: &mut [Entry<()>]) {}

        fn release(&mut self, folios: &mut dyn Iterator<Item = (Folio, ())>, _at: Place) {
            folios.for_each(drop);
        }
    }

    #[test]
    fn a_folio_is_cut_off_by_itself_unless_a_platform_says_more() {
        let huge = |n: u64| Folio::new(n * 512, Order::HUGE).unwrap();
        assert_eq!(Least.cut_off_with(None, huge(2)), 512);
        assert_eq!(Least.cut_off_with(Some(huge(0)), huge(2)), 512);
        assert_eq!(Least.together(huge(0)), 512);
        assert!(Least.is_eligible(huge(0), &()));
        assert!(Least.owner().is_none());
        assert_eq!(Least.shootdowns(), None);
    }
}
