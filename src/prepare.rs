//! The step before a run: a dataset or random numbers become requests of token ids, ready for a backend.
//!
//! Lines are read and checked, chat templates rendered, and texts tokenised. That takes a model's texts and none of its weights, so
//! that a job prepares while it loads. A mistake in the dataset is found here, with its place in the file.

mod bounded_json;
mod entries;
mod entry;
mod jsonl;
mod messages;
mod openai_request;
mod pieces;
mod prompt_encoder;
mod question;
mod random_prompts;
mod share;
mod sharegpt;

use std::path::Path;
use std::sync::Arc;

use flashjob_config::{Sampling, Workload};
use flashjob_event::RequestId;
use flashjob_model::{self as model, SharedTexts, TextService};

use crate::backend::Request;

pub use entry::{Entry, Place};
pub use question::{AnswerForm, Endpoint, Labels};

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

/// Everything that preparation takes.
pub struct Preparation<'a> {
    /// Settings of the workload.
    pub workload: &'a Workload,
    /// Sampling of requests that have none of their own.
    pub sampling: Sampling,
    /// Path of the dataset, where it is not the one that `workload` names.
    pub dataset_path: Option<&'a Path>,
    /// Tokenizer and chat template of the model.
    pub texts: &'a SharedTexts,
    /// Longest prompt plus output that is served; `None` is as long as the model was made for.
    pub max_model_len: Option<usize>,
}

/// The requests of a job, and the entries of the dataset that they come from.
pub struct Prepared {
    /// Requests for the engine, in order.
    pub prompts: Prompts,
    /// Each entry of the dataset in its order; none where prompts are random.
    pub entries: Vec<Entry>,
}

/// Failure of preparation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The workload cannot be made: an unreadable dataset, a prompt that is too long.
    #[error("{0}")]
    Workload(String),
    /// Tokenizer or chat template cannot be opened.
    #[error(transparent)]
    Texts(Arc<model::Error>),
    /// Tokenizer or chat template failed at a text that is not to blame.
    #[error("{0}")]
    Encoding(#[source] model::Error),
}

/// Makes the requests of a workload.
///
/// # Errors
/// Texts that cannot be opened, an unreadable dataset, input that is no prompt, or a prompt that does not fit the model.
pub fn prepare(preparation: &Preparation<'_>) -> Result<Prepared, Error> {
    let &Preparation { workload, sampling, dataset_path, texts, max_model_len } = preparation;
    let texts = texts.get().map_err(Error::Texts)?;
    // While the model loads, its own limit is the only one that is known.
    let max_model_len = max_model_len.or(texts.facts().max_position).unwrap_or(usize::MAX);
    let (mut prompts, entries) = match workload.dataset.path() {
        None => (random(workload, sampling, &texts, max_model_len)?, Vec::new()),
        Some(named) => {
            let path = dataset_path.unwrap_or(named);
            let (measured, entries) = entries::read(workload, sampling, path, &texts, max_model_len)?;
            // The first prompts again, numbered behind all others.
            let warm_up = measured.iter().cycle().take(workload.warmup).cloned();
            let behind = measured.last().map_or(0, |request| request.id.0 + 1);
            let ids = (behind..).map(RequestId);
            let warm_up = ids.zip(warm_up).map(|(id, request)| Request { id, ..request }).collect();
            (Prompts { warm_up, measured, exact: workload.ignore_eos }, entries)
        }
    };
    for request in &mut prompts.warm_up {
        // Its time is not measured, and a full answer would only delay the job.
        request.max_tokens = request.max_tokens.min(WARM_UP_MAX_TOKENS);
    }
    Ok(Prepared { prompts, entries })
}

fn random(
    workload: &Workload,
    sampling: Sampling,
    texts: &TextService,
    max_model_len: usize,
) -> Result<Prompts, Error> {
    let count = workload.num_prompts.map_or(DEFAULT_RANDOM_PROMPTS, usize::from);
    // All of them are drawn, whatever the share, so that a prompt does not depend on the replica that runs it.
    let count_with_warm_up = count + workload.warmup;
    let mut measured = random_prompts::draw(workload, sampling, count_with_warm_up, texts.facts(), max_model_len)?;
    let warm_up = measured.split_off(count);
    let measured: Vec<Request> = measured.drain(workload.share.of(count)).collect();
    if measured.is_empty() {
        return Err(share::nothing_left(workload.share, count));
    }
    // The answer to a random prompt is of no use to anyone: what counts is that all of its tokens were computed.
    Ok(Prompts { warm_up, measured, exact: true })
}
