//! Answers that earlier attempts have given, on the disk and in the output bucket; from here on shards are uploaded.

use flashjob_batch::{Identity, Layout, RemoteManifest, Shards};

use super::super::Exit;
use super::super::context::Context;
use super::super::exit::Failure;
use super::remote::{AnswersBucket, Fetched, RemoteAnswers};
use super::uploads::{AnswerUploads, CONNECTIONS};
use crate::report::{ANSWERS, AnswersFound};

/// Shards of a batch with everything that earlier attempts have answered.
pub struct Opened {
    /// Shards in `results-dir`.
    pub shards: Shards,
    /// Places in which earlier attempts' answers were found.
    pub found: AnswersFound,
    /// Uploads of answers, where there is an output bucket.
    pub uploads: Option<AnswerUploads>,
}

/// Opens the shards on the disk, fetches what the output bucket has besides, and starts uploads.
///
/// # Errors
/// Answers of another batch, a directory that cannot be written, or a bucket that does not answer.
pub async fn open(context: &Context, layout: Layout, identity: &Identity) -> Result<Opened, Failure> {
    let folder = context.results.directory.path().join(ANSWERS);
    let on_disk = |identity: &Identity| {
        let is_stored = |name: &str, bytes| folder.join(name).symlink_metadata().is_ok_and(|file| file.len() == bytes);
        let shards = Shards::open(&folder, layout, identity, &is_stored);
        shards.map_err(|error| Failure::new(Exit::Configuration, error))
    };
    let Some(output) = &context.job.output else {
        let shards = on_disk(identity)?;
        let found = AnswersFound { on_disk: shards.counts().answers(), in_bucket: 0 };
        return Ok(Opened { shards, found, uploads: None });
    };
    let events = &context.observability.events;
    let new = || RemoteManifest::new(layout, identity).map_err(|error| Failure::new(Exit::Unexpected, error));
    let bucket = AnswersBucket::open(output, context.job.mount.storage_timeout, CONNECTIONS, events);
    let bucket = bucket.map_err(|error| Failure::new(Exit::Storage, error))?;
    // Before the disk is touched: a job that is refused leaves no manifest there that would refuse the right one.
    let remote = bucket.look(layout, identity).await?;
    let mut shards = on_disk(identity)?;
    // Counted before anything is fetched: what both have is told as the disk's.
    let mut found = AnswersFound { on_disk: shards.counts().answers(), in_bucket: 0 };
    let manifest = match remote {
        RemoteAnswers::Unreadable(error) => {
            tracing::warn!(
                %error,
                "this PAR may not list or read the output bucket: the batch goes on with what results-dir has, and answers that an earlier \
                 attempt has left in the bucket alone are given again"
            );
            new()?
        }
        RemoteAnswers::Listed { manifest: None, .. } => new()?,
        RemoteAnswers::Listed { manifest: Some(mut manifest), objects } => {
            let fetched = bucket.fetch(&mut manifest, &objects, &mut shards, &folder).await?;
            let Fetched { answers, shards, damaged } = fetched;
            if damaged > 0 {
                let bucket = bucket.place();
                tracing::warn!(
                    bucket,
                    damaged,
                    "shards of the bucket's manifest are missing there or damaged: they are answered again"
                );
            }
            tracing::info!(
                answers,
                shards,
                bucket = bucket.place(),
                "answers that results-dir lacked are from the output bucket"
            );
            found.in_bucket = answers;
            manifest
        }
    };
    // With all finished shards: those that an attempt without network has left on the disk are sent, too.
    let uploads = AnswerUploads::start(output, events, &folder, (layout.manifest_name(), manifest), shards.finished());
    let uploads = uploads.map_err(|error| Failure::new(Exit::Storage, error))?;
    Ok(Opened { shards, found, uploads: Some(uploads) })
}
