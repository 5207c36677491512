//! Keeping signal handlers off a thread for a while.
//!
//! A handler of the application may touch any page. On the thread that is to bring that page back,
//! it would wait for ever. So the threads of a region and of a copier never run handlers, and a
//! thread that migrates runs none while pages are cut off; what is sent to it then comes a moment
//! later.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Signals that a thread sends to itself by what it does. They cannot wait, and nothing here causes
/// them.
const SYNCHRONOUS: [libc::c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGSYS,
];

/// No handler runs on this thread until it is dropped. A thread that is made meanwhile runs none
/// ever.
#[derive(Debug)]
pub struct HeldOff {
    before: libc::sigset_t,
    /// It belongs to the thread.
    _thread: PhantomData<*const ()>,
}

impl HeldOff {
    /// From now on. Those that are begun later are dropped sooner.
    #[must_use]
    pub fn begin() -> Self {
        let mut all = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: the set is ours, and this fills it.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        for signal in SYNCHRONOUS {
            // SAFETY: the set is ours and filled.
            unsafe { libc::sigdelset(all.as_mut_ptr(), signal) };
        }
        // SAFETY: both sets are ours.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: it was filled, as the call fails only for a `how` that it does not know.
        let before = unsafe { before.assume_init() };
        Self {
            before,
            _thread: PhantomData,
        }
    }
}

impl Drop for HeldOff {
    fn drop(&mut self) {
        // SAFETY: the set is the one that this thread had.
        unsafe {
            libc::pthread_sigmask(
                libc::SIG_SETMASK,
                &raw const self.before,
                std::ptr::null_mut(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .unwrap_or_default()
    }

    fn bit(signal: libc::c_int) -> u64 {
        1 << (signal - 1)
    }

    #[test]
    fn handlers_are_held_off_and_let_on_again() {
        let before = blocked();
        let outer = HeldOff::begin();
        let during = blocked();
        assert_ne!(during & bit(libc::SIGUSR1), 0);
        assert_ne!(during & bit(libc::SIGALRM), 0);
        assert_eq!(during & bit(libc::SIGSEGV), before & bit(libc::SIGSEGV));
        let inner = HeldOff::begin();
        drop(inner);
        assert_eq!(blocked(), during);
        let inherited = std::thread::spawn(blocked).join().unwrap();
        assert_eq!(inherited, during);
        drop(outer);
        assert_eq!(blocked(), before);
    }
}
