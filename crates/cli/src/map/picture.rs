//! The address space as a picture: a character for each piece of it, by node and page size.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use console::style;
use indicatif::BinaryBytes;

use crate::table::fold;

/// Lines of the picture, at most about.
const LINES: usize = 16;
/// The smallest piece that gets a character.
const SMALLEST: u64 = 64 << 10;
/// Room for the address at the beginning of a line.
const MARGIN: usize = 17;

/// What is in one piece of the address space.
#[derive(Clone, Debug, Default)]
struct Cell {
    /// Bytes by node and whether they are in huge pages.
    bytes: BTreeMap<(u32, bool), u64>,
}

/// A strip of cells, over the mappings that have something in memory, in order.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    /// How much of the address space a cell is.
    piece: u64,
    columns: usize,
    /// Where each mapping begins and ends, and the number of its first cell.
    spans: Vec<(Range<u64>, usize)>,
    cells: Vec<Cell>,
}

impl Picture {
    /// An empty one for some ranges, which are in order, in so many columns.
    pub(crate) fn new(ranges: impl Iterator<Item = Range<usize>>, width: usize) -> Self {
        let ranges = ranges.map(|range| range.start as u64..range.end as u64);
        let ranges = ranges.collect::<Vec<_>>();
        let columns = width.saturating_sub(MARGIN).max(16);
        let all = ranges
            .iter()
            .map(|range| range.end - range.start)
            .sum::<u64>();
        let piece = (all / (columns * LINES) as u64)
            .next_power_of_two()
            .max(SMALLEST);
        // Where much is mapped in little pieces, they share characters.
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.end - last.start <= piece => last.end = range.end,
                _ => joined.push(range),
            }
        }
        let (mut spans, mut count) = (Vec::new(), 0);
        for range in joined {
            let pieces = (range.end - range.start).div_ceil(piece);
            spans.push((range, count));
            count += usize::try_from(pieces).unwrap_or(usize::MAX - count);
        }
        Self {
            piece,
            columns,
            spans,
            cells: vec![Cell::default(); count],
        }
    }

    /// Adds a folio.
    pub(crate) fn add(&mut self, address: u64, bytes: u64, node: u32, huge: bool) {
        // A huge page may begin before its mapping.
        let at = self
            .spans
            .partition_point(|(range, _)| range.end <= address);
        let Some((range, first)) = self.spans.get(at) else {
            return;
        };
        let (start, end) = (address.max(range.start), (address + bytes).min(range.end));
        let mut from = start;
        while from < end {
            let number = (from - range.start) / self.piece;
            let to = end.min(range.start + (number + 1) * self.piece);
            let cell = usize::try_from(number)
                .ok()
                .and_then(|number| self.cells.get_mut(first + number));
            if let Some(cell) = cell {
                *cell.bytes.entry((node, huge)).or_insert(0) += to - from;
            }
            from = to;
        }
    }

    /// The picture with its legend, in colours where the terminal has them.
    pub(crate) fn draw(&self) -> String {
        let mut text = String::new();
        for (line, cells) in self.cells.chunks(self.columns).enumerate() {
            let _ = write!(text, "{:>15x}  ", self.address(line * self.columns));
            for cell in cells {
                let (glyph, node) = cell.glyph();
                match node {
                    Some(node) => {
                        // Eight colours are enough to tell neighbours apart; black and white are the text's.
                        let colour = u8::try_from(node % 6 + 1).unwrap_or(1);
                        let _ = write!(text, "{}", style(glyph).color256(colour));
                    }
                    None => text.push(glyph),
                }
            }
            text.push('\n');
        }
        let legend = format!(
            "each character is {}: 0 node 0, 1 node 1, ..; A node 0, B node 1, .. in huge pages; + several \
             nodes; . nothing in memory\n",
            BinaryBytes(self.piece)
        );
        text.push_str(&fold(&legend, self.columns + MARGIN));
        text
    }

    /// Where a cell begins.
    fn address(&self, cell: usize) -> u64 {
        let at = self.spans.partition_point(|&(_, first)| first <= cell);
        let span = at.checked_sub(1).and_then(|at| self.spans.get(at));
        span.map_or(0, |(range, first)| {
            range.start + (cell - first) as u64 * self.piece
        })
    }
}

impl Cell {
    /// The character, and the node if it is one.
    fn glyph(&self) -> (char, Option<u32>) {
        let all = self.bytes.values().sum::<u64>();
        if all == 0 {
            return ('.', None);
        }
        let mut nodes = BTreeMap::<u32, (u64, u64)>::new();
        for (&(node, huge), &bytes) in &self.bytes {
            let (sum, of_huge) = nodes.entry(node).or_default();
            *sum += bytes;
            *of_huge += if huge { bytes } else { 0 };
        }
        let most = nodes.iter().max_by_key(|(_, (sum, _))| *sum);
        let Some((&node, &(sum, of_huge))) = most else {
            return ('.', None);
        };
        // A node has nine tenths of it, or several have it.
        if sum * 10 < all * 9 {
            return ('+', None);
        }
        let (first, kinds) = if of_huge * 2 > sum {
            (b'A', 26)
        } else {
            (b'0', 10)
        };
        let glyph = u8::try_from(node).ok().filter(|&node| node < kinds);
        (
            glyph.map_or('#', |node| char::from(first + node)),
            Some(node),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(picture: &Picture) -> Vec<String> {
        console::set_colors_enabled(false);
        let text = picture.draw();
        let lines = text.lines().take_while(|line| !line.starts_with("each"));
        lines.map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn a_character_is_what_most_of_its_piece_is() {
        let mut picture =
            Picture::new([0x10_0000..0x16_0000, 0x40_0000..0x60_0000].into_iter(), 80);
        picture.add(0x10_0000, 4096, 0, false);
        picture.add(0x11_0000, 4096, 1, false);
        picture.add(0x12_0000, 4096, 0, false);
        picture.add(0x12_1000, 4096, 1, false);
        picture.add(0x40_0000, 2 << 20, 1, true);
        picture.add(0x90_0000, 4096, 0, false);
        assert_eq!(
            drawn(&picture),
            [format!("100000  01+...{}", "B".repeat(32))]
        );
    }

    #[test]
    fn large_address_spaces_fit() {
        let mut picture = Picture::new(std::iter::once(1 << 40..(1 << 40) + (1 << 36)), 100);
        picture.add((1 << 40) + (1 << 35), 1 << 30, 3, false);
        let lines = drawn(&picture);
        assert!(lines.len() <= LINES * 2, "{}", lines.len());
        assert!(lines.iter().any(|line| line.contains('3')));
        assert!(drawn(&Picture::new(std::iter::empty(), 10)).is_empty());
    }
}
