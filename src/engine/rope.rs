//! Cosines and sines of rotary position embedding (Su et al., "RoFormer", 2021) for every position that may occur.

use crate::kernels::RopeTable;
use crate::model::RopeConfig;

/// For positions below `positions`. Angles are single-precision products, as transformers computes them: at long
/// positions the rounding is part of what models were trained with.
pub fn table(config: &RopeConfig, positions: usize) -> RopeTable {
    let frequencies = config.inverse_frequencies();
    let angles =
        (0..positions).flat_map(|position| frequencies.iter().map(move |frequency| position as f32 * frequency));
    let (sin, cos) = angles.map(|angle| f64::from(angle).sin_cos()).map(|(sin, cos)| (sin as f32, cos as f32)).unzip();
    RopeTable { cos, sin, dim: config.dim }
}
