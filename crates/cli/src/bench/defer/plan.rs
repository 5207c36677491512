//! Which tables are measured.

use std::num::NonZeroUsize;
use std::time::Duration;

use transhume_copy::SharedCopier;
use transhume_region::PageSize;
use transhume_sys::limits;
use transhume_sys::map::HUGE_PAGE;

use super::lookups::LEAST_BYTES;
use crate::args::{Backing, Bench, What};
use crate::error::CliError;

/// Two variants that take turns on the tables of one region.
pub(crate) struct Group {
    pub(super) backing: Backing,
    pub(super) page_size: PageSize,
    pub(super) pages: usize,
    pub(super) copier: SharedCopier,
    /// How often the tables move in a run.
    pub(super) moves: usize,
    /// How long they rest before each and after.
    pub(super) rest: Duration,
}

impl Group {
    pub(crate) fn runs(&self, runs: u32) -> u64 {
        super::group::VARIANTS.len() as u64 * u64::from(runs)
    }

    pub(super) fn bytes(&self) -> usize {
        self.pages * self.page_size.bytes()
    }

    /// How often the kernel flushes at least for the moves of a run: twice for each page table of
    /// anonymous memory. Mapped memory has no such floor.
    pub(super) fn kernel_flushes(&self) -> Option<u64> {
        let tables = self.bytes().div_ceil(HUGE_PAGE) * self.moves;
        let anonymous = self.backing == Backing::Anonymous;
        anonymous.then_some(2 * tables as u64)
    }
}

/// What the command line asks for, and what has to be left out and why.
pub(crate) fn make(
    args: &Bench,
    copier: &SharedCopier,
) -> Result<(Vec<Group>, Vec<String>), CliError> {
    if !matches!(args.what, What::Defer | What::All) {
        return Ok((Vec::new(), Vec::new()));
    }
    let group = |backing, page_size: PageSize| {
        let default = match (page_size, args.quick) {
            (PageSize::Base, false) => 65_536,
            (PageSize::Base, true) => 8192,
            (PageSize::Huge, false) => 512,
            (PageSize::Huge, true) => 16,
        };
        Group {
            backing,
            page_size,
            pages: args.pages.map_or(default, NonZeroUsize::get),
            copier: SharedCopier::clone(copier),
            moves: if args.quick { 2 } else { 4 },
            rest: Duration::from_millis(if args.quick { 20 } else { 150 }),
        }
    };
    let free = limits::hugetlb_pool(HUGE_PAGE).unwrap_or_default().free;
    let huge = group(Backing::Hugetlb, PageSize::Huge);
    let needed = huge.pages.saturating_mul(2);
    let mut notices = Vec::new();
    let groups = match (args.backing.as_ref(), args.page_size) {
        (Some(Backing::File(_)), _) => {
            return left_out(
                args,
                "the kernel cannot hold stores off the pages of plain files",
                "--backing anonymous, memfd or hugetlb",
            );
        }
        (Some(Backing::Hugetlb), Some(PageSize::Base)) => {
            return Err(CliError::Refused("hugetlb has pages of 2m only".to_owned()));
        }
        (Some(Backing::Anonymous), size) => {
            let sizes =
                size.map_or_else(|| vec![PageSize::Base, PageSize::Huge], |size| vec![size]);
            let group = |size| group(Backing::Anonymous, size);
            sizes.into_iter().map(group).collect()
        }
        (Some(Backing::Memfd), Some(size)) => vec![group(Backing::Memfd, size)],
        (Some(Backing::Memfd), None) | (None, Some(PageSize::Base)) => {
            vec![group(Backing::Memfd, PageSize::Base)]
        }
        (Some(Backing::Hugetlb), _) | (None, Some(PageSize::Huge)) => vec![huge],
        (None, None) if free >= needed => {
            vec![group(Backing::Memfd, PageSize::Base), huge]
        }
        (None, None) => {
            notices.push(format!(
                "defer: pages of 2m are left out, as they need {needed} free huge pages of 2 MiB and \
                 there are {free}; cure: sysctl vm.nr_hugepages={needed}"
            ));
            vec![group(Backing::Memfd, PageSize::Base)]
        }
    };
    let available = limits::memory_available().unwrap_or(u64::MAX);
    for group in &groups {
        if group.pages.saturating_mul(group.page_size.bytes()) < LEAST_BYTES {
            let least = LEAST_BYTES.div_ceil(group.page_size.bytes());
            let why = format!("its tables take {least} pages of {}", group.page_size);
            return left_out(args, &why, "more --pages");
        }
        if group.backing == Backing::Hugetlb {
            if free < needed {
                return Err(CliError::Refused(format!(
                    "{} pages of hugetlb need {needed} free huge pages of 2 MiB, there are {free}; cure: \
                     sysctl vm.nr_hugepages={needed}, or fewer --pages",
                    group.pages
                )));
            }
            continue;
        }
        let needed = group.bytes().checked_mul(3).map(u64::try_from);
        if !needed.is_some_and(|needed| needed.is_ok_and(|needed| needed <= available)) {
            return Err(CliError::Refused(format!(
                "{} pages of {} need three times their size for this benchmark, more than the {} MiB that are free",
                group.pages,
                group.page_size,
                available >> 20
            )));
        }
    }
    Ok((groups, notices))
}

/// Refuses where it was asked for by name, and says so where all were.
fn left_out(args: &Bench, why: &str, cure: &str) -> Result<(Vec<Group>, Vec<String>), CliError> {
    match args.what {
        What::Defer => Err(CliError::Refused(format!("{why}; cure: {cure}"))),
        _ => Ok((Vec::new(), vec![format!("defer is left out: {why}")])),
    }
}
