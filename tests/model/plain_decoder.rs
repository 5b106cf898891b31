//! The decoder in its plainest form, in double precision and without a cache: whatever the engine does for speed, a
//! loaded model must mean this.

use flashjob::model::{Activation, Dtype, LayerTensor, Model, Shard, TensorName, Validation};

/// A matrix or vector, `[rows, columns]`.
struct Matrix {
    columns: usize,
    numbers: Vec<f64>,
}

impl Matrix {
    fn row(&self, index: usize) -> &[f64] {
        &self.numbers[index * self.columns..][..self.columns]
    }

    fn times(&self, x: &[f64]) -> Vec<f64> {
        self.numbers.chunks(self.columns).map(|row| dot(row, x)).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// Logits after each of `tokens`.
pub fn logits(model: &Model, tokens: &[u32]) -> Vec<Vec<f32>> {
    let config = &model.config;
    let read = |name: TensorName| {
        let tensor = model.weights.read(name, Shard::WHOLE, Dtype::F32, Validation::Finite).unwrap();
        let numbers = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
        Matrix { columns: *tensor.dims().last().unwrap(), numbers }
    };
    let rms_norm = |x: &[f64], weight: &Matrix| -> Vec<f64> {
        let mean_square = dot(x, x) / x.len() as f64;
        let scale = 1.0 / (mean_square + f64::from(config.rms_norm_eps)).sqrt();
        x.iter().zip(weight.row(0)).map(|(x, weight)| x * scale * weight).collect()
    };
    let frequencies = config.rope.inverse_frequencies();
    let rotate = |heads: &mut [f64], position: usize| {
        for head in heads.chunks_mut(config.head_dim) {
            let (first, second) = head.split_at_mut(config.rope.dim / 2);
            for ((a, b), frequency) in first.iter_mut().zip(second).zip(&frequencies) {
                let (sin, cos) = (position as f64 * f64::from(*frequency)).sin_cos();
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    };
    assert_eq!(config.activation, Activation::Silu);
    let silu = |x: f64| x / (1.0 + (-x).exp());

    let embedding = read(TensorName::Embedding);
    let mut hidden: Vec<Vec<f64>> = tokens.iter().map(|&token| embedding.row(token as usize).to_vec()).collect();
    for layer in 0..config.layers {
        let weight = |tensor| read(TensorName::Layer(layer, tensor));
        let norm = weight(LayerTensor::InputNorm);
        let [q, k, v, o] = [LayerTensor::Q, LayerTensor::K, LayerTensor::V, LayerTensor::O].map(weight);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, hidden) in hidden.iter_mut().enumerate() {
            let x = rms_norm(hidden, &norm);
            let (mut query, mut key) = (q.times(&x), k.times(&x));
            rotate(&mut query, position);
            rotate(&mut key, position);
            keys.push(key);
            values.push(v.times(&x));
            let mut attended = Vec::new();
            for (head, query) in query.chunks(config.head_dim).enumerate() {
                let start = head / (config.heads / config.kv_heads) * config.head_dim;
                let score = |key: &Vec<f64>| {
                    (dot(query, &key[start..start + config.head_dim]) * f64::from(config.attention_scale)).exp()
                };
                let scores: Vec<f64> = keys.iter().map(score).collect();
                let sum: f64 = scores.iter().sum();
                attended.extend((start..start + config.head_dim).map(|entry| {
                    scores.iter().zip(&values).map(|(score, value)| score / sum * value[entry]).sum::<f64>()
                }));
            }
            add(hidden, &o.times(&attended));
        }
        let norm = weight(LayerTensor::PostAttentionNorm);
        let [gate, up, down] = [LayerTensor::Gate, LayerTensor::Up, LayerTensor::Down].map(weight);
        for hidden in &mut hidden {
            let x = rms_norm(hidden, &norm);
            let gated: Vec<f64> = gate.times(&x).into_iter().zip(up.times(&x)).map(|(g, u)| silu(g) * u).collect();
            add(hidden, &down.times(&gated));
        }
    }
    let (norm, head) = (read(TensorName::FinalNorm), read(TensorName::Head));
    let of = |hidden: &Vec<f64>| head.times(&rms_norm(hidden, &norm)).into_iter().map(|logit| logit as f32).collect();
    hidden.iter().map(of).collect()
}
