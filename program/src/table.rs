//! Tables of results on stdout.

pub use comfy_table::CellAlignment::{self as Align, Left, Right};
use comfy_table::Table;

/// Lines of a table without borders, two spaces between its columns. Words stand left, numbers right.
pub fn table<const N: usize>(titles: [&str; N], align: [Align; N], rows: Vec<[String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(titles);
    table.add_rows(rows);
    for (column, align) in table.column_iter_mut().zip(align) {
        column.set_padding((0, 2)).set_cell_alignment(align);
    }
    table.trim_fmt() + "\n"
}

/// A share of 1 in percent.
pub fn percent(share: f64) -> String {
    format!("{:.2}%", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_characters() {
        let rows = vec![["é".into(), "1,000".into(), "x".into()], ["longer".into(), "7".into(), String::new()]];
        let text = table(["name", "n", ""], [Left, Right, Left], rows);
        assert_eq!(text, "name        n\né       1,000  x\nlonger      7\n");
    }
}
