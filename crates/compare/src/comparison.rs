//! The comparison: figures of all runs beside those of the first one.

use std::collections::HashSet;

use flashjob_results::{Better, CONFIDENCE, ConfidenceInterval, Figure, figure};

use super::comparability::{Incomparable, incomparable};
use super::difference::{Difference, differences};
use super::error::Error;
use super::figures::{Rank, place, rank};
use super::run::Run;
use super::statistics::welch_p_value;
use super::{MOST_RUNS, names};

/// Several runs side by side. The first one is the baseline of all ratios.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The runs, in the order in which they were named.
    pub runs: Vec<RunHeading>,
    /// Runs that measured something else than the first one; empty unless that was allowed.
    pub incomparable: Vec<Incomparable>,
    /// Everything that may explain different figures.
    pub differences: Vec<Difference>,
    /// Figures in the order in which they are read.
    pub figures: Vec<FigureRow>,
    /// Sentences on the limits of the comparison.
    pub notes: Vec<String>,
}

/// Heading of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunHeading {
    /// Name, as it was given.
    pub name: String,
    /// Name of its column.
    pub short_name: String,
    /// Regions that were measured.
    pub regions: usize,
}

/// One figure of all runs.
#[derive(Clone, Debug, PartialEq)]
pub struct FigureRow {
    /// Key in `result.json`.
    pub key: String,
    /// Name, unit and direction.
    pub figure: Figure,
    /// Importance of the figure.
    pub rank: Rank,
    /// One cell for each run; `None` where it has no such figure.
    pub cells: Vec<Option<Cell>>,
}

/// One figure of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// The figure itself: a mean where there were several regions.
    pub value: f64,
    /// Interval of the mean, where there were several regions.
    pub interval: Option<ConfidenceInterval>,
    /// The figure divided by that of the first run; `None` where that has none, or zero.
    pub ratio: Option<f64>,
    /// Certainty of the difference from the first run.
    pub significance: Significance,
    /// The best of all runs.
    pub is_best: bool,
}

/// Certainty of a difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Significance {
    /// The first run, which is not compared with itself.
    Baseline,
    /// One of both runs has fewer than two regions: nothing is known of their spread.
    Unknown,
    /// Probability of such a difference between runs of equal means.
    PValue(f64),
}

impl Significance {
    /// Tells whether runs of equal means would hardly differ so much; `None` where that is unknown.
    pub fn is_significant(self) -> Option<bool> {
        match self {
            Significance::PValue(p) => Some(p < 1.0 - CONFIDENCE),
            Significance::Baseline | Significance::Unknown => None,
        }
    }

    /// The p-value, where there is one.
    pub fn p_value(self) -> Option<f64> {
        match self {
            Significance::PValue(p) => Some(p),
            Significance::Baseline | Significance::Unknown => None,
        }
    }
}

impl Comparison {
    /// Compares `runs`, all with the first one. Runs that measured something else are marked where `allow_different` is set.
    ///
    /// # Errors
    /// Fewer than two runs, too many, or runs that cannot be compared.
    pub fn new(runs: &[Run], allow_different: bool) -> Result<Self, Error> {
        match runs {
            [] => return Err(Error::NoRun),
            [one] => return Err(Error::OneRun(one.name.clone())),
            _ if runs.len() > MOST_RUNS => return Err(Error::TooMany(runs.len())),
            _ => {}
        }
        let incomparable = incomparable(runs);
        if !allow_different && !incomparable.is_empty() {
            return Err(Error::NotComparable(refusals(runs, &incomparable)));
        }
        let full_names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        let short_names = names::short(&full_names);
        let headings = runs.iter().zip(short_names);
        let headings: Vec<RunHeading> = headings
            .map(|(run, short_name)| RunHeading { name: run.name.clone(), short_name, regions: run.regions })
            .collect();
        let figures = rows(runs, &incomparable);
        Ok(Self { notes: notes(runs), runs: headings, incomparable, differences: differences(runs), figures })
    }

    /// The row of the figure `key`.
    pub fn row(&self, key: &str) -> Option<&FigureRow> {
        self.figures.iter().find(|row| row.key == key)
    }
}

