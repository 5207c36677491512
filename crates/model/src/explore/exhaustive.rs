//! Every order, but for those that only exchange steps which do not touch the same things.
//!
//! A depth-first search with sleep sets (Godefroid, 1996): when all orders that begin with a step
//! have been tried, the step sleeps in the orders that begin with another one, until one is made
//! that it depends on. So of each class of orders that are the same, one is run to its end.

use super::{Ready, Strategy};
use crate::act::Touch;
use crate::machine::ActorId;

/// A decision on the path that is being tried.
#[derive(Debug)]
enum Node {
    Pick {
        ready: Vec<Ready>,
        /// The actors whose step here need not be tried, or has been.
        sleeping: Vec<(ActorId, Touch)>,
        picked: usize,
    },
    Choose {
        count: u32,
        chosen: u32,
    },
}

/// The search.
#[derive(Debug, Default)]
pub(crate) struct Exhaustive {
    path: Vec<Node>,
    depth: usize,
    /// What sleeps at the node that comes next.
    sleeping: Vec<(ActorId, Touch)>,
    began: bool,
    /// Whether a run did not repeat itself, so that nothing can be said of the search.
    pub(crate) diverged: bool,
    /// Whether equal orders are told from each other, and all of them tried: only to test the search.
    naive: bool,
}

impl Exhaustive {
    /// A search that tries every order, also those that are the same.
    #[cfg(test)]
    pub(super) fn naive() -> Self {
        Self {
            naive: true,
            ..Self::default()
        }
    }

    /// Leaves the decisions below which everything has been tried; `false` if that is all of them.
    fn backtrack(&mut self) -> bool {
        while let Some(node) = self.path.last_mut() {
            match node {
                Node::Choose { count, chosen } => {
                    if *chosen + 1 < *count {
                        *chosen += 1;
                        return true;
                    }
                }
                Node::Pick {
                    ready,
                    sleeping,
                    picked,
                } => {
                    let done = ready[*picked];
                    if self.naive {
                        *picked += 1;
                        if *picked < ready.len() {
                            return true;
                        }
                    } else {
                        sleeping.push((done.actor, done.touch));
                        if let Some(next) = awake(ready, sleeping) {
                            *picked = next;
                            return true;
                        }
                    }
                }
            }
            self.path.pop();
        }
        false
    }
}

/// The first that does not sleep.
fn awake(ready: &[Ready], sleeping: &[(ActorId, Touch)]) -> Option<usize> {
    ready
        .iter()
        .position(|one| sleeping.iter().all(|(actor, _)| *actor != one.actor))
}

impl Strategy for Exhaustive {
    fn begin(&mut self) -> bool {
        let more = !self.began || self.backtrack();
        self.began = true;
        self.depth = 0;
        self.sleeping.clear();
        more
    }

    fn pick(&mut self, ready: &[Ready]) -> Option<usize> {
        if self.depth == self.path.len() {
            let sleeping = std::mem::take(&mut self.sleeping);
            let picked = awake(ready, &sleeping)?;
            self.path.push(Node::Pick {
                ready: ready.to_vec(),
                sleeping,
                picked,
            });
        }
        let Node::Pick {
            ready,
            sleeping,
            picked,
        } = &self.path[self.depth]
        else {
            self.diverged = true;
            return None;
        };
        self.depth += 1;
        let step = ready[*picked];
        if !self.naive {
            let sleeps_on = |(_, touch): &&(ActorId, Touch)| touch.is_independent_of(step.touch);
            self.sleeping.clear();
            self.sleeping.extend(sleeping.iter().filter(sleeps_on));
        }
        Some(*picked)
    }

    fn choose(&mut self, count: u32) -> u32 {
        if self.depth == self.path.len() {
            self.path.push(Node::Choose { count, chosen: 0 });
        }
        let chosen = match self.path[self.depth] {
            Node::Choose { chosen, .. } => chosen,
            Node::Pick { .. } => {
                self.diverged = true;
                0
            }
        };
        self.depth += 1;
        chosen
    }
}
