//! A group's results as a table.

use super::cell::{Group, Table};
use super::row::Row;
use crate::table::{Column, figures, fold, micro, short, width};

pub(crate) fn group(group: &Group, rows: &[Row]) -> String {
    let what = match group.table {
        Table::Flush => "flush: one page at a time against batches",
        Table::Scattered => "flush: scattered pages, run by run and with what lies between",
        Table::Copy => "copy: the copiers, one batch a request",
        Table::Batch => "batch: what a batch's size costs and gains",
        Table::Exchange => "exchange: pages trade places in place, and through free frames",
    };
    let title = format!(
        "{what}; {} pages of {}, {}, pins {}",
        group.pages,
        group.page_size,
        group.backing.name(),
        group.pins(),
    );
    let width = width();
    let table = figures(columns(group.table, rows), width);
    format!("{}\n{table}\n", fold(&title, width))
}

fn columns(table: Table, rows: &[Row]) -> Vec<Column> {
    let column = |header: &'static str, rank, cell: &dyn Fn(&Row) -> String| {
        Column::new(header, rank, rows.iter().map(cell))
    };
    let giga = |figure: f64| format!("{:.2}", figure / 1e9);
    let unknown = || "n/a".to_owned();
    let mut columns = vec![column("variant", 0, &|row| row.variant.clone())];
    if table == Table::Copy {
        let base = |row: &Row| {
            rows.iter()
                .find(|other| other.batch == row.batch && other.copier == "memcpy")
        };
        columns.push(column("copier", 0, &|row| match &row.chose {
            Some(chose) => format!("{}: {chose}", row.copier),
            None => row.copier.clone(),
        }));
        columns.push(column("against\nmemcpy", 1, &|row| match base(row) {
            Some(base) => {
                let ratio = row.bytes_per_s / base.bytes_per_s;
                format!("{ratio:.2}{}", if ratio < 0.995 { " loses" } else { "" })
            }
            None => unknown(),
        }));
    }
    if table == Table::Exchange {
        columns.push(column("pairs", 0, &|row| row.pages.to_string()));
        columns.push(column("by", 0, &|row| row.copier.clone()));
    }
    columns.push(column("pages/s", 1, &|row| short(row.pages_per_s)));
    columns.push(column("GB/s", 2, &|row| giga(row.bytes_per_s)));
    let raw = if table == Table::Exchange {
        "raw swap\nGB/s"
    } else {
        "raw copy\nGB/s"
    };
    columns.push(column(raw, 3, &|row| giga(row.raw_copy_bytes_per_s)));
    columns.push(column("alone\nGB/s", 8, &|row| {
        giga(row.raw_copy_alone_bytes_per_s)
    }));
    columns.push(column("shootdowns\na page", 3, &|row| {
        row.shootdowns_per_page
            .map_or_else(unknown, |figure| format!("{figure:.4}"))
    }));
    columns.push(column("fresh\nframes", 6, &|row| {
        format!("{:.0} %", row.fresh_frames * 100.0)
    }));
    if table == Table::Batch {
        columns.push(column("first page\nus", 2, &|row| {
            micro(row.first_folio_us)
        }));
        columns.push(column("all pages\nus", 2, &|row| micro(row.request_us)));
    }
    columns.push(column("app\nMops/s", 4, &|row| {
        format!("{:.2}", row.app_ops_per_s / 1e6)
    }));
    columns.push(column("alone\nMops/s", 8, &|row| {
        format!("{:.2}", row.app_alone_ops_per_s / 1e6)
    }));
    columns.push(column("stall us\np50", 9, &|row| {
        format!("{:.2}", row.stall_us.p50)
    }));
    columns.push(column("stall us\np99", 6, &|row| micro(row.stall_us.p99)));
    columns.push(column("stall us\np99.9", 7, &|row| {
        micro(row.stall_us.p999)
    }));
    columns.push(column("stall us\nmax", 5, &|row| micro(row.stall_us.max)));
    columns.push(column("IPIs\nreceived", 10, &|row| {
        row.ipis_received.map_or_else(unknown, short)
    }));
    columns.push(column("errors", 2, &|row| row.errors.to_string()));
    columns
}
