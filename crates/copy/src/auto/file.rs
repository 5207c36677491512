//! The figures in a file.
//!
//! Lines of text: what it is, the [`Key`], a line for each figure, and a checksum over all of that. A
//! file that is not wholly so, or not this user's, counts as absent. It appears under its name
//! when it is whole, and who measures holds a lock on the folder, so that of several processes one
//! measures and the others wait and read.

use std::fmt::Write as _;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::process::geteuid;

use super::candidate::Candidate;
use super::figures::{Figure, Figures, NodePair, OfPair};
use super::key::Key;
use super::shape::SHAPES;

/// How the text begins; another format has another number.
const GREETING: &str = "figures of copiers 1\n";
/// A longer file is none of ours: 7 pairs of 7 shapes with a hundred candidates have less.
const LONGEST: u64 = 512 << 10;
/// How long another process is waited for that measures.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// The folder that the user's programs keep such things in: `transhume` in `XDG_CACHE_HOME` or
/// `~/.cache`. `None` where there is no such place, or it is another user's, as after `sudo`.
pub(super) fn folder() -> Option<PathBuf> {
    let path = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let (caches, owned) = match (path("XDG_CACHE_HOME"), path("HOME")) {
        (Some(caches), _) => (caches.clone(), caches),
        (None, Some(home)) => (home.join(".cache"), home),
        (None, None) => return None,
    };
    let is_foreign = |path: &Path| {
        let owner = path.metadata().map(|metadata| metadata.uid());
        owner.is_ok_and(|owner| owner != geteuid().as_raw())
    };
    (!is_foreign(&caches) && !is_foreign(&owned)).then(|| caches.join("transhume"))
}

/// Where the figures of this key are in a folder.
pub(super) fn path_in(folder: &Path, key: &Key) -> PathBuf {
    folder.join(format!("copiers-{:016x}", checksum(key.text())))
}

/// The figures that are there for this key.
pub(super) fn load(path: &Path, key: &Key, candidates: &[Candidate]) -> Option<Figures> {
    let file = OpenOptions::new()
        .read(true)
        // A pipe under this name is not waited for.
        .custom_flags(i32::try_from((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits()).ok()?)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.uid() != geteuid().as_raw() {
        return None;
    }
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).ok()?;
    read(&text, key, candidates)
}

/// Puts the figures there; whoever reads the file meets all of them or what was there before.
pub(super) fn store(path: &Path, key: &Key, figures: &Figures) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let unfinished = path.with_extension(format!("{}-{number}", std::process::id()));
    let written = write_new(&unfinished, &write(key, figures))
        .and_then(|()| std::fs::rename(&unfinished, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    written
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    // One that a process of this number has left.
    let _ = std::fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// The right to measure for a folder, until it is dropped. `None` where the folder cannot be made or
/// locked, or somebody has had the right for too long: then whoever asks measures for himself.
pub(super) fn turn(folder: &Path, patience: Duration) -> Option<File> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .ok()?;
    let folder = File::open(folder).ok()?;
    let until = Instant::now() + patience;
    loop {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(folder),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR)
                if Instant::now() < until =>
            {
                std::thread::sleep(PAUSE);
            }
            Err(_) => return None,
        }
    }
}

fn write(key: &Key, figures: &Figures) -> String {
    let mut text = format!("{GREETING}{}", key.text());
    for of_pair in &figures.pairs {
        let pair = of_pair.pair;
        let pair = pair.map_or_else(
            || "any".to_owned(),
            |NodePair { from, to }| format!("{from}-{to}"),
        );
        // Writing to a string does not fail.
        let _ = writeln!(text, "pair {pair}");
        for (shape, list) in of_pair.figures.iter().enumerate() {
            for (candidate, figure) in figures.candidates.iter().zip(list) {
                if let Some(Figure { nanos, doubt }) = figure {
                    let _ = writeln!(text, "{shape} {} {nanos} {doubt}", candidate.name);
                }
            }
        }
    }
    let sum = checksum(&text);
    let _ = writeln!(text, "end {sum:016x}");
    text
}

fn read(text: &str, key: &Key, candidates: &[Candidate]) -> Option<Figures> {
    let (body, end) = text.split_at_checked(text.strip_suffix('\n')?.rfind('\n')? + 1)?;
    if end != format!("end {:016x}\n", checksum(body)) {
        return None;
    }
    let lines = body.strip_prefix(GREETING)?.strip_prefix(key.text())?;
    let mut pairs: Vec<OfPair> = Vec::new();
    for line in lines.lines() {
        let mut words = line.split(' ');
        let first = words.next()?;
        if first == "pair" {
            let pair = match words.next()? {
                "any" => None,
                nodes => {
                    let (from, to) = nodes.split_once('-')?;
                    Some(NodePair {
                        from: from.parse().ok()?,
                        to: to.parse().ok()?,
                    })
                }
            };
            // One of nobody knows which nodes, and that is the first.
            if pair.is_none() != pairs.is_empty() {
                return None;
            }
            pairs.push(OfPair::empty(pair, candidates.len()));
        } else {
            let shape = first
                .parse::<usize>()
                .ok()
                .filter(|&shape| shape < SHAPES.len())?;
            let name = words.next()?;
            let candidate = candidates.iter().position(|one| one.name == name)?;
            let figure = Figure {
                nanos: words.next()?.parse().ok()?,
                doubt: words.next()?.parse().ok()?,
            };
            *pairs
                .last_mut()?
                .figures
                .get_mut(shape)?
                .get_mut(candidate)? = Some(figure);
        }
        if words.next().is_some() {
            return None;
        }
    }
    let is_whole = !pairs.is_empty() && pairs.iter().all(OfPair::is_whole);
    is_whole.then(|| Figures {
        candidates: candidates.to_vec(),
        pairs,
    })
}

/// FNV-1a: it is there for files that were cut off or mixed up, and nobody is kept out by it.
fn checksum(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
