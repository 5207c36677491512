//! The machine's counter of shootdowns that this thread has requested.

use std::cell::OnceCell;

use transhume_sys::shootdown::ShootdownCounter;

thread_local! {
    static COUNTER: OnceCell<Option<ShootdownCounter>> = const { OnceCell::new() };
}

/// What the counter says, or `None` where there is none for a single thread.
pub(crate) fn of_this_thread() -> Option<u64> {
    COUNTER
        .try_with(|counter| {
            let counter = counter.get_or_init(|| ShootdownCounter::open_for_this_thread().ok());
            counter.as_ref().and_then(|counter| counter.read().ok())
        })
        .ok()
        .flatten()
}
