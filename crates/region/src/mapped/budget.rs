//! How many mappings the regions of this process may need.
//!
//! The kernel limits the mappings of a process (`vm.max_map_count`). Where the limit is met in the
//! middle of a migration, pages could not be mapped again. So mappings are charged before they are
//! made: those of all regions, and those that the batches under way can add.

use std::sync::atomic::{AtomicUsize, Ordering};

use transhume_sys::limits;

/// Mappings of all regions, and charges for more.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Mappings that are left to the rest of the program.
const SPARE: usize = 1024;

/// Mappings that are accounted for until this is dropped.
#[derive(Debug, Default)]
pub(super) struct Charge(usize);

/// How many mappings the regions of this process may have now.
pub(super) fn allowed() -> usize {
    let limit = limits::max_map_count().unwrap_or(usize::MAX);
    let all = limits::mapping_count().unwrap_or(0);
    let elsewhere = all.saturating_sub(USED.load(Ordering::Relaxed));
    limit.saturating_sub(elsewhere + SPARE)
}

/// How many they have or may get.
pub(super) fn used() -> usize {
    USED.load(Ordering::Relaxed)
}

impl Charge {
    /// Adds `more`, unless that makes more than `allowed` of all charges.
    pub(super) fn add(&mut self, more: usize, allowed: usize) -> bool {
        let added = USED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(more).filter(|&sum| sum <= allowed)
        });
        self.0 += if added.is_ok() { more } else { 0 };
        added.is_ok()
    }

    /// Makes it `count`, whatever is allowed: that is how many there are.
    pub(super) fn set(&mut self, count: usize) {
        if count > self.0 {
            USED.fetch_add(count - self.0, Ordering::Relaxed);
        } else {
            USED.fetch_sub(self.0 - count, Ordering::Relaxed);
        }
        self.0 = count;
    }

    pub(super) fn count(&self) -> usize {
        self.0
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_add_up_over_all() {
        let before = used();
        let allowed = before + 10;
        let (mut one, mut two) = (Charge::default(), Charge::default());
        assert!(one.add(6, allowed));
        assert!(!two.add(5, allowed));
        assert!(two.add(4, allowed));
        one.set(2);
        assert!(two.add(4, allowed));
        assert_eq!((one.count(), two.count()), (2, 8));
        drop((one, two));
        assert_eq!(used(), before);
    }
}
