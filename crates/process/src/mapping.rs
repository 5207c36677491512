//! What a process has mapped, and on which nodes it is.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use transhume_sys::map::range_of_line;

use crate::target::{Target, plain};

/// What a mapping is made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The heap of `brk`.
    Heap,
    /// The stack of the first thread.
    Stack,
    /// Private memory without a file.
    Anonymous,
    /// Memory that processes share, without a file that has a name.
    Shared,
    /// A file.
    File(PathBuf),
    /// Of the kernel, such as `vdso`: not to be moved.
    Special(String),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heap => f.write_str("heap"),
            Self::Stack => f.write_str("stack"),
            Self::Anonymous => f.write_str("anonymous"),
            Self::Shared => f.write_str("shared"),
            Self::File(path) => f.write_str(&plain(&path.to_string_lossy())),
            Self::Special(name) => write!(f, "[{}]", plain(name)),
        }
    }
}

/// One mapping of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its addresses.
    pub range: Range<usize>,
    /// What it is made of.
    pub kind: Kind,
    /// `rwxp`, as in `/proc/PID/maps`.
    pub permissions: String,
    /// Its memory policy, as the kernel writes it; empty if it does not say.
    pub policy: String,
    /// The size of its pages in bytes: more than a base page in a huge-page pool only.
    pub page_size: usize,
    /// How many bytes of it are on which node, by the kernel's own count. A page that other
    /// processes map as well counts whole. `None` where the kernel does not count.
    pub on_nodes: Option<BTreeMap<u32, u64>>,
}

impl Mapping {
    /// How many bytes of it are in memory, as far as they are counted.
    #[must_use]
    pub fn resident(&self) -> u64 {
        self.on_nodes.iter().flatten().map(|(_, bytes)| bytes).sum()
    }
}

