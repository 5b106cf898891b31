//! The page of a comparison: differences and figures of all runs in tables, then the plots of each run.

use std::fmt::Write;

use flashjob_charts::{Figure, escape};
use flashjob_compare::{Comparison, Grid, GridCell, Rank, difference_grid, figure_grid, one_line, run_lines};
use flashjob_timeline::figures;

use crate::latencies::latency_plot;
use crate::page::{document, note, plots, section};
use crate::run::Run;
use crate::run_page::notes;

/// The page of `comparison`, whose runs are `runs`, in its order.
pub fn comparison_page(comparison: &Comparison, runs: &[Run]) -> String {
    let names: Vec<&str> = comparison.runs.iter().map(|run| run.short_name.as_str()).collect();
    let header = format!("<h1>Comparison of {} runs</h1>\n", comparison.runs.len());
    let mut main = section("Runs", "runs", &run_list(comparison));
    let differences = match comparison.differences.is_empty() {
        true => "<p>Settings, engine and machine do not differ.</p>\n".to_owned(),
        false => table("Settings, engine and machine", &difference_grid(comparison)),
    };
    main += &section("Differences", "differences", &differences);
    let all = table("Figures with their ratio to the first run", &figure_grid(comparison, Rank::Detail));
    let legend = "<p class=\"about\">The best value is bold and marked with ★; × is the ratio to the first run; ↑ higher is better, \
                  ↓ lower is better.</p>\n";
    main += &section("Figures", "figures", &(all + legend));
    main += &section("Notes", "notes", &comparison.notes.iter().map(|text| note(&one_line(text))).collect::<String>());
    for (number, (run, name)) in (1..).zip(runs.iter().zip(&names)) {
        // Identifiers are those of one page.
        let group = format!("run-{number}");
        let over_time = run.timeline.as_ref().map(figures).unwrap_or_default();
        let shown: Vec<Figure> =
            over_time.into_iter().chain(latency_plot(run)).map(|figure| figure.within(&group)).collect();
        main += &section(name, &group, &(notes(run) + &plots(&shown)));
    }
    document(&format!("Comparison of {}", one_line(&names.join(", "))), &header, &main)
}

fn run_list(comparison: &Comparison) -> String {
    let mut html = String::from("<ul>\n");
    for (place, line) in run_lines(comparison).iter().enumerate() {
        let is_marked = comparison.incomparable.iter().any(|found| found.run == place);
        let class = if is_marked { " class=\"note\"" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(html, "<li{class}>{}</li>", escape(&one_line(line)));
    }
    html + "</ul>\n"
}

fn table(caption: &str, grid: &Grid) -> String {
    let heading = grid.heading.iter().enumerate().map(|(column, heading)| {
        let class = if grid.is_numeric && column >= grid.named { " class=\"number\"" } else { "" };
        format!("<th scope=\"col\"{class}>{}</th>", escape(&one_line(heading)))
    });
    // A wide table scrolls by itself, also by keyboard, and not the page.
    let mut html = format!(
        "<div class=\"table\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table>\n<caption>{0}</caption>\n\
         <thead><tr>{1}</tr></thead>\n<tbody>\n",
        escape(caption),
        heading.collect::<String>()
    );
    for row in &grid.rows {
        let cells = row.iter().enumerate().map(|(column, cell)| table_cell(grid, column, cell));
        let _ = writeln!(html, "<tr>{}</tr>", cells.collect::<String>());
    }
    html + "</tbody></table></div>\n"
}

fn table_cell(grid: &Grid, column: usize, cell: &GridCell) -> String {
    let text = escape(&one_line(&cell.text));
    match (column + 1).cmp(&grid.named) {
        std::cmp::Ordering::Less => format!("<td>{text}</td>"),
        std::cmp::Ordering::Equal => format!("<th scope=\"row\">{text}</th>"),
        std::cmp::Ordering::Greater if cell.is_best => format!("<td class=\"number best\">★ {text}</td>"),
        std::cmp::Ordering::Greater if grid.is_numeric => format!("<td class=\"number\">{text}</td>"),
        std::cmp::Ordering::Greater => format!("<td>{text}</td>"),
    }
}
