//! The plainest possible f64 versions of the kernels.

/// `[rows, out]` sums, and for each the sum of absolute terms, which bounds its rounding error.
pub fn matmul(x: &[f32], rows: usize, w: &[f32], in_: usize, bias: Option<&[f32]>) -> Vec<(f64, f64)> {
    let out = bias.map_or_else(|| w.len().checked_div(in_).unwrap_or(0), <[f32]>::len);
    let mut y = Vec::with_capacity(rows * out);
    for r in 0..rows {
        for o in 0..out {
            let bias = bias.map_or(0.0, |bias| f64::from(bias[o]));
            let terms = (0..in_).map(|k| f64::from(x[r * in_ + k]) * f64::from(w[o * in_ + k]));
            y.push(terms.fold((bias, bias.abs()), |(sum, size), term| (sum + term, size + term.abs())));
        }
    }
    y
}

pub fn rms_norm(row: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    row.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect()
}

pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

pub fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

/// One query head over the keys that it may see: `keys` and `values` are rows.
pub fn attention(q: &[f32], keys: &[&[f32]], values: &[&[f32]], scale: f32, softcap: Option<f32>) -> Vec<f64> {
    let scores: Vec<f64> = keys
        .iter()
        .map(|key| {
            let dot: f64 = q.iter().zip(*key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            let score = dot * f64::from(scale);
            softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        })
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let mut out = vec![0.0; q.len()];
    for (score, value) in scores.iter().zip(values) {
        let weight = (score - max).exp() / sum;
        out.iter_mut().zip(*value).for_each(|(o, &v)| *o += weight * f64::from(v));
    }
    out
}
