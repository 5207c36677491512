//! Mistakes that were made in this field, each a switch of the model.
//!
//! With one of them the machine, or what serves it, does what somebody's code once did. The checker
//! has to find each; one that finds none proves nothing.

/// A known bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bug {
    /// Folios are cut off and stale translations are left.
    NoShootdown,
    /// The copy is made between unmap and shootdown.
    CopyBeforeShootdown,
    /// The source frame is free as soon as the folio is unmapped.
    FreedBeforeFlush,
    /// A batch waits for a latch (\[batch-deadlock\]).
    SleepsOnLatch,
    /// A fault that waits for a folio refers to its frame, so the folio looks pinned.
    FaultTakesReference,
    /// A copy that was made before a retry is taken for good in the next try.
    CopyUsedAgain,
    /// Who refers to a frame is asked when the folio is mapped, and not before it is copied.
    ReferenceDroppedInBetween,
    /// The set of CPUs to ask is cleared when a shootdown ends, with those that joined meanwhile.
    CpuLostInFlush,
    /// A second shootdown does not wait for the CPUs that the first has asked.
    SecondFlusherDoesNotWait,
    /// A range is unmapped, and something else mapped there, while its pair waits.
    UnmappedWhileDeferred,
    /// The destination of a pair that waits is migrated on, and the pair forgotten.
    DestinationBecomesSource,
    /// A list of copies is complete when the last descriptor is.
    LastDescriptorOnly,
    /// Copies are divided among channels, and the remainder of the division is left out.
    RemainderLost,
    /// Shootdowns are told from each other by a number that wraps (\[deferred-flush\]).
    GenerationWraps,
    /// A copier that was changed is taken away without waiting for its copies (\[offload\]).
    CopierNotAwaited,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::NoShootdown,
        Self::CopyBeforeShootdown,
        Self::FreedBeforeFlush,
        Self::SleepsOnLatch,
        Self::FaultTakesReference,
        Self::CopyUsedAgain,
        Self::ReferenceDroppedInBetween,
        Self::CpuLostInFlush,
        Self::SecondFlusherDoesNotWait,
        Self::UnmappedWhileDeferred,
        Self::DestinationBecomesSource,
        Self::LastDescriptorOnly,
        Self::RemainderLost,
        Self::GenerationWraps,
        Self::CopierNotAwaited,
    ];

    /// Its name on a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.both().0
    }

    /// The name of the [case](crate::Case) in which it is looked for.
    #[must_use]
    pub const fn case(self) -> &'static str {
        self.both().1
    }

    const fn both(self) -> (&'static str, &'static str) {
        match self {
            Self::NoShootdown => ("no-shootdown", "batch"),
            Self::CopyBeforeShootdown => ("copy-before-shootdown", "batch"),
            Self::FreedBeforeFlush => ("freed-before-flush", "batch"),
            Self::SleepsOnLatch => ("sleeps-on-latch", "owners"),
            Self::FaultTakesReference => ("fault-takes-reference", "batch"),
            Self::CopyUsedAgain => ("copy-used-again", "failures"),
            Self::ReferenceDroppedInBetween => ("reference-dropped-in-between", "pins"),
            Self::CpuLostInFlush => ("cpu-lost-in-flush", "migrators"),
            Self::SecondFlusherDoesNotWait => ("second-flusher-does-not-wait", "migrators"),
            Self::UnmappedWhileDeferred => ("unmapped-while-deferred", "deferred-unmap"),
            Self::DestinationBecomesSource => ("destination-becomes-source", "deferred-again"),
            Self::LastDescriptorOnly => ("last-descriptor-only", "device"),
            Self::RemainderLost => ("remainder-lost", "device"),
            Self::GenerationWraps => ("generation-wraps", "deferred-flush"),
            Self::CopierNotAwaited => ("copier-not-awaited", "copier-change"),
        }
    }

    /// The bug of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bug| bug.name() == name)
    }
}
