//! Planning against the procfs of the machine, and moves that have nothing to do.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::process::{Child, Command, Stdio};

use transhume_process::{
    Kind, Plan, PlanError, Progress, Request, Select, Target, mappings, visit_pages,
};
use transhume_sys::numa::{NodeMemory, NodePages, nodes_with_memory};

fn this() -> Target {
    Target::open(i32::try_from(std::process::id()).unwrap()).unwrap()
}

/// A process that does nothing.
struct Idle(Child);

impl Idle {
    fn new() -> Self {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000").stdin(Stdio::null());
        // Whoever reads what the tests say is not to wait for it.
        let child = sleep.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.unwrap())
    }

    fn target(&self) -> Target {
        Target::open(i32::try_from(self.0.id()).unwrap()).unwrap()
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node that no memory is on.
fn nowhere() -> u32 {
    nodes_with_memory().unwrap().last().unwrap() + 1
}

/// The kernel's count by mapping, ours page by page, and the plan agree.
#[test]
fn counts_agree() {
    let node = nodes_with_memory().unwrap()[0];
    let mut memory = NodeMemory::reserve(node, 4 << 20, NodePages::Base).unwrap();
    memory.words_mut()[..(3 << 20) / 8].fill(7);
    let range = memory.range();
    let all = mappings(&this()).unwrap();
    let mapping = all
        .iter()
        .find(|mapping| mapping.range.contains(&range.start))
        .unwrap();
    assert_eq!(mapping.kind, Kind::Anonymous);
    let mut bytes = 0;
    visit_pages(&this(), mapping, |folio, _| {
        let address = usize::try_from(folio.page()).unwrap() * 4096;
        bytes += if range.contains(&address) {
            folio.base_pages() * 4096
        } else {
            0
        };
    })
    .unwrap();
    assert_eq!(bytes, 3 << 20);
    let mut request = Request::new([node].into(), nowhere().to_string().parse().unwrap());
    request.only = vec![Select::Range(range.start..range.start + (2 << 20))];
    let plan = Plan::make(&request, &this()).unwrap();
    assert_eq!(plan.bytes(), 2 << 20);
    assert_eq!(plan.on_nodes.get(&node), Some(&(2 << 20)));
    assert_eq!(plan.parts.len(), 1);
    request.only = vec![Select::Range(range.start + (2 << 20)..range.end)];
    assert_eq!(Plan::make(&request, &this()).unwrap().bytes(), 1 << 20);
}

/// A page that was never written is the page of zeros, and nobody's to move.
#[test]
fn zeros_are_nowhere() {
    let node = nodes_with_memory().unwrap()[0];
    let mut memory = NodeMemory::reserve(node, 2 << 20, NodePages::Base).unwrap();
    let sum = memory.words_mut().iter().sum::<u64>();
    assert_eq!(sum, 0);
    let mut request = Request::new([node].into(), nowhere().to_string().parse().unwrap());
    request.only = vec![Select::Range(memory.range())];
    let plan = Plan::make(&request, &this()).unwrap();
    assert_eq!((plan.bytes(), plan.parts.len()), (0, 0));
}

#[test]
fn nothing_misplaced_is_nothing_done() {
    let idle = Idle::new();
    let request = Request::new([nowhere()].into(), "0".parse().unwrap());
    let report = request.run(vec![idle.target()], &Progress::new());
    assert!(report.is_complete());
    let process = &report.processes[0];
    assert_eq!(
        (process.planned, process.account.calls, process.left),
        (0, 0, 0)
    );
    assert!(!process.before.is_empty());
}

/// The kernel refuses a node that there is not; then each page is where it was and that is said.
#[test]
fn a_node_that_is_gone_takes_nothing() {
    let node = nodes_with_memory().unwrap()[0];
    let idle = Idle::new();
    let request = Request::new([node].into(), nowhere().to_string().parse().unwrap());
    let report = request.run(vec![idle.target()], &Progress::new());
    let process = &report.processes[0];
    assert!(!report.is_complete());
    assert!(report.stopped.is_some(), "{report:?}");
    assert!(process.account.moved.is_none());
    assert!(process.left > 0);
    assert_eq!(
        process.account.stayed_in_all().bytes,
        process.left,
        "{process:?}"
    );
}

#[test]
fn one_that_has_ended_is_no_failure_of_ours() {
    let node = nodes_with_memory().unwrap()[0];
    let idle = Idle::new();
    let (first, second) = (idle.target(), idle.target());
    assert!(!first.has_ended());
    drop(idle);
    assert!(first.has_ended());
    let request = Request::new([node].into(), nowhere().to_string().parse().unwrap());
    assert!(matches!(
        Plan::make(&request, &first),
        Err(PlanError::Ended { .. })
    ));
    let report = request.run(vec![second], &Progress::new());
    assert!(report.processes[0].ended && !report.is_complete());
}

#[test]
fn stopped_before_it_began() {
    let node = nodes_with_memory().unwrap()[0];
    let idle = Idle::new();
    let progress = Progress::new();
    progress.stop();
    let request = Request::new([node].into(), nowhere().to_string().parse().unwrap());
    let report = request.run(vec![idle.target()], &progress);
    let process = &report.processes[0];
    assert_eq!(process.account.calls, 0);
    assert_eq!(process.account.stayed_in_all().bytes, process.left);
    assert!(process.left > 0);
}
