//! \[fast-copy\]: huge pages copied by several threads.

use super::{Cell, Figure, HUGE, NO_PROGRAM, Published, Shape, Speed, alone, ns, rate};
use crate::costs::Costs;
use crate::timed::{CopyBy, Plan};

/// Gigabytes a second of one page of 2 MiB and of sixteen, by one thread and by eight.
const ONE: [f64; 2] = [3.0, 8.6];
const SIXTEEN: [f64; 2] = [3.3, 14.4];
/// Sixteen exchanged with sixteen others, the bytes of both sides counted.
const EXCHANGE: [f64; 2] = [3.3, 17.8];
/// What its DMA engine saturates at.
const DMA: f64 = 11.0;
/// Between the sockets.
const LINK: f64 = 32.0;

pub(super) fn machine() -> Published {
    let each = |gigabytes| ns(HUGE, gigabytes);
    // One page has a request of its own, sixteen share one.
    let request_ns = (each(ONE[0]) - each(SIXTEEN[0])) * 16.0 / 15.0;
    let of_sixteen = |gigabytes| rate(HUGE, each(gigabytes) - request_ns / 16.0);
    let costs = Costs {
        request_ns,
        named_ns: 0.0,
        call_ns: 0.0,
        // Too little beside a copy of 2 MiB to be seen in such figures.
        folio_ns: 0.0,
        entry_ns: 0.0,
        ipi_ns: 0.0,
        far_ipi_ns: 0.0,
        next_ipi_ns: 0.0,
        handler_ns: 0.0,
        wake_ns: 0.0,
        waker_ns: 0.0,
        access_ns: 100.0,
        away_ns: 0.0,
        copy_rate: of_sixteen(SIXTEEN[0]),
        copy_limit: of_sixteen(SIXTEEN[1]),
        complex_limit: None,
        thread_ns: 0.0,
        splits_folios: true,
        channel_rate: Some(DMA * 1e9),
        channels_limit: DMA * 1e9,
        channel_ns: 0.0,
        link_limit: Some(LINK * 1e9),
        remaps_by_call: false,
        flushes_per_table: false,
    };
    let derived = vec![
        ("request_ns", "one of 2 MiB against sixteen, by one thread"),
        (
            "copy_rate",
            "sixteen of 2 MiB by one thread, without the request",
        ),
        (
            "copy_limit",
            "sixteen of 2 MiB by 8 threads, without the request",
        ),
        ("channels_limit", "the DMA engine saturates at 11 GB/s"),
        ("link_limit", "32 GB/s between the sockets"),
    ];
    let cell = |folios, copier, by: &str, published| {
        let count = if folios == 1 { "one" } else { "sixteen" };
        let what = format!("{count} of 2 MiB, {by}");
        Cell::new(
            what,
            Figure::GigabytesPerS,
            published,
            &alone(folios, 9, copier),
        )
    };
    let threads = CopyBy::Threads(8);
    let exchange = |copier, by: &str, published| {
        let plan = Plan {
            exchange: true,
            ..alone(16, 9, copier)
        };
        let what = format!("sixteen exchanges of 2 MiB, {by}");
        Cell::new(what, Figure::GigabytesPerS, published, &plan)
    };
    let cells = vec![
        cell(1, CopyBy::Cpu, "CPU", ONE[0]).calibrates("request_ns"),
        cell(1, threads, "8 threads", ONE[1]),
        cell(16, CopyBy::Cpu, "CPU", SIXTEEN[0]).calibrates("copy_rate"),
        cell(16, threads, "8 threads", SIXTEEN[1]).calibrates("copy_limit"),
        cell(16, CopyBy::Channels(1), "DMA", DMA).calibrates("channels_limit"),
        exchange(CopyBy::Cpu, "CPU", EXCHANGE[0]),
        exchange(threads, "8 threads", EXCHANGE[1]),
    ];
    let gain = |folios| {
        let [by_threads, by_cpu] = [threads, CopyBy::Cpu].map(|by| alone(folios, 9, by));
        Speed::Gain(by_threads, by_cpu)
    };
    let shapes = vec![Shape {
        says: "eight threads gain more on sixteen pages than on one",
        rising: vec![vec![Speed::Figure(1.0), gain(1), gain(16)]],
    }];
    Published {
        name: "fast-copy",
        about: "[fast-copy]: two sockets of Xeon E5-2640v3, pages of 2 MiB between them, copied by one thread, by \
            eight that share each page, or by the DMA engine",
        costs,
        derived,
        assumed: vec![NO_PROGRAM],
        cells,
        shapes,
    }
}
