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
}
