//! Cells and headings as words, the same in tables, Markdown and HTML.

use flashjob_results::Better;

use super::comparison::{Cell, Comparison, FigureRow, Significance};
use super::figures::Rank;

/// A value that a run does not have.
const MISSING: &str = "–";

/// Significant digits of a value.
const DIGITS: i32 = 4;

/// A grid of texts with headings, the first column of which names the rows.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Names of the columns.
    pub heading: Vec<String>,
    /// Each with a cell for each column.
    pub rows: Vec<Vec<GridCell>>,
    /// Columns at the beginning that say what a row is of.
    pub named: usize,
    /// The other columns hold numbers.
    pub is_numeric: bool,
}

/// Text of one cell.
#[derive(Clone, Debug)]
pub struct GridCell {
    /// Not escaped for any format.
    pub text: String,
    /// The best value of its row, or of its column where runs are rows.
    pub is_best: bool,
}

impl GridCell {
    fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_best: false }
    }
}

/// Runs side by side at most; of more, each is a row.
const MOST_COLUMNS: usize = 5;

/// The figures of `comparison` up to `rank` as a grid. Many runs become rows, with the headlines as columns.
pub fn figure_grid(comparison: &Comparison, rank: Rank) -> Grid {
    let names = comparison.runs.iter().map(|run| run.short_name.clone());
    if comparison.runs.len() <= MOST_COLUMNS {
        let heading = std::iter::once("figure".to_owned()).chain(names).collect();
        let rows = comparison.figures.iter().filter(|row| row.rank <= rank).map(|row| {
            let scale = Scale::of(row);
            let cells = row.cells.iter().map(|cell| figure(cell.as_ref(), scale));
            std::iter::once(GridCell::plain(label(row, scale))).chain(cells).collect()
        });
        return Grid { heading, rows: rows.collect(), named: 1, is_numeric: true };
    }
    let shown: Vec<(&FigureRow, Scale)> =
        comparison.figures.iter().filter(|row| row.rank == Rank::Headline).map(|row| (row, Scale::of(row))).collect();
    let heading = std::iter::once("run".to_owned()).chain(shown.iter().map(|(row, scale)| label(row, *scale)));
    let rows = names.enumerate().map(|(place, name)| {
        let cells = shown.iter().map(|(row, scale)| figure(row.cells[place].as_ref(), *scale));
        std::iter::once(GridCell::plain(name)).chain(cells).collect()
    });
    Grid { heading: heading.collect(), rows: rows.collect(), named: 1, is_numeric: true }
}

/// Everything that may explain different figures, as a grid. Many runs become rows.
pub fn difference_grid(comparison: &Comparison) -> Grid {
    let names = comparison.runs.iter().map(|run| run.short_name.clone());
    let value = |value: &Option<String>| GridCell::plain(value.as_deref().unwrap_or(MISSING));
    let differences = &comparison.differences;
    if comparison.runs.len() <= MOST_COLUMNS {
        let heading = ["subject".to_owned(), "difference".to_owned()].into_iter().chain(names).collect();
        let mut before = None;
        let rows = differences.iter().map(|difference| {
            // The subject stands beside the first of its rows.
            let subject = if before.replace(difference.subject) == Some(difference.subject) {
                ""
            } else {
                difference.subject.name()
            };
            let head = [GridCell::plain(subject), GridCell::plain(&difference.key)];
            head.into_iter().chain(difference.values.iter().map(value)).collect()
        });
        return Grid { heading, rows: rows.collect(), named: 2, is_numeric: false };
    }
    let heading = std::iter::once("run".to_owned()).chain(differences.iter().map(|difference| difference.key.clone()));
    let rows = names.enumerate().map(|(place, name)| {
        let cells = differences.iter().map(|difference| value(&difference.values[place]));
        std::iter::once(GridCell::plain(name)).chain(cells).collect()
    });
    Grid { heading: heading.collect(), rows: rows.collect(), named: 1, is_numeric: false }
}

