//! Why a folio did not move, and where in the pipeline that was found.

use core::fmt;
use core::num::NonZeroU16;

/// The step of the pipeline that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Taking the folio's lock.
    Lock,
    /// Finding a frame at the destination.
    Reserve,
    /// Making the folio unreachable, or gathering it for that.
    Unmap,
    /// Invalidating stale translations.
    Shootdown,
    /// Moving the bytes.
    Copy,
    /// Making the folio reachable at its destination.
    Remap,
}

/// What was in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// Somebody else holds the folio's lock, or its owner would not let go of it now.
    Busy,
    /// The system asked for another try.
    Again,
    /// Somebody outside the page tables holds the frame: direct I/O, a registered buffer.
    Pinned,
    /// Several address spaces share the frame, as after a fork.
    Shared,
    /// There is no page here.
    Absent,
    /// No frame at the destination, or no memory for the tables.
    NoMemory,
    /// The system does not let us move this folio.
    NotPermitted,
    /// The mechanism cannot move this kind of folio.
    Unsupported,
    /// The bytes could not be copied.
    CopyFailed,
    /// The request ended before the folio's turn; `stopped` in the report says why.
    NotTried,
    /// The batch was put down before its end, or the folio's partner in an exchange stayed.
    Abandoned,
    /// The system refused for another reason; the errno tells.
    System,
}

impl Why {
    /// Whether another pass may find it gone.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Busy | Self::Again | Self::Pinned | Self::CopyFailed
        )
    }

    /// Whether another try may succeed when it is allowed to block: what is transient, and what the
    /// platform can undo by waiting.
    #[must_use]
    pub const fn is_curable_by_waiting(self) -> bool {
        self.is_transient() || matches!(self, Self::Shared)
    }

    /// One or two words for a table of reasons.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Again => "again",
            Self::Pinned => "pinned",
            Self::Shared => "shared",
            Self::Absent => "absent",
            Self::NoMemory => "no memory",
            Self::NotPermitted => "not permitted",
            Self::Unsupported => "unsupported",
            Self::CopyFailed => "copy failed",
            Self::NotTried => "not tried",
            Self::Abandoned => "abandoned",
            Self::System => "system error",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The system's error number, 1 to 65,535.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(NonZeroU16);

impl Errno {
    /// The errno `raw`, or `None` for zero, a negative number or one above 65,535.
    #[must_use]
    pub fn new(raw: i32) -> Option<Self> {
        u16::try_from(raw).ok().and_then(NonZeroU16::new).map(Self)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> i32 {
        i32::from(self.0.get())
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "errno {}", self.0)
    }
}

/// Why a folio stayed where it was: the step, the cause and the errno, in six bytes or less,
/// because a report holds one for every folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Failure {
    /// Where in the pipeline.
    pub step: Step,
    /// What was in the way.
    pub why: Why,
    /// What the system said, where it said something.
    pub errno: Option<Errno>,
}

impl Failure {
    /// A failure that no errno goes with.
    #[must_use]
    pub const fn new(step: Step, why: Why) -> Self {
        Self {
            step,
            why,
            errno: None,
        }
    }

    /// The same failure with what the system said.
    #[must_use]
    pub const fn with_errno(mut self, errno: Option<Errno>) -> Self {
        self.errno = errno;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:?}", self.why, self.step)?;
        match self.errno {
            Some(errno) => write!(f, " (errno {})", errno.get()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn errno_keeps_what_fits() {
        assert_eq!(Errno::new(16).map(Errno::get), Some(16));
        assert_eq!(Errno::new(0), None);
        assert_eq!(Errno::new(-1), None);
        assert_eq!(Errno::new(70_000), None);
    }

    #[test]
    fn a_failure_says_what_why_and_where() {
        let failure = Failure::new(Step::Unmap, Why::NotPermitted);
        assert_eq!(failure.to_string(), "not permitted at Unmap");
        let failure = failure.with_errno(Errno::new(1));
        assert_eq!(failure.to_string(), "not permitted at Unmap (errno 1)");
        assert_eq!(format!("{:?}", failure.errno), "Some(errno 1)");
    }

    #[test]
    fn a_failure_is_small() {
        assert!(size_of::<Failure>() <= 6);
    }
}
