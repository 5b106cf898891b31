//! Distributions of durations, as the share of values up to each duration.

use crate::figure::{Figure, Table};
use crate::frame::{Axis, Frame, Mark, series};
use crate::scale::Scale;
use crate::thin::thinned;
use crate::unit::Unit;

/// Points of a curve at most.
const MOST_POINTS: usize = 200;

/// Cumulative shares of several samples over a logarithmic axis of time, with their percentiles in the table.
#[derive(Clone, Debug)]
pub struct DistributionChart {
    /// Name of the figure in the page.
    pub id: &'static str,
    /// Title above the plot.
    pub title: &'static str,
    /// Sentence that says the same as the plot.
    pub description: String,
    /// Samples that are compared.
    pub samples: Vec<Sample>,
}

/// One sample of durations.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Name in the legend.
    pub name: String,
    /// Seconds with the share of values up to them, ascending.
    pub shares: Vec<(f64, f64)>,
    /// Mean and percentiles in seconds, by name, for the table.
    pub summary: Vec<(&'static str, f64)>,
}

impl Sample {
    /// A sample of `seconds` in any order.
    pub fn of(name: impl Into<String>, mut seconds: Vec<f64>, summary: Vec<(&'static str, f64)>) -> Self {
        seconds.retain(|value| value.is_finite());
        seconds.sort_by(f64::total_cmp);
        let count = seconds.len() as f64;
        let shares = (1..).zip(&seconds).map(|(rank, value)| (*value, f64::from(rank) / count)).collect();
        Self { name: name.into(), shares, summary }
    }

    /// A sample counted in bins, given by upper end and count in ascending order.
    pub fn of_bins(name: impl Into<String>, bins: &[(f64, u64)], summary: Vec<(&'static str, f64)>) -> Self {
        let total: u64 = bins.iter().map(|(_, count)| count).sum();
        let mut below = 0;
        let mut shares = Vec::new();
        for (end, count) in bins.iter().filter(|(end, _)| end.is_finite()) {
            // Empty bins before the first value and behind the last would stretch the axis to where nothing is.
            let is_outside = (below == 0 && *count == 0) || below == total;
            below += count;
            if !is_outside {
                shares.push((*end, below as f64 / total as f64));
            }
        }
        Self { name: name.into(), shares, summary }
    }
}

impl DistributionChart {
    /// The figure; `None` where no sample has a positive value.
    pub fn figure(&self) -> Option<Figure> {
        let curves: Vec<(&Sample, Vec<(f64, f64)>)> = self
            .samples
            .iter()
            .map(|sample| (sample, thinned(&sample.shares, MOST_POINTS)))
            .filter(|(_, points)| points.iter().any(|(value, _)| *value > 0.0))
            .collect();
        let values = curves.iter().flat_map(|(_, points)| points.iter().map(|(value, _)| *value));
        // Tokens take milliseconds and requests minutes: one linear axis would show only the latter.
        let x = Scale::log(values)?;
        let axis = Axis::new("duration", Unit::Time);
        let share = Axis::new("share of values up to it", Unit::Share);
        let mut frame = Frame::new((&axis, x), (&share, Scale::Linear { min: 0.0, max: 1.0 }));
        for (place, (sample, points)) in curves.iter().enumerate() {
            frame.curve(&stairs(points), &series(place), &sample.name);
        }
        frame.legend(
            curves.iter().enumerate().map(|(place, (sample, _))| (sample.name.as_str(), series(place), Mark::Line)),
        );
        Some(frame.figure(self.id, self.title, self.description.clone(), self.table()))
    }

    fn table(&self) -> Table {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in self.samples.iter().flat_map(|sample| &sample.summary) {
            if !names.contains(name) {
                names.push(name);
            }
        }
        let head = ["latency"].into_iter().chain(names.iter().copied()).map(str::to_owned).collect();
        let row = |sample: &Sample| {
            let value = |name: &&str| sample.summary.iter().find(|(known, _)| known == name);
            let values =
                names.iter().map(|name| value(name).map_or("–".to_owned(), |(_, value)| Unit::Time.text(*value)));
            [sample.name.clone()].into_iter().chain(values).collect()
        };
        Table { head, rows: self.samples.iter().map(row).collect() }
    }
}

/// A curve that begins at no share at all, and rises at each value.
fn stairs(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    // Between two values there are none, so that the share stays what it was.
    let mut before = 0.0;
    let mut steps = Vec::with_capacity(2 * points.len());
    for (value, share) in points {
        steps.extend([(*value, before), (*value, *share)]);
        before = *share;
    }
    steps
}
