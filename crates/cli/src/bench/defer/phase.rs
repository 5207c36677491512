//! What happens to the tables meanwhile, and what the threads that read them see of it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use transhume_sys::tlb::{Cache, MissCounter};

use crate::workload;

/// A part of a lookup that takes longer was stalled.
const LONG: u64 = 10_000;

/// What a migration does just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing.
    Rest,
    /// A request is under way: stores are held off and pages copied, or pages move.
    Request,
    /// Pairs wait.
    Pending,
    /// They are switched.
    Switch,
}

pub(super) const PHASES: usize = 4;

/// What was seen in one phase.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InPhase {
    pub(super) parts: u64,
    /// Parts that took over 10 us.
    pub(super) long: u64,
    /// The longest, in nanoseconds.
    pub(super) longest: u64,
    /// Page faults of the thread.
    pub(super) faults: u64,
    pub(super) time: Duration,
}

impl InPhase {
    fn add(&mut self, other: &Self) {
        self.parts += other.parts;
        self.long += other.long;
        self.longest = self.longest.max(other.longest);
        self.faults += other.faults;
        self.time += other.time;
    }
}

/// The side of those who migrate.
#[derive(Debug)]
pub(super) struct Phases {
    now: AtomicU8,
    stop: AtomicBool,
    window: AtomicUsize,
    arrived: AtomicUsize,
    threads: usize,
    handed: Mutex<Vec<Seen>>,
}

impl Phases {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            now: AtomicU8::new(0),
            stop: AtomicBool::new(false),
            window: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            threads,
            handed: Mutex::default(),
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.now.store(phase as u8, Ordering::SeqCst);
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Everything that the threads have seen since the last call; `None` if one has died.
    pub(super) fn take(&self) -> Seen {
        self.arrived.store(0, Ordering::SeqCst);
        self.window.fetch_add(1, Ordering::SeqCst);
        while self.arrived.load(Ordering::SeqCst) < self.threads {
            std::thread::sleep(Duration::from_micros(50));
        }
        let mut sum = Seen::nothing();
        let mut handed = self.handed.lock().unwrap_or_else(PoisonError::into_inner);
        for seen in handed.drain(..) {
            sum.add(&seen);
        }
        sum
    }
}

/// The side of a thread that reads.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) loads: u64,
    pub(super) errors: u64,
    pub(super) lookups: u64,
    pub(super) parts: Histogram<u64>,
    pub(super) phases: [InPhase; PHASES],
    /// Misses of the translation caches, where the machine counts them.
    pub(super) misses: [Option<u64>; 2],
    counters: [Option<MissCounter>; 2],
    /// What the counters said when this began.
    missed: [u64; 2],
    phase: u8,
    since: Instant,
    faults: u64,
    window: usize,
}

impl Seen {
    fn nothing() -> Self {
        Self {
            loads: 0,
            errors: 0,
            lookups: 0,
            parts: workload::histogram(),
            phases: [InPhase::default(); PHASES],
            misses: [None; 2],
            counters: [None, None],
            missed: [0; 2],
            phase: 0,
            since: Instant::now(),
            faults: 0,
            window: 0,
        }
    }

    /// Begins on this thread.
    pub(super) fn begin(phases: &Phases) -> Self {
        let counter = |cache| MissCounter::open(cache).ok();
        Self {
            counters: [counter(Cache::Data), counter(Cache::Instruction)],
            phase: phases.now.load(Ordering::SeqCst),
            faults: faults(),
            ..Self::nothing()
        }
    }

    fn add(&mut self, other: &Self) {
        self.loads += other.loads;
        self.errors += other.errors;
        self.lookups += other.lookups;
        // Both have the same bounds.
        let _ = self.parts.add(&other.parts);
        for (sum, more) in self.phases.iter_mut().zip(&other.phases) {
            sum.add(more);
        }
        for (sum, more) in self.misses.iter_mut().zip(other.misses) {
            *sum = more.map(|more| sum.unwrap_or(0) + more);
        }
    }

    /// Notes how long a part of a lookup took.
    pub(super) fn part(&mut self, before: &mut Instant) {
        let now = Instant::now();
        let took = u64::try_from((now - *before).as_nanos()).unwrap_or(u64::MAX);
        *before = now;
        self.parts.saturating_record(took.max(1));
        let phase = &mut self.phases[usize::from(self.phase) % PHASES];
        phase.parts += 1;
        phase.long += u64::from(took > LONG);
        phase.longest = phase.longest.max(took);
    }

    /// Between two lookups: looks which phase it is, and whether to go on.
    pub(super) fn goes_on(&mut self, phases: &Phases) -> bool {
        let phase = phases.now.load(Ordering::Relaxed);
        if phase != self.phase {
            self.end_phase();
            self.phase = phase;
        }
        let window = phases.window.load(Ordering::Relaxed);
        if window != self.window {
            self.end_phase();
            self.window = window;
            self.count_misses();
            let next = Self {
                counters: std::mem::take(&mut self.counters),
                missed: self.missed,
                phase,
                faults: self.faults,
                window,
                ..Self::nothing()
            };
            std::mem::replace(self, next).hand_over(phases);
        }
        !phases.stop.load(Ordering::Relaxed)
    }

    fn end_phase(&mut self) {
        let faults = faults();
        let now = Instant::now();
        let phase = &mut self.phases[usize::from(self.phase) % PHASES];
        phase.faults += faults - self.faults;
        phase.time += now - self.since;
        self.faults = faults;
        self.since = now;
    }

    fn count_misses(&mut self) {
        let counters = self.counters.iter().zip(&mut self.missed);
        for ((counter, missed), misses) in counters.zip(&mut self.misses) {
            let now = counter.as_ref().and_then(|counter| counter.read().ok());
            *misses = now.map(|now| now - std::mem::replace(missed, now));
        }
    }

    pub(super) fn hand_over(self, phases: &Phases) {
        let mut handed = phases.handed.lock().unwrap_or_else(PoisonError::into_inner);
        handed.push(self);
        phases.arrived.fetch_add(1, Ordering::SeqCst);
    }
}

/// The page faults of this thread so far, by the kernel's count.
fn faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    // The name, in brackets, can have anything in it.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let mut fields = after.split_whitespace();
    let minor = fields.nth(7).and_then(|count| count.parse::<u64>().ok());
    let major = fields.nth(1).and_then(|count| count.parse::<u64>().ok());
    minor.unwrap_or(0) + major.unwrap_or(0)
}
