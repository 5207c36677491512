//! How many bytes may still move ([`Request::limit`](crate::Request::limit)).

use std::sync::Mutex;

use crate::crew::locked;

/// Shared by all workers: what is granted and does not move comes back.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: Mutex<Bytes>,
}

#[derive(Debug)]
struct Bytes {
    left: u64,
    in_flight: u64,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            bytes: Mutex::new(Bytes {
                left: bytes,
                in_flight: 0,
            }),
        }
    }

    /// Whether nothing is left and nothing can come back.
    pub(crate) fn is_spent(&self) -> bool {
        let bytes = locked(&self.bytes);
        bytes.left == 0 && bytes.in_flight == 0
    }

    /// So many bytes, or what is left. That there are none may be for now only.
    pub(crate) fn grant(&self, bytes: u64) -> Option<Grant<'_>> {
        let mut all = locked(&self.bytes);
        let granted = all.left.min(bytes);
        if granted == 0 {
            return None;
        }
        all.left -= granted;
        all.in_flight = all.in_flight.saturating_add(granted);
        Some(Grant {
            budget: self,
            bytes: granted,
            moved: 0,
        })
    }
}

/// Bytes that may move. What has not moved comes back when this is dropped, also by a panic: others
/// wait for it.
#[derive(Debug)]
pub(crate) struct Grant<'b> {
    budget: &'b Budget,
    bytes: u64,
    moved: u64,
}

impl Grant<'_> {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So many have moved.
    pub(crate) fn have_moved(mut self, bytes: u64) {
        self.moved = bytes;
    }

    /// Takes what is left, with these: it is less than what comes next.
    pub(crate) fn spend(mut self) {
        self.moved = self.bytes;
        locked(&self.budget.bytes).left = 0;
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        let mut all = locked(&self.budget.bytes);
        let unused = self.bytes.saturating_sub(self.moved);
        all.in_flight = all.in_flight.saturating_sub(self.bytes);
        all.left = all.left.saturating_add(unused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_flight_may_come_back() {
        let budget = Budget::new(100);
        let first = budget.grant(80).unwrap();
        let second = budget.grant(80).unwrap();
        assert_eq!((first.bytes(), second.bytes()), (80, 20));
        assert!(budget.grant(1).is_none());
        assert!(!budget.is_spent());
        first.have_moved(50);
        let third = budget.grant(80).unwrap();
        assert_eq!(third.bytes(), 30);
        third.have_moved(30);
        second.have_moved(20);
        assert!(budget.is_spent());
        let budget = Budget::new(u64::MAX);
        budget.grant(1).unwrap().spend();
        assert!(budget.is_spent());
    }

    #[test]
    fn what_who_panics_has_been_granted_comes_back() {
        let budget = Budget::new(100);
        let panics = std::panic::catch_unwind(|| {
            let _grant = budget.grant(100);
            std::panic::resume_unwind(Box::new("planned"));
        });
        assert!(panics.is_err());
        assert_eq!(budget.grant(100).map(|grant| grant.bytes()), Some(100));
    }
}
