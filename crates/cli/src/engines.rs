//! `transhume engines`.

use comfy_table::Cell;
use serde::Serialize;

use crate::args::Engines;
use crate::error::CliError;
use crate::json::Sink;
use crate::{print, table};

#[derive(Serialize)]
struct Document {
    schema: u32,
    engines: Vec<Engine>,
}

#[derive(Serialize)]
struct Engine {
    name: &'static str,
    available: bool,
    /// What it is here, or why it is not.
    detail: String,
    what: &'static str,
}

pub(crate) fn run(args: &Engines) -> Result<(), CliError> {
    let sink = args.json.as_deref().map(Sink::open).transpose()?;
    let engines = transhume_copy::engines().into_iter().map(|engine| Engine {
        name: engine.name,
        available: engine.available.is_ok(),
        detail: engine.available.unwrap_or_else(|why| why.to_string()),
        what: engine.what,
    });
    let document = Document {
        schema: 1,
        engines: engines.collect(),
    };
    if !sink.as_ref().is_some_and(Sink::is_stdout) {
        let mut table = table::new(["copier", "here", "", "what it does"]);
        for engine in &document.engines {
            let here = if engine.available { "yes" } else { "no" };
            table.add_row([engine.name, here, &engine.detail, engine.what].map(Cell::new));
        }
        print(&format!("{table}\n"))?;
    }
    sink.map_or(Ok(()), |sink| sink.write(&document))
}
