//! `transhume map`: where the memory of a process is.

mod picture;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use indicatif::BinaryBytes;
use serde::Serialize;
use transhume_process::{BASE_PAGE, Kind, Mapping, Target, mappings, visit_pages};

use crate::args::Map;
use crate::context::on_ctrl_c;
use crate::error::CliError;
use crate::json::Sink;
use crate::moving::short;
use crate::print;
use crate::table::{Column, figures, width};
use picture::Picture;

/// How often `--watch` looks.
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct Document<'d> {
    schema: u32,
    pid: i32,
    name: &'d str,
    mappings: &'d [Row],
}

/// One mapping with what is in memory of it.
#[derive(Clone, Debug, Serialize)]
struct Row {
    start: usize,
    end: usize,
    permissions: String,
    what: String,
    policy: String,
    pool_page_bytes: usize,
    bytes_on_nodes: BTreeMap<u32, u64>,
    huge_bytes: u64,
}

impl Row {
    fn resident(&self) -> u64 {
        self.bytes_on_nodes.values().sum()
    }
}

pub(crate) fn run(args: &Map) -> Result<(), CliError> {
    let sink = args.json.as_deref().map(Sink::open).transpose()?;
    let target = Target::open(args.pid).map_err(|error| CliError::Refused(error.to_string()))?;
    if args.watch {
        return watch(&target);
    }
    let width = width();
    let (rows, picture) = look(&target, width)?;
    if !sink.as_ref().is_some_and(Sink::is_stdout) {
        print(&show(&target, &rows, &picture, width))?;
    }
    let document = Document {
        schema: 1,
        pid: target.number(),
        name: target.name(),
        mappings: &rows,
    };
    sink.map_or(Ok(()), |sink| sink.write(&document))
}

/// Shows it again and again. The end of the process is the end of this, and no error.
fn watch(target: &Target) -> Result<(), CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    on_ctrl_c(move || flag.store(true, Ordering::Relaxed))?;
    let terminal = console::Term::stdout();
    while !stop.load(Ordering::Relaxed) {
        let width = width();
        let looked = look(target, width);
        if target.has_ended() {
            return print(&format!("process {} has ended\n", target.number()));
        }
        let (rows, picture) = looked?;
        let mut text = show(target, &rows, &picture, width);
        if terminal.is_term() {
            // The sum is the first line, the picture the last; of the mappings between as many as fit.
            let lines = usize::from(terminal.size().0).saturating_sub(2).max(1);
            let skipped = text.lines().count().saturating_sub(lines).max(1);
            let shown = text.lines().take(1).chain(text.lines().skip(skipped));
            let shown = shown.collect::<Vec<_>>().join("\n");
            terminal
                .clear_screen()
                .map_err(|error| CliError::Failed(format!("cannot write: {error}")))?;
            text = format!("{shown}\n");
        }
        print(&text)?;
        let mut naps = 0;
        while naps < 20 && !stop.load(Ordering::Relaxed) && !target.has_ended() {
            thread::sleep(INTERVAL / 20);
            naps += 1;
        }
    }
    Ok(())
}

fn look(target: &Target, width: usize) -> Result<(Vec<Row>, Picture), CliError> {
    let failed = |why: String| CliError::Failed(format!("process {}: {why}", target.number()));
    let all = mappings(target).map_err(|error| failed(error.to_string()))?;
    let shown = |mapping: &&Mapping| !matches!(mapping.kind, Kind::Special(_));
    let all = all.iter().filter(shown).collect::<Vec<_>>();
    let counted = |mapping: &&&Mapping| mapping.on_nodes.is_none() || mapping.resident() > 0;
    let resident = all
        .iter()
        .filter(counted)
        .map(|mapping| mapping.range.clone());
    let mut picture = Picture::new(resident, width);
    let mut rows = Vec::new();
    for mapping in all {
        let mut row = Row {
            start: mapping.range.start,
            end: mapping.range.end,
            permissions: mapping.permissions.clone(),
            what: mapping.kind.to_string(),
            policy: mapping.policy.clone(),
            pool_page_bytes: mapping.page_size,
            bytes_on_nodes: BTreeMap::new(),
            huge_bytes: 0,
        };
        let base = BASE_PAGE as u64;
        if !counted(&&mapping) {
            // Reserved addresses may be many.
            rows.push(row);
            continue;
        }
        visit_pages(target, mapping, |folio, node| {
            let bytes = folio.base_pages() * base;
            *row.bytes_on_nodes.entry(node).or_insert(0) += bytes;
            let huge = folio.base_pages() > 1;
            row.huge_bytes += if huge { bytes } else { 0 };
            picture.add(folio.page() * base, bytes, node, huge);
        })
        .map_err(|error| failed(error.to_string()))?;
        rows.push(row);
    }
    Ok((rows, picture))
}

fn show(target: &Target, rows: &[Row], picture: &Picture, width: usize) -> String {
    let nodes = rows
        .iter()
        .flat_map(|row| row.bytes_on_nodes.keys().copied());
    let nodes = nodes.collect::<BTreeSet<_>>();
    let on = |row: &Row, node| row.bytes_on_nodes.get(&node).copied().unwrap_or(0);
    let sums = nodes.iter().map(|&node| {
        let sum = rows.iter().map(|row| on(row, node)).sum::<u64>();
        format!("{} on node {node}", BinaryBytes(sum))
    });
    let sums = sums.collect::<Vec<_>>().join(", ");
    let title = format!("process {} ({}): {sums}\n", target.number(), target.name());
    let shown = rows
        .iter()
        .filter(|row| row.resident() > 0)
        .collect::<Vec<_>>();
    let bytes = |bytes: u64| {
        if bytes == 0 {
            "-".to_owned()
        } else {
            BinaryBytes(bytes).to_string()
        }
    };
    let column = |header: String, rank, cell: &dyn Fn(&Row) -> String| {
        Column::new(header, rank, shown.iter().map(|row| cell(row)))
    };
    let mut columns = vec![
        column("addresses".to_owned(), 0, &|row| {
            format!("{:x}-{:x}", row.start, row.end)
        }),
        column("in memory".to_owned(), 1, &|row| bytes(row.resident())),
        column("huge".to_owned(), 2, &|row| bytes(row.huge_bytes)),
    ];
    for &node in &nodes {
        columns.push(column(format!("node {node}"), 1, &|row| {
            bytes(on(row, node))
        }));
    }
    columns.push(column("what".to_owned(), 3, &|row| short(&row.what)));
    columns.push(column("policy".to_owned(), 4, &|row| row.policy.clone()));
    columns.push(column("access".to_owned(), 5, &|row| {
        row.permissions.clone()
    }));
    format!("{title}{}\n{}", figures(columns, width), picture.draw())
}
