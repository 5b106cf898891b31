//! Operations and bytes of a forward pass, for results and for the roofline; `operations` has those of each operation by itself, for
//! profiles.

pub mod operations;

use std::collections::BTreeMap;
use std::ops::Range;

use flashjob_event::{Needs, StepNeeds};
use flashjob_model::DecoderConfig;

/// Arithmetic and traffic of a forward pass: what a roofline needs to know. A multiply-add counts as two operations;
/// norms, rotation and activations are left out, being less than a hundredth. Tokens are those that steps compute: what is
/// found in the prefix cache costs none of it, so the lengths of prompts do not tell.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Cost {
    /// Operations for each token in all layers, attention left out.
    pub flops_per_token: u64,
    /// Operations for each pair of a query and a key that it sees, in all layers.
    pub flops_per_query_and_key: u64,
    /// Operations of the last layer, beyond its keys and values, for each token: only rows with logits need them.
    pub last_layer_flops_per_token: u64,
    /// Operations for each row of logits.
    pub flops_per_logits_row: u64,
    /// Packed weights in all.
    pub weight_bytes: u64,
    /// Weights of all layers: each step reads them whatever its size, but for those of the last layer that need rows with logits.
    pub layer_weight_bytes: u64,
    /// Weights that each step with logits reads besides.
    pub head_weight_bytes: u64,
    /// Keys and values of one token in all layers: written once, read by each later token of the sequence.
    pub kv_bytes_per_token: u64,
    /// Layers by how many keys a query sees there; `None` is all.
    pub windows: Vec<(Option<usize>, usize)>,
}

/// Weights and threads of one node, as it tells the one that leads.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct NodeLoad {
    weight_bytes: u64,
    layer_weight_bytes: u64,
    head_weight_bytes: u64,
    /// CPU threads that compute there.
    pub threads: usize,
}

/// Memory that one rank's matrices take.
#[derive(Clone, Copy, Debug)]
pub struct WeightBytes {
    /// Matrices of all layers.
    pub layers: u64,
    /// The output projection.
    pub head: u64,
    /// The input embedding; 0 where it is tied to the head.
    pub embedding: u64,
}

impl Cost {
    /// Cost for all ranks together, before any of them has weights.
    pub(crate) fn new(config: &DecoderConfig, kv_bytes_per_token: u64) -> Self {
        let DecoderConfig { hidden_size, intermediate_size, heads, kv_heads, head_dim, layers, vocab_size, .. } =
            config;
        let attention = hidden_size * head_dim * (2 * heads + 2 * kv_heads);
        let layer = attention + 3 * hidden_size * intermediate_size;
        Self {
            flops_per_token: (2 * layers * layer) as u64,
            flops_per_query_and_key: (4 * layers * heads * head_dim) as u64,
            last_layer_flops_per_token: (2 * (heads * head_dim * hidden_size + 3 * hidden_size * intermediate_size))
                as u64,
            flops_per_logits_row: (2 * vocab_size * hidden_size) as u64,
            weight_bytes: 0,
            layer_weight_bytes: 0,
            head_weight_bytes: 0,
            kv_bytes_per_token,
            windows: by_window(config),
        }
    }

    /// Needs of a step over `chunks`, ranges of positions of one sequence each, with logits for `logits_rows` tokens.
    pub(crate) fn of_step(&self, chunks: impl Iterator<Item = Range<usize>>, logits_rows: usize) -> StepNeeds {
        let layers: usize = self.windows.iter().map(|(_, layers)| layers).sum();
        let of_layer = |number: u64| number as f64 / layers.max(1) as f64;
        let mut needs = StepNeeds::default();
        let mut tokens = 0;
        for chunk in chunks {
            tokens += chunk.len();
            for &(window, layers) in &self.windows {
                let first = window.map_or(0, |window| (chunk.start + 1).saturating_sub(window));
                // Those that are there are read, the chunk's own are written.
                let keys = chunk.end - first + chunk.len();
                let attention = if window.is_none() { &mut needs.attention } else { &mut needs.windowed_attention };
                attention.flops += (layers * pairs(&chunk, window)) as f64 * of_layer(self.flops_per_query_and_key);
                attention.bytes += (layers * keys) as f64 * of_layer(self.kv_bytes_per_token);
            }
        }
        // As the decoder does: rows without logits leave the last layer after their keys and values.
        let rows = logits_rows as f64;
        let last_layer_share = self.last_layer_flops_per_token as f64 / self.flops_per_token.max(1) as f64;
        // Matrices are stored in one format: their bytes are to each other as their operations are.
        let last_layer_bytes = self.layer_weight_bytes as f64 * last_layer_share;
        let if_any = |bytes: f64| if logits_rows > 0 { bytes } else { 0.0 };
        needs.layers = Needs {
            flops: tokens as f64 * (self.flops_per_token - self.last_layer_flops_per_token) as f64,
            bytes: self.layer_weight_bytes as f64 - last_layer_bytes,
        };
        needs.last_layer =
            Needs { flops: rows * self.last_layer_flops_per_token as f64, bytes: if_any(last_layer_bytes) };
        needs.head =
            Needs { flops: rows * self.flops_per_logits_row as f64, bytes: if_any(self.head_weight_bytes as f64) };
        needs
    }

