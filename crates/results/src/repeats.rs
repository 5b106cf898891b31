//! Measured regions of a run that repeated its measurement: each region's figures, and their spread.

use serde::{Deserialize, Serialize};

use super::confidence_interval::ConfidenceInterval;
use super::limits;
use super::metrics::Metrics;

/// All regions of a run. The figures at the top of the result are their means.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Repeats {
    /// Confidence of the intervals, such as 0.95.
    pub confidence: f64,
    /// Reason for which there are no more regions; `None` where the run ended early.
    #[serde(default)]
    pub stopped_by: Option<StoppedBy>,
    /// Regions in the order in which they were measured.
    #[serde(deserialize_with = "limits::list::<_, _, 1000>")]
    pub regions: Vec<Region>,
    /// Spread of each figure that all regions have, by key.
    #[serde(deserialize_with = "limits::map::<_, _, 10_000>")]
    pub summary: Vec<(String, ConfidenceInterval)>,
}

/// Reason for the end of repetition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoppedBy {
    /// As many regions as were asked for.
    Count,
    /// The interval is narrow enough.
    Interval,
    /// As many regions as there may be, and the interval is still wider.
    Limit,
}

/// One measured region.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Region {
    /// Seed of its prompts.
    pub seed: u64,
    /// Figures of this region alone.
    pub metrics: Metrics,
}

impl Repeats {
    /// The spread of the figure `key`.
    pub fn summary(&self, key: &str) -> Option<&ConfidenceInterval> {
        self.summary.iter().find(|(known, _)| known == key).map(|(_, summary)| summary)
    }

    /// The values of the figure `key`, of those regions that have it.
    pub fn values(&self, key: &str) -> Vec<f64> {
        self.regions.iter().filter_map(|region| region.metrics.get(key)).collect()
    }
}
