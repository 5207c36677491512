//! Every swapper swaps exactly what it was asked to, at any length and alignment.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::num::NonZeroUsize;
use std::sync::Arc;

use proptest::prelude::*;
use transhume_copy::Isa;
use transhume_copy::swap::{
    Registers, SharedSwapper, SwapJob, Threads, ThreadsOptions, swapper_by_name, swappers,
};
use transhume_engine::SwapAnswer;

fn all() -> Vec<SharedSwapper> {
    let here = swappers().into_iter();
    let here = here.filter(|info| info.available.is_ok());
    here.map(|info| swapper_by_name(info.name, None).unwrap())
        .collect()
}

/// Threads that share whatever has more than a byte for each.
fn eager(threads: usize) -> SharedSwapper {
    let options = ThreadsOptions {
        min_bytes_per_thread: NonZeroUsize::MIN,
        ..ThreadsOptions::new(NonZeroUsize::new(threads).unwrap())
    };
    Arc::new(Threads::start(options).unwrap())
}

const MARGIN: usize = 128;

/// One pair: how far each is from alignment, and how long they are.
#[derive(Clone, Copy, Debug)]
struct Shape {
    a: usize,
    b: usize,
    bytes: usize,
}

fn noise(length: usize, seed: &mut u8) -> Vec<u8> {
    let next = |_| {
        *seed = seed.wrapping_mul(13).wrapping_add(7);
        *seed
    };
    (0..length).map(next).collect()
}

fn check(swapper: &SharedSwapper, shapes: &[Shape]) {
    let mut seed = 1;
    let mut areas = shapes
        .iter()
        .map(|shape| {
            let a = noise(shape.a + shape.bytes + MARGIN, &mut seed);
            let b = noise(shape.b + shape.bytes + MARGIN, &mut seed);
            (a, b)
        })
        .collect::<Vec<_>>();
    let mut expected = areas.clone();
    for ((a, b), shape) in expected.iter_mut().zip(shapes) {
        let (a, b) = (&mut a[shape.a..], &mut b[shape.b..]);
        a[..shape.bytes].swap_with_slice(&mut b[..shape.bytes]);
    }
    let pairs = areas.iter_mut().zip(shapes).map(|((a, b), shape)| {
        let (a, b) = (&mut a[shape.a..], &mut b[shape.b..]);
        // SAFETY: separate vectors with room for it, not used otherwise while the jobs are.
        unsafe { SwapJob::new(a.as_mut_ptr(), b.as_mut_ptr(), shape.bytes) }
    });
    let pairs = pairs.collect::<Vec<_>>();
    let mut answers = vec![SwapAnswer::Untouched; pairs.len()];
    swapper.swap(&pairs, &mut answers);
    drop(pairs);
    assert!(answers.iter().all(|&answer| answer == SwapAnswer::Swapped));
    for ((area, expected), shape) in areas.iter().zip(&expected).zip(shapes) {
        assert!(area == expected, "{} {shape:?}", swapper.name());
    }
}

fn shape(max: usize) -> impl Strategy<Value = Shape> {
    (0..130_usize, 0..130_usize, 0..max).prop_map(|(a, b, bytes)| Shape { a, b, bytes })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_shapes(shapes in proptest::collection::vec(shape(9000), 0..20)) {
        for swapper in all() {
            check(&swapper, &shapes);
        }
    }

    #[test]
    fn large_uneven_shapes(
        shapes in proptest::collection::vec(shape(1 << 20), 1..6),
        threads in 1..=8_usize,
    ) {
        check(&eager(threads), &shapes);
    }
}

#[test]
fn every_short_length_at_odd_places() {
    for swapper in all() {
        for bytes in 0..=200 {
            let places = [(0, 0), (1, 0), (0, 3), (7, 5), (63, 64)];
            let shapes = places.map(|(a, b)| Shape { a, b, bytes });
            check(&swapper, &shapes);
        }
    }
}

#[test]
fn the_awkward_lengths() {
    let lengths = [
        0,
        1,
        1023,
        1024,
        1025,
        4095,
        4096,
        4097,
        5 * 4096,
        (2 << 20) - 1,
        2 << 20,
        (2 << 20) + 1,
    ];
    let shapes = lengths.map(|bytes| Shape { a: 0, b: 0, bytes });
    let eager = [1, 2, 3, 8].map(eager);
    for swapper in all().into_iter().chain(eager) {
        check(&swapper, &shapes);
        shapes.iter().for_each(|&shape| check(&swapper, &[shape]));
        check(&swapper, &[]);
    }
}

#[test]
fn every_instruction_set_that_is_here() {
    let shapes = [4096, 2 << 20].map(|bytes| Shape { a: 3, b: 5, bytes });
    let found = Isa::ALL
        .into_iter()
        .filter_map(|isa| Registers::with(isa).ok());
    for registers in found {
        check(&(Arc::new(registers) as SharedSwapper), &shapes);
    }
}

#[test]
fn several_callers_at_once() {
    let swapper = eager(3);
    std::thread::scope(|scope| {
        for caller in 0..4 {
            let swapper = &swapper;
            scope.spawn(move || {
                for round in 0..40 {
                    let bytes = (1 << 18) + caller * 1000 + round;
                    let shape = |a, b| Shape { a, b, bytes };
                    check(swapper, &[shape(1, 2), shape(0, 0)]);
                }
            });
        }
    });
}
