//! The step before a run: a dataset or random numbers become requests of token ids, ready for a backend.
//!
//! Lines are read and checked, chat templates rendered, and texts tokenised. That takes a model's texts and none of its weights, so
//! that a job prepares while it loads. A mistake in the dataset is found here, with its place in the file.

mod arithmetic;
mod bounded_json;
mod entries;
mod entry;
mod jsonl;
mod matcher;
mod messages;
mod openai_request;
mod pieces;
mod prompt_encoder;
mod prompts;
mod question;
mod random_prompts;
mod share;
mod sharegpt;
mod sonnet;

use std::path::Path;
use std::sync::Arc;

use flashjob_config::{Dataset, Sampling, Workload};
use flashjob_model::{self as model, SharedTexts};

pub use entry::{Entry, Place};
pub use matcher::Matcher;
pub use prompts::Prompts;
pub use question::{AnswerForm, Endpoint, Labels};

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
    match &workload.dataset {
        Dataset::Random | Dataset::Prefix(_) | Dataset::Sonnet => {
            let prompts = Prompts::drawn(workload, sampling, &texts, max_model_len)?;
            Ok(Prepared { prompts, entries: Vec::new() })
        }
        dataset @ (Dataset::ShareGpt { .. } | Dataset::Jsonl(_) | Dataset::Arithmetic) => {
            let path = dataset_path.or(dataset.path());
            let (requests, entries) = entries::read(workload, sampling, path, &texts, max_model_len)?;
            Ok(Prepared { prompts: Prompts::fixed(workload, requests), entries })
        }
    }
}
