//! The tables of others, with what is predicted beside them.

use serde::Serialize;
use transhume_model as model;

use super::{costs, off};
use crate::error::CliError;
use crate::table::{Column, figures, fold, width};

/// All that is compared.
#[derive(Debug, Serialize)]
pub(super) struct Published {
    machines: Vec<Machine>,
    left_out: Vec<LeftOut>,
}

#[derive(Debug, Serialize)]
struct Machine {
    name: &'static str,
    about: &'static str,
    costs: model::Costs,
    costs_from: Vec<CostFrom>,
    cells: Vec<Cell>,
    shapes: Vec<Shape>,
    /// Cells that no cost is derived from.
    predicted: usize,
    within_a_quarter: usize,
}

/// What won where, and whether it does here.
#[derive(Debug, Serialize)]
struct Shape {
    says: &'static str,
    holds: bool,
}

#[derive(Debug, Serialize)]
struct CostFrom {
    cost: &'static str,
    from: &'static str,
}

#[derive(Debug, Serialize)]
struct Cell {
    what: String,
    unit: &'static str,
    published: f64,
    /// How coarse that is: what it is off by is counted from the end of this.
    rounded_by: f64,
    predicted: f64,
    off_by: f64,
    within_a_quarter: bool,
    /// The cost that is derived from it, so that it predicts nothing.
    calibrates: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct LeftOut {
    what: &'static str,
    why: &'static str,
}

/// Compares the machine of that name, or all.
pub(super) fn reproduce(name: Option<&str>) -> Result<(Published, String), CliError> {
    let (machines, left_out) = match name {
        Some(name) => (vec![costs::named(name)?], &[][..]),
        None => (model::Published::all(), model::Published::LEFT_OUT),
    };
    let machines = machines.into_iter().map(machine);
    let machines = machines.collect::<Result<Vec<_>, CliError>>()?;
    let published = Published {
        left_out: left_out
            .iter()
            .map(|&model::LeftOut { what, why }| LeftOut { what, why })
            .collect(),
        machines,
    };
    let text = show(&published);
    Ok((published, text))
}

fn machine(machine: model::Published) -> Result<Machine, CliError> {
    let failed = |why| CliError::Failed(format!("{}: {why}", machine.name));
    let cell = |(cell, predicted): (&model::Cell, f64)| Cell {
        what: cell.what.clone(),
        unit: cell.figure.unit(),
        published: cell.published,
        rounded_by: cell.rounded_by,
        predicted,
        off_by: cell.off_by(predicted),
        within_a_quarter: cell.is_met_by(predicted),
        calibrates: cell.calibrates,
    };
    let told = machine.reproduce().map_err(failed)?;
    let shape = |(shape, holds): (&model::Shape, bool)| Shape {
        says: shape.says,
        holds,
    };
    let cells: Vec<Cell> = machine.cells.iter().zip(told.cells).map(cell).collect();
    let predicted = || cells.iter().filter(|cell| cell.calibrates.is_none());
    Ok(Machine {
        predicted: predicted().count(),
        within_a_quarter: predicted().filter(|cell| cell.within_a_quarter).count(),
        name: machine.name,
        about: machine.about,
        shapes: machine.shapes.iter().zip(told.shapes).map(shape).collect(),
        costs_from: machine
            .derived
            .iter()
            .map(|&(cost, from)| CostFrom { cost, from })
            .collect(),
        costs: machine.costs,
        cells,
    })
}

/// Three digits, as they were published.
fn figure(figure: f64) -> String {
    match figure.abs() {
        1000.0.. => format!("{figure:.0}"),
        100.0.. => format!("{figure:.1}"),
        0.1.. => format!("{figure:.2}"),
        _ => format!("{figure:.4}"),
    }
}

fn show(published: &Published) -> String {
    let width = width();
    let mut text = String::new();
    for machine in &published.machines {
        let cells = &machine.cells;
        let column = |header: &'static str, rank, cell: &dyn Fn(&Cell) -> String| {
            Column::new(header, rank, cells.iter().map(cell))
        };
        let columns = vec![
            column("what", 0, &|cell| cell.what.clone()),
            column("unit", 0, &|cell| cell.unit.to_owned()),
            column("published", 0, &|cell| figure(cell.published)),
            column("predicted", 0, &|cell| figure(cell.predicted)),
            column("off by", 0, &|cell| match cell.calibrates {
                Some(cost) => format!("gives {cost}"),
                None => off(cell.off_by),
            }),
        ];
        text.push_str(&fold(
            &format!("{}: {}", machine.name, machine.about),
            width,
        ));
        text.push_str(&format!("\n{}", figures(columns, width)));
        for Shape { says, holds } in &machine.shapes {
            let holds = if *holds { "so here" } else { "not so here *" };
            text.push_str(&fold(&format!("Published: {says}: {holds}."), width));
            text.push('\n');
        }
        for CostFrom { cost, from } in &machine.costs_from {
            text.push_str(&fold(&format!("{cost}: {from}"), width));
            text.push('\n');
        }
        text.push('\n');
    }
    let within = |machine: &Machine| {
        let Machine {
            name,
            predicted,
            within_a_quarter,
            ..
        } = machine;
        format!("{name} {within_a_quarter} of {predicted}")
    };
    let within: Vec<String> = published.machines.iter().map(within).collect();
    text.push_str(&fold(
        &format!(
            "Cells from which no cost is derived and that are within 25 %: {}; * is off by more. A cell that gives a \
             cost predicts nothing.",
            within.join(", ")
        ),
        width,
    ));
    text.push('\n');
    for LeftOut { what, why } in &published.left_out {
        text.push_str(&fold(&format!("Not reproduced: {what}: {why}."), width));
        text.push('\n');
    }
    text
}
