//! The results as a table, and what they say against each other.

use super::plan::Group;
use super::row::{PerPhase, Row};
use crate::table::{Column, figures, fold, micro, short, width};

pub(crate) fn group(group: &Group, rows: &[Row]) -> String {
    let title = format!(
        "defer: the tables of a lookup code move under it; {} pages of {}, {}; at once, and with the \
         switch deferred; long are parts of lookups over 10 us, in a million",
        group.pages,
        group.page_size,
        group.backing.name(),
    );
    let width = width();
    format!(
        "{}\n{}\n",
        fold(&title, width),
        figures(columns(rows), width)
    )
}

fn columns(rows: &[Row]) -> Vec<Column> {
    let column = |header: &'static str, rank, cell: &dyn Fn(&Row) -> String| {
        Column::new(header, rank, rows.iter().map(cell))
    };
    let unknown = || "n/a".to_owned();
    let maybe = |figure: Option<f64>| figure.map_or_else(unknown, short);
    let long = |phase: Option<PerPhase>| {
        phase.map_or_else(
            || "-".to_owned(),
            |phase| format!("{:.1}", phase.over_10us_per_million),
        )
    };
    vec![
        column("variant", 0, &|row| row.variant.to_owned()),
        column("pages/s", 4, &|row| short(row.pages_per_s)),
        column("GB/s", 5, &|row| format!("{:.2}", row.bytes_per_s / 1e9)),
        column("shootdowns\na run", 1, &|row| {
            row.shootdowns
                .map_or_else(unknown, |figure| format!("{figure:.0}"))
        }),
        column("IPIs\nreceived", 6, &|row| maybe(row.ipis_received)),
        column("s a million\nlookups", 1, &|row| {
            format!("{:.3}", row.seconds_per_million_lookups)
        }),
        column("long\nat rest", 2, &|row| long(Some(row.long_rest))),
        column("long in\nrequest", 2, &|row| long(Some(row.long_request))),
        column("long\npending", 2, &|row| long(row.long_pending)),
        column("long in\nswitch", 3, &|row| long(row.long_switch)),
        column("cut off us\nmax", 3, &|row| micro(row.longest_cut_off_us)),
        column("stall us\np99.9", 8, &|row| micro(row.stall_us.p999)),
        column("stall us\nmax", 7, &|row| micro(row.stall_us.max)),
        column("held\nMiB", 4, &|row| format!("{}", row.held_bytes >> 20)),
        column("dTLB\nmisses", 9, &|row| maybe(row.dtlb_misses)),
        column("iTLB\nmisses", 10, &|row| maybe(row.itlb_misses)),
        column("errors", 2, &|row| row.errors.to_string()),
    ]
}

/// A line for each comparison that the rows allow.
pub(crate) fn lines(rows: &[Row]) -> String {
    let mut lines = Vec::new();
    for pair in rows.chunks_exact(2) {
        let [now, later] = pair else { continue };
        let what = format!("defer, {} {}", later.backing, later.page_size);
        let shootdowns = now.shootdowns.filter(|&before| before > 0.0);
        if let (Some(before), Some(after)) = (shootdowns, later.shootdowns) {
            lines.push(format!(
                "{what}: shootdowns {:+.2} % ({before:.0} to {after:.0} a run of {} moves)",
                (after / before - 1.0) * 100.0,
                later.moves
            ));
        }
        if let (Some(flushes), Some(before), Some(after)) =
            (later.kernel_flushes, now.shootdowns, later.shootdowns)
        {
            lines.push(format!(
                "{what}: the kernel flushes at least {flushes} times a run, as UFFDIO_MOVE does so for each \
                 page table of 2 MiB, out and in; shootdowns a flush, which is one where a thread runs on \
                 another CPU: {:.2} at once, {:.2} deferred",
                before / flushes as f64,
                after / flushes as f64
            ));
        }
        lines.push(format!(
            "{what}: run time {:+.1} %; {} MiB held of {} MiB allowed",
            (later.seconds_per_million_lookups / now.seconds_per_million_lookups - 1.0) * 100.0,
            later.held_bytes >> 20,
            later.limit_bytes >> 20
        ));
        if let Some(pending) = later.long_pending {
            lines.push(format!(
                "{what}: while pairs wait {:.1} in a million parts of lookups take over 10 us and the threads \
                 take {} page faults in all runs; while nothing happens it is {:.1} in a million",
                pending.over_10us_per_million, pending.faults, later.long_rest.over_10us_per_million
            ));
        }
    }
    let errors = rows.iter().map(|row| row.errors).sum::<u64>();
    if errors > 0 {
        lines.push(format!("ERRORS: {errors}"));
    }
    lines.join("\n")
}
