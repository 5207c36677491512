//! What a virtual machine of this project shows, step by step and in whole pipelines.

use super::{Cell, Figure, Published, Shape, Speed};
use crate::costs::Costs;
use crate::timed::Plan;

/// One `UFFDIO_MOVE` of so many pages of 4 KiB, in nanoseconds a page, beside a busy thread on the other CPU.
const MOVE: [(f64, f64); 2] = [(1.0, 10_600.0), (512.0, 99.0)];
/// What a flush of a busy CPU costs there.
const REMOTE_FLUSH: f64 = 10_000.0;
/// Cold `memcpy` from 18 to 20 GB/s, and two threads 28.
const COPY: f64 = 19e9;
const TWO_THREADS: f64 = 28e9;
/// Accesses a second of the application while nothing migrates.
const IDLE: f64 = 8.0e6;
/// What it loses for a page where pages go one at a time.
const LOST_AT_ONE: f64 = 13_400.0;
/// Its longest wait there, in microseconds, which are many times what a page is cut off.
const STALL_AT_ONE: f64 = 108.0;

pub(super) fn machine() -> Published {
    let [(one, alone), (many, each)] = MOVE;
    // Both are a call and its pages.
    let entry_ns = (many * each - one * alone) / (many - one);
    let call_and_flush = alone - entry_ns;
    let costs = Costs {
        request_ns: 0.0,
        named_ns: 0.0,
        call_ns: call_and_flush - REMOTE_FLUSH,
        folio_ns: 0.0,
        entry_ns,
        ipi_ns: REMOTE_FLUSH,
        far_ipi_ns: REMOTE_FLUSH,
        next_ipi_ns: 0.0,
        // A page is flushed on its way out and on its way in.
        handler_ns: LOST_AT_ONE / 2.0,
        // Who waits has left its CPU idle, and an interrupt wakes it.
        wake_ns: REMOTE_FLUSH,
        waker_ns: REMOTE_FLUSH,
        access_ns: 1e9 / IDLE,
        away_ns: STALL_AT_ONE * 1e3,
        copy_rate: COPY,
        copy_limit: TWO_THREADS,
        complex_limit: None,
        thread_ns: REMOTE_FLUSH,
        splits_folios: true,
        channel_rate: None,
        channels_limit: TWO_THREADS,
        channel_ns: 0.0,
        link_limit: None,
        remaps_by_call: true,
        flushes_per_table: true,
    };
    let derived = vec![
        (
            "entry_ns",
            "UFFDIO_MOVE of 1 and of 512 pages of 4 KiB, which differ by 511 pages",
        ),
        (
            "call_ns",
            "UFFDIO_MOVE of 1 page, without the page and the flush",
        ),
        (
            "ipi_ns",
            "a flush of a busy CPU, about 10 us in such a machine",
        ),
        (
            "handler_ns",
            "what the application loses for a page at one a batch, in two flushes",
        ),
        ("wake_ns", "an interrupt, as for a flush"),
        ("waker_ns", "an interrupt, as for a flush"),
        ("access_ns", "8.0 M accesses/s while nothing migrates"),
        (
            "away_ns",
            "the longest wait at one page a batch, seven times what it is cut off",
        ),
        ("copy_rate", "cold memcpy, 18 to 20 GB/s"),
        ("copy_limit", "two threads, 28 GB/s"),
        ("thread_ns", "an interrupt, as for a flush"),
    ];
    // The migrator is always on: to and fro.
    let plan = |order, folios, batch| Plan {
        cpus: 2,
        programs: 1,
        rounds: 2,
        batch,
        ..Plan::of(folios, order)
    };
    let mut cells = Vec::new();
    // Pages a batch, pages/s, shootdowns a page, M accesses/s, longest stall, and what was lost for a page.
    let small = [
        (1, 45e3, 2.0, 3.2, STALL_AT_ONE, Some(LOST_AT_ONE / 1e3)),
        (8, 311e3, 0.25, 3.4, 105.0, None),
        (64, 1.42e6, 0.031, 3.1, 233.0, Some(0.43)),
        (512, 2.48e6, 0.0039, 0.3, 331.0, Some(0.39)),
    ];
    for (batch, pages, shootdowns, accesses, stall, lost) in small {
        let plan = plan(0, 16_384, batch);
        let cell = |figure, published| {
            Cell::new(format!("4 KiB, {batch} a batch"), figure, published, &plan)
        };
        cells.push(cell(Figure::PagesPerS, pages));
        cells.push(cell(Figure::ShootdownsPerPage, shootdowns));
        cells.push(cell(Figure::MegaAccessesPerS, accesses).exact_to(0.1));
        if let Some(lost) = lost {
            let cell = cell(Figure::LostPerPage, lost);
            cells.push(if batch == 1 {
                cell.calibrates("handler_ns")
            } else {
                cell
            });
        }
        let stall = cell(Figure::LongestStall, stall);
        cells.push(if batch == 1 {
            stall.calibrates("away_ns")
        } else {
            stall
        });
    }
    // The same, and the last digit that the accesses were published with.
    let huge = [(1, 17.6, 0.6, 0.1, 276.0), (16, 18.1, 0.01, 0.01, 3_600.0)];
    for (batch, rate, accesses, digit, stall) in huge {
        let plan = plan(9, 64, batch);
        let cell = |figure, published| {
            Cell::new(format!("2 MiB, {batch} a batch"), figure, published, &plan)
        };
        cells.push(cell(Figure::GigabytesPerS, rate));
        cells.push(cell(Figure::ShootdownsPerPage, 2.0));
        cells.push(cell(Figure::MegaAccessesPerS, accesses).exact_to(digit));
        cells.push(cell(Figure::LongestStall, stall));
    }
    Published {
        name: "user-space",
        about: "a virtual machine of 2 CPUs, one node, Linux 6.18: anonymous memory by UFFDIO_MOVE out, copy, \
            UFFDIO_MOVE in, under one application thread that reads and writes at random; steps and pipelines \
            measured apart from each other; how much memory there was is not published, 64 MiB of 4 KiB and 128 MiB \
            of 2 MiB are simulated, which go there and back",
        costs,
        derived,
        assumed: Vec::new(),
        cells,
        shapes: vec![Shape {
            says: "512 pages of 4 KiB a batch beat 64, those 8, and those one",
            rising: vec![
                [1, 8, 64, 512]
                    .map(|batch| Speed::Of(plan(0, 16_384, batch)))
                    .to_vec(),
            ],
        }],
    }
}
