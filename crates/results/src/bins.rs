//! Durations counted in bins that grow evenly: what processes on several machines can put together.
//!
//! Percentiles cannot be made of percentiles, and a list of all times between tokens is as long as the run. Bins add up, and a
//! value is known from its bin to 0.5 % (as in Masson et al., "DDSketch", 2019).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::distribution::Percentiles;

/// Width of a bin divided by the width of the one before it.
const RATIO: f64 = 1.01;

/// Durations by bin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bins {
    /// The sum of all, as it was before it was binned.
    sum_seconds: f64,
    /// Durations in each bin, which ends at `RATIO` to the power of its number, in seconds; none is below a nanosecond.
    counts: BTreeMap<i32, u64>,
}

impl Bins {
    /// Counts in a duration.
    pub fn add(&mut self, seconds: f64) {
        const LEAST_SECONDS: f64 = 1e-9;
        self.sum_seconds += seconds;
        // The logarithm of 0 would be the number of no bin.
        let bin = (seconds.max(LEAST_SECONDS).ln() / RATIO.ln()).ceil() as i32;
        *self.counts.entry(bin).or_default() += 1;
    }

    /// Counts in what others have counted.
    pub fn merge(&mut self, other: &Bins) {
        self.sum_seconds += other.sum_seconds;
        for (bin, count) in &other.counts {
            *self.counts.entry(*bin).or_default() += count;
        }
    }

    /// Number of durations.
    pub fn count(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Upper end of each bin in seconds with the durations in it, ascending.
    pub fn ends(&self) -> impl Iterator<Item = (f64, u64)> {
        self.counts.iter().map(|(bin, count)| (RATIO.powi(*bin), *count))
    }

    /// Mean and percentiles, the latter to 0.5 %; `None` where nothing was counted.
    pub fn percentiles(&self) -> Option<Percentiles> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let percentile = |percent: f64| {
            let rank = percent / 100.0 * (total - 1) as f64;
            let mut below = 0;
            let bin = self.counts.iter().find(|(_, count)| {
                below += **count;
                below as f64 > rank
            });
            // The middle of its bin, by ratio.
            bin.map_or(0.0, |(bin, _)| RATIO.powf(f64::from(*bin) - 0.5))
        };
        Some(Percentiles {
            mean: self.sum_seconds / total as f64,
            p50: percentile(50.0),
            p90: percentile(90.0),
            p95: percentile(95.0),
            p99: percentile(99.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Distribution;

    fn binned(values: &[f64]) -> Bins {
        let mut bins = Bins::default();
        values.iter().for_each(|value| bins.add(*value));
        bins
    }

    proptest! {
        #[test]
        fn bins_of_parts_tell_what_the_whole_would(values in prop::collection::vec(1e-6f64..100.0, 1..200), cut in 0usize..200) {
            let (first, second) = values.split_at(cut.min(values.len()));
            let mut together = binned(first);
            together.merge(&binned(second));
            let found = together.percentiles().unwrap();
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            for (found, percent) in [(found.p50, 50.0), (found.p90, 90.0), (found.p95, 95.0), (found.p99, 99.0)] {
                let exact = sorted[(percent / 100.0 * (sorted.len() - 1) as f64) as usize];
                prop_assert!((found / exact - 1.0).abs() < 0.006, "{percent}: {found} for {exact}");
            }
            let mean = Distribution::of(values).unwrap().mean;
            prop_assert!((found.mean / mean - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn nothing_has_no_percentiles_and_a_file_keeps_all() {
        assert!(Bins::default().percentiles().is_none());
        let bins = binned(&[0.0, 0.01, 0.02, 3.0]);
        let text = serde_json::to_string(&bins).unwrap();
        assert_eq!(serde_json::from_str::<Bins>(&text).unwrap(), bins);
    }
}
