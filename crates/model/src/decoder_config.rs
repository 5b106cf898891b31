//! Configuration of the one decoder, for every model family and file format.

/// Shapes and constants of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of transformer layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple.
    pub kv_heads: usize,
    /// Width of a head; not always `hidden_size / heads`.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// Nonlinearity of the gate.
    pub activation: Activation,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Rotary embedding of layers with a sliding window, where it differs.
    pub windowed_rope: Option<RopeConfig>,
    /// Sliding window of each layer: tokens that a query sees, itself included; `None` for full attention.
    pub windows: Vec<Option<usize>>,
    /// True if the head shares the embedding's weights.
    pub tied_head: bool,
    /// True if the projections q, k and v have a bias.
    pub qkv_bias: bool,
    /// True if the heads of q and k are normalised before they are rotated.
    pub qk_norm: bool,
    /// True if the outputs of attention and feed-forward layer are normalised before they are added to the residual
    /// stream.
    pub output_norms: bool,
    /// Factor on rows of the embedding.
    pub embedding_scale: f32,
    /// Factor on q·k before the softmax.
    pub attention_scale: f32,
    /// `softcap · tanh(score / softcap)` before the softmax.
    pub attention_softcap: Option<f32>,
    /// Softcap of the logits, in the same form.
    pub logits_softcap: Option<f32>,
    /// Longest sequence that the model was trained for.
    pub max_position: usize,
}

/// Nonlinearity of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x), also called swish.
    Silu,
    /// GELU in its tanh approximation.
    GeluTanh,
}

/// Rotary position embedding over the first `dim` entries of a head, halves rotated (Hugging Face's layout).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Rotated entries of a head.
    pub dim: usize,
    /// Scaling of the frequencies.
    pub scaling: RopeScaling,
}

/// Scaling of rotary frequencies beyond the trained length.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// No scaling of any frequency.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Divisor of positions, ≥ 1.
        factor: f64,
    },
    /// Llama 3's blend of low and high frequencies (transformers `modeling_rope_utils.py`,
    /// `_compute_llama3_parameters`).
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Length of the original training.
        original_max_position: usize,
    },
    /// Each frequency divided by its own factor, as GGUF files carry it (tensor `rope_freqs.weight`).
    Factors(
        /// `dim / 2` of them, the highest frequency first.
        Vec<f32>,
    ),
    /// Phi 3's LongRoPE: each frequency is divided by its own factor, from one of two lists, the same for all sequences
    /// of a run. (transformers `modeling_rope_utils.py`, `_compute_longrope_parameters`, chooses by the present length
    /// of a sequence, so that its first tokens change their meaning as it grows; vLLM and llama.cpp choose by the
    /// longest length that is served, as here.)
    LongRope {
        /// `dim / 2` divisors where nothing is longer than `original_max_position`.
        short: Vec<f32>,
        /// `dim / 2` divisors otherwise.
        long: Vec<f32>,
        /// Length of the original training.
        original_max_position: usize,
        /// Factor on cosines and sines, whichever list is used.
        magnitude: f32,
    },
}

impl RopeConfig {
    /// RoPE over the whole head at the usual base, without scaling.
    pub(super) fn plain(head_dim: usize) -> Self {
        Self { theta: 10_000.0, dim: head_dim, scaling: RopeScaling::None }
    }

    /// Angle by which each pair of entries turns per position, `dim / 2` of them, highest first, where no sequence is
    /// longer than `longest`.
    ///
    /// In single precision where transformers uses it, so that long positions turn by the same angle.
    pub fn inverse_frequencies(&self, longest: usize) -> Vec<f32> {
        // In double precision, rounded at the end: single precision would shift the phase at long positions.
        let plain = |pair: usize| self.theta.powf(-((2 * pair) as f64) / self.dim as f64);
        let scaled = |pair: usize| match &self.scaling {
            RopeScaling::None => plain(pair),
            RopeScaling::Linear { factor } => plain(pair) / factor,
            RopeScaling::Factors(factors) => plain(pair) / f64::from(factors[pair]),
            RopeScaling::LongRope { short, long, original_max_position, .. } => {
                let factors = if longest > *original_max_position { long } else { short };
                plain(pair) / f64::from(factors[pair])
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                // Smooth interpolation between kept and divided frequencies, by the number of turns within the trained
                // length.
                let frequency = plain(pair);
                let turns = *original_max_position as f64 * frequency / std::f64::consts::TAU;
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
        };
        (0..self.dim / 2).map(|pair| scaled(pair) as f32).collect()
    }

    /// Factor on cosines and sines, for LongRoPE's attention scaling.
    pub fn magnitude(&self) -> f32 {
        match self.scaling {
            RopeScaling::LongRope { magnitude, .. } => magnitude,
            _ => 1.0,
        }
    }
}

/// Largest plausible width of a vector; larger ones are a mistake or an attack.
const WIDEST: usize = 1 << 24;

impl DecoderConfig {
    /// The rotary embedding of a layer.
    pub fn rope_of(&self, layer: usize) -> &RopeConfig {
        match (&self.windowed_rope, self.windows[layer]) {
            (Some(rope), Some(_)) => rope,
            _ => &self.rope,
        }
    }

    /// Checks relations between sizes that hold for every family. The error has the key at fault and the fault.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        // Bounds before products: they keep the multiplications below from overflowing.
        let limits = [
            ("num_hidden_layers", self.layers, 10_000),
            ("num_attention_heads", self.heads, 65_536),
            ("head_dim", self.head_dim, 65_536),
            ("hidden_size", self.hidden_size, WIDEST),
            ("intermediate_size", self.intermediate_size, WIDEST),
        ];
        for (key, value, limit) in limits {
            if value > limit {
                return Err((key, format!("{value} is absurd; {limit} is the limit")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let reason = format!("{} heads are not a multiple of {} key and value heads", self.heads, self.kv_heads);
            return Err(("num_key_value_heads", reason));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return Err(("head_dim", format!("{} should be even, as rotary embedding turns pairs", self.head_dim)));
        }
        if self.rope.dim == 0 || !self.rope.dim.is_multiple_of(2) || self.rope.dim > self.head_dim {
            let reason = format!("{} of {} entries of a head cannot be rotated in pairs", self.rope.dim, self.head_dim);
            return Err(("partial_rotary_factor", reason));
        }
        if self.heads * self.head_dim > WIDEST {
            let reason = format!("{} heads of {} are absurdly wide; {WIDEST} is the limit", self.heads, self.head_dim);
            return Err(("num_attention_heads", reason));
        }
        Ok(())
    }
}
