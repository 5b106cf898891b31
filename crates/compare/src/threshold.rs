//! `--fail-below`: the least share of the baseline's throughput that a run must reach.

use std::fmt;
use std::str::FromStr;

use super::comparison::{Cell, Comparison, Significance};
use super::error::Error;
use super::figures::THROUGHPUT;

/// Least ratio of output tokens per second to those of the first run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold(f64);

/// Largest ratio that is taken for one: a percentage is none.
const LARGEST: f64 = 1000.0;

impl FromStr for Threshold {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // NaN is in no range, and a ratio of zero would let everything pass.
        let ratio = text.trim().parse().ok().filter(|ratio| (0.0..=LARGEST).contains(ratio) && *ratio > 0.0);
        ratio.map(Self).ok_or_else(|| Error::Threshold(text.to_owned()))
    }
}

/// A run that is slower than the threshold allows. Its text is a sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Below {
    name: String,
    baseline: String,
    least: f64,
    cell: Option<Cell>,
}

impl Threshold {
    /// All runs of `comparison` below it, and those without a throughput.
    pub fn below(self, comparison: &Comparison) -> Vec<Below> {
        let row = comparison.row(THROUGHPUT);
        let runs = comparison.runs.iter().enumerate().skip(1);
        runs.filter_map(|(place, run)| {
            let cell = row.and_then(|row| row.cells[place]);
            // Unknown is not enough: a gate in CI that passes without a measurement is none.
            let is_enough = cell.and_then(|cell| cell.ratio).is_some_and(|ratio| ratio >= self.0);
            let baseline = comparison.runs[0].name.clone();
            (!is_enough).then(|| Below { name: run.name.clone(), baseline, least: self.0, cell })
        })
        .collect()
    }
}

impl fmt::Display for Below {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, baseline, least, cell } = self;
        let Some((ratio, cell)) = cell.and_then(|cell| Some((cell.ratio?, cell))) else {
            return write!(
                f,
                "`{name}` has no output tokens per second to hold against {least} of those of `{baseline}`"
            );
        };
        write!(f, "`{name}` has {ratio:.4} of the output tokens per second of `{baseline}`, below {least}")?;
        match cell.significance {
            Significance::PValue(p) if cell.significance.is_significant() == Some(true) => {
                write!(f, "; the difference is significant (p = {p:.2e})")
            }
            Significance::PValue(p) => write!(f, "; the difference is not significant (p = {p:.2})"),
            Significance::Baseline | Significance::Unknown => {
                f.write_str("; significance is unknown, as it takes two measured regions of both (repeats)")
            }
        }
    }
}
