//! Needs of each operation of a step by itself, with all that it reads and writes.
//!
//! The cost of a step counts what no implementation can leave out: weights, keys and values. An operation by itself also moves
//! the activations that operations hand to each other, and that is all that norms or the gate do.

use super::Cost;
use crate::device::operation::Operation;
use flashjob_event::{Needs, StepNeeds};
use flashjob_model::DecoderConfig;

/// Bytes of a number of the residual stream and of logits, which are single precision.
const WIDE_BYTES: usize = size_of::<f32>();

/// A step as operations see it.
#[derive(Clone, Copy, Debug)]
pub struct StepRows {
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Rows with logits.
    pub logits: usize,
    /// Needs of the step, of which those of attention are taken.
    pub needs: StepNeeds,
}

/// Needs of operations of one model.
pub struct OperationNeeds<'a> {
    /// Shapes of the whole model.
    pub config: &'a DecoderConfig,
    /// Weights and cache, of all ranks.
    pub cost: &'a Cost,
    /// Bytes of a number of activations other than the residual stream and the logits.
    pub activation_bytes: usize,
}

impl OperationNeeds<'_> {
    /// Needs of all calls of `operation` in a step, of all ranks together; `None` where they are not counted. Activations that
    /// ranks have alike are counted once.
    pub fn of(&self, operation: Operation, step: &StepRows) -> Option<Needs> {
        let DecoderConfig { hidden_size: hidden, heads, kv_heads, head_dim, layers, vocab_size, .. } = *self.config;
        let intermediate = self.config.intermediate_size;
        let (q, qkv) = (heads * head_dim, (heads + 2 * kv_heads) * head_dim);
        let StepRows { tokens, logits, needs } = *step;
        let in_all_layers = tokens * layers;
        // The last layer goes on with the rows that have logits.
        let in_feed_forward = tokens * layers.saturating_sub(1) + logits;
        // Layers that have such rows, whose weights are read.
        let feed_forward_layers = if logits > 0 { layers } else { layers.saturating_sub(1) };
        Some(match operation {
            Operation::Embedding => self.moved(tokens * hidden * WIDE_BYTES, self.weight_bytes(tokens * hidden)),
            Operation::Norm => {
                let rows = in_all_layers + in_feed_forward + logits;
                let heads = if self.config.qk_norm { 2 * (q + kv_heads * head_dim) * in_all_layers } else { 0 };
                let output_norms = if self.config.output_norms { 2 } else { 1 };
                // The residual stream is read and written, the delta read, the result written.
                let entries = rows * hidden * (output_norms + 1) + heads;
                self.moved(rows * hidden * 2 * WIDE_BYTES + entries * self.activation_bytes, 0.0)
            }
            Operation::Qkv => self.product(in_all_layers, [hidden, qkv], layers, self.activation_bytes),
            Operation::RopeAndCache => {
                let turned = (2 * (heads + kv_heads) + kv_heads) * head_dim * in_all_layers;
                self.moved(turned * self.activation_bytes, tokens as f64 * self.cost.kv_bytes_per_token as f64)
            }
            Operation::Attention => {
                let Needs { flops, bytes } = needs.attention + needs.windowed_attention;
                // What is in the cache is read, the step's own keys included, and the operation before has written those.
                Needs { flops, bytes: bytes + (2 * q * in_all_layers * self.activation_bytes) as f64 }
            }
            Operation::O => self.product(in_feed_forward, [q, hidden], feed_forward_layers, self.activation_bytes),
            Operation::GatherRows => self.moved(2 * logits * (hidden * WIDE_BYTES + q * self.activation_bytes), 0.0),
            Operation::GateUp => {
                self.product(in_feed_forward, [hidden, 2 * intermediate], feed_forward_layers, self.activation_bytes)
            }
            Operation::Gate => self.moved(3 * in_feed_forward * intermediate * self.activation_bytes, 0.0),
            Operation::Down => {
                self.product(in_feed_forward, [intermediate, hidden], feed_forward_layers, self.activation_bytes)
            }
            Operation::Head => {
                let rows = logits * (hidden * self.activation_bytes + vocab_size * WIDE_BYTES);
                Needs { flops: needs.head.flops, bytes: needs.head.bytes + rows as f64 }
            }
            Operation::Sampling => self.moved(logits * vocab_size * WIDE_BYTES, 0.0),
            Operation::Collective => return None,
        })
    }

    /// Needs of products of `rows` rows in all, from `[in, out]`, with as many such matrices.
    fn product(&self, rows: usize, [in_, out]: [usize; 2], matrices: usize, activation_bytes: usize) -> Needs {
        Needs {
            flops: (2 * rows) as f64 * (in_ * out) as f64,
            bytes: self.weight_bytes(matrices * in_ * out) + (rows * (in_ + out) * activation_bytes) as f64,
        }
    }

    /// Bytes of so many weights of layers, as they are stored.
    fn weight_bytes(&self, count: usize) -> f64 {
        let DecoderConfig { hidden_size, intermediate_size, heads, kv_heads, head_dim, layers, .. } = *self.config;
        let layer = hidden_size * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden_size * intermediate_size;
        count as f64 * self.cost.layer_weight_bytes as f64 / (layers * layer).max(1) as f64
    }

    fn moved(&self, activation_bytes: usize, other_bytes: f64) -> Needs {
        Needs { flops: 0.0, bytes: activation_bytes as f64 + other_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::WeightBytes;
    use flashjob_test_engine::open;

    const PRODUCTS: [Operation; 4] = [Operation::Qkv, Operation::O, Operation::GateUp, Operation::Down];

    #[test]
    fn operations_add_up_to_the_step_but_for_what_they_hand_to_each_other() {
        // Norms of heads and windows; output norms and softcaps.
        for name in ["llama-gqa", "qwen3-qk-norm", "gemma2-softcaps"] {
            let config = open(name).config;
            let mut cost = Cost::new(&config, 64);
            cost.add_weights(WeightBytes { layers: 1_000_000, head: 300_000, embedding: 0 });
            let needs_of = OperationNeeds { config: &config, cost: &cost, activation_bytes: 0 };
            for (chunk, logits) in [(4..5, 2), (0..9, 2), (0..9, 0)] {
                let needs = cost.of_step([chunk.clone(), chunk.clone()].into_iter(), logits);
                let step = StepRows { tokens: 2 * chunk.len(), logits, needs };
                let sum = |operations: &[Operation]| {
                    let all = operations.iter().map(|&operation| needs_of.of(operation, &step).unwrap());
                    all.fold(Needs::default(), |sum, needs| sum + needs)
                };
                let (products, expected) = (sum(&PRODUCTS), needs.layers + needs.last_layer);
                let near = |one: f64, other: f64| (one - other).abs() <= 1e-9 * other.abs();
                assert!(near(products.flops, expected.flops), "{name}: {products:?} instead of {expected:?}");
                assert!(near(products.bytes, expected.bytes), "{name}: {products:?} instead of {expected:?}");
                let attention = needs.attention + needs.windowed_attention;
                assert_eq!(sum(&[Operation::Attention]), attention, "{name}");
                assert_eq!(sum(&[Operation::Head]).flops, needs.head.flops, "{name}");
            }
        }
    }

    #[test]
    fn a_norm_moves_the_residual_stream_twice_and_its_input_and_output() {
        let config = open("llama-gqa").config;
        let cost = Cost::new(&config, 64);
        let needs_of = OperationNeeds { config: &config, cost: &cost, activation_bytes: 2 };
        let step = StepRows { tokens: 3, logits: 3, needs: StepNeeds::default() };
        let rows = 3 * (2 * config.layers + 1);
        let norm = needs_of.of(Operation::Norm, &step).unwrap();
        assert_eq!(norm, Needs { flops: 0.0, bytes: (rows * config.hidden_size * (4 + 4 + 2 + 2)) as f64 });
        assert_eq!(needs_of.of(Operation::Collective, &step), None);
    }
}
