//! Repeated regions: how many of them, and what their spread says.
//!
//! An interval out of one run is wrong, however many requests it has: what differs between two runs of the same binary is not
//! in it. So whole regions are repeated, and the interval of their mean is Student's.

use flashjob_config::Repeats;
use flashjob_results::{ConfidenceInterval, StoppedBy};

/// Half width of the interval as a share of the mean at which automatic repetition ends.
const CLOSE_ENOUGH: f64 = 0.02;

/// Regions of automatic repetition at least: two say next to nothing of their spread (t is 12.7).
const FEWEST: usize = 3;

/// Regions of automatic repetition at most.
const MOST: usize = 10;

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

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

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
