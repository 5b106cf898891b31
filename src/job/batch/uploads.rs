//! Finished shards go to the output bucket while the batch runs, and the manifest after the shards that it names.
//!
//! In the background, one file at a time: nothing here ends the batch or waits for it. While the bucket takes nothing, answers stay on the
//! disk, which is said once, and the end of the job tries again. What a PAR wrote it cannot delete: journals of shards that were finished later
//! stay in the bucket, and are not looked at.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use flashjob_batch::{FinishedShard, RemoteManifest};
use flashjob_bucket::{Error, ErrorKind};
use flashjob_config::OutputStorage;
use flashjob_event::Events;

use super::super::context::Context;
use super::remote::AnswersBucket;
use crate::report::BatchAnswers;

/// Time for which an operation is tried again while the batch runs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pause after an operation that failed, while the batch runs.
const PAUSE: Duration = Duration::from_secs(60);

/// Pause after an operation that this PAR does not allow: longer than any job.
const UNTIL_THE_END: Duration = Duration::from_secs(1 << 30);

/// Least time between two manifests while there are further shards to send.
const MANIFEST_INTERVAL: Duration = Duration::from_secs(10);

/// Time for which a bucket may take answers after a signal. Kubernetes waits 30 s by default before it kills.
const GRACE: Duration = Duration::from_secs(15);

/// Connections of uploads: the parts of one file.
pub const CONNECTIONS: usize = 4;

/// Uploads of a batch's answers, going on in the background.
pub struct AnswerUploads {
    shards: UnboundedSender<FinishedShard>,
    stop: CancellationToken,
    worker: JoinHandle<Uploader>,
}

/// Sends what the output bucket lacks of `answers`. False: it does not have all of it. A signal leaves little time.
pub async fn deliver(context: &Context, uploads: AnswerUploads, answers: &BatchAnswers) -> bool {
    let (journals, entries) = answers.rest();
    let finishing = uploads.finish(Rest { journals, entries }, context.job.mount.storage_timeout);
    let signalled = async {
        context.signals.cancel().cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        delivered = finishing => delivered,
        () = signalled => {
            tracing::error!("the bucket could not take all answers of the batch after the signal: they are on the disk");
            false
        }
    }
}

/// Everything that is left to send at the end of a job.
struct Rest {
    /// Journals of shards that are not complete.
    journals: Vec<PathBuf>,
    /// Entries of the batch, once all have been seen.
    entries: Option<u64>,
}

/// Sends answers, and knows which of them have arrived.
struct Uploader {
    output: OutputStorage,
    events: Events,
    /// Folder of the answers on the disk.
    directory: PathBuf,
    /// Name of the manifest.
    name: String,
    /// The manifest that the bucket has, or will have next.
    manifest: RemoteManifest,
    /// The bucket's manifest lacks a shard that is there.
    is_behind: bool,
    manifest_sent: Option<Instant>,
    pending: VecDeque<FinishedShard>,
    arriving: UnboundedReceiver<FinishedShard>,
    /// A failure has been said.
    is_said: bool,
    /// Shards whose file on the disk is not the one that was finished.
    damaged: u64,
}

impl AnswerUploads {
    /// Starts sending those of `finished`, which lie in `directory`, that the bucket lacks as its `manifest` says; the manifest is called
    /// `name`.
    ///
    /// # Errors
    /// There can be no HTTP client on this machine.
    pub fn start(
        output: &OutputStorage,
        events: &Events,
        directory: &Path,
        (name, manifest): (String, RemoteManifest),
        finished: impl Iterator<Item = FinishedShard>,
    ) -> Result<Self, Error> {
        let bucket = AnswersBucket::open(output, PATIENCE, CONNECTIONS, events)?;
        let (shards, arriving) = unbounded_channel();
        let mut worker = Uploader {
            output: output.clone(),
            events: events.clone(),
            directory: directory.to_owned(),
            name,
            manifest,
            // Also without a shard: it says whose journals come at the end, and a bucket that cannot be written is noticed at once.
            is_behind: true,
            manifest_sent: None,
            pending: finished.collect(),
            arriving,
            is_said: false,
            damaged: 0,
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let worker = tokio::spawn(async move {
            // A file that is being sent when the job ends is sent again, or gone on with where it has parts.
            stopped.run_until_cancelled(worker.send_while_the_batch_runs(&bucket)).await;
            worker
        });
        Ok(Self { shards, stop, worker })
    }

    /// Takes each finished shard; it may be called from any thread, and never waits.
    pub fn queue(&self) -> impl Fn(FinishedShard) + Send + Sync + 'static {
        let shards = self.shards.clone();
        // The receiver is gone once the job has ended, and the shard is on the disk.
        move |shard| _ = shards.send(shard)
    }

