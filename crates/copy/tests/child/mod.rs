//! The child of a fork.

use std::time::{Duration, Instant};

/// Waits for it, and panics if it hangs or says that something is wrong.
pub(crate) fn must_end_well(child: libc::pid_t) {
    assert!(child > 0);
    let began = Instant::now();
    let mut status = -1;
    loop {
        // SAFETY: the status is this function's.
        let ended = unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) };
        if ended == child {
            break;
        }
        if began.elapsed() > Duration::from_secs(60) {
            // SAFETY: the child was not waited for, so the number is still its own.
            unsafe { libc::kill(child, libc::SIGKILL) };
            panic!("the child hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(status, 0);
}
