//! The child of a fork has pools without threads.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod child;

use std::num::NonZeroUsize;

use transhume_copy::{Auto, CopyJob, Inner, Threads, ThreadsOptions};
use transhume_engine::{Copier, CopyAnswer};

const BYTES: usize = 1 << 20;

fn copies(copier: &dyn Copier<CopyJob>, source: &[u8], target: &mut [u8]) -> bool {
    target.fill(0);
    // SAFETY: two vectors, not used otherwise while the job is.
    let job = unsafe { CopyJob::new(source.as_ptr(), target.as_mut_ptr(), BYTES) };
    let mut answers = [CopyAnswer::Unconfirmed];
    copier.copy(&[job], &mut answers);
    answers == [CopyAnswer::Copied] && source == target
}

/// The parent copies, the child copies and drops the copier, the parent copies again.
fn fork_with(copier: impl Copier<CopyJob>) {
    let source = (0..BYTES)
        .map(|at| (at % 251).to_le_bytes()[0])
        .collect::<Vec<_>>();
    let mut target = vec![0; BYTES];
    assert!(copies(&copier, &source, &mut target));
    // SAFETY: the child copies, drops the copier and ends, and of these only the drop of a vector and
    // of a string come near the allocator, which the C library keeps usable after a fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let good = copies(&copier, &source, &mut target);
        drop(copier);
        // SAFETY: it ends without running anything that belongs to the parent.
        unsafe { libc::_exit(if good { 0 } else { 1 }) }
    }
    child::must_end_well(child);
    assert!(copies(&copier, &source, &mut target), "the parent goes on");
}

#[test]
fn the_child_copies_alone_and_ends() {
    let threads = Threads::start(ThreadsOptions {
        inner: Inner::best(),
        min_bytes_per_thread: NonZeroUsize::MIN,
        ..ThreadsOptions::new(NonZeroUsize::new(4).unwrap())
    });
    fork_with(threads.unwrap());
    // In one test, since a fork wants no other thread to have the allocator.
    let folder = tempfile::tempdir().unwrap();
    fork_with(Auto::with_cache(folder.path()).unwrap());
}
