//! A quantity over two settings, as a grid of shades with the values in it.

use crate::drawing::{Anchor, Drawing};
use crate::figure::{Figure, Table};
use crate::frame::{Axis, SIZE};
use crate::palette::SHADES;
use crate::unit::Unit;

/// Rows and columns at most; texts would cover each other.
const MOST: usize = 24;

const LEFT: f64 = 140.0;
const TOP: f64 = 30.0;
const ROW: f64 = 34.0;

/// Length of a name that has room at a row, in characters.
const LONGEST_NAME: usize = 16;

/// Values over two settings.
#[derive(Clone, Debug)]
pub struct HeatMap {
    /// Name of the figure in the page.
    pub id: &'static str,
    /// Title above the plot.
    pub title: &'static str,
    /// Sentence that says the same as the plot.
    pub description: String,
    /// Quantity of the cells.
    pub quantity: Axis,
    /// Setting of the columns and its values.
    pub columns: (String, Vec<String>),
    /// Setting of the rows and its values.
    pub rows: (String, Vec<String>),
    /// Cells by row and column; `None` where there is no value.
    pub cells: Vec<Vec<Option<f64>>>,
}

impl HeatMap {
    /// The figure; `None` where no cell has a value, or there are too many rows or columns to be read.
    pub fn figure(&self) -> Option<Figure> {
        let (columns, rows) = (&self.columns.1, &self.rows.1);
        if columns.is_empty() || columns.len() > MOST || rows.len() > MOST {
            return None;
        }
        let value = |row: usize, column: usize| self.cells.get(row)?.get(column).copied()?.filter(|v| v.is_finite());
        let cells = || (0..rows.len()).flat_map(|row| (0..columns.len()).map(move |column| (row, column)));
        let values = || cells().filter_map(|(row, column)| value(row, column));
        let (least, largest) = values()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, largest), value| (least.min(value), largest.max(value)));
        if least > largest {
            return None;
        }
        // One prefix for all cells, so that they can be compared digit by digit.
        let shown = self.quantity.unit.shown(largest);
        let width = (SIZE.0 - LEFT - 10.0) / columns.len() as f64;
        let mut drawing = Drawing::default();
        for (row, column) in cells() {
            let (x, y) = (LEFT + column as f64 * width, TOP + row as f64 * ROW);
            let at = |name: &[String], place: usize| name.get(place).cloned().unwrap_or_default();
            let words = format!("{} {}, {} {}", self.rows.0, at(rows, row), self.columns.0, at(columns, column));
            let middle = (x + width / 2.0, y + ROW / 2.0 + 4.0);
            match value(row, column) {
                Some(value) => {
                    let share = if largest > least { (value - least) / (largest - least) } else { 1.0 };
                    // Few shades: more could not be told apart, and the value stands in the cell.
                    let shade = (share * (SHADES - 1) as f64).round() as usize;
                    drawing.rectangle((x + 1.0, y + 1.0), (width - 2.0, ROW - 2.0), &format!("h{shade}"), &words);
                    drawing.text(middle, Anchor::Middle, &format!("t{shade}"), &Unit::tick(&shown, value));
                }
                None => {
                    drawing.rectangle((x + 1.0, y + 1.0), (width - 2.0, ROW - 2.0), "empty", &words);
                    drawing.text(middle, Anchor::Middle, "tick", "–");
                }
            }
        }
        for (column, name) in columns.iter().enumerate() {
            let x = LEFT + (column as f64 + 0.5) * width;
            let y = TOP + rows.len() as f64 * ROW + 18.0;
            drawing.text((x, y), Anchor::Middle, "tick", &short(name, (width / 8.2) as usize));
        }
        for (row, name) in rows.iter().enumerate() {
            let y = TOP + (row as f64 + 0.5) * ROW + 4.0;
            drawing.text((LEFT - 8.0, y), Anchor::End, "tick", &short(name, LONGEST_NAME));
        }
        let height = TOP + rows.len() as f64 * ROW + 44.0;
        drawing.text(((LEFT + SIZE.0) / 2.0, height - 8.0), Anchor::Middle, "label", &self.columns.0);
        drawing.text((4.0, 18.0), Anchor::Start, "label", &format!("{} ↓", self.rows.0));
        drawing.text((SIZE.0 - 10.0, 18.0), Anchor::End, "label", &self.quantity.label());
        Some(Figure {
            id: self.id.to_owned(),
            title: self.title.to_owned(),
            description: self.description.clone(),
            size: (SIZE.0, height),
            shapes: drawing.into_text(),
            table: self.table(),
        })
    }

    fn table(&self) -> Table {
        let corner = format!("{} \\ {}", self.rows.0, self.columns.0);
        let text = |value: &Option<f64>| value.map_or("–".to_owned(), |value| self.quantity.unit.text(value));
        let rows = self.rows.1.iter().zip(&self.cells);
        let rows = rows.map(|(name, cells)| [name.clone()].into_iter().chain(cells.iter().map(text)).collect());
        Table { head: [corner].into_iter().chain(self.columns.1.iter().cloned()).collect(), rows: rows.collect() }
    }
}

/// `name`, cut to `longest` characters.
fn short(name: &str, longest: usize) -> String {
    match name.chars().count() > longest.max(2) {
        true => name.chars().take(longest.max(2) - 1).chain(['…']).collect(),
        false => name.to_owned(),
    }
}
