//! The plot area: axes, grid, ticks and legend around whatever is drawn in it.

use crate::drawing::{Anchor, Drawing};
use crate::figure::{Figure, Table};
use crate::scale::Scale;
use crate::unit::Unit;

/// Width and height of a plot in its own unit, a pixel where it is shown in its natural size.
pub(crate) const SIZE: (f64, f64) = (680.0, 340.0);

const LEFT: f64 = 84.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 52.0;

/// Mean width of a character of a legend.
const CHARACTER: f64 = 7.8;

/// Colours of series; further ones repeat them with another pattern.
pub(crate) const COLOURS: usize = 4;
const PATTERNS: usize = 3;

/// Name and unit of an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// Name of the quantity.
    pub name: String,
    /// Unit of its values.
    pub unit: Unit,
}

impl Axis {
    /// An axis for `name` in `unit`.
    pub fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self { name: name.into(), unit }
    }

    /// The name with the unit, where ticks do not have it.
    pub(crate) fn label(&self) -> String {
        match self.unit.on_axis() {
            Some(unit) => format!("{} ({unit})", self.name),
            None => self.name.clone(),
        }
    }
}

/// Class of the series at `place`.
pub(crate) fn series(place: usize) -> String {
    // The pattern changes with the colour as well, for those who see no colours and for printers that have none.
    format!("s{} p{}", place % COLOURS, (place / COLOURS + place % COLOURS) % PATTERNS)
}

/// A plot with its axes, to draw in.
pub(crate) struct Frame {
    pub(crate) drawing: Drawing,
    x: Scale,
    y: Scale,
}

impl Frame {
    /// Axes and grid for these scales.
    pub(crate) fn new((x_axis, x): (&Axis, Scale), (y_axis, y): (&Axis, Scale)) -> Self {
        let mut frame = Self { drawing: Drawing::default(), x, y };
        let (left, right, top, bottom) = (LEFT, SIZE.0 - RIGHT, TOP, SIZE.1 - BOTTOM);
        // The grid comes first: whatever is drawn later lies over it.
        for (value, text) in ticks(y_axis.unit, &y) {
            let (_, place) = frame.at(0.0, value);
            frame.drawing.line((left, place), (right, place), "grid");
            frame.drawing.text((left - 8.0, place + 4.0), Anchor::End, "tick", &text);
        }
        for (value, text) in ticks(x_axis.unit, &x) {
            let (place, _) = frame.at(value, 0.0);
            frame.drawing.line((place, bottom), (place, bottom + 5.0), "axis");
            // The last one would be cut off by the edge.
            let anchor = if place > right - 12.0 { Anchor::End } else { Anchor::Middle };
            frame.drawing.text((place, bottom + 21.0), anchor, "tick", &text);
        }
        frame.drawing.line((left, bottom), (right, bottom), "axis");
        frame.drawing.text(((left + right) / 2.0, SIZE.1 - 8.0), Anchor::Middle, "label", &x_axis.label());
        frame.drawing.upward_text((14.0, (top + bottom) / 2.0), "label", &y_axis.label());
        frame
    }

    /// Place of a point in the drawing.
    pub(crate) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let (width, height) = (SIZE.0 - LEFT - RIGHT, SIZE.1 - TOP - BOTTOM);
        (LEFT + self.x.place(x) * width, TOP + (1.0 - self.y.place(y)) * height)
    }

    /// A line through `points`, or a disc where there is only one.
    pub(crate) fn curve(&mut self, points: &[(f64, f64)], class: &str, name: &str) {
        let places: Vec<(f64, f64)> = points.iter().map(|(x, y)| self.at(*x, *y)).collect();
        match places[..] {
            [only] => self.drawing.circle(only, 4.0, &format!("dot {class}"), name),
            _ => self.drawing.path(places.into_iter(), &format!("curve {class}")),
        }
    }

    /// Samples of the lines or dots with their names, above the plot.
    pub(crate) fn legend<'a>(&mut self, entries: impl Iterator<Item = (&'a str, String, Mark)>) {
        let mut x = LEFT;
        for (name, class, mark) in entries {
            let width = 34.0 + name.chars().count() as f64 * CHARACTER;
            if x + width > SIZE.0 && x > LEFT {
                // The table has those that there is no room for.
                break;
            }
            match mark {
                Mark::Line => self.drawing.line((x, 16.0), (x + 22.0, 16.0), &format!("curve {class}")),
                Mark::Dot => self.drawing.circle((x + 11.0, 16.0), 5.0, &format!("dot {class}"), name),
            }
            self.drawing.text((x + 28.0, 20.0), Anchor::Start, "label", name);
            x += width + 14.0;
        }
    }

    pub(crate) fn figure(self, id: &'static str, title: &str, description: String, table: Table) -> Figure {
        let shapes = self.drawing.into_text();
        Figure { id: id.to_owned(), title: title.to_owned(), description, size: SIZE, shapes, table }
    }
}

/// Form in which a series is drawn.
#[derive(Clone, Copy)]
pub(crate) enum Mark {
    Line,
    Dot,
}

fn ticks(unit: Unit, scale: &Scale) -> Vec<(f64, String)> {
    let (_, max) = scale.ends();
    let even = unit.shown(max);
    let ticks = scale.ticks(even.divisor).into_iter();
    match scale {
        Scale::Linear { .. } => ticks.map(|tick| (tick, Unit::tick(&even, tick))).collect(),
        // Over many decades each tick has a prefix of its own.
        Scale::Log { .. } => ticks.map(|tick| (tick, Unit::tick(&unit.shown(tick), tick))).collect(),
    }
}
