//! Prompts: random ones that measure, real ones that are answered.

use std::collections::HashSet;
use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use serde::Deserialize;

use super::Error;
use crate::backend::{Backend, Request};
use crate::config::{Dataset, Workload};
use crate::event::RequestId;

/// Random prompts when neither a number nor a dataset says how many.
const DEFAULT_RANDOM_PROMPTS: usize = 64;

/// The requests of a job.
#[derive(Clone, Debug)]
pub struct Prompts {
    /// Run before the measured region. Other prompts than the measured ones where they are random, so that
    /// nothing can be reused.
    pub warm_up: Vec<Request>,
    /// The measured region.
    pub measured: Vec<Request>,
    /// Tokens that each measured request must produce exactly; `None` where a stop token may end it.
    pub exact_output: Option<usize>,
}

/// Makes the requests that `workload` asks for, with ids of `backend`'s vocabulary. Relative datasets are looked for
/// at `dataset_path`.
///
/// # Errors
/// An unreadable dataset, a line that is no prompt, or a prompt that does not fit the model.
pub fn prepare(workload: &Workload, dataset_path: Option<&Path>, backend: &dyn Backend) -> Result<Prompts, Error> {
    let output_tokens = workload.output_len.get();
    let prompts = match &workload.dataset {
        Dataset::Random => {
            let count = workload.num_prompts.map_or(DEFAULT_RANDOM_PROMPTS, usize::from);
            random_prompts(workload, count + workload.warmup, backend)?
        }
        Dataset::Jsonl(named) => {
            let path = dataset_path.unwrap_or(named);
            let measured = read_jsonl(path, workload.num_prompts.map(usize::from), backend)?;
            // Warm-up repeats the first prompts; it comes last, as below.
            let warm_up: Vec<_> = measured.iter().cycle().take(workload.warmup).cloned().collect();
            measured.into_iter().chain(warm_up).collect()
        }
    };
    let longest = backend.facts().max_model_len;
    for (index, prompt) in prompts.iter().enumerate() {
        if prompt.len() + output_tokens > longest {
            return Err(Error::Workload(format!(
                "prompt {index} has {} tokens, and with {output_tokens} output tokens it exceeds max-model-len={longest}; \
                 shorten it, or lower output-len",
                prompt.len()
            )));
        }
    }
    let mut requests: Vec<Request> = prompts
        .into_iter()
        .enumerate()
        .map(|(index, prompt)| Request {
            id: RequestId(index as u32),
            prompt,
            output_tokens,
            ignore_eos: workload.ignore_eos,
        })
        .collect();
    let warm_up = requests.split_off(requests.len() - workload.warmup);
    Ok(Prompts { warm_up, measured: requests, exact_output: workload.ignore_eos.then_some(output_tokens) })
}

/// `count` distinct sequences of `input_len` ids, uniform over the ids that are not special tokens.
fn random_prompts(workload: &Workload, count: usize, backend: &dyn Backend) -> Result<Vec<Vec<u32>>, Error> {
    let tokenizer = backend.tokenizer();
    let special: HashSet<u32> = tokenizer.special_tokens().into_iter().collect();
    let ids: Vec<u32> = (0..tokenizer.vocab_size() as u32).filter(|id| !special.contains(id)).collect();
    let length = workload.input_len.get();
    let distinct_sequences = (ids.len() as f64).powf(length as f64);
    // Half of all sequences at most, so that drawing until they differ ends soon.
    if (count as f64) > distinct_sequences / 2.0 {
        return Err(Error::Workload(format!(
            "{count} distinct random prompts of {length} tokens cannot be made from a vocabulary of {} ids; raise \
             input-len or lower num-prompts",
            ids.len()
        )));
    }
    let mut random = ChaCha12Rng::seed_from_u64(workload.seed);
    let mut seen = HashSet::with_capacity(count);
    let mut prompts = Vec::with_capacity(count);
    while prompts.len() < count {
        let prompt: Vec<u32> = (0..length).map(|_| ids[random.random_range(0..ids.len())]).collect();
        if seen.insert(prompt.clone()) {
            prompts.push(prompt);
        }
    }
    Ok(prompts)
}

#[derive(Deserialize)]
struct Line {
    prompt: String,
}

fn read_jsonl(path: &Path, limit: Option<usize>, backend: &dyn Backend) -> Result<Vec<Vec<u32>>, Error> {
    let at = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::Workload(format!("the dataset {at} cannot be read: {error}")))?;
    let mut prompts = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        if Some(prompts.len()) == limit {
            break;
        }
        let number = index + 1;
        let line: Line = serde_json::from_str(line).map_err(|error| {
            Error::Workload(format!("{at}, line {number} is not a JSON object with a text `prompt`: {error}"))
        })?;
        let prompt = backend
            .tokenizer()
            .encode(&line.prompt, true)
            .map_err(|error| Error::Workload(format!("{at}, line {number}: {error}")))?;
        if prompt.is_empty() {
            return Err(Error::Workload(format!("{at}, line {number} has an empty prompt")));
        }
        prompts.push(prompt);
    }
    if prompts.is_empty() {
        return Err(Error::Workload(format!("the dataset {at} holds no prompt")));
    }
    if let Some(limit) = limit
        && prompts.len() < limit
    {
        return Err(Error::Workload(format!(
            "num-prompts={limit} is above the {} prompts of {at}; lower it, or leave it out to run all",
            prompts.len()
        )));
    }
    Ok(prompts)
}
