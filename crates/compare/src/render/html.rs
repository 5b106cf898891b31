//! One page that needs no network and no script: tables in light and dark, fit for a printer and a screen reader.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::super::comparison::Comparison;
use super::super::figures::Rank;
use super::texts::{self, Grid, GridCell, one_line};

/// Colours have a contrast of at least 4.5 on their background in both schemes.
const STYLE: &str = "
:root { color-scheme: light dark; --text: #1f2328; --back: #ffffff; --line: #d0d7de; --best: #116329; --warn: #9a3412; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --back: #0d1117; --line: #3d444d; --best: #56d364; --warn: #ffa657; }
}
@media print { :root { --text: #000000; --back: #ffffff; --line: #999999; --best: #000000; --warn: #000000; } }
body { color: var(--text); background: var(--back); font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0.4rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: 0.3rem 0.8rem; text-align: left; vertical-align: top; }
.number { text-align: right; }
td.number { white-space: nowrap; }
td.best { color: var(--best); font-weight: 700; }
.warn { color: var(--warn); }
";

/// The whole page.
pub(super) fn render(comparison: &Comparison) -> String {
    let names: Vec<String> = comparison.runs.iter().map(|run| one_line(&run.short_name)).collect();
    // Texts in braces are escaped by maud; the style is the one part that is not.
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                // Nothing is fetched and nothing runs, whatever a result holds.
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { "Comparison of " (names.join(", ")) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Comparison of " (comparison.runs.len()) " runs" }
                h2 { "Runs" }
                ul {
                    @for (place, run) in texts::runs(comparison).iter().enumerate() {
                        @let is_marked = comparison.incomparable.iter().any(|found| found.run == place);
                        li class=[is_marked.then_some("warn")] { (one_line(run)) }
                    }
                }
                h2 { "Differences" }
                @if comparison.differences.is_empty() {
                    p { "Settings, engine and machine do not differ." }
                } @else {
                    (table("Settings, engine and machine", &texts::differences(comparison)))
                }
                h2 { "Figures" }
                (table("Figures with their ratio to the first run", &texts::figures(comparison, Rank::Detail)))
                p { "The best value is bold and marked with ★; × is the ratio to the first run; ↑ higher is better, ↓ lower is better." }
                @if !comparison.notes.is_empty() {
                    h2 { "Notes" }
                    ul { @for note in &comparison.notes { li { (one_line(note)) } } }
                }
            }
        }
    };
    page.into_string()
}

fn table(caption: &str, grid: &Grid) -> Markup {
    html! {
        // A wide table scrolls by itself, also by keyboard, and not the page.
        div class="scroll" tabindex="0" role="region" aria-label=(caption) {
            table {
                caption { (caption) }
                thead {
                    tr {
                        @for (column, heading) in grid.heading.iter().enumerate() {
                            @let is_number = grid.is_numeric && column >= grid.named;
                            th scope="col" class=[is_number.then_some("number")] { (one_line(heading)) }
                        }
                    }
                }
                tbody {
                    @for row in &grid.rows {
                        tr {
                            @for (column, cell) in row.iter().enumerate() {
                                @if column + 1 == grid.named {
                                    th scope="row" { (one_line(&cell.text)) }
                                } @else if column < grid.named {
                                    td { (one_line(&cell.text)) }
                                } @else {
                                    td class=(class(grid, cell)) {
                                        @if cell.is_best { "★ " }
                                        (one_line(&cell.text))
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn class(grid: &Grid, cell: &GridCell) -> &'static str {
    match (grid.is_numeric, cell.is_best) {
        (true, true) => "number best",
        (true, false) => "number",
        (false, _) => "",
    }
}
