//! Random prompts: distinct sequences of ordinary tokens, their lengths and those of their outputs spread as asked, and their
//! beginnings shared where they are to be.

use std::collections::HashSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

use flashjob_config::{Dataset, Sampling, SharedPrefixes, Workload};
use flashjob_event::RequestId;
use flashjob_model::TextFacts;

use super::Error;
use crate::backend::{Request, Seed};

/// The stream of lengths, beside that of tokens: how far lengths spread does not change how tokens are drawn.
const LENGTHS: u64 = 1;

/// The stream of shared prefixes, and of which prompt begins with which.
const PREFIXES: u64 = 2;

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
    let mut prefixes = match &workload.dataset {
        Dataset::Prefix(prefixes) => Some(Prefixes::draw(*prefixes, count, workload.seed, &ids)),
        _ => None,
    };
    // What follows a prefix tells prompts apart.
    let own_tokens = input - prefixes.as_ref().map_or(0, |prefixes| prefixes.shared.len.get());
    let distinct_sequences = (ids.len() as f64).powf(own_tokens as f64);
    // Half of all sequences at most, so that drawing until they differ ends soon.
    if (count as f64) > distinct_sequences / 2.0 {
        return Err(Error::Workload(format!(
            "{count} distinct random prompts of {own_tokens} tokens cannot be made from a vocabulary of {} ids; raise input-len \
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
        let mut prompt = prefixes.as_mut().map_or_else(Vec::new, Prefixes::next);
        prompt.extend((prompt.len()..length).map(|_| ids[random.random_range(0..ids.len())]));
        // Equal prompts would be found in the prefix cache, so that less is computed than the workload says.
        if seen.insert(prompt.clone()) {
            requests.push(Request {
                id: RequestId(requests.len() as u32),
                prompt,
                max_tokens: lengths.random_range(output_lengths.clone()),
                ignore_eos: workload.ignore_eos,
                sampling,
                options: None,
                choice: 0,
                seed: Seed::Job(workload.seed),
                text: None,
            });
        }
    }
    Ok(requests)
}

/// Shared prefixes, and the choice among them.
struct Prefixes {
    shared: SharedPrefixes,
    random: ChaCha12Rng,
    tokens: Vec<Vec<u32>>,
}

impl Prefixes {
    /// Prefixes for `count` prompts, of which no more than that many begin differently.
    fn draw(shared: SharedPrefixes, count: usize, seed: u64, ids: &[u32]) -> Self {
        let mut random = ChaCha12Rng::seed_from_u64(seed);
        random.set_stream(PREFIXES);
        let prefix = |random: &mut ChaCha12Rng| {
            (0..shared.len.get()).map(|_| ids[random.random_range(0..ids.len())]).collect::<Vec<u32>>()
        };
        let tokens = (0..shared.count.get().min(count)).map(|_| prefix(&mut random)).collect();
        Self { shared, random, tokens }
    }

    /// The beginning of the next prompt; none for the share of prompts that have no prefix.
    fn next(&mut self) -> Vec<u32> {
        match self.random.random_bool(self.shared.share) {
            true => self.tokens[self.random.random_range(0..self.tokens.len())].clone(),
            false => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroUsize;

    use flashjob_config::{ApplyChatTemplate, Columns, OnBadInput, Repeats, Share, WarmUp};

    use super::*;

    #[test]
    fn prefixes_are_shared_by_their_share_of_the_prompts() {
        let number = |number| NonZeroUsize::new(number).unwrap();
        let dataset = |share| Dataset::Prefix(SharedPrefixes { count: number(4), len: number(6), share });
        let workload = |share| Workload {
            dataset: dataset(share),
            input_len: number(10),
            output_len: number(2),
            random_range_ratio: 0.0,
            num_prompts: None,
            warmup: WarmUp::Requests(0),
            repeats: Repeats::ONCE,
            least_accuracy: None,
            seed: 7,
            ignore_eos: true,
            apply_chat_template: ApplyChatTemplate::Never,
            on_bad_input: OnBadInput::Fail,
            share: Share::new(0, NonZeroUsize::MIN).unwrap(),
            columns: Columns::default(),
            batch: None,
        };
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };
        let texts = TextFacts {
            architecture: String::new(),
            warnings: Vec::new(),
            chat_template: None,
            message_format: flashjob_model::MessageFormat::default(),
            eos_tokens: Vec::new(),
            special_tokens: vec![0, 1],
            vocab_size: 50,
            longest_token_bytes: 4,
            max_position: None,
        };
        for (share, lowest, highest) in [(1.0, 400, 400), (0.5, 160, 240)] {
            let requests = draw(&workload(share), sampling, 400, &texts, 12).unwrap();
            let prompts: HashSet<_> = requests.iter().map(|request| request.prompt.clone()).collect();
            assert_eq!(prompts.len(), 400, "prompts are distinct");
            assert!(prompts.iter().all(|prompt| prompt.len() == 10 && !prompt.contains(&0) && !prompt.contains(&1)));
            let mut beginnings = BTreeMap::<&[u32], usize>::new();
            prompts.iter().for_each(|prompt| *beginnings.entry(&prompt[..6]).or_default() += 1);
            let shared: Vec<usize> = beginnings.into_values().filter(|&prompts| prompts > 1).collect();
            assert_eq!(shared.len(), 4, "{share}");
            assert!((lowest..=highest).contains(&shared.iter().sum::<usize>()), "{share}: {shared:?}");
        }
    }
}