/// One sentence for each run that cannot be compared.
fn refusals(runs: &[Run], incomparable: &[Incomparable]) -> Vec<String> {
    let first = &runs[0].name;
    let sentence = |Incomparable { run, reasons }: &Incomparable| {
        let reasons = reasons.join(", ");
        let name = &runs[*run].name;
        match *run {
            0 => format!(
                "`{name}` cannot be compared: {reasons}; name a run that has finished, or pass --allow-different to see it marked"
            ),
            _ => format!(
                "`{name}` cannot be compared with `{first}`: {reasons}; run both with the same prompts and counts, or pass \
                 --allow-different to see it marked"
            ),
        }
    };
    incomparable.iter().map(sentence).collect()
}

/// Rows of all figures that a run has.
fn rows(runs: &[Run], incomparable: &[Incomparable]) -> Vec<FigureRow> {
    let mut seen = HashSet::new();
    let mut keys: Vec<&str> = runs
        .iter()
        .flat_map(|run| run.figures.iter().map(|figure| figure.key.as_str()))
        .filter(|key| seen.insert(*key))
        .collect();
    keys.sort_by_key(|key| place(key));
    // Stable: figures that no table has a place for keep the order of the result.
    keys.into_iter().map(|key| row(key, runs, incomparable)).collect()
}

fn row(key: &str, runs: &[Run], incomparable: &[Incomparable]) -> FigureRow {
    let figure = figure(key);
    let baseline = runs[0].figure(key);
    // A run that measured something else may be the fastest by doing less.
    let takes_part = |place: usize| !incomparable.iter().any(|found| found.run == place);
    let runs_that_do = runs.iter().enumerate().filter(|(place, _)| takes_part(*place));
    let values = runs_that_do.map(|(_, run)| Some(run.figure(key)?.value));
    let best = figure.better.and_then(|better| best(better, values));
    let cell = |(place, run): (usize, &Run)| {
        let own = run.figure(key)?;
        let significance = match baseline {
            _ if place == 0 => Significance::Baseline,
            Some(baseline) => {
                welch_p_value(&baseline.regions, &own.regions).map_or(Significance::Unknown, Significance::PValue)
            }
            None => Significance::Unknown,
        };
        // JSON and tables have no infinity: a ratio to zero says nothing.
        let ratio = baseline.map(|baseline| own.value / baseline.value).filter(|ratio| ratio.is_finite());
        let is_best = best == Some(own.value) && takes_part(place);
        Some(Cell { value: own.value, interval: ConfidenceInterval::of(&own.regions), ratio, significance, is_best })
    };
    let cells = runs.iter().enumerate().map(cell).collect();
    FigureRow { key: key.to_owned(), figure, rank: rank(key), cells }
}

/// The best of the values, unless all of them are equal or only one run has one.
fn best(better: Better, values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values: Vec<f64> = values.flatten().collect();
    // A mark on equal values would claim a difference.
    let least = values.iter().copied().min_by(f64::total_cmp)?;
    let most = values.iter().copied().max_by(f64::total_cmp)?;
    (least < most).then_some(match better {
        Better::Higher => most,
        Better::Lower => least,
    })
}

/// Sentences on what the figures cannot say.
fn notes(runs: &[Run]) -> Vec<String> {
    let mut notes = Vec::new();
    let single: Vec<String> = runs.iter().filter(|run| run.regions < 2).map(|run| format!("`{}`", run.name)).collect();
    if !single.is_empty() {
        let which = if single.len() == runs.len() { String::new() } else { format!(" for {}", single.join(", ")) };
        notes.push(format!(
            "no significance is claimed{which}: one measured region says nothing about its spread; set repeats=5 or more"
        ));
    }
    if single.len() < runs.len() {
        notes.push(format!(
            "± is half of the {:.0} % interval of the mean over the measured regions; p is the p-value of Welch's t test against \
             the first run, each pair by itself, and below {:.2} counts as significant",
            CONFIDENCE * 100.0,
            1.0 - CONFIDENCE
        ));
    }
    for run in runs {
        if run.skipped_inputs > 0 {
            notes.push(format!("`{}` left out {} inputs that could not be run", run.name, run.skipped_inputs));
        }
        notes.extend(run.remarks.iter().map(|remark| format!("`{}`: {remark}", run.name)));
    }
    notes
}