    /// Sends everything that is left, with its journals and the manifest last; an operation is tried again for `patience`. False: the
    /// bucket does not have all of it.
    async fn finish(self, rest: Rest, patience: Duration) -> bool {
        self.stop.cancel();
        // A worker that panicked has said so in the log.
        let Ok(mut worker) = self.worker.await else { return false };
        match worker.finish(rest, patience).await {
            Ok(()) => worker.damaged == 0,
            Err(error) => {
                tracing::error!(%error, "the bucket could not take all answers of the batch: they are on the disk");
                false
            }
        }
    }
}

impl Uploader {
    /// Sends each shard that is finished. Ends never.
    async fn send_while_the_batch_runs(&mut self, bucket: &AnswersBucket) {
        loop {
            match self.send_pending(bucket).await {
                Ok(()) => self.take_next().await,
                Err(error) => {
                    let pause = self.pause_after(&error);
                    self.take_until(pause).await;
                }
            }
        }
    }

    /// Time after which another attempt may succeed. The first failure is said.
    fn pause_after(&mut self, error: &Error) -> Duration {
        if !std::mem::replace(&mut self.is_said, true) {
            tracing::warn!(
                %error,
                "the bucket does not take answers of the batch: it goes on, answers stay in results-dir, and the end of the job tries \
                 again"
            );
        }
        match error.kind() {
            ErrorKind::Throttled | ErrorKind::ServerFailed | ErrorKind::Unreachable => PAUSE,
            // Another attempt would be answered in the same way.
            _ => UNTIL_THE_END,
        }
    }

    /// Waits for a shard.
    async fn take_next(&mut self) {
        match self.arriving.recv().await {
            Some(shard) => self.pending.push_back(shard),
            // Nobody is left to send another one.
            None => std::future::pending().await,
        }
        self.take_arrived();
    }

    /// Collects shards for the time `pause`.
    async fn take_until(&mut self, pause: Duration) {
        let until = tokio::time::sleep(pause);
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = &mut until => return,
                () = self.take_next() => {}
            }
        }
    }

    fn take_arrived(&mut self) {
        while let Ok(shard) = self.arriving.try_recv() {
            self.pending.push_back(shard);
        }
    }

    /// Sends shards until none waits, and the manifest behind them.
    async fn send_pending(&mut self, bucket: &AnswersBucket) -> Result<(), Error> {
        while let Some(shard) = self.pending.front().copied() {
            if !self.manifest.has(&shard) {
                self.send(bucket, shard).await?;
            }
            // Only now: a shard whose upload failed is the first one of the next attempt.
            self.pending.pop_front();
            self.take_arrived();
            if self.is_behind && self.manifest_sent.is_none_or(|sent| sent.elapsed() > MANIFEST_INTERVAL) {
                self.send_manifest(bucket).await?;
            }
        }
        match self.is_behind {
            true => self.send_manifest(bucket).await,
            false => Ok(()),
        }
    }

    async fn send(&mut self, bucket: &AnswersBucket, shard: FinishedShard) -> Result<(), Error> {
        let path = self.directory.join(shard.file_name());
        let bytes = path.metadata().map(|file| file.len());
        // Another content under this name would be taken for damaged by the next job, and this way for lacking.
        let sent = match bytes {
            Ok(bytes) if bytes == shard.bytes => bucket.put(&path).await,
            _ => {
                self.lost(&path);
                return Ok(());
            }
        };
        match sent {
            Err(error) if error.kind() == ErrorKind::LocalFile => self.lost(&path),
            sent => {
                sent?;
                self.manifest.add(shard);
                self.is_behind = true;
            }
        }
        Ok(())
    }

    /// A file that somebody has taken away does not keep the others from the bucket.
    fn lost(&mut self, path: &Path) {
        self.damaged += 1;
        tracing::warn!(path = %path.display(), "a finished shard is not on the disk any more: the same job, run again, answers it again");
    }

    async fn send_manifest(&mut self, bucket: &AnswersBucket) -> Result<(), Error> {
        bucket.put_manifest(&self.name, self.manifest.to_bytes()).await?;
        self.is_behind = false;
        self.manifest_sent = Some(Instant::now());
        Ok(())
    }

    async fn finish(&mut self, rest: Rest, patience: Duration) -> Result<(), Error> {
        let bucket = AnswersBucket::open(&self.output, patience, CONNECTIONS, &self.events)?;
        self.take_arrived();
        if let Some(entries) = rest.entries {
            self.is_behind |= self.manifest.entries() != Some(entries);
            self.manifest.end(entries);
        }
        self.send_pending(&bucket).await?;
        // Behind the manifest, which says whose they are: journals without one are not looked at.
        for journal in &rest.journals {
            bucket.put(journal).await?;
        }
        let shards = self.manifest.shards().count();
        tracing::info!(bucket = bucket.place(), shards, journals = rest.journals.len(), "answers are in the bucket");
        Ok(())
    }
}
