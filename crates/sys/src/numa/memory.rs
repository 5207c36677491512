//! Memory on one node.

use std::ops::Range;
use std::sync::atomic::AtomicU64;

use crate::advise::{Advice, advise};
use crate::map::{HUGE_PAGE, Mapping, range_of_line};
use crate::numa::{BindFlags, PageStatus, Policy, mbind, query_pages};
use crate::text::{self, TextError};
use crate::{Call, CallError, Errno};

/// So many pages are asked for in one call.
const QUERY: usize = 1 << 14;

/// What [`NodeMemory`] is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodePages {
    /// Base pages.
    Base,
    /// Huge pages of 2 MiB, where the machine has them.
    Huge,
}

/// Anonymous memory of this process alone that is to be on one node. It is given back on drop.
///
/// Pages come as they are first written, and read as zeros before. The node is preferred and not
/// bound to, so that nothing is killed where it is full: [`elsewhere_bytes`](Self::elsewhere_bytes)
/// tells.
#[derive(Debug)]
pub struct NodeMemory {
    memory: Mapping,
    node: u32,
}

impl NodeMemory {
    /// Reserves `bytes` bytes, rounded up to a multiple of 2 MiB, of which nothing is allocated yet.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a node that has no memory, is not allowed or not there, and for no bytes;
    /// `ENOMEM` without addresses; `ENOSYS` on a kernel without NUMA.
    ///
    /// # References
    ///
    /// mmap(2), mbind(2).
    pub fn reserve(node: u32, bytes: usize, pages: NodePages) -> Result<Self, CallError> {
        let fail = |errno| CallError::at(Call::Mmap, 0..bytes, errno);
        if bytes == 0 {
            return Err(fail(Errno::INVAL));
        }
        let whole = bytes.checked_next_multiple_of(HUGE_PAGE);
        let memory = Mapping::reserve_aligned(whole.ok_or(fail(Errno::NOMEM))?, HUGE_PAGE)?;
        // A policy of its own also keeps automatic NUMA balancing away.
        let preferred = Policy::Preferred(node);
        mbind(memory.range(), preferred, BindFlags::empty())?;
        // Where there are none it is made of base pages, which `huge_bytes` tells.
        let _ = match pages {
            NodePages::Base => advise(memory.range(), Advice::NoHugePage),
            NodePages::Huge => advise(memory.range(), Advice::HugePage),
        };
        Ok(Self { memory, node })
    }

    /// All of it, as words.
    #[must_use]
    pub fn words_mut(&mut self) -> &mut [u64] {
        let words = self.memory.as_ptr().cast::<u64>();
        // SAFETY: the memory is readable, writable, aligned to a page, lives as long as `self`, and
        // any bytes are words. It is private to this process, and its addresses are known only from
        // here, from where `self` is borrowed for as long as the words are.
        unsafe { std::slice::from_raw_parts_mut(words, self.memory.len() / size_of::<u64>()) }
    }

    /// All of it, as words that several threads may use.
    #[must_use]
    pub fn shared_words(&self) -> &[AtomicU64] {
        let words = self.memory.as_ptr().cast::<AtomicU64>();
        // SAFETY: as above; and while these are borrowed, nobody has the others.
        unsafe { std::slice::from_raw_parts(words, self.memory.len() / size_of::<u64>()) }
    }

    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.memory.range()
    }

    /// How many of its bytes are in huge pages now.
    ///
    /// # Errors
    ///
    /// [`TextError`] without procfs.
    ///
    /// # References
    ///
    /// proc_pid_smaps(5), `AnonHugePages`.
    pub fn huge_bytes(&self) -> Result<usize, TextError> {
        let smaps = text::read("/proc/self/smaps")?;
        Ok(huge_bytes(&smaps, &self.memory.range()).min(self.memory.len()))
    }

    /// How many of its bytes are on another node than they should be.
    ///
    /// # Errors
    ///
    /// As [`query_pages`].
    ///
    /// # References
    ///
    /// move_pages(2).
    pub fn elsewhere_bytes(&self) -> Result<usize, CallError> {
        let page = rustix::param::page_size();
        let addresses = self.memory.range().step_by(page).collect::<Vec<_>>();
        let mut status = [PageStatus::UNKNOWN; QUERY];
        let mut elsewhere = 0;
        for pages in addresses.chunks(QUERY) {
            let status = &mut status[..pages.len()];
            query_pages(None, pages, status)?;
            let is_elsewhere = |status: &&PageStatus| status.node().is_some_and(|n| n != self.node);
            elsewhere += status.iter().filter(is_elsewhere).count();
        }
        Ok(elsewhere * page)
    }
}

/// What the mappings that begin in a range have in huge pages. The kernel may have merged the last of
/// them with a neighbour.
fn huge_bytes(smaps: &str, range: &Range<usize>) -> usize {
    let mut within = false;
    let mut bytes = 0;
    for line in smaps.lines() {
        if let Some(vma) = range_of_line(line) {
            within = vma.start < range.end && range.start < vma.end;
        } else if within && let Some(huge) = text::kib_field(line, "AnonHugePages") {
            bytes += crate::abi::to_usize(huge);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_of_a_range() {
        let smaps = "1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nAnonHugePages:      4 kB\n\
                     3000-5000 rw-p 00000000 00:00 0 [heap]\nAnonHugePages:      8 kB\n\
                     THPeligible:           1\nVmFlags: rd wr\n";
        assert_eq!(huge_bytes(smaps, &(0x1000..0x3000)), 4096);
        assert_eq!(huge_bytes(smaps, &(0x3000..0x5000)), 8192);
        assert_eq!(huge_bytes(smaps, &(0x5000..0x6000)), 0);
    }

    #[test]
    fn memory_is_on_a_node_that_has_some() {
        let Ok(nodes) = crate::numa::nodes_with_memory() else {
            return; // A kernel without NUMA.
        };
        let mut memory = NodeMemory::reserve(nodes[0], HUGE_PAGE + 1, NodePages::Huge).unwrap();
        assert_eq!(memory.elsewhere_bytes().unwrap(), 0, "nothing is anywhere");
        let words = memory.words_mut();
        assert_eq!(words.len() * 8, 2 * HUGE_PAGE);
        assert!(words.iter().all(|&word| word == 0));
        words.fill(7);
        assert!(words.iter().all(|&word| word == 7));
        assert!(memory.elsewhere_bytes().unwrap() <= 2 * HUGE_PAGE);
        assert!(memory.huge_bytes().unwrap() <= 2 * HUGE_PAGE);
        let absent = NodeMemory::reserve(1023, HUGE_PAGE, NodePages::Base).unwrap_err();
        assert_eq!(absent.errno, Errno::INVAL);
        assert!(NodeMemory::reserve(nodes[0], 0, NodePages::Base).is_err());
        assert!(NodeMemory::reserve(nodes[0], usize::MAX, NodePages::Base).is_err());
    }
}
