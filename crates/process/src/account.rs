//! What became of pages, counted.

use std::ops::{Add, AddAssign};
use std::time::Duration;

use transhume_engine::{Failure, Folio};

use crate::scan::{address, size};

/// So much memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Folios: base pages and huge pages alike.
    pub folios: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    pub(crate) fn count(&mut self, folio: Folio) {
        self.folios += 1;
        self.bytes += size(folio);
    }

    /// Whether it is nothing.
    #[must_use]
    pub fn is_none(self) -> bool {
        self.bytes == 0
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            folios: self.folios + other.folios,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// Memory that stayed where it was, for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stayed {
    /// Why.
    pub failure: Failure,
    /// How much.
    pub amount: Amount,
    /// Where the first of it is.
    pub example: usize,
}

/// What was done to the memory of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// At a destination now, and elsewhere before.
    pub moved: Amount,
    /// Met on the way, and at a destination already.
    pub already_there: Amount,
    /// What stayed, by reason.
    pub stayed: Vec<Stayed>,
    /// What is gone: freed, swapped out or unmapped before its turn.
    pub vanished: Amount,
    /// Cold memory that made room ([`Request::exchange`](crate::Request::exchange)).
    pub made_room: Amount,
    /// Calls of move_pages(2) that moved.
    pub calls: u64,
    /// Folios that were tried again in a later pass.
    pub retries: u64,
    /// The longest call: no access to the pages that it moved waited longer.
    pub longest_call: Duration,
}

impl Account {
    pub(crate) fn stay(&mut self, folio: Folio, failure: Failure) {
        let amount = Amount {
            folios: 1,
            bytes: size(folio),
        };
        self.add_stayed(Stayed {
            failure,
            amount,
            example: address(folio),
        });
    }

    pub(crate) fn add_stayed(&mut self, more: Stayed) {
        let same = |stayed: &&mut Stayed| {
            (stayed.failure.why, stayed.failure.errno) == (more.failure.why, more.failure.errno)
        };
        match self.stayed.iter_mut().find(same) {
            Some(stayed) => stayed.amount += more.amount,
            None => self.stayed.push(more),
        }
    }

    /// Everything that stayed.
    #[must_use]
    pub fn stayed_in_all(&self) -> Amount {
        self.stayed
            .iter()
            .fold(Amount::default(), |all, stayed| all + stayed.amount)
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.moved += other.moved;
        self.already_there += other.already_there;
        self.vanished += other.vanished;
        self.made_room += other.made_room;
        self.calls += other.calls;
        self.retries += other.retries;
        self.longest_call = self.longest_call.max(other.longest_call);
        for &stayed in &other.stayed {
            self.add_stayed(stayed);
        }
    }
}

#[cfg(test)]
mod tests {
    use transhume_engine::{Errno, Order, Step, Why};

    use super::*;

    #[test]
    fn what_stays_is_counted_by_reason() {
        let base = Folio::base(16).unwrap();
        let huge = Folio::new(512, Order::HUGE).unwrap();
        let pinned = Failure::new(Step::Remap, Why::Pinned).with_errno(Errno::new(16));
        let shared = Failure::new(Step::Remap, Why::Shared).with_errno(Errno::new(13));
        let mut account = Account::default();
        account.stay(base, pinned);
        account.stay(huge, pinned);
        let mut other = Account::default();
        other.stay(base, shared);
        other.moved.count(huge);
        other.longest_call = Duration::from_millis(2);
        account.merge(&other);
        assert_eq!(account.stayed.len(), 2);
        let amount = |folios, bytes| Amount { folios, bytes };
        assert_eq!(account.stayed[0].amount, amount(2, 4096 + (2 << 20)));
        assert_eq!(account.stayed[0].example, 0x10000);
        assert_eq!(account.stayed_in_all(), amount(3, 8192 + (2 << 20)));
        assert_eq!(account.moved, amount(1, 2 << 20));
        assert_eq!(account.longest_call, Duration::from_millis(2));
    }
}
