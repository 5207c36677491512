//! Anonymous memory on nodes: where it is made, and where the kernel says it is.

use transhume_sys::advise;
use transhume_sys::map::Mapping;
use transhume_sys::numa::{self, BindFlags, PageStatus, Policy};
use transhume_sys::{CallError, Errno};

use crate::tier::PageSize;
use crate::{BASE_PAGE, TABLE_BYTES};

/// Allocates a region's memory on the first of its tiers' nodes.
pub(crate) fn allocate(
    page_size: PageSize,
    pages: usize,
    nodes: &[u32],
) -> Result<Mapping, CallError> {
    let memory = Mapping::reserve_aligned(pages * page_size.bytes(), TABLE_BYTES)?;
    advise::advise(memory.range(), page_size.advice())?;
    {
        let _policy = numa::ThreadPolicy::bind(nodes[0])?;
        advise::populate_write(memory.range())?;
    }
    let mut distinct = nodes.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    allow(&memory, &distinct)?;
    Ok(memory)
}

/// Lets the kernel allocate from the nodes of all tiers, in whatever it allocates by itself. Memory
/// with a policy of its own is also left alone by the kernel's automatic NUMA balancing, which
/// would bring the pages of a far tier back.
///
/// The nodes are preferred and not bound to: where they are full the process must not be killed.
fn allow(memory: &Mapping, nodes: &[u32]) -> Result<(), CallError> {
    let policy = Policy::PreferredMany(nodes);
    match numa::mbind(memory.range(), policy, BindFlags::empty()) {
        // Before Linux 5.15.
        Err(error) if error.errno == Errno::INVAL => {
            let policy = Policy::Preferred(nodes[0]);
            numa::mbind(memory.range(), policy, BindFlags::empty())
        }
        other => other,
    }
}

/// Says of each folio of `bytes` bytes, given by its address, whether a part of it is on another
/// node than this. What is swapped out or not there at all is not. Of a folio that `is_one_page`
/// only the head is looked at.
pub(crate) fn strayed(
    folios: &[usize],
    bytes: usize,
    node: u32,
    is_one_page: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, CallError> {
    let mut pages = Vec::with_capacity(folios.len());
    let mut ends = Vec::with_capacity(folios.len());
    for &folio in folios {
        if bytes > BASE_PAGE && is_one_page(folio) {
            pages.push(folio);
        } else {
            pages.extend((folio..folio + bytes).step_by(BASE_PAGE));
        }
        ends.push(pages.len());
    }
    if pages.is_empty() {
        return Ok(Vec::new());
    }
    let mut status = vec![PageStatus::UNKNOWN; pages.len()];
    numa::query_pages(None, &pages, &mut status)?;
    let mut begin = 0;
    let elsewhere = |status: &PageStatus| status.node().is_some_and(|other| other != node);
    let strayed = ends.iter().map(|&end| {
        let parts = &status[std::mem::replace(&mut begin, end)..end];
        parts.iter().any(elsewhere)
    });
    Ok(strayed.collect())
}
