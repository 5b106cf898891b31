//! Loading of weights and preparation of requests, at the same time.
//!
//! Requests need a model's texts only. They are prepared while weights are read, so that a mistake in the dataset ends the job
//! before that is done, and so that neither waits for the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use flashjob_config::JobConfig;
use flashjob_model::SharedTexts;

use super::batch::Batch;
use super::context::Context;
use super::exit::Failure;
use super::faults;
use super::files::MountedFiles;
use super::run::blocking;
use super::signals::Signals;
use super::work::{STEP_PATIENCE, from_backend, from_prepare};
use crate::backend::{self, Backend, Found, Loading};
use crate::prepare::{self, Preparation, Prepared};

/// The program that runs, wherever it lies.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Paths of everything that is read.
#[derive(Clone)]
pub struct Sources {
    /// Path of the model.
    pub model: PathBuf,
    /// Path of the tokenizer.
    pub tokenizer: PathBuf,
    /// Path of the dataset, unless prompts are random.
    pub dataset: Option<PathBuf>,
}

/// A model that is to be loaded.
pub struct ToLoad<'a> {
    /// Configuration, with the limits to load for.
    pub job: &'a JobConfig,
    /// Engine that takes it.
    pub found: Found,
    /// Weight files, as mounts have them.
    pub files: MountedFiles,
    /// Paths of what is read.
    pub sources: &'a Sources,
}

/// A loaded model and its requests.
pub struct Ready {
    /// An engine with its weights.
    pub backend: Box<dyn Backend>,
    /// Requests that it is to run.
    pub prepared: Prepared,
}

/// Loads the model and makes the prompts. Where neither succeeds the prompts' failure is the one that is given, so that a bad line
/// ends the job in one way, however fast weights are read.
///
/// # Errors
/// The failure with its exit code.
pub async fn load_and_prepare(
    context: &Context,
    found: Found,
    files: MountedFiles,
    sources: Sources,
    batch: Option<Arc<Batch>>,
) -> Result<Ready, Failure> {
    let texts = texts(&sources);
    let stop_loading = context.signals.cancel().child_token();
    let preparing = async {
        let dataset = sources.dataset.clone();
        let prepared = prepare(&context.job, &context.signals, texts.clone(), dataset, None, batch.clone()).await;
        // With several nodes loading goes on: the others learn of a failure over links that loading sets up.
        if prepared.is_err() && context.resources.rendezvous.is_none() {
            stop_loading.cancel();
        }
        prepared
    };
    let loading = load(
        context,
        ToLoad { job: &context.job, found, files, sources: &sources },
        texts.clone(),
        stop_loading.clone(),
        backend::open,
    );
    // Both to their end: a thread that reads weights can be cancelled, but not dropped.
    let (loaded, prepared) = tokio::join!(loading, preparing);
    let (prepared, backend) = (prepared?, loaded?);
    // Memory may hold less than the model was made for; what then does not fit is judged as if that had been known.
    let max_model_len = backend.report().max_model_len;
    let prepared = match prepared.longest() > max_model_len {
        true => prepare(&context.job, &context.signals, texts, sources.dataset, Some(max_model_len), batch).await?,
        false => prepared,
    };
    if let Prepared::Batch { entries, .. } = &prepared {
        entries.limit(max_model_len);
    }
    Ok(Ready { backend, prepared })
}

/// The texts of the model at `sources`, in a process of their own that starts when they are first asked for.
pub fn texts(sources: &Sources) -> SharedTexts {
    SharedTexts::apart(Path::new(THIS_PROGRAM), sources.model.clone(), sources.tokenizer.clone())
}

/// Runs `open`, which makes a backend of the model, or a worker that another node leads.
///
/// # Errors
/// The failure with its exit code.
pub async fn load<T: Send + 'static>(
    context: &Context,
    to_load: ToLoad<'_>,
    texts: SharedTexts,
    cancel: CancellationToken,
    open: fn(Found, &Loading<'_>) -> Result<T, backend::Error>,
) -> Result<T, Failure> {
    let ToLoad { job, found, files, sources } = to_load;
    let (job, events) = (job.clone(), context.observability.events.clone());
    let rendezvous = context.resources.rendezvous.clone();
    let Sources { model, tokenizer, .. } = sources.clone();
    blocking(&cancel.clone(), STEP_PATIENCE, move || {
        let loading = Loading {
            config: &job,
            rendezvous: rendezvous.as_deref(),
            files: &files,
            model: &model,
            tokenizer: &tokenizer,
            texts: &texts,
            events: &events,
            cancel: &cancel,
        };
        open(found, &loading)
    })
    .await?
    .map_err(|error| faults::explain(from_backend(error), &context.resources.gpus))
}

/// Prepares the requests, or begins to, for a model that serves `max_model_len` tokens; as many as it was made for where that is not known yet.
pub async fn prepare(
    job: &JobConfig,
    signals: &Signals,
    texts: SharedTexts,
    dataset: Option<PathBuf>,
    max_model_len: Option<usize>,
    batch: Option<Arc<Batch>>,
) -> Result<Prepared, Failure> {
    let (workload, sampling, backend) = (job.workload.clone(), job.sampling, job.backend);
    let max_model_len = max_model_len.or(job.engine.max_model_len.map(usize::from));
    let (schedule, block_tokens) = (job.engine.schedule, job.engine.block_tokens);
    let cancel = signals.cancel().clone();
    blocking(signals.cancel(), STEP_PATIENCE, move || {
        let sized = batch.clone();
        prepare::prepare(Preparation {
            workload: &workload,
            sampling,
            backend,
            dataset_path: dataset.as_deref(),
            texts: &texts,
            max_model_len,
            is_done: Arc::new(move |request| batch.as_ref().is_some_and(|batch| batch.answers.is_done(request))),
            counted: Arc::new(move |entries| {
                sized.iter().for_each(|batch| batch.answers.sized(entries as u64, false));
            }),
            schedule,
            block_tokens,
            window_bytes: prepare::WINDOW_BYTES,
            cancel: &cancel,
        })
    })
    .await?
    .map_err(from_prepare)
}
