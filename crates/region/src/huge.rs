//! Which memory of this process is made of huge pages.

use std::ops::Range;

use transhume_sys::CallError;
use transhume_sys::pagemap::{Categories, PageRegion, Pagemap, ScanArgs};

/// How many bytes of a range are mapped by huge entries of the page table.
pub(crate) fn huge_bytes(range: Range<usize>) -> Result<usize, CallError> {
    let pagemap = Pagemap::open_self()?;
    let wanted = Categories::PRESENT | Categories::HUGE;
    let args = ScanArgs {
        all_of: wanted,
        report: wanted,
        ..ScanArgs::default()
    };
    let mut found = [PageRegion::default(); 64];
    let mut at = range.start;
    let mut bytes = 0;
    while at < range.end {
        let scan = pagemap.scan(at..range.end, &args, &mut found)?;
        bytes += found[..scan.regions]
            .iter()
            .map(|region| region.range().len())
            .sum::<usize>();
        if scan.walk_end <= at {
            break;
        }
        at = scan.walk_end;
    }
    Ok(bytes)
}
