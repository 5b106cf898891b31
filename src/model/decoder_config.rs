//! What the one decoder needs to know about a model, whichever family or file format it came from.

/// Shapes and constants of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Query heads.
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
    /// The head is the embedding.
    pub tied_head: bool,
    /// Projections q, k, v carry a bias.
    pub qkv_bias: bool,
    /// Factor on q·k before the softmax.
    pub attention_scale: f32,
    /// Longest sequence that the model was made for.
    pub max_position: usize,
}

/// Nonlinearity of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU, tanh approximation.
    GeluTanh,
}

/// Rotary position embedding over the first `dim` entries of a head, halves rotated (Hugging Face's layout).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Rotated entries of a head.
    pub dim: usize,
    /// How frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched beyond the trained length.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// ≥ 1.
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
}

impl RopeConfig {
    /// Angle by which each pair of entries turns per position, `dim / 2` of them, highest first.
    ///
    /// In single precision where transformers uses it, so that long positions turn by the same angle.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let plain = |pair: usize| self.theta.powf(-((2 * pair) as f64) / self.dim as f64);
        let scaled = |pair: usize| match &self.scaling {
            RopeScaling::None => plain(pair),
            RopeScaling::Linear { factor } => plain(pair) / factor,
            RopeScaling::Factors(factors) => plain(pair) / f64::from(factors[pair]),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let frequency = plain(pair);
                let turns = *original_max_position as f64 * frequency / std::f64::consts::TAU;
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
        };
        (0..self.dim / 2).map(|pair| scaled(pair) as f32).collect()
    }
}

/// No vector in a model is wider; what claims to be is a mistake or an attack.
const WIDEST: usize = 1 << 24;

impl DecoderConfig {
    /// What must hold between sizes, whatever the family: the key at fault and what is wrong with it.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
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
        if self.heads * self.head_dim > WIDEST {
            let reason = format!("{} heads of {} are absurdly wide; {WIDEST} is the limit", self.heads, self.head_dim);
            return Err(("num_attention_heads", reason));
        }
        Ok(())
    }
}
