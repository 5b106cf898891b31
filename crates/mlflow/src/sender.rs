//! From the spool to the server, resumable at any point.
//!
//! Every step can be repeated without changing what it did before, and what is done is remembered only after the
//! server said so: a sender whose future was dropped, or whose server died halfway, goes on where it was. Another
//! process can start from the beginning and end at the same run, because the run is looked for by its key.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::batch::{Batch, Batcher, LONG_VALUES, run_name};
use super::client::{ArtifactStore, Client, Run};
use super::group::{self, PARENT_TAG};
use super::record::Record;
use super::retry;
use super::spool::{End, Spool};
use super::{Delivery, Error, RunKey, RunLink};

/// Share of the time that is reserved for ending the run: a slow upload must not leave it RUNNING.
const SHARE_FOR_END: f64 = 0.3;
/// Most time that is reserved for it.
const MOST_FOR_END: Duration = Duration::from_secs(10);

/// Sends one run from its spool.
#[derive(Debug)]
pub(super) struct Sender {
    client: Client,
    experiment: String,
    run: Option<Run>,
    batcher: Batcher,
    beginning_sent: bool,
    /// Offset up to which the server has the journal, in bytes.
    journal_position: u64,
    unreadable_lines: usize,
    uploaded: BTreeSet<String>,
    refused: Vec<String>,
}

impl Sender {
    /// A sender to `experiment`.
    pub(super) fn new(client: Client, experiment: String) -> Self {
        Self {
            client,
            experiment,
            run: None,
            batcher: Batcher::default(),
            beginning_sent: false,
            journal_position: 0,
            unreadable_lines: 0,
            uploaded: BTreeSet::new(),
            refused: Vec::new(),
        }
    }

    /// Location of the run, once it exists.
    pub(super) fn link(&self) -> Option<RunLink> {
        self.run.as_ref().map(|run| self.client.link(run))
    }

    /// Sends everything but the end of the run.
    pub(super) async fn catch_up(&mut self, spool: &Spool) -> Result<(), Error> {
        match self.send_journal(spool).await {
            Err(error) if self.run_is_gone(&error) => {
                self.start_over();
                self.send_journal(spool).await
            }
            outcome => outcome,
        }
    }

    /// Sends everything including the end, with retries until `deadline`, and records the delivery in the spool.
    pub(super) async fn complete(&mut self, spool: &Spool, end: &End, deadline: Instant) -> Delivery {
        if !self.refused.is_empty() {
            // What was refused before may be accepted now, such as a deleted run that was restored.
            self.start_over();
        }
        self.uploaded.clear();
        let left = deadline.saturating_duration_since(Instant::now());
        let contents_deadline = deadline - left.mul_f64(SHARE_FOR_END).min(MOST_FOR_END);
        let server = self.client.server().to_owned();
        // The contents have an earlier deadline: the run must be ended even if an upload does not finish.
        let contents = retry::until(contents_deadline, &server, async || self.send_contents(spool, end).await).await;
        let ended = match self.run {
            Some(_) => retry::until(deadline, &server, async || self.send_end(spool, end).await).await,
            None => Ok(()),
        };
        let reason = match (contents.and(ended), self.link()) {
            (Err(error), _) => error.to_string(),
            (Ok(()), _) if !self.refused.is_empty() => {
                format!("the run is there, but not all of it: {}", self.refused.join("; "))
            }
            (Ok(()), None) => format!("MLflow {server} did not say where the run is"),
            (Ok(()), Some(link)) => {
                let mut notes = end.notes.clone();
                notes.extend(self.notes(end));
                if let Err(error) = spool.write_delivered(&link) {
                    notes.push(format!("flashjob publish would send it again: {error}"));
                }
                return Delivery::Delivered { link, notes };
            }
        };
        Delivery::Spooled { reason }
    }

    /// Finds or creates the run.
    async fn open(&mut self, spool: &Spool) -> Result<Run, Error> {
        if let Some(run) = &self.run {
            return Ok(run.clone());
        }
        let beginning = &spool.beginning;
        let experiment = self.client.experiment(&self.experiment).await?.experiment_id;
        let parent = match (&beginning.member, &beginning.parent) {
            (Some(member), _) => {
                group::enter(&self.client, &experiment, member, &beginning.key, beginning.start_time_ms).await?
            }
            (None, Some(parent)) => Some(self.parent(&experiment, parent).await?),
            (None, None) => None,
        };
        // Searched by key first: an earlier creation may have succeeded although its answer was lost.
        let found = self.client.find_runs(&experiment, &beginning.key).await?.into_iter().next();
        let run = match found {
            Some(run) if run.is_deleted() => return Err(self.deleted(run)),
            Some(run) => run,
            None => {
                let name = run_name(&beginning.run_name);
                let mut tags = beginning.member.as_ref().map(|member| member.tags()).unwrap_or_default();
                tags.extend(parent.map(|parent| (PARENT_TAG, parent.id().to_owned())));
                self.client.create_run(&experiment, &beginning.key, &name, beginning.start_time_ms, &tags).await?
            }
        };
        self.run = Some(run.clone());
        Ok(run)
    }

    /// The run that this one is shown under. It has a sender of its own, which may still be on its way.
    async fn parent(&self, experiment: &str, key: &RunKey) -> Result<Run, Error> {
        let found = self.client.find_runs(experiment, key).await?.into_iter().find(|run| !run.is_deleted());
        found.ok_or_else(|| Error::NoParent { server: self.client.server().to_owned(), key: key.clone() })
    }

