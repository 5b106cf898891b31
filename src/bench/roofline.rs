//! Share of the machine's limits that a run reached: the roofline (Williams et al., 2009), step by step.
//!
//! A step takes at least as long as its operations at the machine's rate of operations, and at least as long as its bytes
//! at the machine's rate of bytes. The sum of the longer ones is the least that the run could have taken.

use serde::Serialize;

/// Limits of the machine, as measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MachineLimits {
    /// Floating-point operations of a large matrix product.
    pub flops_per_second: f64,
    /// Bytes between memory and processors.
    pub bytes_per_second: f64,
}

impl MachineLimits {
    /// The higher figure of two measurements each: what else runs on a machine only ever lowers them.
    pub(super) fn higher(self, other: Self) -> Self {
        Self {
            flops_per_second: self.flops_per_second.max(other.flops_per_second),
            bytes_per_second: self.bytes_per_second.max(other.bytes_per_second),
        }
    }
}

/// Operations and bytes of a region, and the least time that they take at the machine's limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Roofline {
    /// The higher ones of before and after the region; `None` where they were not measured: then the fractions are unknown.
    pub limits: Option<MachineLimits>,
    /// Floating-point operations that all steps needed.
    pub flops: f64,
    /// Bytes that all steps needed.
    pub bytes: f64,
    /// The least that all steps could have taken; `None` where it is unknown.
    pub limit_seconds: Option<f64>,
    /// The part of it in steps that operations bound rather than bytes.
    pub compute_bound_seconds: Option<f64>,
    /// Reason for an unknown roofline although limits were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_because: Option<&'static str>,
}

/// Reason for discarding limits that the run itself exceeded.
const LIMITS_TOO_LOW: &str = "the run was faster than the machine's limits as they were measured before it and after it: either other \
                              work held the processors up at both times, and should not run beside the job, or the model is so \
                              small that caches hold it, and memory is no limit";

/// Operations and bytes of each step of a region.
#[derive(Debug, Default)]
pub(super) struct Needs(Vec<(f64, f64)>);

impl Needs {
    /// Counts in a step.
    pub(super) fn add(&mut self, flops: f64, bytes: f64) {
        self.0.push((flops, bytes));
    }

    /// Beside `limits`, for a region of `elapsed_seconds`.
    pub(super) fn under(&self, limits: Option<MachineLimits>, elapsed_seconds: f64) -> Roofline {
        let mut roofline = Roofline { limits, ..Roofline::default() };
        for (flops, bytes) in &self.0 {
            roofline.flops += flops;
            roofline.bytes += bytes;
        }
        let Some(limits) = limits else { return roofline };
        let (mut least, mut compute_bound) = (0.0, 0.0);
        for (flops, bytes) in &self.0 {
            // Within a step computing and moving overlap, so that the longer one counts. Steps follow each other, so that
            // they add up.
            let (computing, moving) = (flops / limits.flops_per_second, bytes / limits.bytes_per_second);
            least += computing.max(moving);
            if computing >= moving {
                compute_bound += computing;
            }
        }
        match least > elapsed_seconds {
            true => Roofline { unknown_because: Some(LIMITS_TOO_LOW), ..roofline },
            false => Roofline { limit_seconds: Some(least), compute_bound_seconds: Some(compute_bound), ..roofline },
        }
    }
}

/// Figures of a run beside the machine's limits; the names of the fields are those of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RooflineFigures {
    /// Operations per second.
    pub flops_per_second: f64,
    /// Bytes per second.
    pub memory_bytes_per_second: f64,
    /// `None` where limits were not measured.
    #[serde(flatten)]
    pub limits: Option<LimitFigures>,
    /// `None` where the roofline is unknown.
    #[serde(flatten)]
    pub bound: Option<BoundFigures>,
}

/// The machine's limits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LimitFigures {
    /// Operations per second.
    pub limit_flops_per_second: f64,
    /// Bytes per second.
    pub limit_memory_bytes_per_second: f64,
}

/// A run as a share of its roofline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BoundFigures {
    /// Seconds that all steps take at the limits.
    pub roofline_seconds: f64,
    /// The same as a share of the elapsed time.
    pub roofline_fraction: f64,
    /// Share of it in steps that operations bound rather than bytes.
    pub roofline_compute_bound_share: f64,
    /// Model FLOPs utilisation.
    pub mfu: f64,
    /// Model bandwidth utilisation.
    pub mbu: f64,
}

