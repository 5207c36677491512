//! What the figures say against each other.

use transhume_region::PageSize;

use super::exchange;
use super::group::Beside;
use super::row::Row;

/// A line for each comparison that the rows allow.
pub(crate) fn lines(rows: &[Row], beside: &[Beside]) -> String {
    let mut lines = Vec::new();
    let find = |bench: &str, size: &str, batch: usize| {
        rows.iter().find(|row| {
            row.bench == bench
                && row.page_size == size
                && row.batch == batch
                && row.pins == "declared"
                && row.stride == 1
        })
    };
    if let (Some(one), Some(many)) = (find("flush", "4k", 1), find("flush", "4k", 512)) {
        lines.push(format!(
            "4k, 512 a batch against one at a time: {:.1} times the pages/s",
            many.pages_per_s / one.pages_per_s
        ));
        if let (Some(before), Some(after)) = (one.shootdowns_per_page, many.shootdowns_per_page) {
            let change = (after / before - 1.0) * 100.0;
            lines.push(format!(
                "the same: shootdowns a page {change:+.2} % ({before:.4} to {after:.4})"
            ));
        }
    }
    let scattered = |neighbours: bool| {
        rows.iter().find(|row| {
            row.stride > 1 && row.batch > 1 && row.variant.contains("run by run") != neighbours
        })
    };
    if let (Some(apart), Some(together)) = (scattered(false), scattered(true)) {
        let mut line = format!(
            "4k, every {}th page: {:.1} times the pages/s with the neighbours than run by run",
            together.stride,
            together.pages_per_s / apart.pages_per_s
        );
        if let (Some(before), Some(after)) =
            (apart.shootdowns_per_page, together.shootdowns_per_page)
        {
            line.push_str(&format!(", shootdowns a page {before:.4} to {after:.4}"));
        }
        lines.push(line);
    }
    for (size, batch) in [("4k", 512), ("2m", 16)] {
        if let Some(row) = find("flush", size, batch) {
            let share = |raw: f64| row.bytes_per_s / raw;
            lines.push(format!(
                "{size}, {batch} a batch: {:.2} of the raw copy rate of {} under the same application, {:.2} \
                 of the rate that it has alone",
                share(row.raw_copy_bytes_per_s),
                row.copier,
                share(row.raw_copy_alone_bytes_per_s)
            ));
        }
    }
    for (size, batch) in [("2m", 16), ("2m", 1), ("4k", 512), ("4k", 1)] {
        lines.extend(copiers(rows, size, batch));
    }
    lines.extend(exchange::lines(rows));
    let of_base_pages = |pins: &&str| {
        let mut groups = beside.iter();
        groups.find(|group| group.page_size == PageSize::Base && group.pins == *pins)
    };
    for group in ["declared", "undeclared"].iter().filter_map(of_base_pages) {
        let share = group.overhead as f64 * 100.0 / group.region as f64;
        let pool = group.asked.min(group.overhead) as f64 * 100.0 / group.region as f64;
        lines.push(format!(
            "memory beside {} MiB of 4k pages, pins {}: {share:.2} %, of which {pool:.2} % is the pool that \
             the benchmark asked for (a batch of {} KiB)",
            group.region >> 20,
            group.pins,
            group.batch >> 10
        ));
    }
    let errors = rows.iter().map(|row| row.errors).sum::<u64>();
    lines.push(match errors {
        0 => "every row verified by application threads, no errors".to_owned(),
        errors => format!("ERRORS: {errors}"),
    });
    lines.join("\n")
}

/// What copiers do against each other, each of them with its best competitor.
fn copiers(rows: &[Row], size: &str, batch: usize) -> Vec<String> {
    let copies = || {
        rows.iter()
            .filter(|row| row.bench == "copy" && row.page_size == size && row.batch == batch)
    };
    let singles = || copies().filter(|row| row.chose.is_none());
    let Some(best) = singles().max_by(|a, b| a.bytes_per_s.total_cmp(&b.bytes_per_s)) else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    if let Some(base) = singles().find(|row| row.copier == "memcpy") {
        lines.push(format!(
            "{size}, {batch} a batch: the best copier, {}, migrates at {:.2} times the rate of memcpy",
            best.copier,
            best.bytes_per_s / base.bytes_per_s
        ));
    }
    let chooses = copies().find_map(|row| Some((row, row.chose.as_ref()?)));
    if let Some((auto, chose)) = chooses {
        let mut line = format!(
            "the same: {} ({chose}) against the best single copier: {:.2}",
            auto.copier,
            auto.bytes_per_s / best.bytes_per_s
        );
        // What is between these two is the noise of the figures.
        let itself = singles().find(|row| row.copier == *chose);
        if let Some(itself) = itself.filter(|row| row.copier != best.copier) {
            line.push_str(&format!(
                ", against its choice by itself: {:.2}",
                auto.bytes_per_s / itself.bytes_per_s
            ));
        }
        lines.push(line);
    }
    lines
}
