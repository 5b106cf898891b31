//! The decoder in its plainest form, in double precision and without a cache: whatever the engine does for speed, a
//! loaded model must mean this.

use flashjob_model::{Activation, Dtype, LayerTensor, Model, RopeConfig, Shard, TensorName, Validation};

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
        x.iter().zip(&weight.numbers).map(|(x, weight)| x * scale * weight).collect()
    };
    let rotate = |heads: &mut [f64], rope: &RopeConfig, position: usize| {
        let frequencies = rope.inverse_frequencies(config.max_position);
        let magnitude = f64::from(rope.magnitude());
        for head in heads.chunks_mut(config.head_dim) {
            let (first, second) = head.split_at_mut(rope.dim / 2);
            for ((a, b), frequency) in first.iter_mut().zip(second).zip(&frequencies) {
                let (sin, cos) = (position as f64 * f64::from(*frequency)).sin_cos();
                (*a, *b) = (magnitude * (*a * cos - *b * sin), magnitude * (*b * cos + *a * sin));
            }
        }
    };
    let activation = |x: f64| match config.activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
    };
    let capped = |x: f64, cap: Option<f32>| cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh());
    let norm_heads = |heads: &mut [f64], norm: &Matrix| {
        heads.chunks_mut(config.head_dim).for_each(|head| head.copy_from_slice(&rms_norm(head, norm)));
    };

    let embedding = read(TensorName::Embedding);
    let scale = f64::from(config.embedding_scale);
    let row = |&token: &u32| embedding.row(token as usize).iter().map(|number| number * scale).collect();
    let mut hidden: Vec<Vec<f64>> = tokens.iter().map(row).collect();
    for layer in 0..config.layers {
        let weight = |tensor| read(TensorName::Layer(layer, tensor));
        let norm = weight(LayerTensor::InputNorm);
        let [q, k, v, o] = [LayerTensor::Q, LayerTensor::K, LayerTensor::V, LayerTensor::O].map(weight);
        let biases = config
            .qkv_bias
            .then(|| [LayerTensor::QBias, LayerTensor::KBias, LayerTensor::VBias].map(|bias| weight(bias).numbers));
        let norms = config.qk_norm.then(|| [LayerTensor::QNorm, LayerTensor::KNorm].map(weight));
        let output_norms = config
            .output_norms
            .then(|| [LayerTensor::AttentionOutputNorm, LayerTensor::FeedForwardOutputNorm].map(weight));
        let (rope, window) = (config.rope_of(layer), config.windows[layer]);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, hidden) in hidden.iter_mut().enumerate() {
            let x = rms_norm(hidden, &norm);
            let (mut query, mut key, mut value) = (q.times(&x), k.times(&x), v.times(&x));
            if let Some(biases) = &biases {
                [&mut query, &mut key, &mut value].into_iter().zip(biases).for_each(|(to, bias)| add(to, bias));
            }
            if let Some([query_norm, key_norm]) = &norms {
                norm_heads(&mut query, query_norm);
                norm_heads(&mut key, key_norm);
            }
            rotate(&mut query, rope, position);
            rotate(&mut key, rope, position);
            keys.push(key);
            values.push(value);
            let unseen = window.map_or(0, |window| keys.len().saturating_sub(window));
            let mut attended = Vec::new();
            for (head, query) in query.chunks(config.head_dim).enumerate() {
                let start = head / (config.heads / config.kv_heads) * config.head_dim;
                let score = |key: &Vec<f64>| {
                    let score = dot(query, &key[start..start + config.head_dim]) * f64::from(config.attention_scale);
                    capped(score, config.attention_softcap).exp()
                };
                let scores: Vec<f64> = keys[unseen..].iter().map(score).collect();
                let sum: f64 = scores.iter().sum();
                attended.extend((start..start + config.head_dim).map(|entry| {
                    scores.iter().zip(&values[unseen..]).map(|(score, value)| score / sum * value[entry]).sum::<f64>()
                }));
            }
            let delta = o.times(&attended);
            add(hidden, &output_norms.as_ref().map_or(delta.clone(), |[norm, _]| rms_norm(&delta, norm)));
        }
        let norm = weight(LayerTensor::FeedForwardNorm);
        let [gate, up, down] = [LayerTensor::Gate, LayerTensor::Up, LayerTensor::Down].map(weight);
        for hidden in &mut hidden {
            let x = rms_norm(hidden, &norm);
            let gated: Vec<f64> =
                gate.times(&x).into_iter().zip(up.times(&x)).map(|(g, u)| activation(g) * u).collect();
            let delta = down.times(&gated);
            add(hidden, &output_norms.as_ref().map_or(delta.clone(), |[_, norm]| rms_norm(&delta, norm)));
        }
    }
    let (norm, head) = (read(TensorName::FinalNorm), read(TensorName::Head));
    let logit = |logit| capped(logit, config.logits_softcap) as f32;
    let of = |hidden: &Vec<f64>| head.times(&rms_norm(hidden, &norm)).into_iter().map(logit).collect();
    hidden.iter().map(of).collect()
}
