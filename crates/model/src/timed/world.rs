//! The time of a machine, and what happens on it while somebody migrates.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use super::program::Program;
use super::{CopyBy, MIGRATOR, Plan};
use crate::act::Act;
use crate::costs::Costs;
use crate::machine::{CpuId, Machine, Page};

/// A moment, in nanoseconds from the beginning.
pub(super) type Moment = f64;

/// Something that happens by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A CPU takes an interrupt.
    Interrupt(CpuId),
    /// A program goes on; with the number of its plan, since it may have another one by now.
    Program(CpuId, u64),
    /// A channel has made its next copy.
    Channel(usize),
}

/// An event and when; equal moments in the order in which they were planned.
#[derive(Clone, Copy, Debug)]
struct Planned {
    at: Moment,
    number: u64,
    event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let by_time = self.at.total_cmp(&other.at);
        by_time.then(self.number.cmp(&other.number))
    }
}

/// What is to come, in the order of time.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    queue: BinaryHeap<Reverse<Planned>>,
    count: u64,
}

impl Agenda {
    pub(super) fn plan(&mut self, at: Moment, event: Event) {
        self.count += 1;
        let number = self.count;
        self.queue.push(Reverse(Planned { at, number, event }));
    }

    fn next(&mut self, until: Moment) -> Option<(Moment, Event)> {
        let Reverse(first) = self.queue.peek()?;
        if first.at > until {
            return None;
        }
        let Reverse(Planned { at, event, .. }) = self.queue.pop()?;
        Some((at, event))
    }
}

/// What a run has shown.
pub(super) struct Told {
    pub(super) total: Duration,
    pub(super) first_back: Option<Duration>,
    pub(super) longest_cut_off: Duration,
    pub(super) longest_stall: Duration,
    pub(super) swapping: Duration,
    pub(super) interrupts: u64,
    pub(super) lost: Duration,
    pub(super) accesses: f64,
}

/// The clock of who migrates, and everybody else.
#[derive(Debug)]
pub(crate) struct World {
    costs: Costs,
    /// How many page table entries a folio has.
    entries: f64,
    copier: CopyBy,
    one_complex: bool,
    cpus: usize,
    nodes: usize,
    now: Moment,
    /// Whether a call that cuts off is under way.
    in_call: bool,
    agenda: Agenda,
    programs: Vec<Program>,
    /// Programs that wait for a page, by page, and those whose page is back and who have not been woken.
    waiting: BTreeMap<Page, Vec<CpuId>>,
    to_wake: Vec<CpuId>,
    /// When each page that is cut off now was.
    cut_off: BTreeMap<Page, Moment>,
    longest_cut_off: Moment,
    swapping: Moment,
    first_back: Option<Moment>,
    interrupts: u64,
}

pub(super) fn duration(ns: Moment) -> Duration {
    Duration::from_secs_f64(ns.max(0.0) / 1e9)
}

/// Bytes of a word of the machine: a base page has one.
const WORD: f64 = 4096.0;

impl World {
    pub(super) fn new(plan: &Plan, costs: &Costs) -> Self {
        let base_pages = 1_u64 << plan.order;
        let entries = if base_pages >= 512 {
            base_pages / 512
        } else {
            base_pages
        };
        let at_once = plan.batch.max(plan.deferred.unwrap_or(0)).min(plan.folios);
        let (used, at_once) = (plan.folios * plan.sides(), at_once * plan.sides());
        let stores = plan.deferred.is_none();
        let programs = (0..plan.programs)
            .map(|cpu| Program::new(cpu, used as u64, base_pages, at_once as f64, stores));
        Self {
            costs: costs.clone(),
            entries: entries as f64,
            copier: plan.copier,
            one_complex: plan.one_complex,
            cpus: plan.cpus,
            nodes: plan.nodes,
            now: 0.0,
            in_call: false,
            agenda: Agenda::default(),
            programs: programs.collect(),
            waiting: BTreeMap::new(),
            to_wake: Vec::new(),
            cut_off: BTreeMap::new(),
            longest_cut_off: 0.0,
            swapping: 0.0,
            first_back: None,
            interrupts: 0,
        }
    }

    /// All programs are at work.
    pub(super) fn begin(&mut self, machine: &mut Machine) {
        for cpu in 0..self.programs.len() {
            self.access(machine, cpu, 0.0);
        }
    }

