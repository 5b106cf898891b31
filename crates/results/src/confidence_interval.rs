//! Student's t interval of a mean: the spread of a figure over repeated regions.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Confidence of intervals.
pub const CONFIDENCE: f64 = 0.95;

/// Mean and variance of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    /// Number of values, at least 2.
    pub count: f64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Unbiased variance: n - 1 degrees of freedom.
    pub variance: f64,
}

impl Moments {
    /// `None` for fewer than two values, which have no variance.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.len() < 2 {
            return None;
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
        Some(Self { count, mean, variance })
    }
}

/// A mean with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfidenceInterval {
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation of the sample, with n - 1 degrees of freedom.
    pub standard_deviation: f64,
    /// Distance of both ends of the interval from the mean.
    pub half_width: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl ConfidenceInterval {
    /// Student's t interval of the mean of `values`; `None` for fewer than two, which have no spread.
    pub fn of(values: &[f64]) -> Option<Self> {
        let Moments { count, mean, variance } = Moments::of(values)?;
        let standard_deviation = variance.sqrt();
        let student = StudentsT::new(0.0, 1.0, count - 1.0).ok()?;
        let half_width = student.inverse_cdf((1.0 + CONFIDENCE) / 2.0) * standard_deviation / count.sqrt();
        Some(Self { mean, standard_deviation, half_width, low: mean - half_width, high: mean + half_width })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_students_t() {
        // scipy.stats.t.interval(0.95, 3, loc=12.5, scale=1.2909944/2) = (10.445739743239121, 14.554260256760879)
        let interval = ConfidenceInterval::of(&[11.0, 12.0, 13.0, 14.0]).unwrap();
        assert!((interval.low - 10.445_739_743_239_121).abs() < 1e-6, "{interval:?}");
        assert!((interval.high - 14.554_260_256_760_879).abs() < 1e-6, "{interval:?}");
        assert!((interval.standard_deviation - (5.0f64 / 3.0).sqrt()).abs() < 1e-12);
        // The table of any textbook: t(0.975, 1) = 12.706.
        let interval = ConfidenceInterval::of(&[0.0, 2.0]).unwrap();
        assert!((interval.half_width - 12.706).abs() < 1e-3, "{interval:?}");
        assert_eq!(ConfidenceInterval::of(&[1.0]), None);
    }
}
