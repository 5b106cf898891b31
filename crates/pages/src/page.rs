//! Shell of a page, and the pieces that pages share.

use std::fmt::Write;

use flashjob_charts::{Figure, STYLE, Unit, escape};

use crate::units::named;

/// Nothing is loaded and nothing runs, whatever a value might smuggle in.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'";

/// Beginning of each page: what has another beginning was written by something else.
pub const MARK: &str = "<!DOCTYPE html>\n<!-- a report of flashjob -->\n";

/// A whole document.
pub(crate) fn document(title: &str, header: &str, main: &str) -> String {
    let title = escape(title);
    format!(
        "{MARK}<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header>\n{header}</header>\n<main>\n{main}</main>\n\
         <footer><p class=\"facts\">Written by flashjob. This page loads nothing and runs nothing.</p></footer>\n</body>\n</html>\n"
    )
}

/// A section under a heading; nothing where it is empty.
pub(crate) fn section(heading: &str, id: &str, content: &str) -> String {
    match content.is_empty() {
        true => String::new(),
        false => format!("<section id=\"{id}\">\n<h2>{}</h2>\n{content}</section>\n", escape(heading)),
    }
}

/// A remark in a box.
pub(crate) fn note(text: &str) -> String {
    format!("<p class=\"note\">{}</p>\n", escape(text))
}

/// Figures beside each other.
pub(crate) fn plots<'a>(figures: impl IntoIterator<Item = &'a Figure>) -> String {
    let all: String = figures.into_iter().map(Figure::to_html).collect();
    match all.is_empty() {
        true => all,
        false => format!("<div class=\"plots\">\n{all}</div>\n"),
    }
}

/// `value` for people, with the exact one for programs.
pub(crate) fn value(key: &str, unit: Unit, value: f64) -> String {
    format!("<data data-key=\"{}\" value=\"{value}\">{}</data>", escape(key), escape(&unit.text(value)))
}

/// `value` with its unit in small letters.
pub(crate) fn large_value(key: &str, unit: Unit, value: f64) -> String {
    // The unit is separated by a space that does not break.
    let text = unit.text(value);
    let (number, unit) = text.split_once('\u{a0}').unwrap_or((&text, ""));
    format!(
        "<data data-key=\"{}\" value=\"{value}\">{}</data> <small>{}</small>",
        escape(key),
        escape(number),
        escape(unit)
    )
}

/// Large figures in a row.
pub(crate) fn tiles(tiles: &[(String, String)]) -> String {
    let mut html = String::from("<dl class=\"tiles\">\n");
    for (name, value) in tiles {
        // Writing to a String cannot fail.
        let _ = writeln!(html, "<div class=\"tile\"><dt>{}</dt><dd>{value}</dd></div>", escape(name));
    }
    html.push_str("</dl>\n");
    html
}

/// A table of names and cells that are HTML already.
pub(crate) fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut html = String::from("<div class=\"table\"><table>\n<thead><tr>");
    for name in head {
        let _ = write!(html, "<th scope=\"col\">{}</th>", escape(name));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    // Known at the end only: rows come from an iterator.
    let mut is_empty = true;
    for row in rows {
        is_empty = false;
        let _ = writeln!(html, "<tr>{}</tr>", row.iter().map(|cell| format!("<td>{cell}</td>")).collect::<String>());
    }
    html.push_str("</tbody></table></div>\n");
    if is_empty { String::new() } else { html }
}

/// Figures with name and unit, a row each.
pub(crate) fn figure_table<'a>(figures: impl Iterator<Item = (&'a str, f64)>) -> String {
    let rows = figures.map(|(key, number)| {
        let (name, unit) = named(key);
        vec![escape(&name), value(key, unit, number), format!("<code>{}</code>", escape(key))]
    });
    table(&["figure", "value", "key in result.json"], rows)
}

/// Names and values, a row each.
pub(crate) fn pairs(head: [&str; 2], pairs: impl Iterator<Item = (String, String)>) -> String {
    table(&head, pairs.map(|(name, value)| vec![escape(&name), escape(&value)]))
}
