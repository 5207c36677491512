//! Which variants are measured, and whether the machine can.

use std::num::NonZeroUsize;
use std::time::Duration;

use transhume_region::PageSize;
use transhume_sys::numa;
use transhume_sys::numa::topology::memory_size;

use super::cell::{Cell, Group, Scope, Table, Way};
use crate::args::{Backing, Bench, What};
use crate::error::CliError;

/// The stall that is asked for.
const MAX_STALL: Duration = Duration::from_millis(5);
/// One page a call is so slow that it gets one page in so many.
const SMALL_PART: usize = 16;

/// What is measured, and between which nodes.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) near: u32,
    pub(crate) far: u32,
    pub(crate) groups: Vec<Group>,
}

/// What the command line asks for; `None` if that is nothing, or is not asked for by name and the
/// machine has one node.
pub(crate) fn make(args: &Bench) -> Result<Option<Plan>, CliError> {
    let refused = |why: String| Err(CliError::Refused(why));
    let named = match args.what {
        What::Move => true,
        What::All if *args.backing() == Backing::Anonymous => false,
        _ => return Ok(None),
    };
    if named {
        let other = [
            (*args.backing() != Backing::Anonymous, "--backing"),
            (args.copier != "memcpy", "--copier"),
            (args.threads.is_some(), "--threads"),
            (args.control.is_some(), "--control"),
        ];
        if let Some((_, word)) = other.into_iter().find(|(given, _)| *given) {
            return refused(format!(
                "{word} is not for bench move: there the kernel moves and copies anonymous memory"
            ));
        }
    }
    let nodes = numa::nodes_with_memory();
    let (near, far) = match nodes.as_deref() {
        Ok(&[near, far, ..]) => (near, far),
        _ if !named => return Ok(None),
        Ok(&[only]) => {
            return refused(format!(
                "bench move needs two nodes with memory, and only node {only} of this machine has any; \
                 tests/two-node/run boots a guest that has two"
            ));
        }
        Ok(_) => return refused("bench move needs two nodes with memory".to_owned()),
        Err(error) => {
            return refused(format!("bench move needs a kernel with NUMA: {error}"));
        }
    };
    let groups = groups(args);
    for group in &groups {
        for node in [near, far] {
            check_memory(group, node)?;
        }
    }
    Ok(Some(Plan { near, far, groups }))
}

fn groups(args: &Bench) -> Vec<Group> {
    let cell = |variant, way, scope| Cell {
        variant,
        way,
        scope,
    };
    let group = |table, page_size, cells| Group {
        table,
        page_size,
        pages: pages(args, page_size),
        cells,
    };
    let mut groups = Vec::new();
    if args.page_size != Some(PageSize::Huge) {
        let memory = Scope::Memory;
        groups.push(group(
            Table::EverySecond,
            PageSize::Base,
            vec![
                cell("unfiltered", Way::EveryAddress, memory),
                cell("planned", Way::PLANNED, memory),
            ],
        ));
        let part = (pages(args, PageSize::Base) / SMALL_PART).max(1);
        groups.push(group(
            Table::Whole,
            PageSize::Base,
            vec![
                cell("migrate_pages", Way::MigratePages, Scope::Process),
                cell("planned", Way::PLANNED, Scope::Process),
                cell("planned, 2 workers", Way::planned_by(2), Scope::Process),
                cell("one page a call", Way::OnePageACall, Scope::Pages(part)),
            ],
        ));
        let limited = Way::Planned {
            workers: 1,
            max_stall: Some(MAX_STALL),
        };
        groups.push(group(
            Table::Stall,
            PageSize::Base,
            vec![
                cell("planned", Way::PLANNED, memory),
                cell("planned, max stall 5 ms", limited, memory),
            ],
        ));
    }
    if args.page_size != Some(PageSize::Base) {
        groups.push(group(
            Table::Huge,
            PageSize::Huge,
            vec![
                cell("every address", Way::EveryAddress, Scope::Memory),
                cell("heads only", Way::PLANNED, Scope::Memory),
                cell("migrate_pages", Way::MigratePages, Scope::Process),
            ],
        ));
    }
    groups
}

fn pages(args: &Bench, size: PageSize) -> usize {
    let default = match (size, args.quick) {
        (PageSize::Base, false) => 16_384,
        (PageSize::Base, true) => 4096,
        (PageSize::Huge, false) => 64,
        (PageSize::Huge, true) => 16,
    };
    args.pages.map_or(default, NonZeroUsize::get)
}

/// Refuses what would not fit on a node with an eighth to spare.
fn check_memory(group: &Group, node: u32) -> Result<(), CliError> {
    let Ok(memory) = memory_size(node) else {
        return Ok(());
    };
    let bytes = group.bytes() as u64;
    if bytes.saturating_add(bytes / 8) <= memory.free {
        return Ok(());
    }
    Err(CliError::Refused(format!(
        "{} pages of {} do not fit on node {node}, which has {} MiB free",
        group.pages,
        group.page_size,
        memory.free >> 20
    )))
}
