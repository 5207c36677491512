//! \[batch-flush\]: one shootdown for a batch in place of one for each page.

use super::{BASE, Cell, Figure, NO_PROGRAM, Published, ns, offload};
use crate::costs::Costs;
use crate::timed::Plan;

/// How many per cent more pages a second, and how many of the interrupts are left: they were published as 99.1 % fewer.
const MORE_PAGES: f64 = 291.7;
const INTERRUPTS_LEFT: f64 = 0.9;
/// Base pages of a batch.
const BATCH: usize = 512;

pub(super) fn machine() -> Published {
    let kernel = offload::costs();
    let page_ns = kernel.folio_ns + 2.0 * kernel.entry_ns + ns(BASE, kernel.copy_rate / 1e9);
    // (page + ipi) / (page + ipi / batch) is how many times as fast it became.
    let times = 1.0 + MORE_PAGES / 100.0;
    let ipi_ns = page_ns * (times - 1.0) / (1.0 - times / BATCH as f64);
    let costs = Costs {
        request_ns: 0.0,
        ipi_ns,
        far_ipi_ns: ipi_ns,
        ..kernel
    };
    let derived = vec![
        (
            "folio_ns",
            "as in [offload]: the kernel's work for a page, on another machine",
        ),
        ("copy_rate", "as in [offload]"),
        (
            "ipi_ns",
            "291.7 % more pages/s: a whole round of interrupts, to however many CPUs",
        ),
    ];
    let plan = |batch| Plan {
        cpus: 4,
        nodes: 2,
        programs: 1,
        batch,
        ..Plan::of(16_384, 0)
    };
    let cell = |figure, published| {
        let what = "4 KiB, 512 a batch against one at a time";
        Cell::new(what, figure, published, &plan(BATCH)).against(&plan(1))
    };
    Published {
        name: "batch-flush",
        about: "[batch-flush]: pmbench on a server of two Intel sockets, moved to and fro between them by \
            migratepages(8); how many threads and what a page costs there is not published, one thread and 64 MiB are \
            simulated",
        costs,
        derived,
        assumed: vec![NO_PROGRAM],
        cells: vec![
            cell(Figure::MorePages, MORE_PAGES).calibrates("ipi_ns"),
            // Any batch has nearly all of them fewer, so what is compared is what is left.
            cell(Figure::InterruptsLeft, INTERRUPTS_LEFT).exact_to(0.1),
        ],
        shapes: Vec::new(),
    }
}
