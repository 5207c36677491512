//! `transhume engines`.

mod application;
mod choices;

use comfy_table::Cell;
use serde::Serialize;
use transhume_copy::Auto;
use transhume_copy::control::Engine;

use crate::args::Engines;
use crate::error::CliError;
use crate::json::Sink;
use crate::{print, table};
use application::Application;
use choices::Choice;

#[derive(Serialize)]
struct Document {
    schema: u32,
    engines: Vec<Row>,
    /// What `auto` would choose here, where the copiers were measured. An application that is asked may
    /// run on other CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    auto: Option<Vec<Choice>>,
    /// The application that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    application: Option<Application>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    available: bool,
    /// What it is here, or why it is not.
    detail: String,
    what: String,
}

impl From<Engine> for Row {
    fn from(engine: Engine) -> Self {
        Self {
            name: engine.name,
            available: engine.available,
            detail: engine.detail,
            what: engine.what,
        }
    }
}

pub(crate) fn run(args: &Engines) -> Result<(), CliError> {
    let sink = args.json.as_deref().map(Sink::open).transpose()?;
    if args.calibrate {
        Auto::calibrated().map_err(|why| CliError::Failed(why.to_string()))?;
    }
    let (engines, application) = match &args.control {
        Some(path) => {
            let (engines, application) = application::ask(path, args)?;
            (
                engines.into_iter().map(Row::from).collect(),
                Some(application),
            )
        }
        None => (here(), None),
    };
    let document = Document {
        schema: 1,
        engines,
        auto: match application {
            None => choices::known(),
            Some(_) => None,
        },
        application,
    };
    if !sink.as_ref().is_some_and(Sink::is_stdout) {
        print(&show(&document))?;
    }
    sink.map_or(Ok(()), |sink| sink.write(&document))
}

/// The copiers of this program on this machine.
fn here() -> Vec<Row> {
    let engines = transhume_copy::engines().into_iter().map(|engine| Row {
        name: engine.name.to_owned(),
        available: engine.available.is_ok(),
        detail: engine.available.unwrap_or_else(|why| why.to_string()),
        what: engine.what.to_owned(),
    });
    engines.collect()
}

fn show(document: &Document) -> String {
    let mut table = table::new(["copier", "here", "", "what it does"]);
    for engine in &document.engines {
        let here = if engine.available { "yes" } else { "no" };
        table.add_row([&engine.name, here, &engine.detail, &engine.what].map(Cell::new));
    }
    let mut text = format!("{table}\n");
    // For nodes that nobody knows the row of `auto` says it.
    if let Some(choices) = document
        .auto
        .as_deref()
        .filter(|all| choices::have_nodes(all))
    {
        text.push_str(&format!("\n{}\n", choices::table(choices)));
    }
    if let Some(application) = &document.application {
        text = format!(
            "{}\n{text}\n{}",
            application.headline(),
            application.table()
        );
    }
    text
}
