//! The tables of others, with what is predicted beside them.

use serde::Serialize;
use transhume_model as model;

use super::{costs, off, percent};
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
    /// Costs that nobody has published.
    assumed: Vec<CostFrom>,
    cells: Vec<Cell>,
    shapes: Vec<Shape>,
    /// Cells that no cost is derived from.
    predicted: usize,
    within_a_quarter: usize,
    /// Those of them that are so only of a figure that would have been rounded to the published one.
    only_by_rounding: usize,
}

/// What won where, and whether it does here.
#[derive(Debug, Serialize)]
struct Shape {
    says: &'static str,
    holds: bool,
    /// How many plans are compared, and how many of them no cost is derived from.
    plans: usize,
    predicted: usize,
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
    /// How coarse that is: half of the unit of its last digit.
    rounded_by: f64,
    predicted: f64,
    /// From what was published, whatever it was rounded from.
    off_by: f64,
    /// Of what was published, or of a figure that would have been rounded to it.
    within_a_quarter: bool,
    /// Whether it is so only of a figure that would have been rounded to it.
    only_by_rounding: bool,
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
    let text = show(&published, width());
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
        only_by_rounding: cell.is_met_by_rounding(predicted),
        calibrates: cell.calibrates,
    };
    let told = machine.reproduce().map_err(failed)?;
    let shape = |(shape, holds): (&model::Shape, bool)| {
        let (predicted, plans) = machine.predicted_of(shape);
        Shape {
            says: shape.says,
            holds,
            plans,
            predicted,
        }
    };
    let cells: Vec<Cell> = machine.cells.iter().zip(told.cells).map(cell).collect();
    let costs_from = |costs: &[(&'static str, &'static str)]| {
        let costs = costs.iter();
        costs.map(|&(cost, from)| CostFrom { cost, from }).collect()
    };
    let predicted = || cells.iter().filter(|cell| cell.calibrates.is_none());
    Ok(Machine {
        predicted: predicted().count(),
        within_a_quarter: predicted().filter(|cell| cell.within_a_quarter).count(),
        only_by_rounding: predicted().filter(|cell| cell.only_by_rounding).count(),
        name: machine.name,
        about: machine.about,
        shapes: machine.shapes.iter().zip(told.shapes).map(shape).collect(),
        costs_from: costs_from(&machine.derived),
        assumed: costs_from(&machine.assumed),
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

fn show(published: &Published, width: usize) -> String {
    let mut text = String::new();
    for machine in &published.machines {
        let cells = &machine.cells;
        let column = |header: &'static str, rank, cell: &dyn Fn(&Cell) -> String| {
            Column::new(header, rank, cells.iter().map(cell))
        };
        let columns = vec![
            column("what", 0, &|cell| cell.what.clone()).of_text(12),
            column("unit", 0, &|cell| cell.unit.to_owned()),
            column("published", 0, &|cell| figure(cell.published)),
            column("predicted", 0, &|cell| figure(cell.predicted)),
            column("off by", 0, &|cell| match cell.calibrates {
                Some(cost) => format!("gives {cost}"),
                None if cell.only_by_rounding => format!("{} ~", percent(cell.off_by)),
                None => off(cell.off_by),
            }),
        ];
        text.push_str(&fold(
            &format!("{}: {}", machine.name, machine.about),
            width,
        ));
        text.push_str(&format!("\n{}", figures(columns, width)));
        for shape in &machine.shapes {
            let says = shape.says;
            let holds = if shape.holds {
                "so here"
            } else {
                "not so here *"
            };
            let given = match shape.plans - shape.predicted {
                0 => String::new(),
                given => format!(", where {given} of the {} rates give costs", shape.plans),
            };
            text.push_str(&fold(&format!("Published: {says}: {holds}{given}."), width));
            text.push('\n');
        }
        for CostFrom { cost, from } in &machine.costs_from {
            text.push_str(&fold(&format!("{cost}: {from}"), width));
            text.push('\n');
        }
        for CostFrom { cost, from } in &machine.assumed {
            text.push_str(&fold(&format!("{cost}, assumed: {from}"), width));
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
    let machines = published.machines.iter();
    let by_rounding: usize = machines.map(|machine| machine.only_by_rounding).sum();
    text.push_str(&fold(
        &format!(
            "Cells from which no cost is derived and that are within 25 %: {}; * is off by more.{} A cell that gives a cost predicts nothing.",
            within.join(", "),
            match by_rounding {
                0 => String::new(),
                count => format!(
                    " {count} of them only since what was published is coarse, ~: within 25 % of a figure that would \
                     have been rounded to it."
                ),
            }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    #[test]
    fn it_fits_a_narrow_terminal() {
        let (published, _) = reproduce(None).unwrap();
        for width in [80, 120, 160] {
            let text = show(&published, width);
            let mut lines = text.lines();
            let wide = lines.find(|line| line.chars().count() > width);
            assert_eq!(wide, None, "{width}");
        }
    }
}
