//! One move of a herd's memory, in one way.

use std::ops::Range;
use std::time::Instant;

use transhume_process::{
    BASE_PAGE, Check, Kernel, Plan, Progress, Request, Select, Shares, Target, bring,
};
use transhume_sys::numa::{self, PageStatus, Shared};
use transhume_sys::shootdown::ShootdownCounter;
use transhume_sys::{CallError, Pid};

use super::cell::{Scope, Way};
use crate::error::CliError;

/// How many addresses a call of move_pages(2) gets that is not planned.
const CALL: usize = 8192;
/// How often such calls go over all addresses.
const TRIES: u32 = 3;

/// What is moved from where to where.
#[derive(Clone, Debug)]
pub(crate) struct Drive {
    pub(crate) pid: Pid,
    /// The memory that the herd's threads use.
    pub(crate) memory: Range<usize>,
    pub(crate) page_size: usize,
    pub(crate) scope: Scope,
    pub(crate) from: u32,
    pub(crate) to: u32,
}

/// What it took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) seconds: f64,
    pub(crate) calls: u64,
    /// Shootdowns that the threads asked for which moved; `None` where they cannot be counted.
    pub(crate) shootdowns: Option<u64>,
    /// Bytes that stayed, and it is said why.
    pub(crate) explained: u64,
}

impl Drive {
    /// The addresses that are moved, unless it is all that the process has.
    fn range(&self) -> Range<usize> {
        match self.scope {
            Scope::Pages(pages) => {
                let end = self.memory.start + pages * self.page_size;
                self.memory.start..end.min(self.memory.end)
            }
            Scope::Process | Scope::Memory => self.memory.clone(),
        }
    }

    fn request(&self) -> Result<Request, CliError> {
        let to = Shares::new(vec![(self.to, 1)]);
        let to = to.map_err(|error| CliError::Failed(error.to_string()))?;
        let mut request = Request::new([self.from].into(), to);
        match self.scope {
            // As migrate_pages(2) does it.
            Scope::Process => request.shared = most_that_is_allowed(),
            _ => request.only = vec![Select::Range(self.range())],
        }
        Ok(request)
    }

    fn target(&self) -> Result<Target, CliError> {
        Target::open(self.pid.as_raw_nonzero().get())
            .map_err(|error| CliError::Failed(error.to_string()))
    }

    /// How many bytes are where they are to leave, by the kernel's count.
    pub(crate) fn to_move(&self) -> Result<u64, CliError> {
        let plan = Plan::make(&self.request()?, &self.target()?);
        Ok(plan
            .map_err(|error| CliError::Failed(error.to_string()))?
            .bytes())
    }

    /// Moves.
    pub(crate) fn go(&self, way: Way) -> Result<Done, CliError> {
        let counter = ShootdownCounter::open_for_this_thread().ok();
        let done = match way {
            Way::Planned { .. } => return self.planned(way),
            Way::EveryAddress => self.every_address(),
            Way::OnePageACall => self.one_page_a_call(),
            Way::MigratePages => self.migrate_pages(),
        }?;
        let shootdowns = counter.and_then(|counter| counter.read().ok());
        Ok(Done { shootdowns, ..done })
    }

    fn every_address(&self) -> Result<Done, CliError> {
        let pages = self.range().step_by(BASE_PAGE).collect::<Vec<_>>();
        let nodes = [self.to; CALL];
        let mut status = [PageStatus::UNKNOWN; CALL];
        let mut done = Done::default();
        for _ in 0..TRIES {
            let began = Instant::now();
            for pages in pages.chunks(CALL) {
                let (nodes, status) = (&nodes[..pages.len()], &mut status[..pages.len()]);
                // Neither its answer nor what it says of the pages is looked at.
                let _ = numa::move_pages(Some(self.pid), pages, nodes, status, Shared::Leave)
                    .map_err(failed)?;
                done.calls += 1;
            }
            done.seconds += began.elapsed().as_secs_f64();
            if self.to_move()? == 0 {
                break;
            }
        }
        Ok(done)
    }

    fn one_page_a_call(&self) -> Result<Done, CliError> {
        let mut done = Done::default();
        let mut status = [PageStatus::UNKNOWN];
        let began = Instant::now();
        for page in self.range().step_by(self.page_size) {
            let (pages, nodes) = ([page], [self.to]);
            let _ = numa::move_pages(Some(self.pid), &pages, &nodes, &mut status, Shared::Leave)
                .map_err(failed)?;
            done.calls += 1;
        }
        done.seconds = began.elapsed().as_secs_f64();
        Ok(done)
    }

    fn migrate_pages(&self) -> Result<Done, CliError> {
        let began = Instant::now();
        let left = numa::migrate_pages(Some(self.pid), &[self.from], &[self.to]);
        let seconds = began.elapsed().as_secs_f64();
        // Its count has no reasons.
        left.map_err(failed)?;
        Ok(Done {
            seconds,
            calls: 1,
            ..Done::default()
        })
    }

    /// The time is that of all that `transhume move` does, from finding the process on.
    fn planned(&self, way: Way) -> Result<Done, CliError> {
        let mut request = self.request()?;
        if let Way::Planned { workers, max_stall } = way {
            request.threads = workers.try_into().unwrap_or(request.threads);
            request.max_stall = max_stall;
        }
        // The group's counter is open meanwhile, which makes this one cheap.
        request.count_shootdowns = true;
        let began = Instant::now();
        let report = request.run(vec![self.target()?], &Progress::new());
        let seconds = began.elapsed().as_secs_f64();
        let processes = &report.processes;
        if let Some(error) = processes.iter().find_map(|process| process.error.as_ref()) {
            return Err(CliError::Failed(error.to_string()));
        }
        let account = report.account();
        Ok(Done {
            seconds,
            calls: account.calls,
            shootdowns: processes.iter().map(|process| process.shootdowns).sum(),
            explained: account.stayed_in_all().bytes,
        })
    }

    /// Brings every second page back to where it is to leave.
    pub(crate) fn bring_every_second_back(&self) {
        let pages = self.memory.clone().step_by(2 * self.page_size);
        let pages = pages.collect::<Vec<_>>();
        let mut kernel = Kernel::new(Some(self.pid), Shared::Leave);
        for pages in pages.chunks(CALL) {
            // What is where is counted afterwards.
            let _ = bring(&mut kernel, pages, self.from, Check::All);
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: CallError) -> CliError {
    CliError::Failed(error.to_string())
}

/// Whether pages may be moved that others map too: the kernel says so before it looks at any page.
fn most_that_is_allowed() -> Shared {
    match numa::move_pages(None, &[], &[], &mut [], Shared::Move) {
        Ok(_) => Shared::Move,
        Err(_) => Shared::Leave,
    }
}
