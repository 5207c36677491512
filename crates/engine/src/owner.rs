//! Owners: how an application that has latches on its pages takes part in their migration.

use crate::failure::{Failure, Step, Why};
use crate::folio::Folio;
use crate::platform::{Alone, Entry, Place, Platform, Wait};

/// An application that protects its folios by something of its own: a buffer pool with latches on
/// its pages, a journal (\[batch-deadlock\]).
///
/// A folio is asked for after it has been locked and before it is cut off. While it is *detached*
/// the application uses none of it; a folio that is refused stays reachable and is tried again in a
/// later pass, as one whose lock is taken ([`Why::Busy`] at [`Step::Unmap`]).
///
/// # The rule
///
/// A batch holds many folios at once. Were it to wait for the latch of one of them, it could wait
/// for a thread that holds this latch and waits for another folio of the batch; neither would ever
/// go on. So in a batch owners are only asked by [`try_detach`](Self::try_detach).
/// [`detach`](Self::detach) may wait and is only called when no other folio is held, which
/// [`Alone`] proves: nobody but the engine can make one.
///
/// `try_detach` and [`attach`](Self::attach) run while other folios of the batch are locked, and
/// `attach` while some may be cut off. So they must not wait for anything, should not allocate, and
/// must not touch memory that migrates. The engine cannot check that: an owner that waits there
/// brings the deadlock back.
///
/// # All parts or none
///
/// A folio of which the application latches several parts is detached when all of them are; see
/// [`all_or_none`].
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering::{AcqRel, Acquire, Release}};
/// use transhume_engine::{Folio, FolioOwner, Place, Refused, all_or_none};
///
/// /// Latches of the buffers, four to a base page.
/// struct Pool(Vec<AtomicBool>);
///
/// impl Pool {
///     fn latches(&self, folio: Folio) -> &[AtomicBool] {
///         let buffers = |page| usize::try_from(4 * page).unwrap_or(usize::MAX);
///         let first = buffers(folio.page());
///         &self.0[first..first + buffers(folio.base_pages())]
///     }
/// }
///
/// fn try_latch(latch: &AtomicBool) -> Result<(), Refused> {
///     let free = latch.compare_exchange(false, true, AcqRel, Acquire);
///     free.map(drop).map_err(|_| Refused)
/// }
///
/// impl FolioOwner for Pool {
///     fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
///         all_or_none(self.latches(folio), try_latch, |latch| latch.store(false, Release))
///     }
///
///     fn attach(&self, folio: Folio, _at: Place) {
///         for latch in self.latches(folio).iter().rev() {
///             latch.store(false, Release);
///         }
///     }
/// }
///
/// let pool = Pool((0..8).map(|_| AtomicBool::new(false)).collect());
/// let page = Folio::base(1).unwrap();
/// pool.0[6].store(true, Release); // somebody works on its third buffer
/// assert_eq!(pool.try_detach(page), Err(Refused));
/// assert!(!pool.0[4].load(Acquire), "the two before it are free again");
/// pool.0[6].store(false, Release);
/// assert_eq!(pool.try_detach(page), Ok(()));
/// pool.attach(page, Place::Destination);
/// ```
pub trait FolioOwner: Send + Sync {
    /// Lets go of the folio if that can be done at once: takes whatever keeps the application away
    /// from it. Called in a batch, while others are held.
    ///
    /// # Errors
    ///
    /// [`Refused`] if any part of it is in use. Then none of it has been taken.
    fn try_detach(&self, folio: Folio) -> Result<(), Refused>;

    /// Lets go of the folio and may wait for it. The wait should have a bound, since the request
    /// waits too. Unless it is overridden it does not wait, as [`try_detach`](Self::try_detach).
    ///
    /// # Errors
    ///
    /// [`Refused`] if it is still in use. Then none of it has been taken.
    fn detach(&self, folio: Folio, _alone: &Alone) -> Result<(), Refused> {
        self.try_detach(folio)
    }

    /// Takes the folio back, wherever it is now. Called once for each time that it was detached,
    /// when it is reachable again and before it is unlocked, whatever happened meanwhile: also after
    /// a failure of a later step, and after a panic there.
    ///
    /// # Panics
    ///
    /// It should not. If it does, the others are attached all the same and the panic goes on.
    fn attach(&self, folio: Folio, at: Place);
}

