//! Prompts: random ones that measure, real ones that are answered.

use std::path::Path;

use super::entries::{self, Entry};
use super::{Error, random_prompts, share};
use crate::backend::Request;
use flashjob_config::{Sampling, Workload};
use flashjob_event::RequestId;
use flashjob_model::TextService;

/// Random prompts when neither a number nor a dataset says how many.
const DEFAULT_RANDOM_PROMPTS: usize = 64;

/// Tokens after which a request of the warm-up ends: by then every kernel has run, on prompts and on single tokens.
const WARM_UP_MAX_TOKENS: usize = 8;

/// The requests of a job.
#[derive(Clone, Debug)]
pub struct Prompts {
    /// Run before the measured region. Other prompts than the measured ones where they are random, so that
    /// nothing can be reused.
    pub warm_up: Vec<Request>,
    /// The measured region.
    pub measured: Vec<Request>,
    /// They measure: exact counts are what they are run for, and a request that ends with an error spoils them. Others are to be
    /// answered, each as far as it can be.
    pub exact: bool,
}

impl Prompts {
    /// Tokens of the longest request, its output included.
    pub fn longest(&self) -> usize {
        let tokens = |request: &Request| request.prompt.len() + request.max_tokens;
        self.warm_up.iter().chain(&self.measured).map(tokens).max().unwrap_or(0)
    }
}

/// Makes the requests that `workload` asks for, for a model of these `texts` that serves `max_model_len` tokens at most. A dataset
/// is read from `dataset_path` where that is given, and each of its entries is given beside them, in its order; random prompts
/// have none.
///
/// # Errors
/// An unreadable dataset, input that is no prompt, or a prompt that does not fit the model.
pub fn prepare(
    workload: &Workload,
    sampling: Sampling,
    dataset_path: Option<&Path>,
    texts: &TextService,
    max_model_len: usize,
) -> Result<(Prompts, Vec<Entry>), Error> {
    let (mut prompts, entries) = match workload.dataset.path() {
        None => (random(workload, sampling, texts, max_model_len)?, Vec::new()),
        Some(named) => {
            let path = dataset_path.unwrap_or(named);
            let (measured, entries) = entries::read(workload, sampling, path, texts, max_model_len)?;
            // The first prompts again, numbered behind all others.
            let warm_up = measured.iter().cycle().take(workload.warmup).cloned();
            let behind = measured.last().map_or(0, |request| request.id.0 + 1);
            let ids = (behind..).map(RequestId);
            let warm_up = ids.zip(warm_up).map(|(id, request)| Request { id, ..request }).collect();
            (Prompts { warm_up, measured, exact: workload.ignore_eos }, entries)
        }
    };
    for request in &mut prompts.warm_up {
        request.max_tokens = request.max_tokens.min(WARM_UP_MAX_TOKENS);
    }
    Ok((prompts, entries))
}

fn random(
    workload: &Workload,
    sampling: Sampling,
    texts: &TextService,
    max_model_len: usize,
) -> Result<Prompts, Error> {
    let count = workload.num_prompts.map_or(DEFAULT_RANDOM_PROMPTS, usize::from);
    // All of them, whatever the share: a prompt is the same whoever runs it.
    let count_with_warm_up = count + workload.warmup;
    let mut measured = random_prompts::draw(workload, sampling, count_with_warm_up, texts.facts(), max_model_len)?;
    let warm_up = measured.split_off(count);
    let measured: Vec<Request> = measured.drain(workload.share.of(count)).collect();
    if measured.is_empty() {
        return Err(share::nothing_left(workload.share, count));
    }
    // Nobody waits for the answer to a random prompt.
    Ok(Prompts { warm_up, measured, exact: true })
}
