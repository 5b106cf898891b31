//! The gate of a feed-forward layer.

use super::Pool;

/// Nonlinearity of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateActivation {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU in its tanh approximation.
    GeluTanh,
}

/// `out = activation(gate) * up`.
///
/// `gate_up` is `[rows, 2 * n]`, in each row first the gate, then up; `out` is `[rows, n]`.
///
/// # Panics
/// If lengths do not match.
pub fn gated_activation(pool: &Pool, gate_up: &[f32], n: usize, activation: GateActivation, out: &mut [f32]) {
    assert!(n > 0 && out.len().is_multiple_of(n), "{} entries in rows of {n}", out.len());
    assert_eq!(gate_up.len(), 2 * out.len(), "gate and up for {} outputs", out.len());
    let _ = pool;
    for (row, out) in gate_up.chunks(2 * n).zip(out.chunks_mut(n)) {
        for i in 0..n {
            let x = row[i];
            let gate = match activation {
                GateActivation::Silu => x / (1.0 + (-x).exp()),
                GateActivation::GeluTanh => 0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh()),
            };
            out[i] = gate * row[n + i];
        }
    }
}
