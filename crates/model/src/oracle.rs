//! What must hold when all have gone home.

use std::collections::BTreeSet;

use crate::actor::Actor;
use crate::bug::Bug;
use crate::machine::{FrameId, Machine, Pte, name};
use crate::platform::Migrator;

/// Settles what waits and looks at everything.
pub(crate) fn judge(stage: &Actor, moves_all: bool) {
    if stage.look(|machine| machine.violation.is_some()) {
        return;
    }
    if stage.look(|machine| machine.defers) {
        Migrator::new(stage).settle_all();
    }
    stage.change(|machine| {
        machine.interrupt_all();
        let found = machine
            .fault()
            .or_else(|| moves_all.then(|| machine.stayed()).flatten());
        if let Some(what) = found {
            machine.violated(what);
        }
    });
}

impl Machine {
    /// What is wrong with the machine at rest.
    fn fault(&self) -> Option<String> {
        if let Some((page, _)) = self.locks.first_key_value() {
            return Some(format!("the lock of page {page} is held at the end"));
        }
        if let Some((page, _)) = self.latches.first_key_value() {
            return Some(format!("the latch of page {page} is held at the end"));
        }
        // With this bug pairs are dropped, by which the account is not closed.
        if self.ledger.held() > 0 && !self.has(Bug::DestinationBecomesSource) {
            return Some(format!(
                "the ledger holds {} at the end",
                self.ledger.held()
            ));
        }
        let mut mapped: BTreeSet<FrameId> = BTreeSet::new();
        for (&page, object) in &self.objects {
            let mut frames = BTreeSet::new();
            for &space in &object.spaces {
                match self.spaces[space].get(&page) {
                    Some(Pte::Present {
                        frame,
                        writable: true,
                    }) => {
                        frames.insert(*frame);
                    }
                    Some(Pte::Present { .. }) => {
                        return Some(format!("stores to page {page} are held off for ever"));
                    }
                    Some(Pte::Migrating { .. }) => {
                        return Some(format!("page {page} is cut off for ever"));
                    }
                    None => return Some(format!("page {page} is mapped nowhere")),
                }
            }
            let &[frame] = frames.iter().copied().collect::<Vec<_>>().as_slice() else {
                return Some(format!("page {page} is in several frames: {frames:?}"));
            };
            if !mapped.insert(frame) {
                return Some(format!("frame {frame} is mapped twice"));
            }
            for (word, (is, stored)) in self.frames[frame]
                .words
                .iter()
                .zip(&object.stored)
                .enumerate()
            {
                if is != stored {
                    return Some(format!(
                        "a store is lost: word {word} of page {page} is {}, and {} was stored last",
                        name(*is),
                        name(*stored)
                    ));
                }
            }
        }
        for (id, frame) in self.frames.iter().enumerate() {
            let kept = self.stale_copies.values().any(|kept| *kept == id);
            if frame.page.is_some() && !mapped.contains(&id) && !kept {
                return Some(format!("frame {id} is leaked"));
            }
            if frame.page.is_none() && mapped.contains(&id) {
                return Some(format!("frame {id} is mapped and free"));
            }
            if frame.references > 0 {
                return Some(format!("frame {id} is referred to at the end"));
            }
        }
        for (cpu, state) in self.cpus.iter().enumerate() {
            for (&(space, page), entry) in &state.tlb {
                let pte = self.spaces[space].get(&page);
                let right =
                    matches!(pte, Some(Pte::Present { frame, .. }) if *frame == entry.frame);
                if !right {
                    return Some(format!(
                        "CPU {cpu} still translates page {page} to frame {}",
                        entry.frame
                    ));
                }
            }
        }
        None
    }

    /// Where everything is, and what was stored and read last, to tell the ends of orders from each other.
    pub(crate) fn end(&self) -> String {
        let place = |page| {
            let frame = self.frame_of(page);
            frame.map(|frame| self.frames[frame].tier)
        };
        let objects = self.objects.iter();
        let objects = objects.map(|(&page, object)| (page, place(page), object.stored.clone()));
        let stayed = self
            .reports
            .iter()
            .map(|(actor, report)| (*actor, report.moved()));
        let stayed: std::collections::BTreeMap<_, _> = stayed.collect();
        let objects: Vec<_> = objects.collect();
        format!("{objects:?} {stayed:?} {:?}", self.read)
    }

    /// A folio that is not where it was to go, where nothing can have kept it.
    fn stayed(&self) -> Option<String> {
        if !self.all_exchanged {
            return Some("a pair has not traded places".to_owned());
        }
        let folios = self.reports.iter().flat_map(|(_, report)| report.folios());
        let mut astray = folios.filter(|folio| {
            let frame = self.frame_of(folio.folio.page());
            frame.is_none_or(|frame| self.frames[frame].tier != folio.to.0)
        });
        let folio = astray.next()?;
        let (name, outcome) = (folio.folio, folio.outcome);
        Some(format!(
            "{name:?} is not in tier {}: {outcome:?}",
            folio.to.0
        ))
    }
}
