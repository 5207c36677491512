//! Room on a full node, by turns: memory that is not wanted there makes place for memory that is,
//! slice by slice ([fast-copy]), so that one slice of free memory is enough.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use transhume_engine::{Folio, Why};
use transhume_sys::numa::Shared;
use transhume_sys::numa::topology::{memory_size, watermark};
use transhume_sys::pagemap::Frames;

use crate::account::{Account, Amount};
use crate::bring::{Check, Kernel, bring};
use crate::crew::Means;
use crate::mapping::Mapping;
use crate::pace::sleep_unless;
use crate::plan::windows;
use crate::scan::{Scanner, address, addresses, size, size_of_all};
use crate::select::others;
use crate::target::Target;

/// How much of the address space is searched for cold memory at a time.
const WINDOW: usize = 4 << 20;

/// What can make room, and what has.
#[derive(Debug)]
pub(crate) struct Exchange<'r> {
    means: Means<'r>,
    target: &'r Target,
    scanner: Scanner<'r>,
    kernel: Kernel,
    frames: Option<Frames>,
    /// Where cold memory may be found yet.
    search: VecDeque<(Range<usize>, usize)>,
    /// What the kernel has not seen used lately, by its node.
    cold: BTreeMap<u32, VecDeque<Folio>>,
    /// The rest, which goes when nothing cold is left.
    warm: BTreeMap<u32, VecDeque<Folio>>,
    /// Whether there is no more room where it goes.
    full: bool,
    made_room: Amount,
    longest_call: Duration,
}

impl<'r> Exchange<'r> {
    pub(crate) fn new(means: Means<'r>, target: &'r Target, mappings: &[Mapping]) -> Self {
        let has_some = |mapping: &&Mapping| {
            let nodes = mapping.on_nodes.as_ref();
            // Reserved addresses may be many.
            nodes.is_none_or(|nodes| nodes.keys().any(|&node| means.request.to.contains(node)))
        };
        let unwanted = mappings.iter().filter(has_some).flat_map(|mapping| {
            let parts = others(&means.request.only, mapping).into_iter();
            parts
                .flat_map(|part| windows(part, WINDOW))
                .map(|window| (window, mapping.page_size))
        });
        Self {
            means,
            target,
            scanner: Scanner::new(target),
            kernel: Kernel::new(Some(target.pid()), Shared::Leave),
            frames: Frames::open().ok(),
            search: unwanted.collect(),
            cold: BTreeMap::new(),
            warm: BTreeMap::new(),
            full: false,
            made_room: Amount::default(),
            longest_call: Duration::ZERO,
        }
    }

    /// Moves as much away from a node as it lacks to take so many bytes, if there is as much. What it
    /// lacks in the end, the call that wants it is told.
    pub(crate) fn make_room(&mut self, node: u32, bytes: u64) {
        // Below its watermark the kernel refuses, or takes memory away from others.
        let (Ok(memory), Ok(watermark)) = (memory_size(node), watermark(node)) else {
            return;
        };
        let mut lacks = (bytes + watermark).saturating_sub(memory.free);
        while lacks > 0 && !self.full && !self.is_over() {
            let slice = self.next_slice(node, lacks.min(bytes));
            if slice.is_empty() {
                return;
            }
            let Some(to) = self.roomiest() else { return };
            let wait = self
                .means
                .throttle
                .wait_for(size_of_all(&slice), Instant::now());
            sleep_unless(wait, || self.is_over());
            if self.is_over() {
                return;
            }
            let pages = addresses(&slice);
            let answers = bring(&mut self.kernel, &pages, to, Check::Doubtful).answers;
            self.longest_call = self.longest_call.max(self.kernel.take_longest());
            // What stays is not asked for again: it is where it was, and in nobody's way but ours.
            for (folio, answer) in slice.into_iter().zip(answers) {
                match answer {
                    Ok(()) => {
                        self.made_room.count(folio);
                        lacks = lacks.saturating_sub(size(folio));
                    }
                    Err(failure) => {
                        self.full |= matches!(failure.why, Why::NoMemory | Why::NotPermitted);
                    }
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.means.progress.is_stopped() || self.target.has_ended()
    }

    /// The next cold folios on a node, of so many bytes or a little more.
    fn next_slice(&mut self, node: u32, bytes: u64) -> Vec<Folio> {
        let mut slice = Vec::new();
        let mut taken = 0;
        while taken < bytes {
            let next = take(&mut self.cold, node).or_else(|| {
                while let Some(window) = self.search.pop_front().filter(|_| !self.is_over()) {
                    self.sort_out(window);
                    if let Some(found) = take(&mut self.cold, node) {
                        return Some(found);
                    }
                }
                take(&mut self.warm, node)
            });
            let Some(folio) = next else { break };
            taken += size(folio);
            slice.push(folio);
        }
        slice
    }

    /// Finds what in a window is on a destination, and whether it is cold.
    fn sort_out(&mut self, (range, page_size): (Range<usize>, usize)) {
        let Ok(found) = self.scanner.located(range, page_size) else {
            return;
        };
        for (folio, node) in found {
            if !self.means.request.to.contains(node) {
                continue;
            }
            let found = match self.is_warm(folio) {
                true => &mut self.warm,
                false => &mut self.cold,
            };
            found.entry(node).or_default().push_back(folio);
        }
    }

    /// Whether the kernel has seen it used lately. Only root is told; else all count as cold.
    fn is_warm(&self, folio: Folio) -> bool {
        let frame = self.scanner.frame(address(folio));
        let flags = (frame != 0).then_some(self.frames.as_ref());
        flags
            .flatten()
            .and_then(|frames| frames.flags(frame))
            .is_some_and(|flags| flags.is_warm())
    }

    /// The node that memory comes from with the most free memory.
    fn roomiest(&self) -> Option<u32> {
        let free = |node: &u32| memory_size(*node).map_or(0, |memory| memory.free);
        self.means.request.from.iter().copied().max_by_key(free)
    }

    /// Adds what was done here.
    pub(crate) fn account(&self, account: &mut Account) {
        account.made_room += self.made_room;
        account.calls += self.kernel.calls;
        account.longest_call = account.longest_call.max(self.longest_call);
    }
}

fn take(folios: &mut BTreeMap<u32, VecDeque<Folio>>, node: u32) -> Option<Folio> {
    folios.get_mut(&node)?.pop_front()
}
