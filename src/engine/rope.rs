//! Cosines and sines of rotary position embedding (Su et al., "RoFormer", 2021) for every position that may occur.

use crate::kernels::RopeTable;
use crate::model::RopeConfig;

/// For positions below `positions`. Angles are single-precision products, as transformers computes them: at long
/// positions the rounding is part of what models were trained with.
pub fn table(config: &RopeConfig, positions: usize) -> RopeTable {
    let (frequencies, magnitude) = (config.inverse_frequencies(positions), f64::from(config.magnitude()));
    let angles =
        (0..positions).flat_map(|position| frequencies.iter().map(move |frequency| position as f32 * frequency));
    let scaled = |(sin, cos): (f64, f64)| ((sin * magnitude) as f32, (cos * magnitude) as f32);
    let (sin, cos) = angles.map(|angle| scaled(f64::from(angle).sin_cos())).unzip();
    RopeTable { cos, sin, dim: config.dim }
}
