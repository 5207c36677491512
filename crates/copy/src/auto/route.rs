//! Between which nodes a thread copies.
//!
//! A copier is handed addresses, and to ask the kernel for their nodes would be a call a list. Who
//! migrates knows the nodes, and the copiers between it and [`Auto`](super::Auto) do not care. So it
//! says it for its thread, which is the one that calls the copier.

use std::cell::Cell;
use std::marker::PhantomData;

use super::NodePair;

thread_local! {
    static HERE: Cell<Option<NodePair>> = const { Cell::new(None) };
}

/// Lists that this thread hands to copiers are copied between these nodes, until it is dropped.
#[derive(Debug)]
pub struct Route {
    before: Option<NodePair>,
    /// It belongs to the thread.
    _thread: PhantomData<*const ()>,
}

impl Route {
    /// Says it. `None`: the nodes are not known.
    #[must_use = "it ends when it is dropped"]
    pub fn begin(nodes: Option<NodePair>) -> Self {
        Self {
            before: HERE.replace(nodes),
            _thread: PhantomData,
        }
    }

    /// What was said for this thread last; for copiers.
    #[must_use]
    pub fn here() -> Option<NodePair> {
        HERE.get()
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        HERE.set(self.before);
    }
}
