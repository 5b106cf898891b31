//! A batch while it is answered. Its answers are opened before anything is loaded, so that a job with nothing left to do ends at once.

mod earlier;
mod remote;
mod uploads;

use std::io::Read;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use flashjob_batch::{AnswerKind, FinishedShard, Identity, InputFile, Layout};
use flashjob_config::Share;
use flashjob_dataset::{Content, DatasetFile, Rows};
use flashjob_event::Fact;
use flashjob_results::JobSummary;
use flashjob_telemetry::BatchProgress;

use super::Exit;
use super::context::Context;
use super::dataset_log::{FailedLines, SkippedLines};
use super::exit::Failure;
use crate::backend::Completion;
use crate::prepare::Entry;
use crate::report::{AnswersFound, BatchAnswers, BatchFailure, BatchReport};
use earlier::Opened;

pub use uploads::{AnswerUploads, deliver};

/// Lines of a shard: some tens of megabytes of answers.
const SHARD_LINES: NonZeroU64 = NonZeroU64::new(10_000).unwrap();

/// Shards of a replica at least, where there are enough lines.
const SHARDS_PER_REPLICA: u64 = 4;

/// Beginning of the input from which the length of its lines is estimated.
const SAMPLE_BYTES: u64 = 1 << 20;

/// Keys that change an answer. Whatever else differs, an earlier job's answers are those of this one.
const KEYS: [&str; 12] = [
    "model",
    "tokenizer",
    "backend",
    "dtype",
    "num-prompts",
    "output-len",
    "temperature",
    "top-p",
    "top-k",
    "seed",
    "apply-chat-template",
    "dataset-columns",
];

/// States that the job answers a batch, where it does.
pub fn start(context: &Context) {
    let Context { job, observability, .. } = context;
    if job.workload.batch.is_some() && !job.is_worker() {
        // The configured price is that of one node.
        let price_per_hour = job.price_per_hour.map(|price| price * job.num_nodes() as f64);
        observability.events.emit(Fact::BatchStarted { price_per_hour });
    }
}

/// A batch: its answers, and what the log says of its lines.
pub struct Batch {
    /// Answers, those of earlier attempts included.
    pub answers: BatchAnswers,
    skipped: SkippedLines,
    failed: FailedLines,
}

impl Batch {
    /// Takes an entry that is handed to the backend, or was refused.
    pub fn entered(&self, entry: Entry) {
        if let Entry::Skipped { place, reason, .. } = &entry {
            self.skipped.note(place, reason);
        }
        self.answers.entered(entry);
    }

    /// Takes the completion of a request.
    pub fn completed(&self, completion: &Completion) {
        let Some(Entry::Asked { place, .. }) = self.answers.completed(completion) else { return };
        if let Some(error) = &completion.error {
            self.failed.note(&place, error);
        }
    }

    /// Entries of this job that were refused.
    pub fn skipped(&self) -> usize {
        self.skipped.count()
    }

    /// Ends the answers where all of the dataset was read, which has so many `entries`, and says how far the batch has come.
    pub fn end(&self, entries: Option<usize>) {
        if let Some(entries) = entries {
            self.answers.end(entries);
        }
        self.skipped.end();
        self.failed.end();
        let BatchReport { is_complete, counts, .. } = self.answers.report();
        let [completed, invalid, too_long, unsupported, non_finite, failed] =
            AnswerKind::ALL.map(|kind| counts.of(kind));
        let most_underway = self.answers.most_asked();
        tracing::info!(
            completed,
            invalid,
            too_long,
            unsupported,
            non_finite,
            failed,
            is_complete,
            most_underway,
            "answers of the batch"
        );
    }

    /// The failure of the batch, if it was ended.
    pub fn failure(&self) -> Option<Failure> {
        self.answers.failure().map(|failure| {
            let exit = match failure {
                BatchFailure::Unwritable(_) => Exit::Unexpected,
                BatchFailure::TooManyErrors { .. } => Exit::Inference,
            };
            Failure::new(exit, failure)
        })
    }
}

/// A batch that is open.
pub struct OpenBatch {
    /// Its answers, and what the log says of its lines.
    pub batch: Arc<Batch>,
    /// Uploads of its answers, where there is an output bucket.
    pub uploads: Option<AnswerUploads>,
}

