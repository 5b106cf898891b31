//! CSV with a line for each value of each run, for spreadsheets and scripts.

use std::io;

use super::super::comparison::{Cell, Comparison};

const HEADING: [&str; 11] =
    ["kind", "key", "unit", "run", "value", "low", "high", "ratio", "p_value", "significant", "best"];

/// All differences and figures.
pub(super) fn render(comparison: &Comparison) -> io::Result<String> {
    let mut lines = csv::Writer::from_writer(Vec::new());
    lines.write_record(HEADING)?;
    for difference in &comparison.differences {
        for (run, value) in comparison.runs.iter().zip(&difference.values) {
            let value = value.as_deref().unwrap_or_default();
            let start = [difference.subject.name(), &difference.key, "", &run.name, value];
            lines.write_record(start.into_iter().chain([""; 6]))?;
        }
    }
    for row in &comparison.figures {
        for (run, cell) in comparison.runs.iter().zip(&row.cells) {
            let Some(cell) = cell else { continue };
            let start = ["figure", &row.key, row.figure.unit, &run.name].map(str::to_owned);
            lines.write_record(start.into_iter().chain(values(cell)))?;
        }
    }
    let bytes = lines.into_inner().map_err(|error| io::Error::other(error.to_string()))?;
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// Everything that is known of a cell; what is not is empty.
fn values(cell: &Cell) -> [String; 7] {
    let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    let word = |value: Option<bool>| value.map(|value| value.to_string()).unwrap_or_default();
    [
        cell.value.to_string(),
        number(cell.interval.map(|interval| interval.low)),
        number(cell.interval.map(|interval| interval.high)),
        number(cell.ratio),
        number(cell.significance.p_value()),
        word(cell.significance.is_significant()),
        cell.is_best.to_string(),
    ]
}
