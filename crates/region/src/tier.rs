//! Tiers: kinds of memory with a name, a capacity and a place.

use std::fmt;
use std::path::{Path, PathBuf};

use transhume_sys::advise::Advice;

/// Where a tier of a region takes its frames from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Anonymous memory of a NUMA node.
    Node(u32),
    /// An anonymous file in memory (memfd).
    Memfd,
    /// A pool of 2 MiB huge pages (hugetlbfs).
    Hugetlb,
    /// A file: on a file system, or a DAX device. It must be empty, or a device.
    File(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Memfd => f.write_str("memfd"),
            Self::Hugetlb => f.write_str("hugetlb"),
            Self::File(path) => write!(f, "file {}", path.display()),
        }
    }
}

/// One kind of memory that the pages of a region can live in.
///
/// A region's tiers are either all of anonymous memory ([`Tier::node`]) or all of mapped memory
/// (the others): a page cannot go from one to the other and stay the same page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) capacity: Option<usize>,
}

impl Tier {
    fn new(name: impl Into<String>, place: Place) -> Self {
        Self {
            name: name.into(),
            place,
            capacity: None,
        }
    }

    /// Anonymous memory of NUMA node `node`. Two tiers may name the same node.
    #[must_use]
    pub fn node(name: impl Into<String>, node: u32) -> Self {
        Self::new(name, Place::Node(node))
    }

    /// Memory of an anonymous file that the region makes and owns.
    #[must_use]
    pub fn memfd(name: impl Into<String>) -> Self {
        Self::new(name, Place::Memfd)
    }

    /// 2 MiB huge pages out of the system's reserved pool (`vm.nr_hugepages`).
    #[must_use]
    pub fn hugetlb(name: impl Into<String>) -> Self {
        Self::new(name, Place::Hugetlb)
    }

    /// The memory of the file or DAX device at `path`, which the region locks while it lives. A
    /// plain file is made if it is absent; it is refused if it has content, which would be lost.
    #[must_use]
    pub fn file(name: impl Into<String>, path: impl AsRef<Path>) -> Self {
        Self::new(name, Place::File(path.as_ref().to_owned()))
    }

    /// At most `bytes` bytes of the region's pages live here. Without a capacity all of them may.
    #[must_use]
    pub fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = Some(bytes);
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its frames come from.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }
}

/// A tier of one region, by its position among that region's tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TierId(pub(crate) u8);

impl TierId {
    /// The most tiers that a region can have.
    pub const MAX: usize = 64;

    /// Its position in the order in which the tiers were given to the builder, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The size of a region's folios.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PageSize {
    /// Base pages of 4 KiB.
    #[default]
    Base,
    /// Huge pages of 2 MiB.
    Huge,
}

impl PageSize {
    /// Its size in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Base => 4 << 10,
            Self::Huge => 2 << 20,
        }
    }

    /// Whether its memory should be made of transparent huge pages.
    pub(crate) const fn advice(self) -> Advice {
        match self {
            Self::Base => Advice::NoHugePage,
            Self::Huge => Advice::HugePage,
        }
    }

    pub(crate) const fn order(self) -> transhume_engine::Order {
        match self {
            Self::Base => transhume_engine::Order::BASE,
            Self::Huge => transhume_engine::Order::HUGE,
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "4k",
            Self::Huge => "2m",
        })
    }
}
