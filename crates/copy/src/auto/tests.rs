//! Which copier a list goes to.

use super::figures::{Figure, OfPair};
use super::shape::SHAPES;
use super::*;
use crate::copy_once;

/// Figures by which the candidate that `best` says is the fastest.
fn figures(
    names: &[&str],
    pairs: &[Option<NodePair>],
    best: impl Fn(Option<NodePair>, Shape) -> usize,
) -> Arc<Figures> {
    let candidates = names.iter().map(|&name| Candidate::new(name, 1));
    let candidates = candidates.collect::<Vec<_>>();
    let of_pair = |&pair: &Option<NodePair>| {
        let mut of_pair = OfPair::empty(pair, candidates.len());
        for (list, &shape) in of_pair.figures.iter_mut().zip(&SHAPES) {
            for (candidate, place) in list.iter_mut().enumerate() {
                let nanos = 1000 * (1 + candidate.abs_diff(best(pair, shape)) as u64);
                *place = Some(Figure { nanos, doubt: 0 });
            }
        }
        of_pair
    };
    Arc::new(Figures {
        pairs: pairs.iter().map(of_pair).collect(),
        candidates,
    })
}

fn by_size(_: Option<NodePair>, shape: Shape) -> usize {
    usize::from(shape.job_bytes == shape::HUGE)
}

#[test]
fn lists_go_to_the_best_for_their_shape() {
    let names = ["memcpy", "threads:2:memcpy", "threads:3:memcpy"];
    let auto = Auto::choose(figures(&names, &[None], by_size)).unwrap();
    assert_eq!(auto.name(), "auto");
    assert_eq!(auto.choice(512, 512 * 4096), "memcpy");
    assert_eq!(auto.choice(1, 2 << 20), "threads:2:memcpy");
    assert!(auto.copiers[2].is_none(), "it has no threads for nothing");
    let entries = auto.entries();
    assert_eq!(entries.len(), SHAPES.len());
    assert_eq!(describe(&entries), "4k: memcpy; 2m: threads:2:memcpy");
    let growing = figures(&names[..2], &[None], |_, shape| usize::from(shape.jobs > 8));
    assert_eq!(
        describe(&Auto::choose(growing).unwrap().entries()),
        "4k: memcpy, from 64 on threads:2:memcpy; 2m: memcpy, from 16 on threads:2:memcpy"
    );
}

#[test]
fn each_pair_of_nodes_has_its_own() {
    let pair = |from, to| NodePair { from, to };
    let pairs = [None, Some(pair(0, 1)), Some(pair(1, 0))];
    let best = |nodes: Option<NodePair>, _| match nodes {
        None => 0,
        Some(NodePair { from: 0, .. }) => 1,
        Some(_) => 2,
    };
    let names = ["memcpy", "threads:2:memcpy", "threads:3:memcpy"];
    let auto = Auto::choose(figures(&names, &pairs, best)).unwrap();
    let here = || {
        auto.choice_between(Route::here(), 1, 4096)
            .name()
            .to_owned()
    };
    assert_eq!(here(), "memcpy");
    {
        let _there = Route::begin(Some(pair(0, 1)));
        assert_eq!(here(), "threads:2:memcpy");
        {
            let _back = Route::begin(Some(pair(1, 0)));
            assert_eq!(here(), "threads:3:memcpy");
            let _unknown = Route::begin(None);
            assert_eq!(here(), "memcpy");
        }
        assert_eq!(here(), "threads:2:memcpy");
        let elsewhere = std::thread::scope(|scope| scope.spawn(here).join().unwrap());
        assert_eq!(elsewhere, "memcpy", "another thread has said nothing");
    }
    let _unmeasured = Route::begin(Some(pair(0, 0)));
    assert_eq!(here(), "memcpy");
    let nodes = auto.entries().into_iter().map(|entry| entry.nodes);
    assert_eq!(nodes.step_by(SHAPES.len()).collect::<Vec<_>>(), pairs);
}

#[test]
fn a_copier_that_is_gone_gives_way_to_the_next() {
    let names = ["memcpy", "threads:4096:memcpy", "threads:2:memcpy"];
    let auto = Auto::choose(figures(&names, &[None], |_, _| 1)).unwrap();
    // Of two that are as far from the best the simpler one.
    assert!(auto.entries().iter().all(|entry| entry.copier == "memcpy"));
    assert!(auto.copiers[2].is_none());
    let nobody = Auto::choose(figures(&names[1..2], &[None], |_, _| 0));
    assert!(nobody.unwrap_err().to_string().contains("no copier"));
}

#[test]
fn it_copies_by_what_it_chose() {
    let auto = Auto::choose(figures(&["memcpy", "threads:2:memcpy"], &[None], by_size)).unwrap();
    for bytes in [0, 1, 4096, 3 << 20_usize] {
        let source = (0..bytes)
            .map(|at| (at % 251_usize).to_le_bytes()[0])
            .collect::<Vec<_>>();
        let mut target = vec![0; bytes];
        // SAFETY: two vectors, not used otherwise while the job is.
        let job = unsafe { CopyJob::new(source.as_ptr(), target.as_mut_ptr(), bytes) };
        assert_eq!(copy_once(&auto, &[job], &mut Vec::new()).1, bytes);
        assert_eq!(source, target);
    }
    assert_eq!(copy_once(&auto, &[], &mut Vec::new()).1, 0);
}

/// However long a measurement takes on a machine that is busy.
const LONG: Duration = Duration::from_secs(600);

#[test]
fn of_several_at_once_one_measures() {
    let folder = tempfile::tempdir().unwrap();
    let measured = || Here::find().figures(Some(folder.path()), LONG).unwrap();
    let all = std::thread::scope(|scope| {
        let threads = [(); 3].map(|()| scope.spawn(measured));
        threads.map(|thread| thread.join().unwrap())
    });
    // The figures of another measurement would not be the same to the nanosecond.
    assert!(all.iter().all(|figures| *figures == all[0]));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn who_has_measured_for_too_long_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let first = file::turn(folder.path(), Duration::ZERO);
    assert!(first.is_some());
    assert!(file::turn(folder.path(), Duration::ZERO).is_none());
    drop(first);
    // A child that another test has forked meanwhile has the lock too, until it ends.
    assert!(file::turn(folder.path(), LONG).is_some());
}
