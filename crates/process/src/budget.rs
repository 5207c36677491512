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

    /// So many bytes, or what is left. None may be for now only.
    pub(crate) fn grant(&self, bytes: u64) -> u64 {
        let mut all = locked(&self.bytes);
        let granted = all.left.min(bytes);
        all.left -= granted;
        all.in_flight = all.in_flight.saturating_add(granted);
        granted
    }

    /// What was granted, of which some was not used.
    pub(crate) fn settle(&self, granted: u64, unused: u64) {
        let mut all = locked(&self.bytes);
        all.in_flight = all.in_flight.saturating_sub(granted);
        all.left = all.left.saturating_add(unused);
    }

    /// Takes what is left: it is less than what comes next.
    pub(crate) fn spend(&self) {
        locked(&self.bytes).left = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_flight_may_come_back() {
        let budget = Budget::new(100);
        assert_eq!(budget.grant(80), 80);
        assert_eq!(budget.grant(80), 20);
        assert_eq!(budget.grant(1), 0);
        assert!(!budget.is_spent());
        budget.settle(80, 30);
        assert_eq!(budget.grant(80), 30);
        budget.settle(30, 0);
        budget.settle(20, 0);
        assert!(budget.is_spent());
        let budget = Budget::new(u64::MAX);
        budget.spend();
        assert!(budget.is_spent());
    }
}