/// The mappings of a process, in order, with what is on which node.
///
/// # Errors
///
/// Whatever reading procfs gives; `ESRCH` or an empty list for a process that has ended.
///
/// # References
///
/// proc_pid_maps(5), proc_pid_numa_maps(5).
pub fn mappings(target: &Target) -> io::Result<Vec<Mapping>> {
    let mut found = parse_maps(&target.read("maps")?);
    // A kernel without NUMA has no such file.
    match target.read("numa_maps") {
        Ok(counts) => add_counts(&mut found, &counts),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(found)
}

fn parse_maps(text: &[u8]) -> Vec<Mapping> {
    text.split(|&byte| byte == b'\n')
        .filter_map(parse_mapping)
        .collect()
}

/// A line such as `7f00-7f10 rw-p 00000000 fe:00 325843    /usr/lib/a b.so`.
fn parse_mapping(line: &[u8]) -> Option<Mapping> {
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let mut next = || std::str::from_utf8(fields.next()?).ok();
    let range = range_of_line(next()?)?;
    let permissions = next()?.to_owned();
    let (_offset, _device, _inode) = (next()?, next()?, next()?);
    let name = fields.next().unwrap_or_default().trim_ascii_start();
    Some(Mapping {
        range,
        kind: kind(name, permissions.ends_with('s')),
        permissions,
        policy: String::new(),
        page_size: crate::BASE_PAGE,
        on_nodes: None,
    })
}

fn kind(name: &[u8], shared: bool) -> Kind {
    let nameless = [&b"/memfd:"[..], b"/dev/zero", b"/SYSV", b"/anon_hugepage"];
    // A file of such a name has one in a folder, or is not deleted.
    let is_nameless = name.starts_with(b"[anon_shmem:")
        || name.ends_with(b" (deleted)") && nameless.iter().any(|start| name.starts_with(start));
    match name {
        b"[heap]" => Kind::Heap,
        b"[stack]" => Kind::Stack,
        _ if is_nameless => {
            if shared {
                Kind::Shared
            } else {
                Kind::Anonymous
            }
        }
        b"" if shared => Kind::Shared,
        b"" => Kind::Anonymous,
        _ if name.starts_with(b"[anon:") => Kind::Anonymous,
        [b'[', inner @ .., b']'] => Kind::Special(String::from_utf8_lossy(inner).into_owned()),
        _ => Kind::File(PathBuf::from(OsStr::from_bytes(name))),
    }
}

/// Adds what `/proc/PID/numa_maps` says, a line a mapping:
/// `7f00 default anon=3 dirty=3 N0=1 N1=2 kernelpagesize_kB=4`.
fn add_counts(mappings: &mut [Mapping], text: &[u8]) {
    for line in text.split(|&byte| byte == b'\n') {
        // A path in it is escaped, but need not be UTF-8.
        let line = String::from_utf8_lossy(line);
        let Some((start, rest)) = line.split_once(' ') else {
            continue;
        };
        let Ok(start) = usize::from_str_radix(start, 16) else {
            continue;
        };
        let Ok(at) = mappings.binary_search_by_key(&start, |mapping| mapping.range.start) else {
            continue;
        };
        let mapping = &mut mappings[at];
        let (mut pages, mut policy) = (BTreeMap::new(), Vec::new());
        let mut in_policy = true;
        for word in rest.split_ascii_whitespace() {
            // A policy may be two words: `prefer (many):0-1`.
            // Or `weighted interleave:0-1`.
            in_policy &= policy.is_empty() || word.starts_with('(') || policy == ["weighted"];
            if in_policy {
                policy.push(word);
            } else if let Some((key, value)) = word.split_once('=')
                && let Ok(value) = value.parse::<u64>()
            {
                let node = key.strip_prefix('N').and_then(|node| node.parse().ok());
                if let Some(node) = node {
                    pages.insert(node, value);
                } else if key == "kernelpagesize_kB" && value > 0 {
                    mapping.page_size = usize::try_from(value << 10).unwrap_or(mapping.page_size);
                }
            }
        }
        mapping.policy = policy.join(" ");
        let size = mapping.page_size as u64;
        let bytes = pages.into_iter().map(|(node, pages)| (node, pages * size));
        mapping.on_nodes = Some(bytes.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &[u8] = b"1000-3000 r-xp 00000000 fe:00 12      /usr/bin/a b\n\
        4000-9000 rw-p 00000000 00:00 0                          [heap]\n\
        10000-20000 rw-p 00000000 00:00 0 \n\
        200000-600000 rw-s 00000000 00:0f 7                      /anon_hugepage (deleted)\n\
        600000-601000 rw-s 00000000 00:01 9                      /SYSV (deleted)\n\
        700000-701000 rw-s 00000000 00:01 9                      /memfd:x (deleted)\n\
        800000-801000 rw-p 00000000 00:00 0                      [anon:arena]\n\
        900000-901000 r--p 00000000 fe:00 13                     /data/\xff.bin\n\
        a00000-a01000 rw-p 00000000 00:00 0                      [stack]\n\
        b00000-b01000 r-xp 00000000 00:00 0                      [vdso]\n\
        nonsense\n";

    const NUMA: &[u8] =
        b"1000 default file=/usr/bin/a\\040b mapped=2 mapmax=3 N0=2 kernelpagesize_kB=4\n\
        4000 prefer (many):0-1 heap anon=4 dirty=4 N0=1 N1=3 kernelpagesize_kB=4\n\
        10000 bind:1\n\
        800000 weighted interleave:0-1 anon=1 N1=1 kernelpagesize_kB=4\n\
        200000 default file=/anon_hugepage\\040(deleted) huge dirty=1 N1=1 kernelpagesize_kB=2048\n\
        123 default N0=1\n";

    #[test]
    fn mappings_are_read_with_their_nodes() {
        let mut found = parse_maps(MAPS);
        add_counts(&mut found, NUMA);
        let kinds = found.iter().map(|mapping| mapping.kind.clone());
        let file = |bytes: &[u8]| Kind::File(PathBuf::from(OsStr::from_bytes(bytes)));
        assert_eq!(
            kinds.collect::<Vec<_>>(),
            [
                file(b"/usr/bin/a b"),
                Kind::Heap,
                Kind::Anonymous,
                Kind::Shared,
                Kind::Shared,
                Kind::Shared,
                Kind::Anonymous,
                file(b"/data/\xff.bin"),
                Kind::Stack,
                Kind::Special("vdso".to_owned()),
            ]
        );
        assert_eq!(found[0].range, 0x1000..0x3000);
        assert_eq!(found[0].on_nodes, Some(BTreeMap::from([(0, 8192)])));
        assert_eq!(found[1].policy, "prefer (many):0-1");
        assert_eq!(
            found[1].on_nodes,
            Some(BTreeMap::from([(0, 4096), (1, 12288)]))
        );
        assert_eq!(found[1].resident(), 16384);
        assert_eq!(found[2].on_nodes, Some(BTreeMap::new()));
        assert_eq!(found[2].policy, "bind:1");
        assert_eq!(found[3].page_size, 2 << 20);
        assert_eq!(found[3].resident(), 2 << 20);
        assert_eq!(found[5].on_nodes, None);
        assert_eq!(found[6].policy, "weighted interleave:0-1");
        assert_eq!(found[6].resident(), 4096);
    }

    #[test]
    fn this_process_has_a_stack_and_a_program() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let found = mappings(&Target::open(pid).unwrap()).unwrap();
        let here = "here".as_ptr().addr();
        assert!(found.iter().any(|mapping| mapping.range.contains(&here)));
        assert!(found.iter().any(|mapping| mapping.kind == Kind::Stack));
        assert!(found.iter().any(|mapping| mapping.resident() > 0));
    }
}