/// Opens the answers of the batch at `dataset`, where the job has one: those on the disk, and those that the output bucket has besides.
/// `stop` is cancelled when it cannot go on.
///
/// # Errors
/// Answers of another batch, a directory that cannot be written, or a bucket that does not answer.
pub async fn open(
    context: &Context,
    dataset: Option<&Path>,
    stop: CancellationToken,
) -> Result<Option<OpenBatch>, Failure> {
    let job = &context.job;
    let (Some(batch), Some(dataset)) = (job.workload.batch, dataset) else { return Ok(None) };
    let unreadable = |error: flashjob_dataset::Error| Failure::new(Exit::Configuration, error);
    let files = flashjob_dataset::find(dataset).map_err(unreadable)?;
    // As they are shown: where a default changes from version to version, so does the identity.
    let settings = job.settings.iter().filter(|setting| KEYS.contains(&setting.key.as_str()));
    let identity = Identity {
        inputs: files
            .iter()
            .map(|file| InputFile { name: file.name.clone(), bytes: file.bytes, version: None })
            .collect(),
        settings: settings.map(|setting| (setting.key.clone(), setting.value.clone())).collect(),
    };
    let share = job.workload.share;
    let lines = estimated_lines(&files).map_err(unreadable)?;
    let layout = Layout {
        entries_per_shard: batch.shard_lines.unwrap_or_else(|| shard_lines(lines, share)),
        order: batch.output_order,
        replica: share.index() as u64,
        replicas: (share.count() as u64).try_into().unwrap_or(NonZeroU64::MIN),
    };
    let opening = earlier::open(context, layout, &identity);
    let opened = context.signals.cancel().run_until_cancelled(opening).await;
    let Opened { shards, found, uploads } = opened
        .unwrap_or_else(|| Err(Failure::sentence(Exit::Unexpected, "a signal came while answers were looked for")))?;
    if found.on_disk + found.in_bucket > 0 {
        let (answered, errors) = (shards.counts().answers(), shards.counts().errors());
        let AnswersFound { on_disk, in_bucket } = found;
        tracing::info!(
            answered,
            errors,
            on_disk,
            in_bucket,
            "earlier attempts have answered a part of the batch; it goes on with the rest"
        );
    }
    let finished: Box<dyn Fn(FinishedShard) + Send + Sync> = match &uploads {
        Some(uploads) => Box::new(uploads.queue()),
        None => Box::new(drop),
    };
    let model = job.model.0.display().to_string();
    let events = context.observability.events.clone();
    let answers = BatchAnswers::new(shards, found, model, batch.max_errors, stop, events, finished);
    let most = job.workload.num_prompts.map_or(u64::MAX, |most| most.get() as u64);
    // How many lines compressed bytes are is not known before all are read.
    if !files.iter().any(DatasetFile::is_compressed) {
        answers.sized(lines.min(most), true);
    }
    let batch = Batch { answers, skipped: SkippedLines::new(dataset), failed: FailedLines::default() };
    Ok(Some(OpenBatch { batch: Arc::new(batch), uploads }))
}

/// Lines of a shard, unless configured: few enough for four shards a replica, so that all replicas have work for about as long. Every
/// attempt and replica comes to the same number, as it follows from the input alone.
fn shard_lines(estimated_lines: u64, share: Share) -> NonZeroU64 {
    if share.count() == 1 {
        return SHARD_LINES;
    }
    let each = estimated_lines / (share.count() as u64).saturating_mul(SHARDS_PER_REPLICA);
    NonZeroU64::new(each).map_or(NonZeroU64::MIN, |each| each.min(SHARD_LINES))
}

/// Lines of `files`, estimated from the beginning of the first one.
fn estimated_lines(files: &[DatasetFile]) -> Result<u64, flashjob_dataset::Error> {
    let Some(first) = files.first() else { return Ok(0) };
    let bytes: u128 = files.iter().map(|file| u128::from(file.bytes)).sum();
    let all = match flashjob_dataset::open(first)? {
        Content::Lines(lines) => {
            let mut sample = Vec::new();
            // Damage is found, and said, where the file is read.
            let _ = lines.take(SAMPLE_BYTES).read_to_end(&mut sample);
            let lines = sample.iter().filter(|&&byte| byte == b'\n').count() as u128;
            // Of a compressed file it is a part of the lines, which makes shards smaller.
            lines * bytes / (sample.len() as u128).max(1)
        }
        Content::Rows(_) => u128::from(Rows::count(first)?) * bytes / u128::from(first.bytes).max(1),
    };
    Ok(u64::try_from(all).unwrap_or(u64::MAX))
}

/// The part of this job in a batch that it has brought so far.
pub fn part_of(progress: &BatchProgress) -> JobSummary {
    JobSummary {
        lines: progress.answered_by_this_job(),
        seconds: progress.elapsed().as_secs_f64(),
        answering_seconds: progress.measuring().as_secs_f64(),
        lines_per_second: progress.lines_per_second(),
        cost: progress.cost(),
        prefix_cache_hit_rate: None,
    }
}
