//! A set of durations, summed up by its moments and percentiles.

use serde::{Deserialize, Serialize};

/// Summary of a sample. Percentiles interpolate linearly between order statistics (numpy's default, and so
/// what `vllm bench` prints); the standard deviation is the population's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Values in the sample.
    pub count: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Population standard deviation.
    pub standard_deviation: f64,
    /// Smallest value.
    pub min: f64,
    /// 50th percentile, the median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest observed value.
    pub max: f64,
}

/// Mean and percentiles of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percentiles {
    /// Arithmetic mean.
    pub mean: f64,
    /// 50th percentile, the median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Distribution {
    /// The mean and the percentiles alone.
    pub fn percentiles(&self) -> Percentiles {
        let &Self { mean, p50, p90, p95, p99, .. } = self;
        Percentiles { mean, p50, p90, p95, p99 }
    }

    /// Sums up `values`; `None` for an empty sample, which has no percentiles.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count as f64;
        let percentile = |percent: f64| {
            let rank = percent / 100.0 * (count - 1) as f64;
            let (below, above) = (values[rank.floor() as usize], values[rank.ceil() as usize]);
            below + (above - below) * rank.fract()
        };
        Some(Self {
            count,
            mean,
            standard_deviation: variance.sqrt(),
            min,
            p50: percentile(50.0),
            p90: percentile(90.0),
            p95: percentile(95.0),
            p99: percentile(99.0),
            max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate_between_order_statistics() {
        // numpy.percentile([1, 2, 3, 4, 10], [50, 90, 95, 99]) = [3, 7.6, 8.8, 9.76]
        let summary = Distribution::of(vec![10.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        let found = [summary.p50, summary.p90, summary.p95, summary.p99];
        for (found, expected) in found.into_iter().zip([3.0, 7.6, 8.8, 9.76]) {
            assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
        }
        assert_eq!((summary.count, summary.min, summary.max, summary.mean), (5, 1.0, 10.0, 4.0));
        assert!((summary.standard_deviation - 10f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn one_value_is_all_of_its_percentiles_and_none_has_none() {
        let summary = Distribution::of(vec![0.25]).unwrap();
        assert_eq!((summary.p50, summary.p99, summary.standard_deviation), (0.25, 0.25, 0.0));
        assert_eq!(Distribution::of(Vec::new()), None);
    }
}
