//! The live record of a run: a thread of its own writes records to disk, and sends them to the server from there.
//!
//! The thread has its own small runtime, so that neither a busy executor nor a hanging server can hold up
//! the run, and the run cannot hold up its record.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::client::Client;
use super::queue::Queue;
use super::record::{Finite, Record, milliseconds};
use super::retry::Pauses;
use super::sender::Sender;
use super::spool::{End, Spool};
use super::{Delivery, Error, RunEnd, RunLink, RunSpec};
use flashjob_config::Tracking;

/// Interval at which records are written to disk.
const DISK_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which records on disk are sent to the server.
const SERVER_INTERVAL: Duration = Duration::from_secs(2);

/// Records one run while it happens. Safe to use from any thread; only [`Tracker::finish`] waits for the network,
/// within its limit. Dropped without an end, it leaves a run that `flashjob publish` ends as KILLED.
#[derive(Debug)]
pub struct Tracker {
    shared: Arc<Shared>,
    results_dir: PathBuf,
    /// `None` only during drop.
    endings: Option<mpsc::UnboundedSender<Ending>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    spool: Spool,
    queue: Queue,
    link: OnceLock<RunLink>,
}

/// A request to end the run.
#[derive(Debug)]
struct Ending {
    end: End,
    deadline: Instant,
    /// Closed when the caller no longer waits.
    reply: oneshot::Sender<Delivery>,
}

