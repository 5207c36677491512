//! Tables in the terminal.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

/// An empty table that fits the terminal, or has no limit where there is none.
pub(crate) fn new<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.map(Cell::new));
    table
}

/// A column of figures: what it is called, and each row's entry.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) header: &'static str,
    /// Columns of higher numbers are left out first where there is no room.
    pub(crate) rank: u8,
    pub(crate) cells: Vec<String>,
}

impl Column {
    fn width(&self) -> usize {
        let lines = self.header.lines().map(|line| line.chars().count());
        let cells = self.cells.iter().map(|cell| cell.chars().count());
        // A space on either side, and a line between.
        lines.chain(cells).max().unwrap_or(0) + 2
    }
}

/// A table of figures in `width` characters: columns are left out until it fits, and it says which.
pub(crate) fn figures(mut columns: Vec<Column>, width: usize) -> String {
    let mut left_out = Vec::new();
    while columns.iter().map(Column::width).sum::<usize>() > width {
        let last = columns
            .iter()
            .enumerate()
            .max_by_key(|(_, column)| column.rank);
        match last {
            Some((at, column)) if column.rank > 0 => {
                left_out.push(column.header.replace('\n', " "));
                columns.remove(at);
            }
            _ => break,
        }
    }
    let mut table = Table::new();
    table.load_preset("     ──            ");
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| Cell::new(column.header)));
    let rows = columns
        .iter()
        .map(|column| column.cells.len())
        .max()
        .unwrap_or(0);
    for row in 0..rows {
        table.add_row(columns.iter().map(|column| {
            let alignment = if column.rank == 0 {
                CellAlignment::Left
            } else {
                CellAlignment::Right
            };
            Cell::new(column.cells.get(row).map_or("", String::as_str)).set_alignment(alignment)
        }));
    }
    let mut text = format!("{table}\n");
    if !left_out.is_empty() {
        left_out.reverse();
        text.push_str(&wrap(" no room for:", &left_out, width));
    }
    text
}

/// Words after a beginning, in lines of up to `width` characters.
fn wrap(beginning: &str, words: &[String], width: usize) -> String {
    let mut text = beginning.to_owned();
    let mut length = beginning.chars().count();
    for (n, word) in words.iter().enumerate() {
        let comma = if n + 1 < words.len() { "," } else { "" };
        let added = word.chars().count() + 1 + comma.len();
        if length + added > width {
            text.push('\n');
            length = 0;
        }
        text.push_str(&format!(" {word}{comma}"));
        length += added;
    }
    text + "\n"
}

/// The width of the terminal, or 120 characters where standard output is none.
pub(crate) fn width() -> usize {
    Table::new().width().map_or(120, usize::from)
}

/// A count per second or of bytes, in three digits and a unit: `2.48 M`.
pub(crate) fn short(number: f64) -> String {
    let units = [(1e9, " G"), (1e6, " M"), (1e3, " k")];
    let (scale, unit) = units
        .into_iter()
        .find(|&(scale, _)| number >= scale)
        .unwrap_or((1.0, ""));
    let scaled = number / scale;
    let digits = if scaled >= 100.0 {
        0
    } else if scaled >= 10.0 {
        1
    } else {
        2
    };
    format!("{scaled:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column> {
        let column = |header, rank| Column {
            header,
            rank,
            cells: vec!["1234567".to_owned(); 3],
        };
        vec![
            column("variant", 0),
            column("pages/s", 1),
            column("stall us\nmax", 5),
            column("GB/s", 3),
        ]
    }

    #[test]
    fn it_fits_and_says_what_is_left_out() {
        for width in [24, 30, 40, 60, 80, 120, 200] {
            let text = figures(columns(), width);
            assert!(
                text.lines().all(|line| line.chars().count() <= width),
                "{width}\n{text}"
            );
            assert_eq!(text.contains("no room for"), width < 40, "{width}\n{text}");
        }
        let narrow = figures(columns(), 30);
        assert!(
            narrow.contains("no room for: stall us max") && narrow.contains("pages/s"),
            "{narrow}"
        );
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(short(2_480_000.0), "2.48 M");
        assert_eq!(short(45_123.0), "45.1 k");
        assert_eq!(short(0.0039), "0.00");
        assert_eq!(short(311_000.0), "311 k");
    }
}