    /// A request for so many folios is made.
    pub(super) fn begin_request(&mut self, folios: usize) {
        self.now += self.costs.request_ns + self.costs.named_ns * folios as f64;
    }

    /// The time since the request was made.
    pub(crate) fn now(&self) -> Duration {
        duration(self.now)
    }

    /// Lets the time pass that the step takes, and then until it can be made; `false` if it never can.
    pub(crate) fn before(&mut self, machine: &mut Machine, act: Act) -> bool {
        if !matches!(act, Act::Remap { .. } | Act::Putback { .. }) {
            self.wake();
        }
        self.now += self.cost(act);
        loop {
            while let Some((at, event)) = self.agenda.next(self.now) {
                self.happen(machine, at, event);
            }
            if act.is_enabled(machine) {
                return true;
            }
            let Some((at, event)) = self.agenda.next(Moment::INFINITY) else {
                return false;
            };
            self.now = self.now.max(at);
            self.happen(machine, at, event);
        }
    }

    /// What follows from the step.
    pub(crate) fn after(&mut self, machine: &mut Machine, act: Act) {
        match act {
            Act::Send => {
                self.in_call = false;
                self.send(machine);
            }
            Act::Swap { .. } => self.swapping += self.cost(act),
            Act::Submit => self.submit(machine),
            Act::Unmap { page, .. } => {
                self.in_call = true;
                self.cut_off.entry(page).or_insert(self.now);
            }
            Act::Remap { page, .. } | Act::Putback { page, .. } => self.back(page),
            _ => {}
        }
    }

    pub(super) fn end(mut self) -> Told {
        let now = self.now;
        for program in &mut self.programs {
            program.stop(now);
        }
        let each = self.programs.iter();
        let lost: Moment = each.clone().map(|program| program.lost.min(now)).sum();
        let longest_stall = each.map(|program| program.longest_stall);
        let away = if self.programs.is_empty() {
            0.0
        } else {
            self.costs.away_ns
        };
        let longest_stall = longest_stall.fold(away, Moment::max);
        let all = now * self.programs.len() as f64;
        Told {
            total: duration(now),
            first_back: self.first_back.map(duration),
            longest_cut_off: duration(self.longest_cut_off),
            longest_stall: duration(longest_stall),
            swapping: duration(self.swapping),
            interrupts: self.interrupts,
            lost: duration(lost),
            accesses: (all - lost) / self.costs.access_ns,
        }
    }

    /// What who migrates spends on a step.
    fn cost(&self, act: Act) -> Moment {
        let costs = &self.costs;
        match act {
            Act::TryLock { .. } | Act::Lock { .. } => costs.folio_ns,
            // Half of a call is over when it cuts its first page off.
            Act::Unmap { .. } if !self.in_call => {
                costs.call_ns / 2.0 + costs.entry_ns * self.entries
            }
            Act::Unmap { .. } | Act::Remap { .. } | Act::Putback { .. } | Act::Protect { .. } => {
                costs.entry_ns * self.entries
            }
            Act::Send if self.in_call => costs.call_ns / 2.0,
            Act::Send => costs.call_ns,
            Act::Swap { .. } => {
                let threads = match self.copier {
                    CopyBy::Threads(count) => count,
                    CopyBy::Cpu | CopyBy::Channels(_) => 1,
                };
                // Both sides of the word are copied.
                let each = self.limited(costs.copy_rate, costs.copy_limit, threads);
                2.0 * WORD * 1e9 / (each * threads as f64)
            }
            Act::Copy { .. } => WORD * 1e9 / self.limited(costs.copy_rate, costs.copy_limit, 1),
            _ => 0.0,
        }
    }

    /// What one of so many that copy at once gets of the rate.
    fn limited(&self, rate: f64, limit: f64, copying: usize) -> f64 {
        let link = self.costs.link_limit.filter(|_| self.nodes > 1);
        let complex = self.costs.complex_limit.filter(|_| self.one_complex);
        let limit = link.into_iter().chain(complex).fold(limit, f64::min);
        rate.min(limit / copying.max(1) as f64)
    }

