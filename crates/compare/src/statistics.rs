//! Welch's t test between two samples of unequal variance.
//!
//! Welch, "The generalization of 'Student's' problem when several different population variances are involved", Biometrika 34
//! (1947); the degrees of freedom are Satterthwaite's (1946).

use statrs::distribution::{ContinuousCDF, StudentsT};

use flashjob_results::Moments;

/// Two-sided p-value of Welch's t test: the probability of a difference at least this large between samples of equal means.
/// `None` where one of them has fewer than two values.
pub fn welch_p_value(one: &[f64], other: &[f64]) -> Option<f64> {
    let (one, other) = (Moments::of(one)?, Moments::of(other)?);
    let (first, second) = (one.variance / one.count, other.variance / other.count);
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
