//! The answer of calls that can stop half-way.

use rustix::io::Errno;

/// How far a call came, and what stopped it.
///
/// What is done stays done: the rest begins `done` bytes further on. When the kernel stops in the
/// middle of a range it often says no more than [`Errno::AGAIN`]; the same call on the rest then
/// gives the reason, with `done == 0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a call that stopped half-way is not an error, but it is not complete either"]
pub struct Progress {
    /// Bytes done, from the start.
    pub done: usize,
    /// Why it went no further; `None` when everything is done.
    pub stopped: Option<Errno>,
}

impl Progress {
    /// Everything that was asked for.
    pub const fn complete(done: usize) -> Self {
        Self {
            done,
            stopped: None,
        }
    }

    /// Only the first `done` bytes.
    pub const fn partial(done: usize, errno: Errno) -> Self {
        Self {
            done,
            stopped: Some(errno),
        }
    }

    /// Says whether everything was done.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.stopped.is_none()
    }
}
