//! Shapes of an SVG, written as text. Classes carry the colours: no shape has a style of its own, so that pages can forbid
//! inline styles.

use std::fmt::Write;

use crate::escape;

/// Shapes in the order in which they are drawn.
#[derive(Default)]
pub(crate) struct Drawing(String);

/// Horizontal alignment of a text at its place.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Drawing {
    pub(crate) fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str) {
        self.write(format_args!(r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#));
    }

    /// A line through `points`.
    pub(crate) fn path(&mut self, points: impl Iterator<Item = (f64, f64)>, class: &str) {
        let mut data = String::new();
        for (place, (x, y)) in points.enumerate() {
            // Writing to a String cannot fail.
            let _ = write!(data, "{}{x:.1} {y:.1}", if place == 0 { "M" } else { "L" });
        }
        self.write(format_args!(r#"<path d="{data}" class="{class}"/>"#));
    }

    /// A disc; `words` are shown where a pointer rests on it.
    pub(crate) fn circle(&mut self, (x, y): (f64, f64), radius: f64, class: &str, words: &str) {
        // A title of its own: browsers show the one of the whole figure otherwise.
        let words = escape(words);
        self.write(format_args!(
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius:.1}" class="{class}"><title>{words}</title></circle>"#
        ));
    }

    pub(crate) fn rectangle(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), class: &str, words: &str) {
        let words = escape(words);
        self.write(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" class="{class}"><title>{words}</title></rect>"#
        ));
    }

    pub(crate) fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, class: &str, words: &str) {
        self.write_text((x, y), anchor, class, words, "");
    }

    /// A text that runs upwards.
    pub(crate) fn upward_text(&mut self, (x, y): (f64, f64), class: &str, words: &str) {
        self.write_text((x, y), Anchor::Middle, class, words, &format!(r#" transform="rotate(-90 {x:.1} {y:.1})""#));
    }

    fn write_text(&mut self, (x, y): (f64, f64), anchor: Anchor, class: &str, words: &str, turned: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let words = escape(words);
        self.write(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}"{turned}>{words}</text>"#
        ));
    }

    // Writing to a String cannot fail.
    fn write(&mut self, shape: std::fmt::Arguments<'_>) {
        let _ = self.0.write_fmt(shape);
    }

    pub(crate) fn into_text(self) -> String {
        self.0
    }
}
