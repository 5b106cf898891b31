//! Alternatives by two quantities, and those of them that no other beats in both.

use crate::drawing::Anchor;
use crate::figure::{Figure, Table};
use crate::frame::{Axis, Frame, Mark};
use crate::scale::Scale;

/// Points at most, as many as a sweep may have combinations.
const MOST_POINTS: usize = 10_000;

/// Points of the front that have their name beside them; more would cover each other.
const MOST_NAMES: usize = 12;

/// Direction in which a quantity improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Less is better, as for a latency.
    Lower,
    /// More is better, as for a throughput.
    Higher,
}

impl Better {
    /// Tells that `one` is better than `other`.
    fn is_better(self, one: f64, other: f64) -> bool {
        match self {
            Better::Lower => one < other,
            Better::Higher => one > other,
        }
    }
}

/// Alternatives in two quantities.
#[derive(Clone, Debug)]
pub struct Scatter {
    /// Name of the figure in the page.
    pub id: &'static str,
    /// Title above the plot.
    pub title: &'static str,
    /// Sentence that says the same as the plot.
    pub description: String,
    /// Horizontal axis, with the direction in which it improves.
    pub x: (Axis, Better),
    /// Vertical axis, with the direction in which it improves.
    pub y: (Axis, Better),
    /// Alternatives, in any order.
    pub points: Vec<ScatterPoint>,
}

/// One alternative.
#[derive(Clone, Debug, PartialEq)]
pub struct ScatterPoint {
    /// Short name, such as a number.
    pub name: String,
    /// Longer name for the table.
    pub details: String,
    /// Value on the horizontal axis.
    pub x: f64,
    /// Value on the vertical axis.
    pub y: f64,
}

/// Places of the points that no other point beats in one quantity without being worse in the other, in the order of `x`.
pub fn pareto_front(points: &[(f64, f64)], x: Better, y: Better) -> Vec<usize> {
    let mut places: Vec<usize> =
        (0..points.len()).filter(|&place| points[place].0.is_finite() && points[place].1.is_finite()).collect();
    // The best `x` first, and of equal ones the best `y`: each further one must be better in `y` than all before it.
    let key = |value: f64, better: Better| if better == Better::Lower { value } else { -value };
    places.sort_by(|&one, &other| {
        let (one, other) = (points[one], points[other]);
        key(one.0, x).total_cmp(&key(other.0, x)).then(key(one.1, y).total_cmp(&key(other.1, y)))
    });
    let mut front: Vec<usize> = Vec::new();
    for place in places {
        let beaten = front.last().is_some_and(|&best| !y.is_better(points[place].1, points[best].1));
        // Twins of a point on the front are on it as well.
        if !beaten || front.last().is_some_and(|&best| points[best] == points[place]) {
            front.push(place);
        }
    }
    front.sort_by(|&one, &other| points[one].0.total_cmp(&points[other].0));
    front
}

impl Scatter {
    /// The figure; `None` where no point has both values.
    pub fn figure(&self) -> Option<Figure> {
        let finite = self.points.iter().filter(|point| point.x.is_finite() && point.y.is_finite());
        let points: Vec<&ScatterPoint> = finite.take(MOST_POINTS).collect();
        if points.is_empty() {
            return None;
        }
        let places: Vec<(f64, f64)> = points.iter().map(|point| (point.x, point.y)).collect();
        let front = pareto_front(&places, self.x.1, self.y.1);
        let (x, y) = (Scale::from_zero(places.iter().map(|at| at.0)), Scale::from_zero(places.iter().map(|at| at.1)));
        let mut frame = Frame::new((&self.x.0, x), (&self.y.0, y));
        let on_front: Vec<(f64, f64)> = front.iter().map(|&place| places[place]).collect();
        // Below the points, which would be hidden by it.
        if on_front.len() > 1 {
            frame.curve(&on_front, "s1 p0", "Pareto front");
        }
        let mut is_on_front = vec![false; points.len()];
        front.iter().for_each(|&place| is_on_front[place] = true);
        for ((point, at), on_front) in points.iter().zip(&places).zip(&is_on_front) {
            let class = if *on_front { "dot s1" } else { "dot s0" };
            let words = format!("{}: {}", point.name, point.details);
            let at = frame.at(at.0, at.1);
            frame.drawing.circle(at, if *on_front { 6.0 } else { 4.0 }, class, &words);
        }
        for &place in front.iter().take(MOST_NAMES) {
            let (left, top) = frame.at(places[place].0, places[place].1);
            // At the right edge the name stands on the other side of its point.
            let anchor = if left > 600.0 { Anchor::End } else { Anchor::Start };
            let shift = if left > 600.0 { -9.0 } else { 9.0 };
            frame.drawing.text((left + shift, top - 7.0), anchor, "label", &points[place].name);
        }
        let entries = [("combination", "s0", Mark::Dot), ("Pareto front", "s1", Mark::Dot)];
        frame.legend(entries.into_iter().map(|(name, class, mark)| (name, class.to_owned(), mark)));
        let row = |(place, point): (usize, &&ScatterPoint)| {
            let front = if is_on_front[place] { "yes" } else { "" };
            let (x, y) = (self.x.0.unit.text(point.x), self.y.0.unit.text(point.y));
            vec![point.name.clone(), point.details.clone(), x, y, front.to_owned()]
        };
        let head = ["number", "settings", &self.x.0.name, &self.y.0.name, "on the front"].map(str::to_owned).to_vec();
        let table = Table { head, rows: points.iter().enumerate().map(row).collect() };
        Some(frame.figure(self.id, self.title, self.description.clone(), table))
    }
}
