//! The question that every wrapper asks before it enters the kernel.
//!
//! Without the feature `inject` the answer is a constant and the question disappears.

use rustix::io::Errno;

use crate::{Call, Progress};

/// What a wrapper is to do.
#[cfg_attr(
    not(feature = "inject"),
    expect(
        dead_code,
        reason = "only the injection layer answers anything but `Go`"
    )
)]
pub(crate) enum Verdict {
    Go,
    /// Fail without entering the kernel.
    Fail(Errno),
    /// Do the first `bytes` for real, then stop with `errno`.
    Partial {
        bytes: usize,
        errno: Errno,
    },
    /// Do the first `bytes` for real, then say that they were done before.
    Uncounted {
        bytes: usize,
    },
}

#[cfg(feature = "inject")]
pub(crate) use crate::inject::ask;

#[cfg(not(feature = "inject"))]
#[inline(always)]
pub(crate) const fn ask(_call: Call) -> Verdict {
    Verdict::Go
}

/// For calls that are done as a whole or not at all.
#[inline]
pub(crate) fn whole(call: Call) -> Result<(), Errno> {
    match ask(call) {
        Verdict::Go => Ok(()),
        Verdict::Fail(errno) | Verdict::Partial { errno, .. } => Err(errno),
        Verdict::Uncounted { .. } => Err(Errno::EXIST),
    }
}

/// For calls that say how far they came.
#[inline]
pub(crate) fn stepwise(call: Call, len: usize, go: impl FnOnce(usize) -> Progress) -> Progress {
    match ask(call) {
        Verdict::Go => go(len),
        Verdict::Fail(errno) => Progress::partial(0, errno),
        Verdict::Partial { bytes: 0, errno } => Progress::partial(0, errno),
        Verdict::Partial { bytes, errno } => {
            let progress = go(bytes.min(len));
            Progress {
                stopped: progress.stopped.or(Some(errno)),
                ..progress
            }
        }
        Verdict::Uncounted { bytes } => match go(bytes.min(len)) {
            Progress { done: 0, stopped } => Progress { done: 0, stopped },
            _ => Progress::partial(0, Errno::EXIST),
        },
    }
}

/// For calls that can leave a range half-done without saying how far they came.
#[inline]
pub(crate) fn silent(
    call: Call,
    len: usize,
    go: impl FnOnce(usize) -> Result<(), Errno>,
) -> Result<(), Errno> {
    match ask(call) {
        Verdict::Go => go(len),
        Verdict::Fail(errno) | Verdict::Partial { bytes: 0, errno } => Err(errno),
        Verdict::Partial { bytes, errno } => go(bytes.min(len)).and(Err(errno)),
        Verdict::Uncounted { .. } => Err(Errno::EXIST),
    }
}
