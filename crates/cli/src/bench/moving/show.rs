//! A group's results as a table.

use super::cell::{Group, Table};
use super::plan::Plan;
use super::row::Row;
use crate::table::{Column, figures, fold, micro, short, width};

pub(crate) fn group(group: &Group, plan: &Plan, rows: &[Row]) -> String {
    let what = match group.table {
        Table::EverySecond => "half of the pages, every second is in its place already",
        Table::Whole => "a whole process, there and back",
        Table::Huge => "huge pages, there and back",
        Table::Stall => "how long its threads wait, there and back",
    };
    let title = format!(
        "move: {what}; a process at work on {} pages of {}, nodes {} and {}",
        group.pages, group.page_size, plan.near, plan.far,
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
    vec![
        column("variant", 0, &|row| row.variant.clone()),
        column("pages", 7, &|row| format!("{:.0}", row.pages)),
        column("ms", 3, &|row| format!("{:.1}", row.seconds * 1e3)),
        column("alone\nms", 3, &|row| {
            format!("{:.1}", row.alone_seconds * 1e3)
        }),
        column("pages/s", 1, &|row| short(row.pages_per_s)),
        column("GB/s", 8, &|row| format!("{:.2}", row.bytes_per_s / 1e9)),
        column("calls", 4, &|row| format!("{:.0}", row.calls)),
        column("shootdowns\na page", 4, &|row| {
            row.shootdowns_per_page
                .map_or_else(unknown, |figure| format!("{figure:.4}"))
        }),
        column("IPIs\nreceived", 2, &|row| {
            row.ipis_received
                .map_or_else(unknown, |figure| format!("{figure:.0}"))
        }),
        column("app\nMops/s", 6, &|row| {
            format!("{:.2}", row.app_ops_per_s / 1e6)
        }),
        column("stall us\np50", 10, &|row| {
            format!("{:.2}", row.stall_us.p50)
        }),
        column("stall us\np99", 9, &|row| micro(row.stall_us.p99)),
        column("stall us\nmax", 5, &|row| micro(row.stall_us.max)),
        column("left\nbehind", 2, &|row| row.left_behind_pages.to_string()),
        column("errors", 2, &|row| row.errors.to_string()),
    ]
}
