//! Random prompts: distinct sequences of ordinary tokens, their lengths and those of their outputs spread as asked.

use std::collections::HashSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

use flashjob_config::{Sampling, Workload};
use flashjob_event::RequestId;
use flashjob_model::TextFacts;

use super::Error;
use crate::backend::Request;

/// The stream of lengths, beside that of tokens: how far lengths spread does not change how tokens are drawn.
const LENGTHS: u64 = 1;

/// Requests with `count` distinct prompts, uniform over the ids that are not special tokens and over the lengths of `workload`.
///
/// # Errors
/// Lengths that do not fit the model, or a vocabulary that has not so many sequences.
pub(super) fn draw(
    workload: &Workload,
    sampling: Sampling,
    count: usize,
    texts: &TextFacts,
    max_model_len: usize,
) -> Result<Vec<Request>, Error> {
    let (input_lengths, output_lengths) = (workload.input_lengths(), workload.output_lengths());
    let (input, output) = (*input_lengths.end(), *output_lengths.end());
    if input + output > max_model_len {
        return Err(Error::Workload(format!(
            "random prompts of up to {input} tokens with up to {output} output tokens exceed max-model-len={max_model_len}; lower \
             input-len, output-len or random-range-ratio"
        )));
    }
    // Special tokens would end a sequence or change how the model reads it.
    let special: HashSet<u32> = texts.special_tokens.iter().copied().collect();
    let ids: Vec<u32> = (0..texts.vocab_size as u32).filter(|id| !special.contains(id)).collect();
    let distinct_sequences = (ids.len() as f64).powf(input as f64);
    // Half of all sequences at most, so that drawing until they differ ends soon.
    if (count as f64) > distinct_sequences / 2.0 {
        return Err(Error::Workload(format!(
            "{count} distinct random prompts of {input} tokens cannot be made from a vocabulary of {} ids; raise input-len \
             or lower num-prompts",
            ids.len()
        )));
    }
    let mut random = ChaCha12Rng::seed_from_u64(workload.seed);
    let mut lengths = ChaCha12Rng::seed_from_u64(workload.seed);
    lengths.set_stream(LENGTHS);
    let mut seen = HashSet::with_capacity(count);
    let mut requests = Vec::with_capacity(count);
    while requests.len() < count {
        let length = lengths.random_range(input_lengths.clone());
        let prompt: Vec<u32> = (0..length).map(|_| ids[random.random_range(0..ids.len())]).collect();
        // Equal prompts would be found in the prefix cache, so that less is computed than the workload says.
        if seen.insert(prompt.clone()) {
            requests.push(Request {
                id: RequestId(requests.len() as u32),
                prompt,
                max_tokens: lengths.random_range(output_lengths.clone()),
                ignore_eos: workload.ignore_eos,
                sampling,
                seed: workload.seed,
            });
        }
    }
    Ok(requests)
}
