//! Rotary position embedding (RoPE: Su et al., "RoFormer", 2021): cosines and sines for every position that may occur, with
//! frequencies scaled as the model's configuration says.

use flashjob_cpu::RopeTable;
use flashjob_model::{DecoderConfig, RopeConfig};

/// Bytes that a position takes in all tables of a model.
pub fn position_bytes(config: &DecoderConfig) -> u64 {
    let ropes = std::iter::once(&config.rope).chain(&config.windowed_rope);
    // A cosine and a sine for each pair.
    ropes.map(|rope| (rope.dim * size_of::<f32>()) as u64).sum()
}

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
