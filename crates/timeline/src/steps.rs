//! Steps put together by kind and by operations per byte.

use std::collections::BTreeMap;

use flashjob_results::{StepKind, StepsAlike};

/// Places for each doubling of the intensity.
const PER_OCTAVE: f64 = 4.0;

/// Intensities from 2^-10 to 2^20 operations per byte: far beyond what a forward pass has. With three kinds they bound the number of
/// entries.
const OCTAVES: (f64, f64) = (-10.0, 20.0);

/// Steps by kind and intensity.
#[derive(Clone, Debug, Default)]
pub(crate) struct Steps(BTreeMap<(StepKind, i32), StepsAlike>);

impl Steps {
    /// Counts in a step that needed so much and took so long.
    pub(crate) fn add(&mut self, kind: StepKind, flops: f64, bytes: f64, seconds: f64) {
        let octave = (flops / bytes).log2();
        // A step that needed nothing has no place on the axis.
        if !octave.is_finite() {
            return;
        }
        let place = (octave.clamp(OCTAVES.0, OCTAVES.1) * PER_OCTAVE).round() as i32;
        let none = StepsAlike { kind, steps: 0, flops: 0.0, bytes: 0.0, seconds: 0.0 };
        let alike = self.0.entry((kind, place)).or_insert(none);
        alike.steps += 1;
        alike.flops += flops;
        alike.bytes += bytes;
        alike.seconds += seconds;
    }

    pub(crate) fn recorded(&self) -> Vec<StepsAlike> {
        self.0.values().copied().collect()
    }
}