/// An owner would not let go of a folio now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// Takes all parts of something or none: tries them in order, and when one is refused, or `try_one`
/// panics, undoes those before it in reverse order.
///
/// For owners that latch several parts of a folio. With a `try_one` that waits up to a bound it
/// serves [`FolioOwner::detach`] too; the parts must then be in the order in which the rest of the
/// application latches them.
///
/// # Errors
///
/// The first refusal.
pub fn all_or_none<T>(
    parts: &[T],
    mut try_one: impl FnMut(&T) -> Result<(), Refused>,
    undo_one: impl FnMut(&T),
) -> Result<(), Refused> {
    let mut taken = Taken {
        parts: &parts[..0],
        undo_one,
    };
    for (part, before) in parts.iter().zip(1..) {
        try_one(part)?;
        taken.parts = &parts[..before];
    }
    taken.parts = &[];
    Ok(())
}

/// The parts that are undone when this is dropped.
struct Taken<'p, T, U: FnMut(&T)> {
    parts: &'p [T],
    undo_one: U,
}

impl<T, U: FnMut(&T)> Drop for Taken<'_, T, U> {
    fn drop(&mut self) {
        for part in self.parts.iter().rev() {
            (self.undo_one)(part);
        }
    }
}

/// Asks the owner for each folio; those that it refuses fail.
pub(crate) fn detach<H>(owner: &dyn FolioOwner, entries: &mut [Entry<H>], wait: &Wait) {
    for entry in entries {
        let folio = entry.folio();
        let detached = match wait {
            Wait::Never => owner.try_detach(folio),
            Wait::May(alone) => owner.detach(folio, alone),
        };
        match detached {
            Ok(()) => entry.detached = true,
            Err(Refused) => entry.fail(Failure::new(Step::Unmap, Why::Busy)),
        }
    }
}

/// Gives back to the owner what was detached. The mark goes first, so that no folio is given back
/// twice if the owner panics.
pub(crate) fn attach<P: Platform>(platform: &P, entries: &mut [Entry<P::Held>], at: Place) {
    let Some(owner) = platform.owner() else {
        return;
    };
    for entry in entries {
        if core::mem::take(&mut entry.detached) {
            owner.attach(entry.folio(), at);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use alloc::vec::Vec;
    use core::cell::RefCell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    use super::*;

    /// What is done to parts 1 to 4 of which one is refused, if any.
    fn done(refused: i32, panics: bool) -> (Option<Result<(), Refused>>, Vec<i32>) {
        let done = RefCell::new(Vec::new());
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let try_one = |part: &i32| {
                if *part == refused && panics {
                    resume_unwind(std::boxed::Box::new("planned"));
                }
                if *part == refused {
                    return Err(Refused);
                }
                done.borrow_mut().push(*part);
                Ok(())
            };
            all_or_none(&[1, 2, 3, 4], try_one, |part| done.borrow_mut().push(-part))
        }));
        (answer.ok(), done.into_inner())
    }

    #[test]
    fn all_parts_or_none_in_reverse() {
        assert_eq!(done(0, false), (Some(Ok(())), [1, 2, 3, 4].into()));
        let refused = Some(Err(Refused));
        assert_eq!(done(4, false), (refused, [1, 2, 3, -3, -2, -1].into()));
        assert_eq!(done(1, false), (refused, Vec::new()));
        assert_eq!(done(3, true), (None, [1, 2, -2, -1].into()));
    }

    #[test]
    fn an_owner_that_cannot_wait_is_tried_where_it_may() {
        struct Even;
        impl FolioOwner for Even {
            fn try_detach(&self, folio: Folio) -> Result<(), Refused> {
                let even = folio.page().is_multiple_of(2);
                if even { Ok(()) } else { Err(Refused) }
            }

            fn attach(&self, _folio: Folio, _at: Place) {}
        }
        let detached = [0, 1].map(|page| Even.detach(Folio::base(page).unwrap(), &Alone(())));
        assert_eq!(detached, [Ok(()), Err(Refused)]);
    }

    #[test]
    fn nothing_has_no_parts_to_refuse() {
        assert_eq!(all_or_none(&[0; 0], |_| Err(Refused), |_| {}), Ok(()));
    }
}
