//! Runs that are on a server already, found by experiment, name or id, and their files.
//!
//! Nothing is written. Runs and bytes are bounded, since any server may answer.

use std::time::Duration;

use tokio::time::Instant;

use super::client::{ArtifactStore, Client, Run};
use super::{Error, RunStatus, retry};
use flashjob_config::Tracking;

/// Time for the first answer: a person waits for it, and an address may be wrong.
const FIRST_ANSWER: Duration = Duration::from_secs(20);

/// Reads runs of one tracking server within one time limit.
pub struct StoredRuns {
    client: Client,
    deadline: Instant,
}

/// One run that was found.
#[derive(Clone, Debug)]
pub struct StoredRun {
    /// Name of its experiment.
    pub experiment: String,
    run: Run,
}

impl StoredRun {
    /// ID that the server gave the run.
    pub fn id(&self) -> &str {
        self.run.id()
    }

    /// Name of the run, or its ID where it has none.
    pub fn name(&self) -> &str {
        self.run.name().unwrap_or(self.run.id())
    }
}

impl StoredRuns {
    /// Prepares to read from the server of `tracking`, for at most `limit` in all.
    ///
    /// # Errors
    /// Settings with which no connection can be attempted.
    pub fn open(tracking: &Tracking, limit: Duration) -> Result<Self, Error> {
        Ok(Self { client: Client::open(tracking)?, deadline: Instant::now() + limit })
    }

    /// Runs at `EXPERIMENT`, which are all that have finished, oldest first, or the one run at `EXPERIMENT/RUN`, by name or ID.
    ///
    /// # Errors
    /// An experiment or run that is not there, a name that several runs have, and errors of the server.
    pub async fn find(&self, path: &str, most: usize) -> Result<Vec<StoredRun>, Error> {
        // An experiment may have slashes in its name.
        if let Some(id) = self.experiment(path).await? {
            return self.finished(path, &id, most).await;
        }
        if let Some((experiment, name)) = path.rsplit_once('/')
            && let Some(id) = self.experiment(experiment).await?
        {
            return Ok(vec![self.one(experiment, &id, name).await?]);
        }
        Err(Error::NoExperiment { server: self.client.server().to_owned(), name: path.to_owned() })
    }

    /// Content of the artifact `name` of `run`, of at most `most` bytes; `None` where it has no such artifact.
    ///
    /// # Errors
    /// Errors of the server, and artifacts that are not behind it.
    pub async fn read(&self, run: &StoredRun, name: &str, most: usize) -> Result<Option<Vec<u8>>, Error> {
        if ArtifactStore::of(run.run.artifact_uri()) == ArtifactStore::Elsewhere {
            return Err(Error::ArtifactsElsewhere {
                server: self.client.server().to_owned(),
                id: run.id().to_owned(),
                place: self.client.hide(run.run.artifact_uri()),
            });
        }
        let read = retry::until(self.deadline, self.client.server(), async || {
            self.client.get_artifact(&run.run, name, most).await
        });
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.has_status(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn experiment(&self, name: &str) -> Result<Option<String>, Error> {
        let deadline = self.deadline.min(Instant::now() + FIRST_ANSWER);
        let found = retry::until(deadline, self.client.server(), async || self.client.find_experiment(name).await);
        Ok(found.await?.map(|experiment| experiment.experiment_id))
    }

    /// Runs that have finished, oldest first.
    async fn finished(&self, experiment: &str, id: &str, most: usize) -> Result<Vec<StoredRun>, Error> {
        // A server may ignore the filter: what comes of it is looked at again.
        let found = self.search(id, "attributes.status = 'FINISHED'").await?;
        let mut runs: Vec<Run> = found.into_iter().filter(|run| run.status() == Some(RunStatus::Finished)).collect();
        if runs.len() > most {
            return Err(Error::TooManyRuns {
                server: self.client.server().to_owned(),
                experiment: experiment.to_owned(),
                count: runs.len(),
                most,
            });
        }
        runs.sort_by(|a, b| (a.start_time_ms(), a.id()).cmp(&(b.start_time_ms(), b.id())));
        Ok(runs.into_iter().map(|run| StoredRun { experiment: experiment.to_owned(), run }).collect())
    }

    /// The run called `name`, or whose ID it is.
    async fn one(&self, experiment: &str, id: &str, name: &str) -> Result<StoredRun, Error> {
        let (server, experiment) = (self.client.server().to_owned(), experiment.to_owned());
        // Strings of MLflow's filters have no escapes.
        let quote = if name.contains('\'') { '"' } else { '\'' };
        let mut found = Vec::new();
        if !name.contains(quote) {
            found = self.search(id, &format!("attributes.run_name = {quote}{name}{quote}")).await?;
            found.retain(|run| run.name() == Some(name));
        }
        if found.is_empty() && !name.contains('\'') {
            found = self.search(id, &format!("attributes.run_id = '{name}'")).await?;
            found.retain(|run| run.id() == name);
        }
        let count = found.len();
        match found.pop() {
            None => Err(Error::NoRun { server, experiment, name: name.to_owned() }),
            Some(run) if count == 1 => Ok(StoredRun { experiment, run }),
            Some(_) => Err(Error::SeveralRuns { server, experiment, name: name.to_owned(), count }),
        }
    }

    /// Runs of the experiment that `filter` selects, without deleted ones.
    async fn search(&self, experiment_id: &str, filter: &str) -> Result<Vec<Run>, Error> {
        let found =
            retry::until(self.deadline, self.client.server(), async || self.client.search(experiment_id, filter).await);
        let mut runs = found.await?;
        runs.retain(|run| !run.is_deleted());
        Ok(runs)
    }
}
