//! What an exchange asks of whoever owns the page tables, beyond what a migration does.

use crate::batch::Side;
use crate::failure::Failure;
use crate::folio::Folio;
use crate::platform::{Entry, Platform};

/// A platform on which two folios can trade places (\[fast-copy\]).
///
/// Of [`Platform`] the calls to lock, unmap, shootdown, remap, put back and release serve an exchange
/// too. `reserve` and `provision` are not called: no frame is needed but those that the two have. In
/// [`Platform::remap`] the destination of a folio is its partner's frame, and so it is in
/// [`Platform::putback`], which must not touch it: the partner is put back there. A gather may hold
/// folios that have been put back since, because their partners could not be unmapped.
pub trait Exchange: Platform {
    /// What a swapper is handed for one pair.
    type SwapJob;

    /// Called before each batch while nothing is held: the place to allocate, which may block, so
    /// that [`pair`](Exchange::pair) need not.
    fn provision_pairs(&mut self, _pairs: &[(Folio, Folio)]) {}

    /// Whether both are in the same tier, so that an exchange changes nothing.
    fn are_alike(&self, a: &Self::Held, b: &Self::Held) -> bool;

    /// Tells `a[n]` and `b[n]` that each goes to the frame of the other, in place of
    /// [`Platform::reserve`]. Must not wait: all of them are locked.
    fn pair(&mut self, a: &mut [Entry<Self::Held>], b: &mut [Entry<Self::Held>]);

    /// The swap that this pair needs. The job is dropped before either is released.
    fn swap_job(&mut self, a: &mut Self::Held, b: &mut Self::Held) -> Self::SwapJob;

    /// Swaps the contents of one pair on this CPU: what the swapper left untouched comes here.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from that, and which of the two is in the way. The contents are then untouched.
    fn swap_on_cpu(
        &mut self,
        a: &mut Self::Held,
        b: &mut Self::Held,
    ) -> Result<(), (Side, Failure)>;

    /// Swaps the contents of a pair once more, which is to be put back as it was, byte for byte.
    /// Neither has become reachable since the first swap.
    ///
    /// There is no error: the bytes are in memory that is locked and cut off. If it unwinds, nothing of it
    /// may have been swapped: it is called again.
    fn swap_back(&mut self, a: &mut Self::Held, b: &mut Self::Held);

    /// Makes a folio reachable in its partner's frame for which [`Platform::remap`] has failed, while
    /// it has not for the partner. There is no way back then, since threads may have stored to the
    /// partner. So there is no error either: this does what it takes. If it unwinds, it is called again for
    /// this folio, wherever it got to, and then for the others.
    fn follow(&mut self, held: &mut Self::Held);
}
