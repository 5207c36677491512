//! The copier that chooses, on this machine.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use transhume_copy::{Auto, RawArea, by_name};
use transhume_engine::Copier;

/// The files of a folder, hidden ones too.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Which names it chose exist, and it copies lists of every size.
fn works(auto: &Auto) {
    let entries = auto.entries();
    assert!(entries.len() >= 7 && entries.len().is_multiple_of(7));
    for entry in &entries {
        assert!(by_name(&entry.copier, None).is_ok(), "{}", entry.copier);
        assert_ne!(entry.copier, "dsa-model");
    }
    for entry in entries.iter().filter(|entry| entry.nodes.is_none()) {
        let shape = entry.shape;
        let bytes = shape.jobs * shape.job_bytes;
        assert_eq!(auto.choice(shape.jobs, bytes), entry.copier);
        let mut area = RawArea::allocate(2 * shape.jobs, shape.job_bytes).unwrap();
        assert_eq!(area.pass(auto, shape.jobs).1, bytes);
    }
    assert_eq!(auto.name(), Auto::NAME);
}

#[test]
fn figures_are_taken_once_and_taken_anew_where_the_file_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let caches = folder.path().join("a").join("b");
    let first = Auto::with_cache(&caches).unwrap();
    works(&first);
    let file = files(&caches).remove(0);
    let taken = fs::read(&file).unwrap();
    // The figures of another measurement would not be the same to the nanosecond.
    let second = Auto::with_cache(&caches).unwrap();
    assert_eq!(second.entries(), first.entries());
    assert_eq!(fs::read(&file).unwrap(), taken);

    fs::write(&file, &taken[..taken.len() / 2]).unwrap();
    works(&Auto::with_cache(&caches).unwrap());
    let anew = fs::read(&file).unwrap();
    assert!(anew.ends_with(b"\n") && anew != taken);
    assert_eq!(files(&caches), [file]);
}

#[test]
fn a_place_that_cannot_be_written_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "something else").unwrap();
    works(&Auto::with_cache(&file).unwrap());
    works(&Auto::with_cache(&file.join("below")).unwrap());
    assert_eq!(fs::read(&file).unwrap(), b"something else");
}

#[test]
fn one_cpu_is_measured_by_itself_and_has_no_threads() {
    let folder = tempfile::tempdir().unwrap();
    let all = Auto::with_cache(folder.path()).unwrap();
    works(&all);
    let several = sched_getaffinity(None).unwrap().count() > 1;
    std::thread::scope(|scope| {
        let pinned = scope.spawn(|| {
            let mut one = CpuSet::new();
            one.set(sched_getcpu());
            sched_setaffinity(None, &one).unwrap();
            let auto = Auto::with_cache(folder.path()).unwrap();
            works(&auto);
            let mut entries = auto.entries().into_iter();
            assert!(entries.all(|entry| !entry.copier.starts_with("threads")));
        });
        pinned.join().unwrap();
    });
    assert_eq!(files(folder.path()).len(), 1 + usize::from(several));
}
