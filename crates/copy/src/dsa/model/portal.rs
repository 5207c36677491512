//! The portal of a model's queue.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::DsaModel;
use super::faults::Fault;
use super::line::Entry;
use crate::dsa::descriptor::Descriptor;
use crate::dsa::portal::{Portal, QueueMode, Shape, Submitted};

#[derive(Debug)]
pub(super) struct ModelPortal {
    pub(super) model: DsaModel,
    pub(super) queue: usize,
    pub(super) shape: Shape,
}

// SAFETY: see the protocol above. An engine has its entry among those executed from under the same
// lock under which it took it until it touches nothing of it any more.
unsafe impl Portal for ModelPortal {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    unsafe fn submit(&self, descriptor: &Descriptor) -> Submitted {
        let shared = &self.model.0.shared;
        let mut state = shared.lock();
        state.submitted += 1;
        let number = state.submitted;
        let Some(line) = state.queues.get_mut(self.queue) else {
            return Submitted::Gone;
        };
        let shared_queue = self.shape.mode == QueueMode::Shared;
        if shared.faults.befalls(Fault::Refuses, number) {
            if let Some(count) = shared.counts.get(Fault::Refuses.index()) {
                count.fetch_add(1, Ordering::Relaxed);
            }
            return Submitted::Retry;
        }
        if line.held() >= line.size {
            // A dedicated queue does not say so, and drops it.
            return if shared_queue {
                Submitted::Retry
            } else {
                Submitted::Accepted
            };
        }
        line.waiting.push_back(Entry {
            number,
            descriptor: *descriptor,
            again: false,
        });
        drop(state);
        shared.changed.notify_all();
        Submitted::Accepted
    }

    fn call_off(&self) {
        let shared = &self.model.0.shared;
        let mut state = shared.lock();
        if let Some(count) = shared.called_off.get(self.queue) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        while let Some(line) = state.queues.get_mut(self.queue) {
            // Again after each wait: what was submitted meanwhile is called off with the rest.
            line.waiting.clear();
            line.parked.clear();
            line.unwritten.clear();
            if line.executed.is_empty() {
                break;
            }
            state = shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
