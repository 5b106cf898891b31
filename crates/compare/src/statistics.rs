//! Welch's t test between two samples of unequal variance.
//!
//! Welch, "The generalization of 'Student's' problem when several different population variances are involved", Biometrika 34
//! (1947); the degrees of freedom are Satterthwaite's (1946).

use statrs::distribution::{ContinuousCDF, StudentsT};

/// Mean and unbiased variance of a sample.
struct Moments {
    count: f64,
    mean: f64,
    variance: f64,
}

impl Moments {
    /// `None` for fewer than two values, which have no variance.
    fn of(values: &[f64]) -> Option<Self> {
        if values.len() < 2 {
            return None;
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
        Some(Self { count, mean, variance })
    }

    /// Variance of the mean.
    fn variance_of_mean(&self) -> f64 {
        self.variance / self.count
    }
}

/// Two-sided p-value of Welch's t test: the probability of a difference at least this large between samples of equal means.
/// `None` where one of them has fewer than two values.
pub fn welch_p_value(one: &[f64], other: &[f64]) -> Option<f64> {
    let (one, other) = (Moments::of(one)?, Moments::of(other)?);
    let (first, second) = (one.variance_of_mean(), other.variance_of_mean());
    let difference = one.mean - other.mean;
    // Samples without any spread differ for certain, or not at all.
    if first + second == 0.0 {
        return Some(if difference == 0.0 { 1.0 } else { 0.0 });
    }
    let t = difference / (first + second).sqrt();
    let freedom = (first + second).powi(2) / (first.powi(2) / (one.count - 1.0) + second.powi(2) / (other.count - 1.0));
    let student = StudentsT::new(0.0, 1.0, freedom).ok()?;
    Some((2.0 * student.sf(t.abs())).min(1.0))
}
