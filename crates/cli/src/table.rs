//! Tables in the terminal.

use std::borrow::Cow;

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
    header: Cow<'static, str>,
    rank: u8,
    cells: Vec<String>,
    /// How narrow it is made for others to have room, where it is text.
    narrowest: Option<usize>,
}

impl Column {
    /// Columns of higher ranks are left out first where there is no room.
    pub(crate) fn new(
        header: impl Into<Cow<'static, str>>,
        rank: u8,
        cells: impl Iterator<Item = String>,
    ) -> Self {
        Self {
            header: header.into(),
            rank,
            cells: cells.collect(),
            narrowest: None,
        }
    }

    /// Its entries are text, which has as many lines as it takes in the room that the other columns leave, but for
    /// these many characters at least.
    pub(crate) fn of_text(self, narrowest: usize) -> Self {
        Self {
            narrowest: Some(narrowest),
            ..self
        }
    }

    fn width(&self) -> usize {
        let lines = self.cells.iter().flat_map(|cell| cell.lines());
        let widths = self.header.lines().chain(lines).map(width_of);
        widths.max().unwrap_or(0)
    }
}

fn width_of(line: &str) -> usize {
    line.chars().count()
}

fn too_wide(text: &str, width: usize) -> usize {
    let widest = text.lines().map(width_of).max().unwrap_or(0);
    widest.saturating_sub(width)
}

/// A table of figures in `width` characters: text is folded and columns are left out until it fits, and it says which.
pub(crate) fn figures(mut columns: Vec<Column>, width: usize) -> String {
    let mut left_out = Vec::new();
    let mut text = draw_folded(&columns, width);
    while too_wide(&text, width) > 0 {
        let last = columns
            .iter()
            .enumerate()
            .max_by_key(|(_, column)| column.rank);
        match last {
            Some((at, column)) if column.rank > 0 => {
                left_out.push(column.header.replace('\n', " "));
                columns.remove(at);
                text = draw_folded(&columns, width);
            }
            _ => break,
        }
    }
    if !left_out.is_empty() {
        left_out.reverse();
        let line = format!("no room for: {}", left_out.join(", "));
        text.push_str(&fold(&line, width));
        text.push('\n');
    }
    text
}

/// Draws them with text in as many lines as it takes, if it has enough room for that.
fn draw_folded(columns: &[Column], width: usize) -> String {
    let text = draw(columns);
    let excess = too_wide(&text, width);
    if excess == 0 {
        return text;
    }
    let mut folded = columns.to_vec();
    for column in &mut folded {
        let Some(narrowest) = column.narrowest else {
            continue;
        };
        let room = column.width().saturating_sub(excess).max(narrowest);
        for cell in &mut column.cells {
            *cell = fold(cell, room);
        }
    }
    draw(&folded)
}

fn draw(columns: &[Column]) -> String {
    let mut table = Table::new();
    table.load_preset("     ──            ");
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| Cell::new(&column.header)));
    let rows = columns
        .iter()
        .map(|column| column.cells.len())
        .max()
        .unwrap_or(0);
    for row in 0..rows {
        table.add_row(columns.iter().map(|column| {
            let text = column.cells.get(row).map_or("", String::as_str);
            // Words are read from their beginning, figures are compared by their ends.
            let left = column.rank == 0 || !column.cells.iter().any(|text| is_figure(text));
            let alignment = if left {
                CellAlignment::Left
            } else {
                CellAlignment::Right
            };
            Cell::new(text).set_alignment(alignment)
        }));
    }
    format!("{}\n", table.trim_fmt())
}

fn is_figure(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit())
}

/// Text in lines of up to `width` characters.
pub(crate) fn fold(text: &str, width: usize) -> String {
    textwrap::fill(text, width)
}

/// The width of the terminal, or 120 characters where standard output is none.
pub(crate) fn width() -> usize {
    // A terminal that does not know its size says zero.
    let width = Table::new().width().filter(|&width| width > 0);
    width.map_or(120, usize::from)
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

/// Microseconds, to a tenth where they are few.
pub(crate) fn micro(figure: f64) -> String {
    let digits = usize::from(figure < 100.0);
    format!("{figure:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column> {
        let cells = || std::iter::repeat_n("1234567".to_owned(), 3);
        let column = |header, rank| Column::new(header, rank, cells());
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
    fn text_is_folded_before_a_column_is_left_out() {
        let said = "a store is lost: word 0 of page 1 is first 2, and 2.1 was stored last";
        let text = Column::new("what is seen", 1, std::iter::repeat_n(said.to_owned(), 3));
        let columns = || {
            let mut columns = columns();
            columns.push(text.clone().of_text(24));
            columns
        };
        for (width, left_out) in [(70, "-"), (60, "stall us max"), (50, "GB/s, stall us max")] {
            let shown = figures(columns(), width);
            assert_eq!(too_wide(&shown, width), 0, "{width}\n{shown}");
            let line = shown.lines().find(|line| line.starts_with("no room for: "));
            let line = line.map_or("-", |line| &line["no room for: ".len()..]);
            assert_eq!(line, left_out, "{width}\n{shown}");
            // All of it is there, and figures beside its first line.
            for word in said.split(' ') {
                assert!(shown.contains(word), "{word}\n{shown}");
            }
            assert!(shown.contains(" 1234567   a store is lost:"), "{shown}");
        }
        let wide = figures(columns(), 200);
        assert!(wide.contains(said), "{wide}");
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(short(2_480_000.0), "2.48 M");
        assert_eq!(short(45_123.0), "45.1 k");
        assert_eq!(short(0.0039), "0.00");
        assert_eq!(short(311_000.0), "311 k");
    }
}
