//! The protocol by which the copier in use is exchanged, in all orders in which threads can meet.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../src/switch/slots.rs"]
mod slots;

/// What the protocol is made of, watched by the model checker.
mod sync {
    pub(super) use loom::sync::RwLock;
    pub(super) use loom::sync::atomic::{AtomicUsize, Ordering};
    pub(super) use loom::thread::yield_now as again;
    pub(super) use std::sync::TryLockError;
}

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use slots::Slots;

/// What is exchanged: its number, and whether somebody has it. It belongs to nobody when it was
/// retired.
struct Tool {
    number: usize,
    users: Arc<AtomicUsize>,
}

impl Tool {
    fn new(number: usize) -> Self {
        let users = Arc::new(AtomicUsize::new(0));
        Self { number, users }
    }

    fn use_it(&self) -> usize {
        self.users.fetch_add(1, Ordering::Relaxed);
        self.users.fetch_sub(1, Ordering::Relaxed);
        self.number
    }
}

fn exchange(slots: &Slots<Tool>, number: usize) -> usize {
    let mut new = Some(Tool::new(number));
    while let Some(tool) = new.take() {
        new = slots.replace(tool).err();
        if new.is_some() {
            thread::yield_now();
        }
    }
    // Whoever comes from here on gets the new one.
    assert_eq!(slots.with(Tool::use_it), number);
    loop {
        if let Some(old) = slots.retire() {
            assert_eq!(
                old.users.load(Ordering::Relaxed),
                0,
                "somebody has it still"
            );
            return old.number;
        }
        thread::yield_now();
    }
}

/// `users` threads use it twice each, while it is exchanged `times` times. Of longer orders only those
/// are gone through in which a thread is interrupted twice at most; without that they take hours.
fn meet(users: usize, times: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(move || {
        let slots = Arc::new(Slots::new(Tool::new(0)));
        let users = (0..users).map(|_| {
            let slots = Arc::clone(&slots);
            thread::spawn(move || {
                let first = slots.with(Tool::use_it);
                let second = slots.with(Tool::use_it);
                assert!(first <= second, "{first} and then the older {second}");
            })
        });
        let users = users.collect::<Vec<_>>();
        for number in 1..=times {
            assert_eq!(exchange(&slots, number), number - 1);
        }
        for user in users {
            user.join().unwrap();
        }
        assert!(slots.retire().is_none(), "what is in use is not retired");
        assert_eq!(slots.with(Tool::use_it), times);
    });
}

/// With a third exchange both places have been written again.
#[test]
fn one_user_and_three_exchanges() {
    meet(1, 3);
}

#[test]
fn two_users_and_one_exchange() {
    meet(2, 1);
}

/// Who does not come back holds up neither the exchange nor others, only the end of the old one.
#[test]
fn one_who_stays_holds_up_nobody() {
    loom::model(|| {
        let slots = Arc::new(Slots::new(Tool::new(0)));
        let there = Arc::new(AtomicBool::new(false));
        let go = Arc::new(AtomicBool::new(false));
        let stays = {
            let (slots, there, go) = (Arc::clone(&slots), Arc::clone(&there), Arc::clone(&go));
            thread::spawn(move || {
                slots.with(|tool| {
                    there.store(true, Ordering::Release);
                    while !go.load(Ordering::Acquire) {
                        thread::yield_now();
                    }
                    tool.number
                })
            })
        };
        while !there.load(Ordering::Acquire) {
            thread::yield_now();
        }
        assert!(slots.replace(Tool::new(1)).is_ok());
        assert_eq!(slots.with(Tool::use_it), 1);
        assert!(slots.retire().is_none());
        let refused = slots.replace(Tool::new(2)).err().unwrap();
        assert_eq!((refused.number, slots.with(Tool::use_it)), (2, 1));
        go.store(true, Ordering::Release);
        assert_eq!(stays.join().unwrap(), 0);
        assert_eq!(slots.retire().unwrap().number, 0);
    });
}
