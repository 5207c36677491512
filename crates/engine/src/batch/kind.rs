//! What a batch is made of: folios that move each for itself, or pairs that trade places.

use crate::copier::CopyAnswer;
use crate::exchange::{Exchange, SwapAnswer};
use crate::failure::{Failure, Step, Why};
use crate::folio::Folio;
use crate::platform::{Entry, Platform};

/// What a batch is made of; [`Folios`] and [`Pairs`], and nobody else's.
pub trait Kind<P: Platform>: hidden::Kind<P> {}

impl<P: Platform, K: hidden::Kind<P>> Kind<P> for K {}

/// Folios, each with a frame of its own reserved at the destination.
#[derive(Clone, Copy, Debug)]
pub struct Folios;

/// Pairs of folios, each the destination of the other.
///
/// In a batch the first folios of all pairs come first, then the second ones in the same order: what
/// lies side by side in either list stays side by side, and the partner of the `n`th entry of the
/// first half is the `n`th of the second.
#[derive(Clone, Copy, Debug)]
pub struct Pairs;

/// Keeps the kinds to those of this module.
pub(super) mod hidden {
    use super::{Entry, Folio, Platform, Step};

    /// How steps that both kinds share differ.
    pub trait Kind<P: Platform> {
        /// What is done between shootdown and remap for one of them.
        type Job;
        /// What is said of one job.
        type Answer;

        /// What is cut off for a folio after `before`.
        fn cut_off_with(platform: &P, before: Option<Folio>, folio: Folio) -> u64;

        /// Lets leave at `step` whoever must not stay without those that leave.
        fn leave_together(entries: &mut [Entry<P::Held>], step: Step);

        /// Makes undone what was done to the contents of those that are put back.
        fn undo(platform: &mut P, entries: &mut [Entry<P::Held>]);

        /// Makes those reachable that must arrive, because their partners have.
        fn bring_in(platform: &mut P, entries: &mut [Entry<P::Held>]);
    }
}

impl<P: Platform> hidden::Kind<P> for Folios {
    type Job = P::Job;
    type Answer = CopyAnswer;

    fn cut_off_with(platform: &P, before: Option<Folio>, folio: Folio) -> u64 {
        platform.cut_off_with(before, folio)
    }

    fn leave_together(_entries: &mut [Entry<P::Held>], _step: Step) {}

    // A copy has not changed its source.
    fn undo(_platform: &mut P, _entries: &mut [Entry<P::Held>]) {}

    // None has a partner.
    fn bring_in(_platform: &mut P, _entries: &mut [Entry<P::Held>]) {}
}

impl<P: Exchange> hidden::Kind<P> for Pairs {
    type Job = P::SwapJob;
    type Answer = SwapAnswer;

    // Nothing that lies between is taken along: it would be cut off for two batches' worth of work.
    fn cut_off_with(_platform: &P, _before: Option<Folio>, folio: Folio) -> u64 {
        folio.base_pages()
    }

    fn leave_together(entries: &mut [Entry<P::Held>], step: Step) {
        for (a, b) in partners(entries) {
            if a.is_alive() != b.is_alive() {
                let with_it = Failure::new(step, Why::Abandoned);
                a.fail(with_it);
                b.fail(with_it);
            }
        }
    }

    fn undo(platform: &mut P, entries: &mut [Entry<P::Held>]) {
        for (a, b) in partners(entries) {
            // Those without the mark may not be partners any more, if some were released already.
            if a.copied {
                platform.swap_back(&mut a.held, &mut b.held);
                a.copied = false;
            }
        }
    }

    fn bring_in(platform: &mut P, entries: &mut [Entry<P::Held>]) {
        for entry in entries.iter_mut().filter(|entry| entry.marked) {
            platform.follow(&mut entry.held);
            entry.marked = false;
        }
    }
}

/// The pairs among the entries of a batch.
pub(super) fn partners<H>(
    entries: &mut [Entry<H>],
) -> impl Iterator<Item = (&mut Entry<H>, &mut Entry<H>)> {
    let (first, second) = entries.split_at_mut(entries.len() / 2);
    first.iter_mut().zip(second)
}
