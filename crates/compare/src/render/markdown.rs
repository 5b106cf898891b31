//! Tables of GitHub's Markdown.

use super::super::comparison::Comparison;
use super::super::figures::Rank;
use super::super::texts::{self, Grid, one_line};

/// Runs, differences, figures and notes, each under a heading.
pub(super) fn render(comparison: &Comparison) -> String {
    let mut text = "## Runs\n\n".to_owned();
    texts::run_lines(comparison).iter().for_each(|run| text.push_str(&format!("- {}\n", escaped(run))));
    text.push_str("\n## Differences\n\n");
    match comparison.differences.is_empty() {
        true => text.push_str("Settings, engine and machine do not differ.\n"),
        false => table(&mut text, &texts::difference_grid(comparison)),
    }
    text.push_str("\n## Figures\n\n");
    table(&mut text, &texts::figure_grid(comparison, Rank::Main));
    text.push_str(
        "\nThe best value is bold; × is the ratio to the first run; ↑ higher is better, ↓ lower is better.\n",
    );
    comparison.notes.iter().for_each(|note| text.push_str(&format!("\n- {}", escaped(note))));
    text.push('\n');
    text
}

fn table(text: &mut String, grid: &Grid) {
    let mut line = |cells: Vec<String>| text.push_str(&format!("| {} |\n", cells.join(" | ")));
    line(grid.heading.iter().map(|heading| escaped(heading)).collect());
    let rule = |column: usize| if grid.is_numeric && column >= grid.named { "---:" } else { "---" };
    line((0..grid.heading.len()).map(|column| rule(column).to_owned()).collect());
    for row in &grid.rows {
        let bold = |text: String, is_best| if is_best { format!("**{text}**") } else { text };
        line(row.iter().map(|cell| bold(escaped(&cell.text), cell.is_best)).collect());
    }
}

/// `text` without a character that Markdown or HTML would act on.
fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in one_line(text).chars() {
        match character {
            '<' => shown.push_str("&lt;"),
            '>' => shown.push_str("&gt;"),
            '&' => shown.push_str("&amp;"),
            '\\' | '|' | '*' | '_' | '`' | '[' | ']' | '#' | '~' => shown.extend(['\\', character]),
            _ => shown.push(character),
        }
    }
    shown
}
