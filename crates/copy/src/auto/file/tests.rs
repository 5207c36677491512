//! Files that are whole, and others.

use std::os::unix::fs::PermissionsExt;

use super::*;
use proptest::prelude::*;

fn some() -> Vec<Candidate> {
    ["memcpy", "streaming-avx2", "threads:2:streaming"]
        .map(|name| Candidate::new(name, 1))
        .to_vec()
}

fn figures(pairs: &[Option<NodePair>]) -> Figures {
    let candidates = some();
    let of_pair = |(seed, &pair): (usize, &Option<NodePair>)| {
        let mut of_pair = OfPair::empty(pair, candidates.len());
        for (shape, list) in of_pair.figures.iter_mut().enumerate() {
            for (candidate, place) in list.iter_mut().enumerate() {
                let nanos = (seed * 10_000 + shape * 100 + candidate) as u64;
                // Threads are not for short lists.
                *place = (candidate < 2 || shape > 2).then_some(Figure {
                    nanos,
                    doubt: nanos / 7,
                });
            }
        }
        of_pair
    };
    Figures {
        pairs: pairs.iter().enumerate().map(of_pair).collect(),
        candidates,
    }
}

fn pairs() -> [Option<NodePair>; 3] {
    let pair = |from, to| Some(NodePair { from, to });
    [None, pair(0, 2), pair(2, 0)]
}

fn key() -> Key {
    Key::told("this machine")
}

#[test]
fn figures_are_read_as_they_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(folder.path(), &key());
    for figures in [figures(&pairs()), figures(&pairs()[..1])] {
        store(&path, &key(), &figures).unwrap();
        assert_eq!(load(&path, &key(), &some()), Some(figures));
    }
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        folder.path().read_dir().unwrap().count(),
        1,
        "nothing else is left"
    );
}

#[test]
fn another_machine_has_another_file_and_does_not_take_this_one() {
    let folder = tempfile::tempdir().unwrap();
    let other = Key::told("another machine");
    let path = path_in(folder.path(), &key());
    assert_ne!(path, path_in(folder.path(), &other));
    store(&path, &key(), &figures(&pairs())).unwrap();
    assert_eq!(load(&path, &other, &some()), None);
    assert_eq!(load(&path, &key(), &some()[..2]), None, "a copier is gone");
}

#[test]
fn what_is_no_file_of_this_user_is_absent() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert_eq!(load(&at("absent"), &key(), &some()), None);
    assert_eq!(load(folder.path(), &key(), &some()), None);
    store(&at("whole"), &key(), &figures(&pairs())).unwrap();
    std::os::unix::fs::symlink(at("whole"), at("link")).unwrap();
    assert_eq!(load(&at("link"), &key(), &some()), None);
    let pipe = at("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert_eq!(load(&pipe, &key(), &some()), None);
    if geteuid().is_root() {
        std::os::unix::fs::chown(at("whole"), Some(4711), None).unwrap();
        assert_eq!(load(&at("whole"), &key(), &some()), None);
    }
}

#[test]
fn a_place_that_cannot_be_written_is_an_error_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(store(&file.join("x"), &key(), &figures(&pairs())).is_err());
    assert!(turn(&file.join("x"), Duration::ZERO).is_none());
    // The name is taken by a folder.
    let taken = folder.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    assert!(store(&taken, &key(), &figures(&pairs())).is_err());
    assert_eq!(folder.path().read_dir().unwrap().count(), 2);
}

#[test]
fn figures_that_leave_a_shape_to_nobody_are_none() {
    let mut holes = figures(&pairs());
    holes.pairs[1].figures[4].fill(None);
    assert_eq!(read(&write(&key(), &holes), &key(), &some()), None);
    let unknown = figures(&[None, None]);
    assert_eq!(read(&write(&key(), &unknown), &key(), &some()), None);
    let known_first = figures(&pairs()[1..]);
    assert_eq!(read(&write(&key(), &known_first), &key(), &some()), None);
    let nothing = figures(&[]);
    assert_eq!(read(&write(&key(), &nothing), &key(), &some()), None);
}

/// A text with a right checksum.
fn sealed(body: &str) -> String {
    format!("{body}end {:016x}\n", checksum(body))
}

#[test]
fn lines_that_are_not_understood_spoil_a_file() {
    let good = write(&key(), &figures(&pairs()));
    let body = &good[..good.rfind("end ").unwrap()];
    assert!(read(&sealed(body), &key(), &some()).is_some());
    for line in [
        "7 memcpy 1 1",
        "x memcpy 1 1",
        "0 mempcy 1 1",
        "0 memcpy 1",
        "0 memcpy 1 -1",
        "0 memcpy 1 1 1",
        "0",
        "",
        "pair",
        "pair any",
        "pair 1",
        "pair 1-x",
        "pair 1-2 3",
    ] {
        let text = sealed(&format!("{body}{line}\n"));
        assert_eq!(read(&text, &key(), &some()), None, "{line}");
    }
    assert_eq!(read("", &key(), &some()), None);
    assert_eq!(read("\n", &key(), &some()), None);
    assert_eq!(read(&sealed(""), &key(), &some()), None);
    assert_eq!(read(&sealed(GREETING), &key(), &some()), None);
}

proptest! {
    #[test]
    fn a_damaged_file_is_absent(at in any::<usize>(), byte in any::<u8>(), cut in any::<bool>()) {
        let good = write(&key(), &figures(&pairs())).into_bytes();
        let at = at % good.len();
        let mut bad = good.clone();
        if cut {
            bad.truncate(at);
        } else {
            bad[at] = byte;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad");
        std::fs::write(&path, &bad).unwrap();
        let read = load(&path, &key(), &some());
        prop_assert_eq!(read.is_some(), bad == good);
    }
}
