//! Steps beside the limits of the machine (Williams et al., 2009), both axes logarithmic.

use crate::figure::{Figure, Table};
use crate::frame::{Axis, Frame, Mark, series};
use crate::scale::Scale;
use crate::unit::{Unit, number};

/// Points of a group at most; callers put steps of one kind together.
const MOST_POINTS: usize = 300;

/// Radius of the smallest point, and what the largest has more.
const RADIUS: (f64, f64) = (3.0, 9.0);

/// Steps by intensity and rate under the roof of the machine.
#[derive(Clone, Debug)]
pub struct RooflineChart {
    /// Name of the figure in the page.
    pub id: &'static str,
    /// Title above the plot.
    pub title: &'static str,
    /// Sentence that says the same as the plot.
    pub description: String,
    /// Limits of the machine; `None` where they were not measured.
    pub roof: Option<Roof>,
    /// Kinds of steps.
    pub groups: Vec<StepGroup>,
}

/// Limits of a machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roof {
    /// Floating-point operations per second.
    pub flops_per_second: f64,
    /// Bytes per second between memory and processors.
    pub bytes_per_second: f64,
}

/// Steps of one kind, such as prefill.
#[derive(Clone, Debug)]
pub struct StepGroup {
    /// Name in the legend.
    pub name: &'static str,
    /// Steps, each point for one or several alike.
    pub points: Vec<StepPoint>,
}

/// Steps that are alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepPoint {
    /// Number of steps.
    pub steps: u64,
    /// Operations of all of them.
    pub flops: f64,
    /// Bytes of all of them.
    pub bytes: f64,
    /// Duration of all of them.
    pub seconds: f64,
}

impl StepPoint {
    /// Operations per byte.
    pub fn intensity(&self) -> f64 {
        self.flops / self.bytes
    }

    /// Operations per second.
    pub fn flops_per_second(&self) -> f64 {
        self.flops / self.seconds
    }
}

impl Roof {
    /// Rate of operations that the machine can reach at `intensity`.
    pub fn at(&self, intensity: f64) -> f64 {
        self.flops_per_second.min(intensity * self.bytes_per_second)
    }

    /// Intensity from which operations are the limit rather than bytes.
    pub fn ridge(&self) -> f64 {
        self.flops_per_second / self.bytes_per_second
    }
}

impl RooflineChart {
    /// The figure; `None` where no step has operations, bytes and time.
    pub fn figure(&self) -> Option<Figure> {
        let plotted = |point: &&StepPoint| point.flops > 0.0 && point.bytes > 0.0 && point.seconds > 0.0;
        let points = || self.groups.iter().flat_map(move |group| group.points.iter().filter(plotted).take(MOST_POINTS));
        points().next()?;
        let roof = self.roof.filter(|roof| roof.flops_per_second > 0.0 && roof.bytes_per_second > 0.0);
        let ridge = roof.map(|roof| roof.ridge());
        let x = Scale::log(points().map(StepPoint::intensity).chain(ridge))?;
        let (left, right) = x.ends();
        // The roof at the right end is the highest that a point can be, and at the left end a low one.
        let of_roof = roof.iter().flat_map(|roof| [left, right].map(|intensity| roof.at(intensity)));
        let y = Scale::log(points().map(StepPoint::flops_per_second).chain(of_roof))?;
        let intensity = Axis::new("operations per byte", Unit::Count("FLOP/byte"));
        let rate = Axis::new("operations per second", Unit::Symbol("FLOP/s"));
        let mut frame = Frame::new((&intensity, x), (&rate, y));
        if let (Some(roof), Some(ridge)) = (roof, ridge) {
            // The ridge may lie outside of the picture; then the roof is one straight line.
            let corners = [left, ridge.clamp(left, right), right].map(|intensity| (intensity, roof.at(intensity)));
            frame.curve(&corners, "roof", "limit of the machine");
        }
        let longest = points().map(|point| point.seconds).fold(0.0, f64::max);
        for (place, group) in self.groups.iter().enumerate() {
            let mut largest_first: Vec<&StepPoint> = group.points.iter().filter(plotted).take(MOST_POINTS).collect();
            // Small ones are drawn over large ones.
            largest_first.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
            for point in largest_first {
                let at = frame.at(point.intensity(), point.flops_per_second());
                // The area and not the radius stands for the time, as people compare areas.
                let radius = RADIUS.0 + RADIUS.1 * (point.seconds / longest).sqrt();
                let words = format!("{}: {} steps, {}", group.name, point.steps, Unit::Time.text(point.seconds));
                frame.drawing.circle(at, radius, &format!("dot {}", series(place)), &words);
            }
        }
        let groups = self.groups.iter().enumerate().filter(|(_, group)| !group.points.is_empty());
        let roof_entry = roof.map(|_| ("limit of the machine", "roof".to_owned(), Mark::Line));
        frame.legend(groups.map(|(place, group)| (group.name, series(place), Mark::Dot)).chain(roof_entry));
        Some(frame.figure(self.id, self.title, self.description.clone(), self.table()))
    }

    fn table(&self) -> Table {
        let head = ["steps", "number", "time", "FLOP/byte", "FLOP/s", "of the limit"];
        let mut rows = Vec::new();
        for group in &self.groups {
            for point in group.points.iter().take(MOST_POINTS) {
                let share = self.roof.map(|roof| point.flops_per_second() / roof.at(point.intensity()));
                rows.push(vec![
                    group.name.to_owned(),
                    point.steps.to_string(),
                    Unit::Time.text(point.seconds),
                    number(point.intensity()),
                    Unit::Symbol("FLOP/s").text(point.flops_per_second()),
                    share.map_or("–".to_owned(), |share| Unit::Share.text(share)),
                ]);
            }
        }
        Table { head: head.map(str::to_owned).to_vec(), rows }
    }
}
