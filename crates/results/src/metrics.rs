//! Figures by name: the object `metrics` of `result.json`.

use serde::{Deserialize, Deserializer};

use super::limits;

/// Figures of one run at most: a run has some 60.
const MOST_METRICS: usize = 10_000;

/// Figures by key, in the order of the file. A figure that is no number is not there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(Vec<(String, f64)>);

impl Metrics {
    /// The figure under `key`.
    pub fn get(&self, key: &str) -> Option<f64> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| *value)
    }

    /// All keys and figures.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(key, value)| (key.as_str(), *value))
    }

    /// Tells that nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Generated tokens per second.
    pub fn output_tokens_per_second(&self) -> Option<f64> {
        self.get("output_tokens_per_second")
    }

    /// Seconds of the measured region.
    pub fn elapsed_seconds(&self) -> Option<f64> {
        self.get("elapsed_time")
    }

    /// Prompt tokens of finished requests.
    pub fn total_input_tokens(&self) -> Option<f64> {
        self.get("total_input_tokens")
    }

    /// Generated tokens of all requests.
    pub fn total_output_tokens(&self) -> Option<f64> {
        self.get("total_output_tokens")
    }

    /// Requests that ended with an error.
    pub fn failed_requests(&self) -> Option<f64> {
        self.get("failed_requests")
    }

    /// Mean power of the GPUs.
    pub fn mean_power_watts(&self) -> Option<f64> {
        self.get("mean_power_watts")
    }
}

impl FromIterator<(String, f64)> for Metrics {
    fn from_iter<I: IntoIterator<Item = (String, f64)>>(figures: I) -> Self {
        Self(figures.into_iter().collect())
    }
}

impl<'de> Deserialize<'de> for Metrics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A figure that has no number, such as a rate over no time, is written as null.
        let figures = limits::map::<_, Option<f64>, MOST_METRICS>(deserializer)?;
        Ok(Self(figures.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()))
    }
}