impl Tracker {
    /// Writes `spec` into the spool in `results_dir` and begins to send it. Needs no async runtime.
    pub fn start(tracking: &Tracking, spec: &RunSpec, results_dir: &Path) -> Result<Self, Error> {
        let client = Client::open(tracking)?;
        let sender = Sender::new(client, tracking.experiment.clone());
        let spool = Spool::create(results_dir, spec, tracking)?;
        let shared = Arc::new(Shared { spool, queue: Queue::default(), link: OnceLock::new() });
        let (endings, requests) = mpsc::unbounded_channel();
        let cannot = |error: std::io::Error| Error::Settings {
            server: tracking.uri.to_string(),
            detail: format!("no thread for it could be started: {error}"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
        let thread = std::thread::Builder::new().name("mlflow".to_owned()).spawn({
            let shared = shared.clone();
            move || {
                runtime.block_on(shared.work(sender, requests));
                // A name lookup that hangs must not delay the end of the process.
                runtime.shutdown_background();
            }
        });
        let thread = Some(thread.map_err(cannot)?);
        Ok(Self { shared, results_dir: results_dir.to_owned(), endings: Some(endings), thread })
    }

    /// Records a live point. A value that is not finite is dropped and counted.
    pub fn metric(&self, name: &str, value: f64, step: u64) {
        match Finite::new(value) {
            Some(value) => {
                let timestamp_ms = milliseconds(SystemTime::now());
                self.shared.queue.push(Record::Metric { metric: name.to_owned(), value, step, timestamp_ms });
            }
            None => self.shared.queue.count_not_finite(),
        }
    }

    /// Records a tag that became known after the start.
    pub fn tag(&self, key: &str, value: &str) {
        self.shared.queue.push(Record::Tag { tag: key.to_owned(), value: value.to_owned() });
    }

    /// Records params that became known after the start.
    pub fn params(&self, params: &[(String, String)]) {
        for (param, value) in params {
            self.shared.queue.push(Record::Param { param: param.clone(), value: value.clone() });
        }
    }

    /// Location of the run, once the server has created it.
    pub fn link(&self) -> Option<RunLink> {
        self.shared.link.get().cloned()
    }

    /// Writes `end` to disk, then tries for at most `flush` to have everything on the server. Can be called again with
    /// another end (a job interrupted while it publishes); dropping the future gives up at once.
    pub async fn finish(&mut self, end: RunEnd, flush: Duration) -> Delivery {
        let deadline = Instant::now() + flush;
        let mut end = self.shared.spool.prepare_end(&end, &self.results_dir);
        let dropped = self.shared.queue.not_finite();
        if dropped > 0 {
            end.notes.push(format!("{dropped} live values were not finite and left out"));
            end.tags.push(("flashjob.not_finite_live_values".to_owned(), dropped.to_string()));
        }
        let written = self.shared.spool.write_end(&end);
        let (reply, answer) = oneshot::channel();
        if let Some(endings) = &self.endings {
            // If the thread is gone, `reply` is dropped, and the answer below says so.
            endings.send(Ending { end, deadline, reply }).ok();
        }
        let delivery = answer
            .await
            .unwrap_or_else(|_| Delivery::Spooled { reason: "the thread that sends it ended unexpectedly".to_owned() });
        match (delivery, written) {
            (Delivery::Spooled { reason }, Err(error)) => Delivery::Lost { reason: format!("{reason}; and {error}") },
            (delivery, _) => delivery,
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.endings = None;
        if let Some(thread) = self.thread.take() {
            // The thread ends as soon as the channel of requests is closed, whatever it is doing.
            thread.join().ok();
        }
    }
}

impl Shared {
    /// Main function of the thread.
    async fn work(&self, mut sender: Sender, mut requests: mpsc::UnboundedReceiver<Ending>) {
        let mut request = tokio::select! {
            biased;
            request = requests.recv() => request,
            never = self.drain_regularly() => match never {},
            never = self.send_regularly(&mut sender) => match never {},
        };
        while let Some(Ending { end, deadline, mut reply }) = request {
            // Synced before the server is contacted: a result is never only in memory while the network is waited for.
            let drained = self.drain().and_then(|()| self.spool.sync());
            request = tokio::select! {
                biased;
                // A newer end replaces the present one (a job that is interrupted while it publishes).
                newer = requests.recv() => newer,
                // The caller has given up, so nothing needs to be sent for it.
                () = reply.closed() => requests.recv().await,
                mut delivery = sender.complete(&self.spool, &end, deadline) => {
                    if let (Delivery::Delivered { notes, .. }, Err(error)) = (&mut delivery, drained) {
                        notes.push(format!("the last live points are missing: {error}"));
                    }
                    reply.send(delivery).ok();
                    requests.recv().await
                }
            };
        }
        if let Err(error) = self.drain() {
            tracing::warn!(%error, "the last live points for MLflow were lost");
        }
    }

    fn drain(&self) -> Result<(), Error> {
        self.queue.drain(|records| self.spool.append(records))
    }

    async fn drain_regularly(&self) -> Infallible {
        let mut failed = false;
        loop {
            tokio::time::sleep(DISK_INTERVAL).await;
            match self.drain() {
                Err(error) if !failed => {
                    tracing::warn!(%error, "live points for MLflow wait in memory");
                    failed = true;
                }
                Err(_) => {}
                Ok(()) => failed = false,
            }
        }
    }

    async fn send_regularly(&self, sender: &mut Sender) -> Infallible {
        let mut pauses = Pauses::default();
        let mut trouble: Option<String> = None;
        loop {
            let outcome = sender.catch_up(&self.spool).await;
            if let Some(link) = sender.link()
                && self.link.set(link.clone()).is_ok()
            {
                tracing::info!(run = link.run_url, "recorded at MLflow");
            }
            let pause = match outcome {
                Ok(()) => {
                    if trouble.take().is_some() {
                        tracing::info!("MLflow takes the run's record again");
                    }
                    pauses = Pauses::default();
                    SERVER_INTERVAL
                }
                Err(error) => {
                    let reason = error.to_string();
                    // The same trouble is logged once, however long it lasts.
                    if trouble.as_ref() != Some(&reason) {
                        tracing::warn!(%error, "the run goes on and its record stays on disk");
                        trouble = Some(reason);
                    }
                    pauses.pause(&error)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}
