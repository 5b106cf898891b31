//! Repeated regions: how many of them, and what their spread says.
//!
//! An interval out of one run is wrong, however many requests it has: what differs between two runs of the same binary is not
//! in it. So whole regions are repeated, and the interval of their mean is Student's.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

use flashjob_config::Repeats;

/// Confidence of intervals.
pub const CONFIDENCE: f64 = 0.95;

/// Half width of the interval as a share of the mean at which automatic repetition ends.
const CLOSE_ENOUGH: f64 = 0.02;

/// Regions of automatic repetition at least: two say next to nothing of their spread (t is 12.7).
const FEWEST: usize = 3;

/// Regions of automatic repetition at most.
const MOST: usize = 10;

/// Reason for the end of repetition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoppedBy {
    /// As many regions as were asked for.
    Count,
    /// The interval is narrow enough.
    Interval,
    /// As many regions as there may be, and the interval is still wider.
    Limit,
}

/// Returns why no further region follows those with the output tokens per second of `values`; `None`: another one does.
pub fn stopped_by(repeats: Repeats, values: &[f64]) -> Option<StoppedBy> {
    match repeats {
        Repeats::Count(count) => (values.len() >= count.get()).then_some(StoppedBy::Count),
        Repeats::UntilClose if values.len() >= FEWEST && is_close(values) => Some(StoppedBy::Interval),
        Repeats::UntilClose => (values.len() >= MOST).then_some(StoppedBy::Limit),
    }
}

fn is_close(values: &[f64]) -> bool {
    ConfidenceInterval::of(values).is_some_and(|interval| interval.half_width <= CLOSE_ENOUGH * interval.mean)
}

/// A mean with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ConfidenceInterval {
    /// Arithmetic mean.
    pub mean: f64,
    /// Of the sample, with n - 1 degrees of freedom.
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
        let count = values.len() as f64;
        if values.len() < 2 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let standard_deviation = variance.sqrt();
        let student = StudentsT::new(0.0, 1.0, count - 1.0).ok()?;
        let half_width = student.inverse_cdf((1.0 + CONFIDENCE) / 2.0) * standard_deviation / count.sqrt();
        Some(Self { mean, standard_deviation, half_width, low: mean - half_width, high: mean + half_width })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

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

    #[test]
    fn repetition_ends_at_its_count_at_a_narrow_interval_or_at_its_limit() {
        let three = Repeats::Count(NonZeroUsize::new(3).unwrap());
        for (repeats, values, expected) in [
            (three, &[1.0, 2.0][..], None),
            (three, &[1.0, 2.0, 3.0], Some(StoppedBy::Count)),
            (Repeats::UntilClose, &[100.0], None),
            (Repeats::UntilClose, &[100.0, 100.0], None),
            (Repeats::UntilClose, &[100.0, 100.1, 99.9], Some(StoppedBy::Interval)),
            // The half width is 2.48 %: one value more narrows it.
            (Repeats::UntilClose, &[99.0, 100.0, 101.0], None),
            (Repeats::UntilClose, &[99.0, 100.0, 101.0, 100.0], Some(StoppedBy::Interval)),
            (Repeats::UntilClose, &[50.0, 150.0, 50.0, 150.0, 50.0, 150.0, 50.0, 150.0, 50.0], None),
            (
                Repeats::UntilClose,
                &[50.0, 150.0, 50.0, 150.0, 50.0, 150.0, 50.0, 150.0, 50.0, 150.0],
                Some(StoppedBy::Limit),
            ),
            // No tokens in any region: nothing is closer than that.
            (Repeats::UntilClose, &[0.0, 0.0, 0.0], Some(StoppedBy::Interval)),
        ] {
            assert_eq!(stopped_by(repeats, values), expected, "{values:?}");
        }
    }
}
