//! A comparison as text: a table for a terminal, Markdown, CSV or JSON.

mod csv_lines;
mod json;
mod markdown;
mod table;

use std::io;

use super::comparison::Comparison;

/// Format of a comparison's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns for a terminal.
    Table,
    /// Tables of GitHub's Markdown.
    Markdown,
    /// A line for each value, with all figures.
    Csv,
    /// One document, with all figures.
    Json,
}

/// The text of `comparison` in `format`, for a terminal of `width` characters where there is one.
///
/// # Errors
/// As the writers of CSV and JSON say; writing to memory, none is known.
pub fn render(comparison: &Comparison, format: Format, width: Option<u16>) -> io::Result<String> {
    match format {
        Format::Table => Ok(table::render(comparison, width)),
        Format::Markdown => Ok(markdown::render(comparison)),
        Format::Csv => csv_lines::render(comparison),
        Format::Json => json::render(comparison),
    }
}
