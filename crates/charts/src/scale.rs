//! Values to places on an axis, and the ticks between.

/// Ticks that an axis has room for.
const TICKS: f64 = 5.0;

/// An axis's range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    /// Equal distances for equal differences.
    Linear { min: f64, max: f64 },
    /// Equal distances for equal ratios; both ends are positive.
    Log { min: f64, max: f64 },
}

impl Scale {
    /// From 0 to a round number at or above the largest of `values`.
    pub(crate) fn from_zero(values: impl Iterator<Item = f64>) -> Self {
        let largest = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        // An axis of zeros has a range as well.
        let largest = if largest > 0.0 { largest } else { 1.0 };
        let step = nice_step(largest / TICKS);
        Scale::Linear { min: 0.0, max: (largest / step - 1e-9).ceil() * step }
    }

    /// Exactly from 0 to the largest of `values`.
    pub(crate) fn over(values: impl Iterator<Item = f64>) -> Self {
        let largest = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        Scale::Linear { min: 0.0, max: if largest > 0.0 { largest } else { 1.0 } }
    }

    /// Around the positive of `values` by ratio; `None` where there are none.
    pub(crate) fn log(values: impl Iterator<Item = f64>) -> Option<Self> {
        let positive = values.filter(|value| value.is_finite() && *value > 0.0);
        let (min, max) = positive.fold((f64::INFINITY, 0f64), |(min, max), value| (min.min(value), max.max(value)));
        if max == 0.0 {
            return None;
        }
        // A little room on both sides, and a range for a single value.
        let room = ((max / min).log10() * 0.05).max(0.15);
        Some(Scale::Log { min: min / 10f64.powf(room), max: max * 10f64.powf(room) })
    }

    /// Both ends of the range.
    pub(crate) fn ends(&self) -> (f64, f64) {
        match *self {
            Scale::Linear { min, max } | Scale::Log { min, max } => (min, max),
        }
    }

    /// Place of `value` from 0 to 1; values beyond the ends are at the ends.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let place = match *self {
            Scale::Linear { min, max } => (value - min) / (max - min),
            Scale::Log { min, max } if value > 0.0 => (value / min).ln() / (max / min).ln(),
            Scale::Log { .. } => 0.0,
        };
        // Points beyond an end, such as those of another unit by mistake, stay in the picture.
        if place.is_finite() { place.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Values that get a tick, in steps that are round where they are divided by `divisor`.
    pub(crate) fn ticks(&self, divisor: f64) -> Vec<f64> {
        match *self {
            Scale::Linear { min, max } => {
                let step = nice_step((max - min) / divisor / TICKS) * divisor;
                // By whole numbers: sums of steps would drift, and 0.30000000000000004 is no tick.
                let first = (min / step).ceil() as i64;
                (first..first + 2 * TICKS as i64 + 2)
                    .map(|place| place as f64 * step)
                    .take_while(|tick| *tick <= max * (1.0 + 1e-9))
                    .collect()
            }
            Scale::Log { min, max } => {
                let decades = (max / min).log10();
                // With few decades some of the numbers between have ticks; with many, not every power of ten has one.
                let between: &[f64] = match decades {
                    ..1.5 => &[1.0, 2.0, 5.0],
                    ..3.0 => &[1.0, 3.0],
                    _ => &[1.0],
                };
                let every = (decades / 8.0).ceil().max(1.0) as usize;
                let (first, last) = (min.log10().floor() as i32, max.log10().ceil() as i32);
                (first..=last)
                    .step_by(every)
                    .flat_map(|exponent| between.iter().map(move |factor| factor * 10f64.powi(exponent)))
                    .filter(|tick| (min..=max).contains(tick))
                    .collect()
            }
        }
    }
}

/// The least of 1, 2, 2.5 and 5 times a power of ten that is at least `least`.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
    factors.into_iter().map(|factor| factor * power).find(|step| *step >= least * (1.0 - 1e-9)).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let scale = Scale::from_zero([3.0, 870.0].into_iter());
        assert_eq!(scale, Scale::Linear { min: 0.0, max: 1000.0 });
        assert_eq!(scale.ticks(1.0), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        let minutes = Scale::over([1000.0].into_iter()).ticks(60.0);
        assert_eq!(minutes, [0.0, 300.0, 600.0, 900.0]);
        assert_eq!(Scale::from_zero([0.0, f64::NAN].into_iter()), Scale::Linear { min: 0.0, max: 1.0 });
    }

    #[test]
    fn a_logarithmic_axis_has_room_for_one_value_and_for_many_decades() {
        let one = Scale::log([5.0].into_iter()).unwrap();
        assert!(one.place(5.0) > 0.4 && one.place(5.0) < 0.6);
        assert!(!one.ticks(1.0).is_empty());
        let many = Scale::log([1e-9, 1e15].into_iter()).unwrap().ticks(1.0);
        assert!((3..=12).contains(&many.len()), "{many:?}");
        assert_eq!(Scale::log([0.0, -1.0, f64::INFINITY].into_iter()), None);
    }
}
