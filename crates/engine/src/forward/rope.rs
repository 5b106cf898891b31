//! Rotary position embedding (RoPE: Su et al., "RoFormer", 2021): cosines and sines for every position that may occur, with
//! frequencies scaled as the model's configuration says.

use candle_core::{Device as CandleDevice, Result};

use flashjob_cpu::RopeTable;
use flashjob_model::{DecoderConfig, RopeConfig};

/// A table, and a copy of it where computing happens.
pub struct RotaryEmbedding {
    table: RopeTable,
    /// Cosines and sines, `[positions, dim / 2]`.
    #[cfg(feature = "cuda")]
    on_device: Option<[candle_core::Tensor; 2]>,
}

impl RotaryEmbedding {
    /// For positions below `positions`.
    pub fn new(config: &RopeConfig, positions: usize, device: &CandleDevice) -> Result<Self> {
        let table = table(config, positions);
        #[cfg(feature = "cuda")]
        let on_device = match device.is_cpu() {
            true => None,
            false => {
                let upload = |numbers: &[f32]| candle_core::Tensor::from_slice(numbers, numbers.len(), device);
                Some([upload(&table.cos)?, upload(&table.sin)?])
            }
        };
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Ok(Self {
            table,
            #[cfg(feature = "cuda")]
            on_device,
        })
    }

    /// The table on the host.
    pub fn table(&self) -> &RopeTable {
        &self.table
    }

    /// Cosines and sines on the GPU.
    #[cfg(feature = "cuda")]
    pub fn addresses(&self) -> Result<[crate::cuda::address::Address; 2]> {
        use crate::forward::ops::access::Operand;
        let Some([cos, sin]) = &self.on_device else { candle_core::bail!("these angles are not on a GPU") };
        Ok([Operand::of(cos).address()?, Operand::of(sin).address()?])
    }
}

/// Bytes that a position takes in all tables of a model.
pub fn position_bytes(config: &DecoderConfig) -> u64 {
    let ropes = std::iter::once(&config.rope).chain(&config.windowed_rope);
    // A cosine and a sine for each pair.
    ropes.map(|rope| (rope.dim * size_of::<f32>()) as u64).sum()
}

/// For positions below `positions`. Angles are single-precision products, as transformers computes them: at long
/// positions the rounding is part of what models were trained with.
fn table(config: &RopeConfig, positions: usize) -> RopeTable {
    let (frequencies, magnitude) = (config.inverse_frequencies(positions), f64::from(config.magnitude()));
    let angles =
        (0..positions).flat_map(|position| frequencies.iter().map(move |frequency| position as f32 * frequency));
    let scaled = |(sin, cos): (f64, f64)| ((sin * magnitude) as f32, (cos * magnitude) as f32);
    let (sin, cos) = angles.map(|angle| scaled(f64::from(angle).sin_cos())).unzip();
    RopeTable { cos, sin, dim: config.dim }
}