    fn happen(&mut self, machine: &mut Machine, at: Moment, event: Event) {
        match event {
            Event::Interrupt(cpu) => {
                if machine.cpus[cpu].inbox.is_empty() {
                    return;
                }
                machine.interrupt(cpu);
                self.interrupts += 1;
                let program = &mut self.programs[cpu];
                if !program.is_blocked() {
                    // The instruction that was interrupted is made again, and looks its translation up, so
                    // that the CPU is asked again by the next shootdown, however soon that comes.
                    program.interrupted(self.costs.handler_ns);
                    self.access(machine, cpu, at + self.costs.handler_ns);
                }
            }
            Event::Program(cpu, number) => {
                let program = &mut self.programs[cpu];
                if !program.is_planned(number) {
                    return;
                }
                match program.delayed() {
                    Some(delay) => self.agenda.plan(at + delay, Event::Program(cpu, number)),
                    None => self.access(machine, cpu, at),
                }
            }
            Event::Channel(channel) => {
                machine.device(channel);
                self.copy_next(machine, channel, at, 0.0);
            }
        }
    }

    /// The program on this CPU accesses a page, and plans when it will meet one that is cut off.
    fn access(&mut self, machine: &mut Machine, cpu: CpuId, at: Moment) {
        let actor = MIGRATOR + 1 + cpu;
        match self.programs[cpu].access(machine, actor, at) {
            Some(page) => self.waiting.entry(page).or_default().push(cpu),
            None => {
                let (after, number) = self.programs[cpu].meets_next(self.costs.access_ns);
                self.agenda.plan(at + after, Event::Program(cpu, number));
            }
        }
    }

    /// The page can be had again.
    fn back(&mut self, page: Page) {
        if let Some(since) = self.cut_off.remove(&page) {
            self.longest_cut_off = self.longest_cut_off.max(self.now - since);
        }
        self.first_back.get_or_insert(self.now);
        self.to_wake
            .extend(self.waiting.remove(&page).unwrap_or_default());
        if !self.costs.remaps_by_call {
            self.wake();
        }
    }

    /// Those whose pages are back go on.
    fn wake(&mut self) {
        for cpu in std::mem::take(&mut self.to_wake) {
            let at = self.now + self.costs.wake_ns;
            self.now += self.costs.waker_ns;
            let number = self.programs[cpu].wake(at);
            self.agenda.plan(at, Event::Program(cpu, number));
        }
    }

    /// Interrupts go to whoever has to flush, one after the other.
    fn send(&mut self, machine: &Machine) {
        let Some(flush) = machine.flushes.last() else {
            return;
        };
        let here = self.node_of_migrator();
        for (n, &cpu) in flush.pending.iter().enumerate() {
            let far = self.node_of(cpu + 1) != here;
            let takes = if far {
                self.costs.far_ipi_ns
            } else {
                self.costs.ipi_ns
            };
            let at = self.now + takes + n as f64 * self.costs.next_ipi_ns;
            self.agenda.plan(at, Event::Interrupt(cpu));
        }
    }

    fn node_of_migrator(&self) -> usize {
        self.node_of(0)
    }

    /// The node of a CPU of the machine: programs have those from the second on.
    fn node_of(&self, cpu: usize) -> usize {
        cpu * self.nodes / self.cpus
    }

    fn submit(&mut self, machine: &Machine) {
        let wait = match self.copier {
            CopyBy::Channels(_) => self.costs.channel_ns,
            CopyBy::Cpu | CopyBy::Threads(_) => self.costs.thread_ns,
        };
        for channel in 0..machine.channels.len() {
            self.copy_next(machine, channel, self.now, wait);
        }
    }

    /// Plans the end of the next copy of a channel.
    fn copy_next(&mut self, machine: &Machine, channel: usize, at: Moment, wait: Moment) {
        if machine.channels[channel].is_empty() {
            return;
        }
        let copying = machine.channels.iter().filter(|queue| !queue.is_empty());
        let copying = copying.count();
        let costs = &self.costs;
        let rate = match (self.copier, costs.channel_rate) {
            (CopyBy::Channels(_), Some(rate)) => self.limited(rate, costs.channels_limit, copying),
            _ => self.limited(costs.copy_rate, costs.copy_limit, copying),
        };
        let takes = WORD * 1e9 / rate;
        self.agenda.plan(at + wait + takes, Event::Channel(channel));
        if matches!(self.copier, CopyBy::Threads(_)) && channel > 0 {
            // The thread has one of the last CPUs; a program that is there waits for it.
            let cpu = self.cpus - channel;
            if let Some(program) = cpu
                .checked_sub(1)
                .and_then(|cpu| self.programs.get_mut(cpu))
            {
                program.delay(takes);
            }
        }
    }
}
