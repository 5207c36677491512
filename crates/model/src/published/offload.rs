//! \[offload\]: batched copies by threads and by a DMA engine.

use super::{BASE, Cell, Figure, HUGE, NO_PROGRAM, Published, Shape, Speed, alone, ns, rate};
use crate::costs::Costs;
use crate::timed::{CopyBy, Plan};

/// Gigabytes a second of requests of 512 folios: by the CPU, 8 threads and 16 channels.
const SMALL: [f64; 3] = [3.73, 4.91, 4.61];
const MIDDLE: [f64; 3] = [5.90, 10.40, 11.1];
const LARGE: [f64; 3] = [10.67, 33.5, 63.7];
/// The same of one folio of 2 MiB.
const ONE: [f64; 3] = [7.96, 6.43, 6.52];
/// 512 folios of 2 MiB by 8 threads that are spread over the core complexes, and by 8 in one of them.
const PLACED: [f64; 2] = [37.1, 11.1];
/// The share of copying in 512 folios of 2 MiB.
const COPY_SHARE: f64 = 0.97;
const FOLIOS: f64 = 512.0;
/// A folio of 64 KiB has so many page table entries.
const MIDDLE_ENTRIES: f64 = 16.0;

/// What the steps cost there.
pub(super) fn costs() -> Costs {
    let copy_rate = LARGE[0] * 1e9 / COPY_SHARE;
    let copying = |bytes: f64| ns(bytes, copy_rate / 1e9);
    // One folio is a request, the folio and its copy; the folio is small beside the others.
    let request_ns = ns(HUGE, ONE[0]) - copying(HUGE);
    let beside_copy =
        |bytes, gigabytes| ns(bytes, gigabytes) - copying(bytes) - request_ns / FOLIOS;
    let small = beside_copy(BASE, SMALL[0]);
    let middle = beside_copy(MIDDLE_ENTRIES * BASE, MIDDLE[0]);
    // Both are a folio and its entries, each taken away and written.
    let entry_ns = (middle - small) / (2.0 * (MIDDLE_ENTRIES - 1.0));
    let folio_ns = small - 2.0 * entry_ns;
    let of_large = |gigabytes| {
        let beside = request_ns / FOLIOS + folio_ns + 2.0 * entry_ns;
        rate(HUGE, ns(HUGE, gigabytes) - beside)
    };
    Costs {
        request_ns,
        named_ns: 0.0,
        call_ns: 0.0,
        folio_ns,
        entry_ns,
        // Nobody else is at work in these cells.
        ipi_ns: 0.0,
        far_ipi_ns: 0.0,
        next_ipi_ns: 0.0,
        handler_ns: 0.0,
        wake_ns: 0.0,
        waker_ns: 0.0,
        access_ns: 100.0,
        away_ns: 0.0,
        copy_rate,
        copy_limit: of_large(LARGE[1]),
        complex_limit: Some(of_large(PLACED[1])),
        thread_ns: ns(HUGE, ONE[1]) - ns(HUGE, ONE[0]),
        splits_folios: false,
        channel_rate: Some(rate(HUGE, ns(HUGE, ONE[2]) - request_ns)),
        channels_limit: of_large(LARGE[2]),
        channel_ns: 0.0,
        link_limit: None,
        remaps_by_call: false,
        flushes_per_table: false,
    }
}

pub(super) fn machine() -> Published {
    let derived = vec![
        (
            "copy_rate",
            "512 of 2 MiB by the CPU, of which 97 % is copying",
        ),
        ("request_ns", "one of 2 MiB by the CPU, without the copy"),
        (
            "folio_ns",
            "512 of 4 KiB by the CPU, without the copy and the entry",
        ),
        (
            "entry_ns",
            "512 of 64 KiB by the CPU, which have 15 entries more than those of 4 KiB",
        ),
        ("copy_limit", "512 of 2 MiB by 8 threads"),
        (
            "thread_ns",
            "one of 2 MiB by 8 threads, against the CPU: one thread has all of it",
        ),
        (
            "channel_rate",
            "one of 2 MiB by 16 channels: one channel has all of it",
        ),
        ("channels_limit", "512 of 2 MiB by 16 channels"),
        (
            "complex_limit",
            "512 of 2 MiB by 8 threads in one core complex",
        ),
    ];
    let copiers = [
        (CopyBy::Cpu, "CPU"),
        (CopyBy::Threads(8), "8 threads"),
        (CopyBy::Channels(16), "16 channels"),
    ];
    let rows = [
        (512, 0, "4 KiB", SMALL, [Some("folio_ns"), None, None]),
        (512, 4, "64 KiB", MIDDLE, [Some("entry_ns"), None, None]),
        (
            512,
            9,
            "2 MiB",
            LARGE,
            [
                Some("copy_rate"),
                Some("copy_limit"),
                Some("channels_limit"),
            ],
        ),
        (
            1,
            9,
            "2 MiB",
            ONE,
            [Some("request_ns"), Some("thread_ns"), Some("channel_rate")],
        ),
    ];
    let mut cells = Vec::new();
    for (folios, order, size, figures, used) in rows {
        let count = if folios == 1 { "one" } else { "512" };
        for ((&(copier, by), published), used) in copiers.iter().zip(figures).zip(used) {
            let what = format!("{count} of {size}, {by}");
            let plan = alone(folios, order, copier);
            let cell = Cell::new(what, Figure::GigabytesPerS, published, &plan);
            cells.push(match used {
                Some(cost) => cell.calibrates(cost),
                None => cell,
            });
        }
    }
    let shares = [
        (512, 0, "512 of 4 KiB, CPU", 35.0),
        (1, 9, "one of 2 MiB, CPU", 66.0),
    ];
    for (folios, order, what, share) in shares {
        let plan = alone(folios, order, CopyBy::Cpu);
        cells.push(Cell::new(what, Figure::CopyShare, share, &plan));
    }
    let placed = |one_complex| Plan {
        one_complex,
        ..alone(512, 9, CopyBy::Threads(8))
    };
    let cell = |what, published, one_complex| {
        Cell::new(what, Figure::GigabytesPerS, published, &placed(one_complex))
    };
    let [spread, together] = PLACED;
    cells.push(cell("512 of 2 MiB, 8 threads, spread", spread, false));
    let what = "512 of 2 MiB, 8 threads, one complex";
    cells.push(cell(what, together, true).calibrates("complex_limit"));
    Published {
        name: "offload",
        about: "[offload] v3: AMD Zen 3, two sockets, move_pages() of 512 folios and of one, copied by the CPU, by \
            8 kernel threads or by 16 channels of a DMA engine, a folio never shared among them",
        costs: costs(),
        derived,
        assumed: vec![NO_PROGRAM],
        cells,
        shapes: shapes(),
    }
}

fn shapes() -> Vec<Shape> {
    let gain = |order| {
        let copiers = [CopyBy::Channels(16), CopyBy::Cpu];
        let [by_channels, by_cpu] = copiers.map(|by| alone(512, order, by));
        Speed::Gain(by_channels, by_cpu)
    };
    vec![
        Shape {
            says: "16 channels gain on 512 folios, and the more the larger they are",
            rising: vec![vec![Speed::Figure(1.0), gain(0), gain(4), gain(9)]],
        },
        Shape {
            says: "less than 1 % of the time of one page of 4 KiB is spent on its copy",
            rising: vec![vec![
                Speed::CopyShare(alone(1, 0, CopyBy::Cpu)),
                Speed::Figure(1.0),
            ]],
        },
    ]
}
