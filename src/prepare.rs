//! The step before a run: a dataset or random numbers become requests of token ids, ready for a backend.
//!
//! Lines are read and checked, chat templates rendered, and texts tokenised. That takes a model's texts and none of its weights, so
//! that a job prepares while it loads. A mistake in the dataset is found here, with its place in the file. Prompts that measure are all
//! ready before anything is measured; a batch is read and tokenised while it is answered.

mod arithmetic;
mod bounded_json;
mod entries;
mod entry;
mod guided;
mod jsonl;
mod matcher;
mod messages;
mod names;
mod openai_request;
mod option_fields;
mod pieces;
mod prompt_encoder;
mod prompts;
mod question;
mod random_prompts;
mod reply_format;
mod share;
mod sharegpt;
mod sonnet;
mod stream;
mod text_options;
mod tools;
mod window;

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use flashjob_config::{BackendKind, Dataset, OnBadInput, Sampling, Schedule, Workload};
use flashjob_event::RequestId;
use flashjob_model::{self as model, SharedTexts};

use entries::ToRead;
use stream::BatchInput;
use window::Window;

pub use entries::PreparedEntry;
pub use entry::{Entry, Place, Position};
pub use matcher::Matcher;
pub use prompts::Prompts;
pub use question::{AnswerForm, Endpoint, Labels, RefusalKind};
pub use reply_format::{ReplyFormat, Thinking, ToolChoice, ToolUse};
pub use stream::{EntryStream, NextEntry, WINDOW_BYTES};

/// Everything that preparation takes.
pub struct Preparation<'a> {
    /// Settings of the workload.
    pub workload: &'a Workload,
    /// Sampling of requests that have none of their own.
    pub sampling: Sampling,
    /// Engine that the requests are for.
    pub backend: BackendKind,
    /// Path of the dataset, where it is not the one that `workload` names.
    pub dataset_path: Option<&'a Path>,
    /// Tokenizer and chat template of the model.
    pub texts: &'a SharedTexts,
    /// Longest prompt plus output that is served; `None` is as long as the model was made for.
    pub max_model_len: Option<usize>,
    /// Tells the entries of the dataset, by number, that are not to be run: an earlier attempt has answered them.
    pub is_done: Arc<dyn Fn(RequestId) -> bool + Send + Sync>,
    /// Takes the number of all entries of a batch, once they are read.
    pub counted: Arc<dyn Fn(usize) + Send + Sync>,
    /// Order in which requests of a batch are run, among those that are ready.
    pub schedule: Schedule,
    /// Tokens in a block of the engine's KV cache, of which equal beginnings are found again.
    pub block_tokens: NonZeroUsize,
    /// Memory of the entries of a batch that are ready and not taken yet, such as [`WINDOW_BYTES`].
    pub window_bytes: usize,
    /// Ends a wait for a batch's first entries.
    pub cancel: &'a CancellationToken,
}

/// The requests of a job.
pub enum Prepared {
    /// Requests that measure, all of them ready.
    Prompts {
        /// Requests for the engine, in order.
        prompts: Prompts,
        /// Each entry of the dataset in its order; none where prompts are random.
        entries: Vec<Entry>,
    },
    /// Entries of a batch, which is read while it is answered.
    Batch {
        /// Its entries, but for those that are done.
        entries: EntryStream,
        /// Tokens of its longest request, where all of it was read to see that none is bad.
        longest: Option<usize>,
    },
}

impl Prepared {
    /// Tokens of the longest request, its output included, as far as it must fit whatever else is asked for.
    pub fn longest(&self) -> usize {
        match self {
            Self::Prompts { prompts, .. } => prompts.longest(),
            Self::Batch { longest, .. } => longest.unwrap_or(0),
        }
    }
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

/// Makes the requests of a workload; of a batch, the first ones.
///
/// # Errors
/// Texts that cannot be opened, an unreadable dataset, input that is no prompt, or a prompt that does not fit the model.
pub fn prepare(preparation: Preparation<'_>) -> Result<Prepared, Error> {
    let Preparation { workload, sampling, backend, dataset_path, texts, max_model_len, is_done, .. } = preparation;
    let texts = texts.get().map_err(Error::Texts)?;
    // While the model loads, its own limit is the only one that is known.
    let max_model_len = max_model_len.or(texts.facts().max_position).unwrap_or(usize::MAX);
    let dataset = &workload.dataset;
    if let Dataset::Random | Dataset::Prefix(_) | Dataset::Sonnet = dataset {
        let prompts = Prompts::drawn(workload, sampling, &texts, max_model_len)?;
        return Ok(Prepared::Prompts { prompts, entries: Vec::new() });
    }
    let path = dataset_path.or(dataset.path());
    if workload.batch.is_some() {
        let (workload, path) = (workload.clone(), path.map(Path::to_owned));
        let Preparation { counted, schedule, block_tokens, window_bytes, cancel, .. } = preparation;
        let input = BatchInput { workload, sampling, backend, path, texts, max_model_len, is_done, counted };
        return batch(input, Window::new(schedule, block_tokens), window_bytes, cancel);
    }
    let to_read = ToRead { workload, sampling, backend, path, texts: &texts, max_model_len, is_done: &*is_done };
    let (mut requests, mut entries) = (Vec::new(), Vec::new());
    entries::read(&to_read, &mut |prepared: PreparedEntry| {
        let (entry, of_entry) = prepared.expanded();
        requests.extend(of_entry);
        entries.push(entry);
        ControlFlow::Continue(())
    })?;
    let (requests, entries) = share::take(workload.share, requests, entries)?;
    Ok(Prepared::Prompts { prompts: Prompts::fixed(workload, requests), entries })
}

/// Begins to read `batch` into `window`.
fn batch(
    batch: BatchInput,
    window: Window,
    window_bytes: usize,
    cancel: &CancellationToken,
) -> Result<Prepared, Error> {
    let longest = match batch.workload.on_bad_input {
        OnBadInput::Skip => None,
        // A bad line at the end is to be found before anything is computed. Nothing of this reading is kept.
        OnBadInput::Fail => {
            let left = |_| if cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            Some(batch.read(&mut { left })?.longest)
        }
    };
    let entries = EntryStream::open(batch, window, window_bytes);
    entries.wait_for_head_start(cancel)?;
    Ok(Prepared::Batch { entries, longest })
}
