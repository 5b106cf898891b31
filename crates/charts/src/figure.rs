//! A plot with its title, its description and the table of its data.

use std::fmt::Write;

use crate::escape;

/// Rows of a table at most; of longer ones every so many are shown.
const MOST_ROWS: usize = 120;

/// A finished figure.
#[derive(Clone, Debug)]
pub struct Figure {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) description: String,
    /// Width and height of the drawing in its own unit.
    pub(crate) size: (f64, f64),
    /// Shapes of the drawing.
    pub(crate) shapes: String,
    pub(crate) table: Table,
}

/// Rows of text under a head.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// Names of the columns.
    pub(crate) head: Vec<String>,
    /// Rows as long as the head.
    pub(crate) rows: Vec<Vec<String>>,
}

impl Figure {
    /// Name of the figure in its page.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The same figure in a group of its own, where a page has several of one name.
    #[must_use]
    pub fn within(self, group: &str) -> Self {
        Self { id: format!("{group}-{}", self.id), ..self }
    }

    /// The figure as HTML; its `id` must be the only one of the page.
    pub fn to_html(&self) -> String {
        // The description stands below the plot, too: titles within an SVG are for programs that read pages aloud.
        let (id, Self { size: (width, height), shapes, .. }) = (escape(&self.id), self);
        let (title, description) = (escape(&self.title), escape(&self.description));
        format!(
            "<figure class=\"plot\" id=\"{id}\">\n<figcaption>{title}</figcaption>\n\
             <svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
             <title id=\"{id}-t\">{title}</title><desc id=\"{id}-d\">{description}</desc>{shapes}</svg>\n\
             <p class=\"about\">{description}</p>\n\
             <details><summary>Data of this plot</summary>\n{}</details>\n</figure>\n",
            self.table.to_html()
        )
    }
}

impl Table {
    /// The table as HTML, at most 120 of its rows, evenly chosen.
    pub fn to_html(&self) -> String {
        let mut html = String::from("<div class=\"scroll\"><table>\n<thead><tr>");
        // Writing to a String cannot fail.
        for name in &self.head {
            let _ = write!(html, "<th scope=\"col\">{}</th>", escape(name));
        }
        html.push_str("</tr></thead>\n<tbody>\n");
        // Evenly chosen rows say more of a run than its first ones.
        let every = self.rows.len().div_ceil(MOST_ROWS).max(1);
        for row in self.rows.iter().step_by(every) {
            html.push_str("<tr>");
            for cell in row {
                let _ = write!(html, "<td>{}</td>", escape(cell));
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody></table></div>\n");
        if every > 1 {
            let _ = writeln!(html, "<p class=\"about\">One row of {every} is shown.</p>");
        }
        html
    }
}
