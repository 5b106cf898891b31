//! Measured regions of a run that repeated its measurement: each region's figures, and their spread.

use serde::Deserialize;

use super::limits;
use super::metrics::Metrics;

/// All regions of a run. The figures at the top of the result are their means.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Repeats {
    /// Confidence of the intervals, such as 0.95.
    pub confidence: f64,
    /// Reason for which there are no more regions.
    pub stopped_by: StoppedBy,
    /// Regions in the order in which they were measured.
    #[serde(deserialize_with = "limits::list::<_, _, 1000>")]
    pub regions: Vec<Region>,
    /// Spread of each figure that all regions have, by key.
    #[serde(deserialize_with = "limits::map::<_, _, 10_000>")]
    pub summary: Vec<(String, FigureSummary)>,
}

/// Reason for the number of regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoppedBy {
    /// As many as were asked for.
    Count,
    /// The interval of the mean was narrow enough.
    Interval,
    /// The most that are measured.
    Limit,
}

/// One region.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Region {
    /// Seed of its prompts.
    pub seed: u64,
    /// Its figures.
    pub metrics: Metrics,
}

/// Spread of one figure over the regions; `None` where one region has no spread.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct FigureSummary {
    /// Mean over the regions.
    pub mean: f64,
    /// Standard deviation of the sample.
    #[serde(default)]
    pub standard_deviation: Option<f64>,
    /// Half of the interval's width.
    #[serde(default)]
    pub half_width: Option<f64>,
    /// Lower end of the interval of the mean.
    #[serde(default)]
    pub low: Option<f64>,
    /// Upper end of the interval of the mean.
    #[serde(default)]
    pub high: Option<f64>,
}

impl Repeats {
    /// The spread of the figure `key`.
    pub fn summary(&self, key: &str) -> Option<&FigureSummary> {
        self.summary.iter().find(|(known, _)| known == key).map(|(_, summary)| summary)
    }

    /// The values of the figure `key`, of those regions that have it.
    pub fn values(&self, key: &str) -> Vec<f64> {
        self.regions.iter().filter_map(|region| region.metrics.get(key)).collect()
    }
}
