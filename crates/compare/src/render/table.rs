//! Aligned columns for a terminal.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

use super::super::comparison::Comparison;
use super::super::figures::Rank;
use super::super::texts::{self, Grid, one_line};

/// A rule below the headings and nothing else.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// Runs, differences, figures and notes, each under a heading.
pub(super) fn render(comparison: &Comparison, width: Option<u16>) -> String {
    let mut text = String::new();
    let mut line = |words: &str| {
        text.push_str(words);
        text.push('\n');
    };
    line("runs");
    texts::run_lines(comparison).iter().for_each(|run| line(&format!("  {}", one_line(run))));
    line("");
    match comparison.differences.is_empty() {
        true => line("settings, engine and machine do not differ"),
        false => line(&table(&texts::difference_grid(comparison), width)),
    }
    line("");
    line(&table(&texts::figure_grid(comparison, Rank::Main), width));
    line("* best value; × is the ratio to the first run; ↑ higher is better, ↓ lower is better");
    comparison.notes.iter().for_each(|note| line(&one_line(note)));
    text
}

/// `grid` in columns.
fn table(grid: &Grid, width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(STYLE).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = width {
        table.set_width(width);
    }
    table.set_header(grid.heading.iter().map(|heading| one_line(heading)));
    for row in &grid.rows {
        // A mark that stays where colours and fonts do not: in a log, in a mail.
        table.add_row(
            row.iter().map(|cell| format!("{}{}", if cell.is_best { "* " } else { "" }, one_line(&cell.text))),
        );
    }
    if grid.is_numeric {
        table.column_iter_mut().skip(grid.named).for_each(|column| {
            column.set_cell_alignment(CellAlignment::Right);
        });
    }
    table.to_string()
}
