//! A program that loads and stores at random, as time passes.
//!
//! Most of its accesses meet nothing and take the same time each, so only some are made on the machine: the first
//! after its translations were taken away, and those that may meet a page that is cut off. When the next such
//! comes is drawn by thinning (Lewis and Shedler, 1979): candidates come as often as if a whole batch were cut off,
//! and each is one in proportion to what is cut off when it comes. So the time until a page
//! is met is exact, and accesses by the million cost nothing.

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};

use super::MIGRATOR;
use super::world::Moment;
use crate::machine::{Access, ActorId, CpuId, Machine, Page, Place};

/// Who runs on a CPU.
#[derive(Debug)]
pub(super) struct Program {
    cpu: CpuId,
    folios: u64,
    base_pages: u64,
    /// The most folios that are cut off at once.
    at_once: f64,
    stores: bool,
    numbers: Pcg64Mcg,
    /// The number of what it does next, by which older plans are told.
    plan: u64,
    /// Whether that is an access to any page, and not one that may meet a page that is cut off.
    looks_up: bool,
    /// The page that it wants.
    wants: Option<Page>,
    blocked_since: Option<Moment>,
    /// What it has been held up by since its next access was planned.
    debt: Moment,
    pub(super) lost: Moment,
    pub(super) longest_stall: Moment,
}

impl Program {
    pub(super) fn new(
        cpu: CpuId,
        folios: u64,
        base_pages: u64,
        at_once: f64,
        stores: bool,
    ) -> Self {
        Self {
            cpu,
            folios,
            base_pages,
            at_once,
            stores,
            numbers: Pcg64Mcg::seed_from_u64(cpu as u64 + 1),
            plan: 0,
            looks_up: true,
            wants: None,
            blocked_since: None,
            debt: 0.0,
            lost: 0.0,
            longest_stall: 0.0,
        }
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_since.is_some()
    }

    pub(super) fn is_planned(&self, number: u64) -> bool {
        self.plan == number
    }

    /// An interrupt has taken its translations, and that time; its next access is to any page.
    pub(super) fn interrupted(&mut self, time: Moment) {
        self.lost += time;
        self.looks_up = true;
    }

    /// Something else has its CPU for a while.
    pub(super) fn delay(&mut self, time: Moment) {
        if !self.is_blocked() {
            self.debt += time;
            self.lost += time;
        }
    }

    /// By how much its plan has been put off, once.
    pub(super) fn delayed(&mut self) -> Option<Moment> {
        let debt = std::mem::take(&mut self.debt);
        (debt > 0.0).then_some(debt)
    }

    /// It goes on at that moment; the number of what it does then.
    pub(super) fn wake(&mut self, at: Moment) -> u64 {
        self.stop(at);
        self.plan += 1;
        self.plan
    }

    /// Nobody looks at it any more from then on.
    pub(super) fn stop(&mut self, at: Moment) {
        if let Some(since) = self.blocked_since.take() {
            // It may have been woken before an interrupt was done with.
            let stall = (at - since).max(0.0);
            self.lost += stall;
            self.longest_stall = self.longest_stall.max(stall);
        }
    }

    fn below(&mut self, count: u64) -> u64 {
        self.numbers.next_u64() % count.max(1)
    }

    /// Above zero, and one at most.
    fn fraction(&mut self) -> f64 {
        ((self.numbers.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// How long until it may meet a page that is cut off, and the number of that plan.
    pub(super) fn meets_next(&mut self, access_ns: f64) -> (Moment, u64) {
        self.plan += 1;
        self.looks_up = false;
        let mean = access_ns * self.folios as f64 / self.at_once;
        (-self.fraction().ln() * mean, self.plan)
    }

    /// Accesses a page on the machine; the page if it has to wait for it.
    pub(super) fn access(
        &mut self,
        machine: &mut Machine,
        actor: ActorId,
        at: Moment,
    ) -> Option<Page> {
        let page = match self.wants.take() {
            Some(page) => page,
            None if self.looks_up => self.below(self.folios) * self.base_pages,
            None => {
                let cut_off = machine.pages_cut_off(MIGRATOR);
                if self.fraction() * self.at_once > cut_off as f64 {
                    return None;
                }
                let nth = self.below(cut_off as u64);
                machine.cut_off_page(MIGRATOR, usize::try_from(nth).unwrap_or(0))?
            }
        };
        let place = Place {
            cpu: self.cpu,
            space: 0,
            page,
            word: 0,
        };
        let store = self.stores && self.below(2) == 0;
        loop {
            match machine.access(actor, place, store) {
                Access::Translated => {}
                Access::Waits { .. } => {
                    self.wants = Some(page);
                    self.blocked_since = Some(at);
                    machine.sleep(self.cpu);
                    return Some(page);
                }
                Access::Done | Access::Held | Access::Nothing => return None,
            }
        }
    }
}