    /// Weights that have been counted in so far, of a node with so many threads.
    pub(crate) fn loaded(&self, threads: usize) -> NodeLoad {
        let Self { weight_bytes, layer_weight_bytes, head_weight_bytes, .. } = *self;
        NodeLoad { weight_bytes, layer_weight_bytes, head_weight_bytes, threads }
    }

    /// Counts in what another node has loaded.
    pub(crate) fn add_node(&mut self, loaded: &NodeLoad) {
        for (sum, bytes) in [
            (&mut self.weight_bytes, loaded.weight_bytes),
            (&mut self.layer_weight_bytes, loaded.layer_weight_bytes),
            (&mut self.head_weight_bytes, loaded.head_weight_bytes),
        ] {
            *sum = sum.saturating_add(bytes);
        }
    }

    /// Counts in the weights of one rank.
    pub(crate) fn add_weights(&mut self, bytes: WeightBytes) {
        self.weight_bytes += bytes.layers + bytes.head + bytes.embedding;
        self.layer_weight_bytes += bytes.layers;
        self.head_weight_bytes += bytes.head;
    }
}

fn by_window(config: &DecoderConfig) -> Vec<(Option<usize>, usize)> {
    let mut layers = BTreeMap::new();
    config.windows.iter().for_each(|&window| *layers.entry(window).or_default() += 1);
    layers.into_iter().collect()
}

/// Pairs of a query of `chunk` and a key that it sees.
fn pairs(chunk: &Range<usize>, window: Option<usize>) -> usize {
    // 1 + 2 + … + n
    let triangle = |n: usize| n * (n + 1) / 2;
    let Some(window) = window else { return triangle(chunk.end) - triangle(chunk.start) };
    let growing = |end: usize| triangle(end.min(window)) + end.saturating_sub(window) * window;
    growing(chunk.end) - growing(chunk.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_those_that_one_would_count() {
        for window in [None, Some(1), Some(3), Some(10), Some(100)] {
            for start in 0..30 {
                for end in start..40 {
                    let seen = |position: usize| window.map_or(position + 1, |window| window.min(position + 1));
                    assert_eq!(pairs(&(start..end), window), (start..end).map(seen).sum::<usize>());
                }
            }
        }
    }

    fn cost() -> Cost {
        Cost {
            flops_per_token: 1000,
            flops_per_query_and_key: 20,
            last_layer_flops_per_token: 300,
            flops_per_logits_row: 50,
            weight_bytes: 900,
            layer_weight_bytes: 700,
            head_weight_bytes: 200,
            kv_bytes_per_token: 8,
            windows: vec![(None, 1), (Some(2), 1)],
        }
    }

    #[test]
    fn a_step_costs_what_its_tokens_logits_and_keys_do() {
        let cost = cost();
        // A prompt of 3 tokens, its last one with logits, and one token after 4 others.
        let step = cost.of_step([0..3, 4..5].into_iter(), 2);
        let needs = |flops: f64, bytes: f64| Needs { flops, bytes };
        // Three tenths of a layer's weights are needed by the two rows with logits only.
        let expected = StepNeeds {
            layers: needs(4.0 * 700.0, 490.0),
            last_layer: needs(2.0 * 300.0, 210.0),
            head: needs(2.0 * 50.0, 200.0),
            attention: needs(((1 + 2 + 3) + 5) as f64 * 10.0, ((3 + 3) + (5 + 1)) as f64 * 4.0),
            windowed_attention: needs(((1 + 2 + 2) + 2) as f64 * 10.0, ((3 + 3) + (2 + 1)) as f64 * 4.0),
        };
        assert_eq!(step, expected);
        let kinds = [expected.layers, expected.last_layer, expected.head, expected.attention];
        let sum = kinds.into_iter().fold(expected.windowed_attention, |sum, operation| sum + operation);
        assert_eq!(step.total(), sum);
    }

    #[test]
    fn a_chunk_without_logits_needs_neither_the_head_nor_the_rest_of_the_last_layer() {
        let step = cost().of_step(std::iter::once(0..2), 0);
        assert_eq!((step.last_layer, step.head), (Needs::default(), Needs::default()));
        assert_eq!(step.layers, Needs { flops: 2.0 * 700.0, bytes: 490.0 });
    }
}
