//! Share of the machine's limits that a run reached: the roofline (Williams et al., 2009), step by step.
//!
//! A step takes at least as long as its operations at the machine's rate of operations, and at least as long as its bytes
//! at the machine's rate of bytes. The sum of the longer ones is the least that the run could have taken.
//!
//! The serial limit is the same of each operation of a step by itself: of products, which operations bound in a large batch, and of
//! attention, which bytes bound. It is the least for an engine that computes one operation after the other.

use std::collections::BTreeMap;

use flashjob_event::{Needs, StepNeeds};
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
    /// The least that all steps could have taken with one operation after the other; `None` where it is unknown.
    pub serial_limit_seconds: Option<f64>,
    /// Reason for an unknown roofline although limits were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_because: Option<&'static str>,
}

/// Reason for discarding limits that the run itself exceeded.
const LIMITS_TOO_LOW: &str = "the run was faster than the machine's limits as they were measured before it and after it: either other \
                              work held the processors up at both times, and should not run beside the job, or the model is so \
                              small that caches hold it, and memory is no limit";

/// Needs of a region, by step and by operation.
#[derive(Debug, Default)]
pub(super) struct NeededWork {
    steps: ByIntensity,
    operations: ByIntensity,
}

impl NeededWork {
    /// Counts in a step.
    pub(super) fn add(&mut self, step: &StepNeeds) {
        self.steps.add(step.total());
        step.operations().into_iter().for_each(|operation| self.operations.add(operation));
    }

    /// Beside `limits`, for a region of `elapsed_seconds`.
    pub(super) fn under(&self, limits: Option<MachineLimits>, elapsed_seconds: f64) -> Roofline {
        let Needs { flops, bytes } = self.steps.total();
        let roofline = Roofline { limits, flops, bytes, ..Roofline::default() };
        let Some(limits) = limits else { return roofline };
        let least = self.steps.least(limits);
        match least.seconds > elapsed_seconds {
            true => Roofline { unknown_because: Some(LIMITS_TOO_LOW), ..roofline },
            false => Roofline {
                limit_seconds: Some(least.seconds),
                compute_bound_seconds: Some(least.compute_bound_seconds),
                serial_limit_seconds: Some(self.operations.least(limits).seconds),
                ..roofline
            },
        }
    }
}

/// Needs put together by their operations per byte, as limits are known at the end only: bounded memory for any number of steps, exact
/// but for needs of about the intensity at which neither limit is the longer one, and within half a place there.
#[derive(Debug, Default)]
struct ByIntensity(BTreeMap<i32, Needs>);

/// Places for each doubling of the intensity: one is 0.3 % wide.
const PER_OCTAVE: f64 = 256.0;

/// Octaves beyond which intensities are one: 2^±64 operations per byte, which no computation has.
const OCTAVES: f64 = 64.0;

/// The least time of needs.
struct Least {
    seconds: f64,
    compute_bound_seconds: f64,
}

impl ByIntensity {
    fn add(&mut self, needs: Needs) {
        if needs == Needs::default() {
            return;
        }
        // Infinite of what moves nothing.
        let octave = (needs.flops / needs.bytes).log2().clamp(-OCTAVES, OCTAVES);
        let place = self.0.entry((octave * PER_OCTAVE).round() as i32).or_default();
        *place = *place + needs;
    }

    fn total(&self) -> Needs {
        self.0.values().fold(Needs::default(), |sum, &needs| sum + needs)
    }

    fn least(&self, limits: MachineLimits) -> Least {
        let mut least = Least { seconds: 0.0, compute_bound_seconds: 0.0 };
        for Needs { flops, bytes } in self.0.values() {
            // Within one computing and moving overlap, so that the longer one counts. They follow each other, so that they add up.
            let (computing, moving) = (flops / limits.flops_per_second, bytes / limits.bytes_per_second);
            least.seconds += computing.max(moving);
            if computing >= moving {
                least.compute_bound_seconds += computing;
            }
        }
        least
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
    /// Seconds that all steps take at the limits, one operation after the other.
    pub roofline_serial_seconds: f64,
    /// The same as a share of the elapsed time; above 1 where operations overlap, or caches hold what one leaves to the next.
    pub roofline_serial_fraction: f64,
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
        let added = |one: Option<f64>, other: Option<f64>| one.zip(other).map(|(one, other)| one + other);
        let sum = |sum: Self, region: Self| Self {
            limits: match (sum.limits, region.limits) {
                (Some(one), Some(other)) => Some(one.higher(other)),
                _ => None,
            },
            flops: sum.flops + region.flops,
            bytes: sum.bytes + region.bytes,
            limit_seconds: added(sum.limit_seconds, region.limit_seconds),
            compute_bound_seconds: added(sum.compute_bound_seconds, region.compute_bound_seconds),
            serial_limit_seconds: added(sum.serial_limit_seconds, region.serial_limit_seconds),
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
            let serial_limit_seconds = self.serial_limit_seconds?;
            Some(BoundFigures {
                roofline_seconds: limit_seconds,
                roofline_fraction: limit_seconds / elapsed_seconds,
                roofline_serial_seconds: serial_limit_seconds,
                roofline_serial_fraction: serial_limit_seconds / elapsed_seconds,
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

    fn products(flops: f64, bytes: f64) -> StepNeeds {
        StepNeeds { layers: Needs { flops, bytes }, ..StepNeeds::default() }
    }

    fn needed(steps: &[StepNeeds]) -> NeededWork {
        let mut needed = NeededWork::default();
        steps.iter().for_each(|step| needed.add(step));
        needed
    }

    /// Steps of one kind of operation.
    fn needs(steps: &[(f64, f64)]) -> NeededWork {
        needed(&steps.iter().map(|&(flops, bytes)| products(flops, bytes)).collect::<Vec<_>>())
    }

    #[test]
    fn operations_one_after_the_other_take_longer_than_the_step_at_its_limit() {
        // Products that computing bounds, 3 s, and attention that memory bounds, 2 s: 3.2 s and 2.5 s were they to overlap.
        let step = StepNeeds { attention: Needs { flops: 20.0, bytes: 20.0 }, ..products(300.0, 5.0) };
        let roofline = needed(&[step, step]).under(Some(LIMITS), 20.0);
        assert_eq!((roofline.limit_seconds, roofline.serial_limit_seconds), (Some(6.4), Some(10.0)));
        let bound = roofline.figures(20.0).unwrap().bound.unwrap();
        assert_eq!((bound.roofline_fraction, bound.roofline_serial_fraction), (0.32, 0.5));
    }

    #[test]
    fn any_number_of_steps_takes_bounded_memory_and_hardly_changes_the_sum() {
        let mut needed = NeededWork::default();
        let mut exact = 0.0;
        for step in 0..100_000 {
            // Intensities from 0.1 to 1000, across that of the machine, which is 10.
            let flops = 10f64.powf(f64::from(step % 4000) / 1000.0);
            needed.add(&products(flops, 10.0));
            exact += (flops / LIMITS.flops_per_second).max(10.0 / LIMITS.bytes_per_second);
        }
        assert!(needed.steps.0.len() < 4000, "{}", needed.steps.0.len());
        let least = needed.steps.least(LIMITS).seconds;
        assert!(least <= exact * (1.0 + 1e-9) && least > exact * 0.999_9, "{least} instead of {exact}");
        needed.add(&products(1.0, 0.0));
        needed.add(&products(0.0, 1.0));
        assert!(needed.steps.least(LIMITS).seconds.is_finite());
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
