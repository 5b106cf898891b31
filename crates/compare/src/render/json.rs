//! One JSON document with everything that a comparison holds.

use std::io;

use flashjob_results::{Better, CONFIDENCE, ConfidenceInterval};
use serde::Serialize;

use super::super::comparability::Incomparable;
use super::super::comparison::{Cell, Comparison, FigureRow};
use super::super::difference::Difference;

/// Raised when a key changes its meaning.
const SCHEMA_VERSION: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    confidence: f64,
    runs: Vec<Heading<'a>>,
    not_comparable: &'a [Incomparable],
    differences: &'a [Difference],
    figures: Vec<Row<'a>>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct Heading<'a> {
    name: &'a str,
    regions: usize,
    baseline: bool,
}

#[derive(Serialize)]
struct Row<'a> {
    key: &'a str,
    label: &'a str,
    unit: &'a str,
    better: Option<&'static str>,
    runs: Vec<Option<Value>>,
}

#[derive(Serialize)]
struct Value {
    value: f64,
    interval: Option<ConfidenceInterval>,
    ratio: Option<f64>,
    p_value: Option<f64>,
    significant: Option<bool>,
    best: bool,
}

impl From<&Cell> for Value {
    fn from(cell: &Cell) -> Self {
        Self {
            value: cell.value,
            interval: cell.interval,
            ratio: cell.ratio,
            p_value: cell.significance.p_value(),
            significant: cell.significance.is_significant(),
            best: cell.is_best,
        }
    }
}

fn row(row: &FigureRow) -> Row<'_> {
    Row {
        key: &row.key,
        label: &row.figure.label,
        unit: row.figure.unit,
        better: row.figure.better.map(|better| match better {
            Better::Higher => "higher",
            Better::Lower => "lower",
        }),
        runs: row.cells.iter().map(|cell| cell.as_ref().map(Value::from)).collect(),
    }
}

/// The document, indented.
pub(super) fn render(comparison: &Comparison) -> io::Result<String> {
    let headings = comparison.runs.iter().enumerate();
    let document = Document {
        schema_version: SCHEMA_VERSION,
        confidence: CONFIDENCE,
        runs: headings
            .map(|(place, run)| Heading { name: &run.name, regions: run.regions, baseline: place == 0 })
            .collect(),
        not_comparable: &comparison.incomparable,
        differences: &comparison.differences,
        figures: comparison.figures.iter().map(row).collect(),
        notes: &comparison.notes,
    };
    let text = serde_json::to_string_pretty(&document)?;
    Ok(text + "\n")
}