impl Roofline {
    /// That of several regions: needs and limits in time add up; unknown where one of them is.
    pub(super) fn together(regions: impl Iterator<Item = Self>) -> Self {
        let sum = |sum: Self, region: Self| Self {
            limits: match (sum.limits, region.limits) {
                (Some(one), Some(other)) => Some(one.higher(other)),
                _ => None,
            },
            flops: sum.flops + region.flops,
            bytes: sum.bytes + region.bytes,
            limit_seconds: sum.limit_seconds.zip(region.limit_seconds).map(|(one, other)| one + other),
            compute_bound_seconds: sum
                .compute_bound_seconds
                .zip(region.compute_bound_seconds)
                .map(|(one, other)| one + other),
            unknown_because: sum.unknown_because.or(region.unknown_because),
        };
        regions.reduce(sum).unwrap_or_default()
    }

    /// Figures for a region of `elapsed_seconds`; `None` where nothing was computed.
    pub fn figures(&self, elapsed_seconds: f64) -> Option<RooflineFigures> {
        // Engines that do not report their steps, such as vLLM, have no roofline.
        if self.flops == 0.0 || elapsed_seconds <= 0.0 {
            return None;
        }
        let (flops_per_second, memory_bytes_per_second) = (self.flops / elapsed_seconds, self.bytes / elapsed_seconds);
        let bound = |limits: MachineLimits| {
            let (limit_seconds, compute_bound_seconds) = (self.limit_seconds?, self.compute_bound_seconds?);
            Some(BoundFigures {
                roofline_seconds: limit_seconds,
                roofline_fraction: limit_seconds / elapsed_seconds,
                roofline_compute_bound_share: compute_bound_seconds / limit_seconds,
                mfu: flops_per_second / limits.flops_per_second,
                mbu: memory_bytes_per_second / limits.bytes_per_second,
            })
        };
        let limits = self.limits.map(|limits| LimitFigures {
            limit_flops_per_second: limits.flops_per_second,
            limit_memory_bytes_per_second: limits.bytes_per_second,
        });
        Some(RooflineFigures { flops_per_second, memory_bytes_per_second, limits, bound: self.limits.and_then(bound) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: MachineLimits = MachineLimits { flops_per_second: 100.0, bytes_per_second: 10.0 };

    fn needs(steps: &[(f64, f64)]) -> Needs {
        Needs(steps.to_vec())
    }

    #[test]
    fn each_step_counts_by_what_holds_it_up() {
        let roofline = needs(&[(300.0, 10.0), (50.0, 20.0)]).under(Some(LIMITS), 10.0);
        assert_eq!((roofline.limit_seconds, roofline.compute_bound_seconds), (Some(5.0), Some(3.0)));
        let figures = roofline.figures(10.0).unwrap();
        let bound = figures.bound.unwrap();
        assert_eq!((bound.roofline_fraction, bound.roofline_compute_bound_share), (0.5, 0.6));
        assert_eq!((bound.mfu, bound.mbu), (0.35, 0.3));
        assert_eq!((figures.flops_per_second, figures.memory_bytes_per_second), (35.0, 3.0));
    }

    #[test]
    fn without_limits_there_are_rates_and_no_fractions() {
        assert!(needs(&[]).under(None, 1.0).figures(1.0).is_none());
        let roofline = needs(&[(8.0, 4.0)]).under(None, 2.0);
        let rates = RooflineFigures { flops_per_second: 4.0, memory_bytes_per_second: 2.0, limits: None, bound: None };
        assert_eq!(roofline.figures(2.0), Some(rates));
        assert_eq!((roofline.limit_seconds, roofline.unknown_because), (None, None));
    }

    #[test]
    fn a_run_above_the_limits_has_no_roofline_and_says_why() {
        let steps = needs(&[(300.0, 10.0), (50.0, 20.0)]);
        let roofline = steps.under(Some(LIMITS), 4.9);
        assert_eq!((roofline.limit_seconds, roofline.compute_bound_seconds), (None, None));
        assert!(roofline.unknown_because.is_some_and(|reason| reason.contains("faster than the machine's limits")));
        let figures = roofline.figures(4.9).unwrap();
        assert!(figures.limits.is_some() && figures.bound.is_none());
        // As fast as the limits is as fast as can be.
        let figures = steps.under(Some(LIMITS), 5.0).figures(5.0).unwrap();
        assert_eq!(figures.bound.map(|bound| bound.roofline_fraction), Some(1.0));
    }

    #[test]
    fn of_two_measurements_the_higher_of_each_figure_counts() {
        let other = MachineLimits { flops_per_second: 80.0, bytes_per_second: 12.0 };
        let higher = MachineLimits { flops_per_second: 100.0, bytes_per_second: 12.0 };
        assert_eq!((LIMITS.higher(other), other.higher(LIMITS)), (higher, higher));
    }
}