/// Names of the runs with their columns, and what is marked about them.
pub fn run_lines(comparison: &Comparison) -> Vec<String> {
    let lines = comparison.runs.iter().enumerate().map(|(place, run)| {
        let baseline = if place == 0 { ", the baseline" } else { "" };
        let regions = match run.regions {
            0 => "nothing measured".to_owned(),
            1 => "1 region".to_owned(),
            regions => format!("{regions} regions"),
        };
        let marked = comparison.incomparable.iter().find(|found| found.run == place);
        let marked = marked.map(|found| format!("; NOT COMPARABLE: {}", found.reasons.join(", "))).unwrap_or_default();
        format!("{}: {} ({regions}{baseline}){marked}", run.short_name, run.name)
    });
    lines.collect()
}

/// Name of a row, with its unit and the direction in which it is better.
fn label(row: &FigureRow, scale: Scale) -> String {
    let direction = match row.figure.better {
        Some(Better::Higher) => " ↑",
        Some(Better::Lower) => " ↓",
        None => "",
    };
    match scale.unit {
        "" => format!("{}{direction}", row.figure.label),
        unit => format!("{} ({}{unit}){direction}", row.figure.label, scale.prefix),
    }
}

fn figure(cell: Option<&Cell>, scale: Scale) -> GridCell {
    let Some(cell) = cell else { return GridCell::plain(MISSING) };
    let mut text = number(cell.value * scale.factor);
    if let Some(interval) = cell.interval {
        text.push_str(&format!(" ± {}", two_digits(interval.half_width * scale.factor)));
    }
    if let (Some(ratio), false) = (cell.ratio, cell.significance == Significance::Baseline) {
        text.push_str(&format!("  {ratio:.3}×"));
        match cell.significance {
            Significance::PValue(p) if cell.significance.is_significant() == Some(true) => {
                text.push_str(&format!(" p {}", p_value(p)));
            }
            Significance::PValue(p) => text.push_str(&format!(" n. s., p {}", p_value(p))),
            Significance::Baseline | Significance::Unknown => {}
        }
    }
    GridCell { text, is_best: cell.is_best }
}

fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".to_owned() } else { format!("{p:.3}") }
}

/// Factor and unit in which all values of a row are shown.
#[derive(Clone, Copy)]
struct Scale {
    factor: f64,
    prefix: &'static str,
    unit: &'static str,
}

impl Scale {
    /// A scale in which the largest value of `row` has few digits before the point.
    fn of(row: &FigureRow) -> Self {
        let largest = row.cells.iter().flatten().map(|cell| cell.value.abs()).fold(0.0, f64::max);
        let steps: &[(f64, &str)] = match row.figure.unit {
            "s" => &[(1.0, ""), (1e-3, "m"), (1e-6, "µ")],
            "FLOP/s" | "B/s" | "J" => &[(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")],
            _ => &[],
        };
        // One scale for a row: values in different units cannot be compared at a glance.
        let step = steps.iter().find(|(step, _)| largest >= *step);
        let (step, prefix) = step.filter(|_| largest > 0.0).copied().unwrap_or((1.0, ""));
        Self { factor: 1.0 / step, prefix, unit: row.figure.unit }
    }
}

/// `value` with four significant digits, and all digits before the point.
fn number(value: f64) -> String {
    rounded(value, DIGITS)
}

fn two_digits(value: f64) -> String {
    rounded(value, 2)
}

fn rounded(value: f64, digits: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    // Counts are shown whole: zeros behind the point would make measurements of them.
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    let magnitude = value.abs().log10().floor() as i32;
    let decimals = usize::try_from(digits - 1 - magnitude).unwrap_or(0).min(12);
    format!("{value:.decimals$}")
}

/// `text` on one line: files and servers may hold anything.
pub fn one_line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_as_many_digits_as_mean_something() {
        for (value, text) in [
            (0.0, "0"),
            (305.248, "305.2"),
            (30524.8, "30525"),
            (0.00123456, "0.001235"),
            (16.0, "16"),
            (2048.0, "2048"),
            (-1.5, "-1.500"),
            (1e-20, "0.000000000000"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!((two_digits(3.07159), two_digits(123.4)), ("3.1".to_owned(), "123".to_owned()));
        assert_eq!((p_value(0.0004), p_value(0.0449)), ("< 0.001".to_owned(), "0.045".to_owned()));
    }

    #[test]
    fn a_line_break_in_a_value_begins_no_line() {
        assert_eq!(one_line("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
    }
}
