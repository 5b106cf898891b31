//! How near a run came to what the machine can do: the roofline (Williams et al., 2009), step by step.
//!
//! A step takes at least as long as its operations at the machine's rate of operations, and at least as long as its bytes
//! at the machine's rate of bytes. The sum of the longer ones is the least that the run could have taken.

use serde::Serialize;

/// The machine's limits, as they were measured before the run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MachineLimits {
    /// Floating-point operations of a large matrix product.
    pub flops_per_second: f64,
    /// Bytes between memory and processors.
    pub bytes_per_second: f64,
}

/// What a region needed, and what it could have taken at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Roofline {
    /// `None` where they were not measured; then the fractions are unknown.
    pub limits: Option<MachineLimits>,
    /// Floating-point operations that all steps needed.
    pub flops: f64,
    /// Bytes that all steps needed.
    pub bytes: f64,
    /// The least that all steps could have taken.
    pub limit_seconds: f64,
    /// Of that, in steps that operations hold up rather than bytes.
    pub compute_bound_seconds: f64,
}

impl Roofline {
    /// Of a region that begins now.
    pub(super) fn under(limits: Option<MachineLimits>) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Counts in a step.
    pub(super) fn add(&mut self, flops: f64, bytes: f64) {
        self.flops += flops;
        self.bytes += bytes;
        let Some(limits) = self.limits else { return };
        let (computing, moving) = (flops / limits.flops_per_second, bytes / limits.bytes_per_second);
        self.limit_seconds += computing.max(moving);
        if computing >= moving {
            self.compute_bound_seconds += computing;
        }
    }

    /// Its figures by name, for a region of `elapsed_seconds`; none where nothing was computed.
    pub fn named(&self, elapsed_seconds: f64) -> Vec<(&'static str, f64)> {
        if self.flops == 0.0 || elapsed_seconds <= 0.0 {
            return Vec::new();
        }
        let mut named = vec![
            ("flops_per_second", self.flops / elapsed_seconds),
            ("memory_bytes_per_second", self.bytes / elapsed_seconds),
        ];
        if let Some(limits) = self.limits {
            named.extend([
                ("limit_flops_per_second", limits.flops_per_second),
                ("limit_memory_bytes_per_second", limits.bytes_per_second),
                ("roofline_seconds", self.limit_seconds),
                ("roofline_fraction", self.limit_seconds / elapsed_seconds),
                ("roofline_compute_bound_share", self.compute_bound_seconds / self.limit_seconds),
                // Model FLOPs and model bandwidth utilisation.
                ("mfu", self.flops / elapsed_seconds / limits.flops_per_second),
                ("mbu", self.bytes / elapsed_seconds / limits.bytes_per_second),
            ]);
        }
        named
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: MachineLimits = MachineLimits { flops_per_second: 100.0, bytes_per_second: 10.0 };

    #[test]
    fn each_step_counts_by_what_holds_it_up() {
        let mut roofline = Roofline::under(Some(LIMITS));
        roofline.add(300.0, 10.0);
        roofline.add(50.0, 20.0);
        assert_eq!((roofline.limit_seconds, roofline.compute_bound_seconds), (5.0, 3.0));
        let named = roofline.named(10.0);
        let figure = |name: &str| named.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        assert_eq!((figure("roofline_fraction"), figure("roofline_compute_bound_share")), (Some(0.5), Some(0.6)));
        assert_eq!((figure("mfu"), figure("mbu")), (Some(0.35), Some(0.3)));
        assert_eq!((figure("flops_per_second"), figure("memory_bytes_per_second")), (Some(35.0), Some(3.0)));
    }

    #[test]
    fn without_limits_there_are_rates_and_no_fractions() {
        let mut roofline = Roofline::under(None);
        assert!(roofline.named(1.0).is_empty());
        roofline.add(8.0, 4.0);
        assert_eq!(roofline.named(2.0), [("flops_per_second", 4.0), ("memory_bytes_per_second", 2.0)]);
    }
}