    async fn send_journal(&mut self, spool: &Spool) -> Result<(), Error> {
        let run = self.open(spool).await?;
        if !self.beginning_sent {
            let batches = self.batcher.batches(spool.beginning.records.iter().cloned());
            self.send(&run, &batches).await?;
            self.beginning_sent = true;
        }
        loop {
            let page = spool.page(self.journal_position)?;
            if page.next == self.journal_position {
                return Ok(());
            }
            let batches = self.batcher.batches(page.records);
            self.send(&run, &batches).await?;
            // Advanced only after the server has taken the page: a failure in between sends it again, which is
            // harmless.
            self.journal_position = page.next;
            self.unreadable_lines += page.unreadable_lines;
        }
    }

    /// Sends everything but the status.
    async fn send_contents(&mut self, spool: &Spool, end: &End) -> Result<(), Error> {
        self.catch_up(spool).await?;
        match self.send_results(spool, end).await {
            Err(error) if self.run_is_gone(&error) => {
                self.start_over();
                self.send_journal(spool).await?;
                self.send_results(spool, end).await
            }
            outcome => outcome,
        }
    }

    async fn send_results(&mut self, spool: &Spool, end: &End) -> Result<(), Error> {
        let run = self.open(spool).await?;
        // Metrics, then tags, then files: the figures are there even if an upload takes all of the time.
        let mut batches = self.batcher.final_batches(&end.metrics, end.end_time_ms);
        let tags = end.tags.iter().map(|(tag, value)| Record::Tag { tag: tag.clone(), value: value.clone() });
        batches.extend(self.batcher.batches(tags));
        self.send(&run, &batches).await?;
        let root = match ArtifactStore::of(run.artifact_uri()) {
            ArtifactStore::Proxied(root) => root,
            // Only a note at the end: the files are in the results directory, and the run is complete without them.
            ArtifactStore::Elsewhere => return Ok(()),
            ArtifactStore::Astray => {
                self.note_refusal(&self.client.astray());
                return Ok(());
            }
        };
        for name in &end.artifacts {
            self.upload(&root, name, &spool.artifact_path(name)).await?;
        }
        // After all batches, as only these tell which values were cut.
        if !self.batcher.long_values().is_empty() {
            let path = spool.write_long_values(self.batcher.long_values())?;
            self.upload(&root, LONG_VALUES, &path).await?;
        }
        Ok(())
    }

    /// Uploads a file unless it was uploaded before. A refused file does not stop the others.
    async fn upload(&mut self, root: &str, name: &str, path: &Path) -> Result<(), Error> {
        if self.uploaded.contains(name) {
            return Ok(());
        }
        match self.client.put_artifact(root, name, path).await {
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => self.note_refusal(&error),
            Ok(()) => {}
        }
        // Also after a refusal: it would be refused again.
        self.uploaded.insert(name.to_owned());
        Ok(())
    }

    /// Ends the run, after deleting duplicates of it.
    async fn send_end(&mut self, spool: &Spool, end: &End) -> Result<(), Error> {
        let run = self.open(spool).await?;
        // A creation that timed out may have been executed after the search that missed it. No other process creates
        // runs with this key while the spool is locked.
        for other in self.client.find_runs(run.experiment_id(), &spool.beginning.key).await? {
            match (other.id() == run.id(), other.is_deleted()) {
                (true, true) => return Err(self.deleted(other)),
                (false, false) => self.client.delete_run(other.id()).await?,
                _ => {}
            }
        }
        self.client.end_run(run.id(), end.status, end.end_time_ms).await
    }

    /// Sends batches. A batch whose content is refused does not stop the others.
    async fn send(&mut self, run: &Run, batches: &[Batch]) -> Result<(), Error> {
        for batch in batches {
            match self.client.log_batch(run.id(), batch).await {
                Err(error) if error.refuses_content() => self.note_refusal(&error),
                outcome => outcome?,
            }
        }
        Ok(())
    }

    fn note_refusal(&mut self, error: &Error) {
        let refusal = error.to_string();
        // One server refuses many batches for one reason.
        if !self.refused.contains(&refusal) {
            tracing::warn!(error = %refusal, "MLflow refused a part of the run");
            self.refused.push(refusal);
        }
    }

    /// Returns whether the server no longer knows the run, such as after it lost its database.
    fn run_is_gone(&self, error: &Error) -> bool {
        self.run.is_some() && error.has_code("RESOURCE_DOES_NOT_EXIST")
    }

    fn start_over(&mut self) {
        self.run = None;
        self.beginning_sent = false;
        self.journal_position = 0;
        self.unreadable_lines = 0;
        self.uploaded.clear();
        self.refused.clear();
    }

    fn deleted(&self, run: Run) -> Error {
        Error::RunDeleted { server: self.client.server().to_owned(), id: self.client.hide(run.id()) }
    }

    /// Remarks on a run that was delivered.
    fn notes(&self, end: &End) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(run) = &self.run
            && ArtifactStore::of(run.artifact_uri()) == ArtifactStore::Elsewhere
            && !(end.artifacts.is_empty() && self.batcher.long_values().is_empty())
        {
            notes.push(format!(
                "artifacts were not uploaded, because this server keeps them at {} and not behind itself (mlflow server \
                 --serve-artifacts does); they are in the results directory",
                self.client.hide(run.artifact_uri())
            ));
        }
        for (param, value) in self.batcher.contradictions() {
            notes.push(format!("param {param} was set twice and keeps its first value, not `{value}`"));
        }
        if self.unreadable_lines > 0 {
            notes.push(format!("{} unreadable lines of the journal were left out", self.unreadable_lines));
        }
        notes
    }
}
