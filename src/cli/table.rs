//! Columns of text.

use std::fmt;

/// Where a column's cells stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

use Align::{Left, Right};

/// A table whose columns are as wide as their widest cell. Shown with a line for the headings, and two spaces before
/// and between columns.
pub(super) struct Table<const N: usize> {
    align: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table with these headings; those that begin with `>` stand over numbers, right-aligned.
    pub(super) fn new(headings: [&str; N]) -> Table<N> {
        let align = headings.map(|heading| if heading.starts_with('>') { Right } else { Left });
        Table { align, rows: vec![headings.map(|heading| heading.trim_start_matches('>').to_owned())] }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), align) in row.iter().zip(widths).zip(self.align) {
                line += &match align {
                    Left => format!("  {cell:<width$}"),
                    Right => format!("  {cell:>width$}"),
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["name", ">bytes", "note"]);
        table.row(["a".into(), "1000000".into(), String::new()]);
        table.row(["längst".into(), "1".into(), "x".into()]);
        assert_eq!(table.to_string(), "  name      bytes  note\n  a       1000000\n  längst        1  x\n");
    }
}
