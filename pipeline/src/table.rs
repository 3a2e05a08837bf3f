//! Aligned columns of text, and maps of a grid in characters.

use std::io::Write;

/// Side of a column to which its texts are pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows of cells, each column as wide as its widest cell.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    align: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(align: [Align; N], titles: [&str; N]) -> Table<N> {
        Table { align, rows: vec![titles.map(str::to_owned)] }
    }

    pub(crate) fn push(&mut self, row: [String; N]) {
        self.rows.push(row);
    }

    /// Writes the table behind `indent`; two spaces between columns, none at the ends of lines.
    pub(crate) fn write(&self, indent: &str, out: &mut dyn Write) -> std::io::Result<()> {
        let widths: [usize; N] = std::array::from_fn(|i| {
            let width = |row: &[String; N]| row[i].chars().count();
            self.rows.iter().map(width).max().unwrap_or(0)
        });
        for row in &self.rows {
            let mut line = indent.to_owned();
            for ((cell, width), align) in row.iter().zip(widths).zip(self.align) {
                line += &match align {
                    Align::Left => format!("{cell:<width$}  "),
                    Align::Right => format!("{cell:>width$}  "),
                };
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// From nothing to most.
const SHADES: &[u8; 10] = b" .:-=+*#%@";

/// Rows and columns of a map at most; larger grids are averaged down.
const MAP: usize = 32;

/// The values of a square grid as lines of characters, two to a cell: a space for 0, `@` for the largest.
pub(crate) fn map(values: &[f64], grid: usize) -> Vec<String> {
    let side = grid.min(MAP);
    let range = |cell: usize| cell * grid / side..(cell + 1) * grid / side;
    let mean = |row: usize, column: usize| {
        let cells = range(row).flat_map(|y| range(column).map(move |x| y * grid + x));
        let (sum, n) = cells.fold((0.0, 0.0), |(sum, n), i| (sum + values[i], n + 1.0));
        sum / n
    };
    let pooled: Vec<f64> = (0..side * side).map(|i| mean(i / side, i % side)).collect();
    let most = pooled.iter().copied().fold(0.0, f64::max);
    let shade = |value: &f64| {
        let last = SHADES.len() - 1;
        let place = if most > 0.0 { (value / most * last as f64).ceil() as usize } else { 0 };
        char::from(SHADES[place.min(last)])
    };
    pooled.chunks(side).map(|row| row.iter().flat_map(|v| [shade(v); 2]).collect()).collect()
}

/// A count with thousands separated by commas.
pub(crate) fn grouped(count: u64) -> String {
    indicatif::HumanCount(count).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_characters() {
        let mut table = Table::new([Align::Left, Align::Right, Align::Left], ["name", "n", ""]);
        table.push(["é".into(), "1,000".into(), "x".into()]);
        table.push(["longer".into(), "7".into(), String::new()]);
        let mut out = Vec::new();
        table.write("> ", &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "> name        n\n> é       1,000  x\n> longer      7\n");
    }

    #[test]
    fn maps_show_zero_as_nothing_and_the_largest_as_most() {
        assert_eq!(map(&[0.0, 1.0, 0.01, 0.5], 2), ["  @@", "..++"]);
        assert_eq!(map(&[0.0; 4], 2), ["    ", "    "]);
        let large = map(&vec![1.0; 100 * 100], 100);
        assert_eq!((large.len(), large[0].len()), (MAP, 2 * MAP));
    }
}
