//! What the machine counts while pages move.

use transhume_sys::shootdown::{Counter, InterruptCounter};

/// The counters that there are.
pub(crate) struct Counters {
    shootdowns: Option<Counter>,
    ipis: Option<InterruptCounter>,
}

/// What they say at one moment, or have counted between two.
#[derive(Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) shootdowns: Option<u64>,
    pub(crate) ipis: Option<u64>,
}

impl Counters {
    /// Opens them; notes what is not counted, or not for this process alone.
    pub(crate) fn open(notices: &mut Vec<String>) -> Self {
        let shootdowns = Counter::best_for_this_process();
        let of_all = |counter: &Counter| {
            let because = counter.because()?;
            Some(format!(
                "shootdowns are those that arrived on the whole machine ({}), because {because}",
                counter.source()
            ))
        };
        notices.extend(match &shootdowns {
            Ok(counter) => of_all(counter),
            Err(none) => Some(none.to_string()),
        });
        Self {
            shootdowns: shootdowns.ok(),
            ipis: InterruptCounter::open().ok(),
        }
    }

    /// By what shootdowns are counted.
    pub(crate) fn source(&self) -> Option<String> {
        let counter = self.shootdowns.as_ref();
        counter.map(|counter| counter.source().to_string())
    }

    pub(crate) fn read(&self) -> Counts {
        let (shootdowns, ipis) = (self.shootdowns.as_ref(), self.ipis.as_ref());
        Counts {
            shootdowns: shootdowns.and_then(|counter| counter.read().ok()),
            ipis: ipis.and_then(|counter| counter.read().ok()),
        }
    }

    /// What has been counted since.
    pub(crate) fn since(&self, before: Counts) -> Counts {
        let now = self.read();
        let more = |now: Option<u64>, before| Some(now?.saturating_sub(before?));
        Counts {
            shootdowns: more(now.shootdowns, before.shootdowns),
            ipis: more(now.ipis, before.ipis),
        }
    }
}
