//! Prompts of natural text without a file: lines of Shakespeare's sonnets (1609), in random order.
//!
//! Words of a language use other tokens, and share more of them, than random ids do. `vllm bench` has a dataset of the same name and
//! idea; its text and its way to draw differ.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha12Rng;

use flashjob_config::{Sampling, Workload};
use flashjob_event::RequestId;
use flashjob_model::{Ask, TextService};

use super::Error;
use crate::backend::{Request, Seed};

/// Twelve sonnets, a verse in each line.
const VERSES: &str = include_str!("sonnets.txt");

/// The beginning of each prompt.
const INSTRUCTION: &str = "Continue the poem in the style of these lines:\n";

/// `count` requests, each with exactly `input-len` tokens: the instruction, then verses. Equal prompts are as improbable as equal
/// orders of the verses.
///
/// # Errors
/// Lengths that do not fit the model, and a tokenizer that fails.
pub(super) fn draw(
    workload: &Workload,
    sampling: Sampling,
    count: usize,
    texts: &TextService,
    max_model_len: usize,
) -> Result<Vec<Request>, Error> {
    let (input, output) = (workload.input_len.get(), workload.output_len.get());
    if input + output > max_model_len {
        return Err(Error::Workload(format!(
            "sonnet prompts of {input} tokens with {output} output tokens exceed max-model-len={max_model_len}; lower input-len or \
             output-len"
        )));
    }
    let instruction = Ask::Text { text: INSTRUCTION.to_owned(), add_special: true };
    let verse = |verse: &str| Ask::Text { text: format!("{verse}\n"), add_special: false };
    let asks = [instruction].into_iter().chain(VERSES.lines().map(verse)).collect();
    let encoded = texts.encode(asks, true).map_err(Error::Encoding)?;
    let mut encoded = encoded.into_iter().collect::<Result<Vec<_>, _>>().map_err(|reason| {
        Error::Workload(format!("the verses of dataset=sonnet cannot be tokenised with this model: {reason}"))
    })?;
    let verses = encoded.split_off(1);
    let instruction = encoded.pop().unwrap_or_default();
    if verses.iter().all(Vec::is_empty) {
        return Err(Error::Workload(
            "this model's tokenizer makes no tokens of the verses of dataset=sonnet".to_owned(),
        ));
    }
    let mut random = ChaCha12Rng::seed_from_u64(workload.seed);
    let mut order: Vec<&Vec<u32>> = verses.iter().collect();
    let requests = (0..count).map(|number| {
        let mut prompt = instruction.clone();
        // A long prompt takes all verses several times, each time in another order.
        while prompt.len() < input {
            order.shuffle(&mut random);
            for verse in &order {
                prompt.extend_from_slice(verse);
                if prompt.len() >= input {
                    break;
                }
            }
        }
        prompt.truncate(input);
        let id = RequestId(number as u32);
        Request {
            id,
            prompt,
            max_tokens: output,
            ignore_eos: workload.ignore_eos,
            sampling,
            options: None,
            choice: 0,
            seed: Seed::Job(workload.seed),
            text: None,
        }
    });
    Ok(requests.collect())
}
