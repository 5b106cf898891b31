//! Parts of a whole, as bars beside each other.

use crate::drawing::{Anchor, Drawing};
use crate::figure::{Figure, Table};
use crate::frame::{Axis, SIZE};
use crate::scale::Scale;

/// Bars of a plot at most.
const MOST: usize = 40;

const LEFT: f64 = 120.0;
/// Room for the value behind the longest bar.
const RIGHT: f64 = 100.0;
const ROW: f64 = 30.0;

/// Values by name.
#[derive(Clone, Debug)]
pub struct Bars {
    /// Name of the figure in the page.
    pub id: &'static str,
    /// Title above the plot.
    pub title: &'static str,
    /// Sentence that says the same as the plot.
    pub description: String,
    /// Quantity of the bars.
    pub quantity: Axis,
    /// Names and values, from the top, 40 at most.
    pub bars: Vec<(String, f64)>,
}

impl Bars {
    /// The figure; `None` where no bar has a value.
    pub fn figure(&self) -> Option<Figure> {
        let finite = self.bars.iter().filter(|(_, value)| value.is_finite() && *value >= 0.0);
        let bars: Vec<&(String, f64)> = finite.take(MOST).collect();
        if bars.is_empty() {
            return None;
        }
        // To the very end: a bar has its value behind it, so that no round number is needed.
        let scale = Scale::over(bars.iter().map(|(_, value)| *value));
        let mut drawing = Drawing::default();
        for (place, (name, value)) in bars.iter().enumerate() {
            let y = 4.0 + place as f64 * ROW;
            let (length, text) = (scale.place(*value) * (SIZE.0 - LEFT - RIGHT), self.quantity.unit.text(*value));
            drawing.text((LEFT - 10.0, y + 17.0), Anchor::End, "label", name);
            // A phase of no time at all is there, too.
            drawing.rectangle((LEFT, y + 3.0), (length.max(1.0), ROW - 10.0), "bar", &format!("{name}: {text}"));
            drawing.text((LEFT + length + 8.0, y + 17.0), Anchor::Start, "label", &text);
        }
        let head = vec!["name".to_owned(), self.quantity.label()];
        let rows = bars.iter().map(|(name, value)| vec![name.clone(), self.quantity.unit.text(*value)]).collect();
        Some(Figure {
            id: self.id.to_owned(),
            title: self.title.to_owned(),
            description: self.description.clone(),
            size: (SIZE.0, 8.0 + bars.len() as f64 * ROW),
            shapes: drawing.into_text(),
            table: Table { head, rows },
        })
    }
}
