//! A set of durations of any size, in bounded memory: counts in bins, and exact moments.

use serde::{Deserialize, Serialize};

use super::bins::Bins;
use super::distribution::{Distribution, Percentiles};

/// A set of durations in seconds, which adds up with others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BinnedSample {
    bins: Bins,
    mean: f64,
    /// Sum of squared distances from the mean.
    squares: f64,
    min: f64,
    max: f64,
}

impl BinnedSample {
    /// Counts in a duration.
    pub fn add(&mut self, seconds: f64) {
        let mut one = Self { bins: Bins::default(), mean: seconds, squares: 0.0, min: seconds, max: seconds };
        one.bins.add(seconds);
        self.merge(&one);
    }

    /// Counts in what others have counted: mean and squares as in Chan, Golub and LeVeque, "Updating Formulae and a Pairwise
    /// Algorithm for Computing Sample Variances" (1979).
    pub fn merge(&mut self, other: &Self) {
        let (here, there) = (self.bins.count() as f64, other.bins.count() as f64);
        if there == 0.0 {
            return;
        }
        // Least and greatest of nothing are no numbers that others could be held against.
        if here == 0.0 {
            *self = other.clone();
            return;
        }
        let (all, distance) = (here + there, other.mean - self.mean);
        self.squares += other.squares + distance * distance * here * there / all;
        self.mean += distance * there / all;
        (self.min, self.max) = (self.min.min(other.min), self.max.max(other.max));
        self.bins.merge(&other.bins);
    }

    /// Counts in bins alone.
    pub fn bins(&self) -> &Bins {
        &self.bins
    }

    /// The summary, percentiles to 0.5 %; `None` where nothing was counted.
    pub fn distribution(&self) -> Option<Distribution> {
        let Percentiles { p50, p90, p95, p99, .. } = self.bins.percentiles()?;
        let count = self.bins.count();
        // The middle of a bin may lie beyond all that it holds.
        let within = |percentile: f64| percentile.clamp(self.min, self.max);
        Some(Distribution {
            count: count as usize,
            mean: self.mean,
            standard_deviation: (self.squares / count as f64).sqrt(),
            min: self.min,
            p50: within(p50),
            p90: within(p90),
            p95: within(p95),
            p99: within(p99),
            max: self.max,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_add_up_to_what_the_whole_would_be(values in prop::collection::vec(1e-6f64..100.0, 1..200), cut in 0usize..200) {
            let sample = |values: &[f64]| {
                let mut sample = BinnedSample::default();
                values.iter().for_each(|value| sample.add(*value));
                sample
            };
            let (first, second) = values.split_at(cut.min(values.len()));
            let mut together = sample(first);
            together.merge(&sample(second));
            let (found, exact) = (together.distribution().unwrap(), Distribution::of(values.clone()).unwrap());
            prop_assert_eq!((found.count, found.min, found.max), (exact.count, exact.min, exact.max));
            prop_assert!((found.mean / exact.mean - 1.0).abs() < 1e-9);
            prop_assert!((found.standard_deviation - exact.standard_deviation).abs() < 1e-6 * exact.max);
        }
    }

    #[test]
    fn nothing_has_no_distribution() {
        assert_eq!(BinnedSample::default().distribution(), None);
    }
}
