//! The device in software: executes descriptors on threads of its own, and as badly as it is told.
//!
//! # The protocol
//!
//! Everything is behind one lock, [`State`]: what is queued, what is executed now, what is *parked*
//! (begun, and to be gone on with later or never), and which records are still to be written. An
//! engine takes an entry under the lock, executes it without, and notes its end under the lock. A
//! drain is taken when nothing that was submitted to its queue before is queued, executed or
//! parked.
//!
//! Calling a queue off forgets what is queued, parked and unwritten, tells the engines to stop, and
//! waits until none executes anything of the queue. Engines look whether they should between
//! stretches of a few KiB, and write records of batches and copies under the lock, so no byte is
//! touched afterwards. The queue is then as new.

mod engine;
mod execute;
mod faults;
mod line;
mod portal;
#[cfg(test)]
mod tests;

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use transhume_sys::signals::HeldOff;

use super::portal::{Portal, QueueMode, Shape};
use engine::{Shared, serve};
pub use faults::{Fault, Faults};
use line::{Line, State};
use portal::ModelPortal;

/// A work queue of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelQueue {
    /// How it takes descriptors.
    pub mode: QueueMode,
    /// How many descriptors it holds, batches counted as one: 1 to 65,536.
    pub size: u32,
    /// The longest copy: 1 byte to 2 GiB.
    pub max_transfer: u32,
    /// The longest batch in descriptors; below 2 there are none.
    pub max_batch: u32,
}

impl Default for ModelQueue {
    /// A dedicated queue of 16 entries, 2 MiB a copy and 32 descriptors a batch, as Linux sets
    /// queues up unless told otherwise.
    fn default() -> Self {
        Self {
            mode: QueueMode::Dedicated,
            size: 16,
            max_transfer: 2 << 20,
            max_batch: 32,
        }
    }
}

/// How a model is made up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOptions {
    /// Threads that execute descriptors.
    pub engines: NonZeroUsize,
    /// The work queues.
    pub queues: Vec<ModelQueue>,
    /// What goes wrong.
    pub faults: Faults,
}

impl Default for ModelOptions {
    /// Two engines, a dedicated and a shared queue, and nothing goes wrong.
    fn default() -> Self {
        Self {
            engines: const { NonZeroUsize::new(2).unwrap() },
            queues: vec![
                ModelQueue::default(),
                ModelQueue {
                    mode: QueueMode::Shared,
                    ..ModelQueue::default()
                },
            ],
            faults: Faults::default(),
        }
    }
}

/// A software model of Intel's Data Streaming Accelerator, for tests. It lives for as long as it or a
/// [`Dsa`](super::Dsa) over it does.
#[derive(Clone, Debug)]
pub struct DsaModel(Arc<Engines>);

impl DsaModel {
    /// The name of the copier over a model.
    pub const NAME: &'static str = "dsa-model";

    /// Starts one.
    ///
    /// # Errors
    ///
    /// What the system says when it has no more threads.
    pub fn start(options: &ModelOptions) -> io::Result<Self> {
        let shape = |(number, queue): (usize, &ModelQueue)| Shape {
            name: format!("model{number}"),
            mode: queue.mode,
            size: queue.size.clamp(1, 1 << 16),
            max_transfer: queue.max_transfer.clamp(1, 1 << 31),
            max_batch: queue.max_batch.clamp(1, 1 << 16),
            node: None,
        };
        let shapes = options
            .queues
            .iter()
            .enumerate()
            .map(shape)
            .collect::<Vec<_>>();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queues: shapes.iter().map(Line::new).collect(),
                submitted: 0,
                stop: false,
            }),
            changed: Condvar::new(),
            called_off: shapes.iter().map(|_| AtomicU64::new(0)).collect(),
            shapes,
            faults: options.faults,
            counts: Default::default(),
        });
        let mut engines = Engines {
            shared,
            threads: Vec::new(),
            process: std::process::id(),
        };
        // As the threads of a pool, they may be asked for a page that a handler waits for.
        let _handlers = HeldOff::begin();
        for number in 0..options.engines.get() {
            let shared = Arc::clone(&engines.shared);
            let thread = std::thread::Builder::new()
                .name(format!("transhume-md-{number}"))
                .spawn(move || serve(&shared))?;
            engines.threads.push(thread);
        }
        Ok(Self(Arc::new(engines)))
    }

    /// How often something went wrong so far.
    #[must_use]
    pub fn injected(&self, fault: Fault) -> u64 {
        let count = self.0.shared.counts.get(fault.index());
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }

    pub(crate) fn portals(&self) -> Vec<Box<dyn Portal>> {
        let portal = |(queue, shape): (usize, &Shape)| -> Box<dyn Portal> {
            Box::new(ModelPortal {
                model: self.clone(),
                queue,
                shape: shape.clone(),
            })
        };
        self.0
            .shared
            .shapes
            .iter()
            .enumerate()
            .map(portal)
            .collect()
    }
}

#[derive(Debug)]
struct Engines {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    process: u32,
}

impl Drop for Engines {
    fn drop(&mut self) {
        let threads = std::mem::take(&mut self.threads);
        if self.process != std::process::id() {
            // The threads are the parent's, and so is what their handles stand for.
            return std::mem::forget(threads);
        }
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        for thread in threads {
            // Nothing in it panics.
            let _ = thread.join();
        }
    }
}
