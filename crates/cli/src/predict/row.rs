//! What is predicted of one way.

use serde::Serialize;
use transhume_model::{Plan, Prediction};

use crate::table::{Column, micro, short};

/// One row of a table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) variant: String,
    pub(super) pages: usize,
    pub(super) batch: usize,
    /// Pages that may wait for their switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) waiting: Option<usize>,
    pub(super) pages_per_s: f64,
    pub(super) bytes_per_s: f64,
    pub(super) copy_bytes_per_s: f64,
    pub(super) total_us: f64,
    pub(super) first_folio_us: Option<f64>,
    pub(super) longest_cut_off_us: f64,
    pub(super) longest_stall_us: f64,
    pub(super) shootdowns: u64,
    pub(super) shootdowns_per_page: f64,
    pub(super) ipis: u64,
    /// What all application threads lose together.
    pub(super) app_lost_us: f64,
    pub(super) app_lost_us_per_page: f64,
    pub(super) app_ops_per_s: f64,
}

impl Row {
    pub(super) fn new(variant: String, plan: &Plan, told: &Prediction) -> Self {
        let us = |time: std::time::Duration| time.as_secs_f64() * 1e6;
        let lost = us(told.lost);
        Self {
            variant,
            pages: plan.folios,
            batch: plan.batch,
            waiting: plan.deferred,
            pages_per_s: told.folios_per_s(),
            bytes_per_s: told.bytes_per_s(),
            copy_bytes_per_s: told.bytes as f64 / told.copy.as_secs_f64().max(1e-12),
            total_us: us(told.total),
            first_folio_us: told.first_folio.map(us),
            longest_cut_off_us: us(told.longest_cut_off),
            longest_stall_us: us(told.longest_stall),
            shootdowns: told.shootdowns,
            shootdowns_per_page: told.shootdowns_per_folio(),
            ipis: told.interrupts,
            app_lost_us: lost,
            app_lost_us_per_page: told.lost_s_per_folio() * 1e6,
            app_ops_per_s: told.accesses_per_s(),
        }
    }
}

/// The columns of all tables; `first` is what a row is called.
pub(super) fn columns(first: &'static str, rows: &[Row]) -> Vec<Column> {
    let column = |header: &'static str, rank, cell: &dyn Fn(&Row) -> String| {
        Column::new(header, rank, rows.iter().map(cell))
    };
    vec![
        column(first, 0, &|row| row.variant.clone()),
        column("pages/s", 1, &|row| short(row.pages_per_s)),
        column("GB/s", 2, &|row| format!("{:.2}", row.bytes_per_s / 1e9)),
        column("copy\nGB/s", 9, &|row| {
            format!("{:.2}", row.copy_bytes_per_s / 1e9)
        }),
        column("total us", 3, &|row| micro(row.total_us)),
        column("first page\nus", 3, &|row| {
            row.first_folio_us.map_or("n/a".to_owned(), micro)
        }),
        column("cut off us\nlongest", 8, &|row| {
            micro(row.longest_cut_off_us)
        }),
        column("stall us\nlongest", 4, &|row| micro(row.longest_stall_us)),
        column("shootdowns\na page", 5, &|row| {
            format!("{:.4}", row.shootdowns_per_page)
        }),
        column("IPIs", 6, &|row| row.ipis.to_string()),
        column("app loses\nus a page", 5, &|row| {
            format!("{:.3}", row.app_lost_us_per_page)
        }),
        column("app\nops/s", 7, &|row| short(row.app_ops_per_s)),
    ]
}
