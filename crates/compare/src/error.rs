//! Reasons for which runs are not compared, each as one sentence.

use super::MOST_RUNS;

/// Reason for refusing a comparison.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing to compare with.
    #[error("a comparison needs two runs, and there is one, `{0}`; name a second results directory")]
    OneRun(String),
    /// No run at all, as in a sweep without a finished combination.
    #[error("there is no run to compare; name two results directories of jobs that have finished")]
    NoRun,
    /// More than a table holds.
    #[error("there are {0} runs, and a comparison takes {MOST_RUNS}; name fewer of them")]
    TooMany(usize),
    /// Runs that measured different things.
    #[error("{}", .0.join("\n"))]
    NotComparable(Vec<String>),
    /// A threshold that is no ratio.
    #[error("--fail-below is `{0}`, but it must be a number above 0 and at most 1000, such as 0.95")]
    Threshold(String),
}
