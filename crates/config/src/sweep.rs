//! A sweep: several jobs in one, each with other values of some keys, in the order in which they run.
//!
//! It knows neither how combinations are written nor how they are run.

use std::fmt;

use super::JobConfig;

/// The combinations of a sweep, at least one of which can run.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Keys that are swept, in the order in which they were given.
    pub keys: Vec<String>,
    /// In the order in which they run: those for which the same model is loaded come one after the other.
    pub combinations: Vec<Combination>,
}

/// One job of a sweep.
#[derive(Clone, Debug)]
pub struct Combination {
    /// Place in the sweep, from 1.
    pub number: usize,
    /// Values of the swept keys, in the order of [`Sweep::keys`]. Keys that keep the job's own value are left out.
    pub values: Vec<SweptValue>,
    /// The job, or the reason why these values do not go together.
    pub job: Result<PlannedJob, Refusal>,
}

/// A swept key with one of its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweptValue {
    /// The key, words separated by `-`.
    pub key: String,
    /// The value with secrets redacted.
    pub value: String,
}

/// A combination that can run.
#[derive(Clone, Debug)]
pub struct PlannedJob {
    /// Its configuration.
    pub config: Box<JobConfig>,
    /// Parts of the engine that the combination before it did not leave behind.
    pub reload: Reload,
}

/// Parts of the engine that have to be set up before a combination runs, after the one before it. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reload {
    /// Nothing: only the workload differs.
    Nothing,
    /// Scheduler and KV cache, with the same weights.
    Scheduler,
    /// The model.
    Model,
}

/// Reasons why values do not go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One sentence a reason; at least one.
    pub reasons: Vec<String>,
}

impl Sweep {
    /// Combinations that can run.
    pub fn planned(&self) -> impl Iterator<Item = (&Combination, &PlannedJob)> {
        self.combinations.iter().filter_map(|combination| Some((combination, combination.job.as_ref().ok()?)))
    }
}

impl Combination {
    /// `key=value` of each swept key, separated by spaces.
    pub fn name(&self) -> String {
        self.values.iter().map(SweptValue::to_string).collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Display for SweptValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reasons.join("; "))
    }
}
