//! Lines over time.

use crate::figure::{Figure, Table};
use crate::frame::{Axis, Frame, Mark, series};
use crate::scale::Scale;
use crate::thin::{MOST_POINTS, thinned};

/// Lines of a chart at most; more cannot be told apart.
const MOST_LINES: usize = 8;

/// Several quantities of one unit over one axis, mostly time. The vertical axis begins at 0.
#[derive(Clone, Debug)]
pub struct LineChart {
    /// Name of the figure in the page.
    pub id: &'static str,
    /// Title above the plot.
    pub title: &'static str,
    /// Sentence that says the same as the plot.
    pub description: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis, from 0.
    pub y: Axis,
    /// Lines from left to right, eight at most.
    pub lines: Vec<Line>,
}

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Line {
    /// Name in the legend.
    pub name: String,
    /// Points in the order of the horizontal axis.
    pub points: Vec<(f64, f64)>,
}

impl LineChart {
    /// The figure; `None` where no line has a point.
    pub fn figure(&self) -> Option<Figure> {
        let lines: Vec<Line> = self
            .lines
            .iter()
            .take(MOST_LINES)
            .map(|line| Line { name: line.name.clone(), points: thinned(&line.points, MOST_POINTS) })
            .filter(|line| !line.points.is_empty())
            .collect();
        if lines.is_empty() {
            return None;
        }
        let points = || lines.iter().flat_map(|line| line.points.iter());
        // Time ends where the data does; values end at a round number above them.
        let x = Scale::over(points().map(|(x, _)| *x));
        let y = Scale::from_zero(points().map(|(_, y)| *y));
        let mut frame = Frame::new((&self.x, x), (&self.y, y));
        for (place, line) in lines.iter().enumerate() {
            frame.curve(&line.points, &series(place), &line.name);
        }
        frame.legend(lines.iter().enumerate().map(|(place, line)| (line.name.as_str(), series(place), Mark::Line)));
        Some(frame.figure(self.id, self.title, self.description.clone(), self.table(&lines)))
    }

    fn table(&self, lines: &[Line]) -> Table {
        let (x, y) = (|value: f64| self.x.unit.text(value), |value: f64| self.y.unit.text(value));
        let places = |line: &Line| line.points.iter().map(|(x, _)| x.to_bits()).collect::<Vec<_>>();
        // Lines over the same places share rows. After thinning they may not.
        if lines.iter().all(|line| places(line) == places(&lines[0])) {
            let head = [self.x.name.clone()].into_iter().chain(lines.iter().map(|line| line.name.clone()));
            let row = |place: usize| {
                let values = lines.iter().map(|line| y(line.points[place].1));
                [x(lines[0].points[place].0)].into_iter().chain(values).collect()
            };
            return Table { head: head.collect(), rows: (0..lines[0].points.len()).map(row).collect() };
        }
        let rows = lines.iter().flat_map(|line| line.points.iter().map(move |point| (line, point)));
        let rows = rows.map(|(line, (at, value))| vec![line.name.clone(), x(*at), y(*value)]).collect();
        Table { head: vec!["line".to_owned(), self.x.name.clone(), self.y.name.clone()], rows }
    }
}
