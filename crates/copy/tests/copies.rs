//! Every copier copies exactly what it was asked to, at any length and alignment.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::num::NonZeroUsize;

use proptest::prelude::*;
use std::sync::Arc;

use transhume_copy::{
    Auto, CopyJob, Inner, Isa, SharedCopier, Streaming, Threads, ThreadsOptions, by_name,
    copy_once, engines,
};
use transhume_engine::CopyAnswer;

fn copiers() -> Vec<SharedCopier> {
    let named = engines()
        .into_iter()
        .filter(|engine| engine.available.is_ok())
        .map(|engine| engine.name)
        // It would leave figures in the user's folder; `auto.rs` beside this names its own.
        .filter(|&name| name != Auto::NAME);
    let threads = ["threads:1", "threads:2:memcpy", "threads:3", "threads:8"];
    named
        .chain(threads)
        .map(|name| by_name(name, None).unwrap())
        .collect()
}

/// Threads that share whatever has more than a byte for each.
fn eager(threads: usize, inner: Inner) -> SharedCopier {
    let options = ThreadsOptions {
        inner,
        min_bytes_per_thread: NonZeroUsize::MIN,
        ..ThreadsOptions::new(NonZeroUsize::new(threads).unwrap())
    };
    Arc::new(Threads::start(options).unwrap())
}

const GUARD: u8 = 0xEE;
const MARGIN: usize = 128;

/// One job: how far source and destination are from alignment, and how long it is.
#[derive(Clone, Copy, Debug)]
struct Shape {
    from: usize,
    to: usize,
    bytes: usize,
}

fn check(copier: &SharedCopier, shapes: &[Shape]) {
    let mut seed = 1_u8;
    let mut areas = shapes
        .iter()
        .map(|shape| {
            let source = (0..shape.from + shape.bytes).map(|_| {
                seed = seed.wrapping_mul(13).wrapping_add(7);
                seed
            });
            (
                source.collect::<Vec<_>>(),
                vec![GUARD; shape.to + shape.bytes + MARGIN],
            )
        })
        .collect::<Vec<_>>();
    let jobs = areas
        .iter_mut()
        .zip(shapes)
        .map(|((source, target), shape)| {
            let from = source[shape.from..].as_ptr();
            let to = target[shape.to..].as_mut_ptr();
            // SAFETY: separate vectors with room for it, not used otherwise while the jobs are.
            unsafe { CopyJob::new(from, to, shape.bytes) }
        })
        .collect::<Vec<_>>();
    let mut answers = Vec::new();
    let (_, confirmed) = copy_once(&**copier, &jobs, &mut answers);
    assert_eq!(
        confirmed,
        shapes.iter().map(|shape| shape.bytes).sum::<usize>()
    );
    assert!(answers.iter().all(|&answer| answer == CopyAnswer::Copied));
    for ((source, target), shape) in areas.iter().zip(shapes) {
        let end = shape.to + shape.bytes;
        assert!(
            target[shape.to..end] == source[shape.from..],
            "{} {shape:?}",
            copier.name()
        );
        let untouched = target[..shape.to]
            .iter()
            .chain(&target[end..])
            .all(|&byte| byte == GUARD);
        assert!(
            untouched,
            "{} {shape:?} wrote beside its destination",
            copier.name()
        );
    }
}

fn shape(max: usize) -> impl Strategy<Value = Shape> {
    (0..130_usize, 0..130_usize, 0..max).prop_map(|(from, to, bytes)| Shape { from, to, bytes })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_shapes(shapes in proptest::collection::vec(shape(9000), 0..20)) {
        for copier in copiers() {
            check(&copier, &shapes);
        }
    }

    #[test]
    fn large_uneven_shapes(
        shapes in proptest::collection::vec(shape(1 << 20), 1..6),
        threads in 1..=8_usize,
    ) {
        for inner in [Inner::Memcpy, Inner::best()] {
            check(&eager(threads, inner), &shapes);
        }
    }
}

#[test]
fn the_awkward_lengths() {
    let lengths = [
        0,
        1,
        63,
        64,
        65,
        255,
        256,
        4095,
        4096,
        4097,
        (2 << 20) - 1,
        2 << 20,
        (2 << 20) + 1,
    ];
    let shapes = lengths.map(|bytes| Shape {
        from: 0,
        to: 0,
        bytes,
    });
    let eager = [1, 2, 3, 8].map(|threads| eager(threads, Inner::best()));
    for copier in copiers().into_iter().chain(eager) {
        check(&copier, &shapes);
        shapes.iter().for_each(|&shape| check(&copier, &[shape]));
        check(&copier, &[]);
    }
}

#[test]
fn every_instruction_set_that_is_here() {
    let shapes = [4096, 2 << 20].map(|bytes| Shape {
        from: 3,
        to: 5,
        bytes,
    });
    let found = Isa::ALL
        .into_iter()
        .filter_map(|isa| Streaming::with(isa).ok());
    for streaming in found {
        check(&(Arc::new(streaming) as SharedCopier), &shapes);
    }
}

#[test]
fn several_callers_at_once() {
    let copier = eager(3, Inner::best());
    std::thread::scope(|scope| {
        for caller in 0..4 {
            let copier = &copier;
            scope.spawn(move || {
                for round in 0..40 {
                    let bytes = (1 << 18) + caller * 1000 + round;
                    check(
                        copier,
                        &[
                            Shape {
                                from: 1,
                                to: 2,
                                bytes,
                            },
                            Shape {
                                from: 0,
                                to: 0,
                                bytes,
                            },
                        ],
                    );
                }
            });
        }
    });
}
