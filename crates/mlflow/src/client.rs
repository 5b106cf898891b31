//! MLflow's REST API, as far as a run needs it. One call is one attempt; callers retry.
//!
//! Endpoints and limits: MLflow's REST API documentation, and what MLflow 3.17.2 was seen to do. Bodies are never
//! compressed and no Origin is sent: the server answers 500 and 403 to those.

use std::path::Path;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use reqwest::{Certificate, Method, RequestBuilder, Response, redirect};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::io::ReaderStream;

use super::batch::{Batch, KeyValue};
use super::body;
use super::error::quote;
use super::group::REPLICA_TAG;
use super::{Error, Failure, RunKey, RunLink, RunStatus};
use flashjob_config::{Credentials, Redaction, Tracking};

/// Tag with the [`RunKey`].
pub(super) const KEY_TAG: &str = "flashjob.run_key";

/// Query of a link that opens the view with charts. MLflow 3.17 chooses the view by it, or by what the browser remembers, and shows
/// runs as evaluations of generative AI by default.
const VIEW: &str = "workflowType=machine_learning";

/// Tag of an experiment whose runs are those of models that are measured: versions that look at the kind of an experiment show
/// them with charts.
const EXPERIMENT_KIND: (&str, &str) = ("mlflow.experimentKind", "custom_model_development");

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of one request; generous, as a slow server still works.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout for an artifact, whose size is not known beforehand.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// Lowest rate of an upload in bytes per second; its timeout grows with its size.
const SLOWEST_UPLOAD_BYTES_PER_SECOND: u64 = 128 * 1024;

/// Most pages of one search, and most bytes of all of them: more runs than a job has attempts and replicas.
const MOST_PAGES: usize = 100;
const LONGEST_SEARCH_BYTES: usize = 64 << 20;

/// Longest ID and longest artifact address of a run, in bytes; MLflow's have 32 and some 100.
const LONGEST_ID_BYTES: usize = 256;
const LONGEST_ARTIFACT_URI_BYTES: usize = 4096;

/// All characters except the unreserved ones of RFC 3986.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A connection to one tracking server, cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    /// URL without a trailing slash.
    server: String,
    /// Host header, for advice.
    host: String,
    credentials: Credentials,
    /// Redaction of the credentials in texts that a server may repeat.
    secrets: Redaction,
}

/// An experiment that runs can be created in.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Experiment {
    pub(super) experiment_id: String,
    name: Option<String>,
    lifecycle_stage: String,
}

/// A run as the server describes it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Run {
    info: RunInfo,
    #[serde(default)]
    data: RunData,
}

#[derive(Clone, Debug, Deserialize)]
struct RunInfo {
    run_id: String,
    run_name: Option<String>,
    experiment_id: String,
    artifact_uri: String,
    lifecycle_stage: String,
    status: String,
    start_time: Option<i64>,
    end_time: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RunData {
    #[serde(default)]
    tags: Vec<KeyValue>,
    #[serde(default)]
    params: Vec<KeyValue>,
}

impl Run {
    pub(super) fn id(&self) -> &str {
        &self.info.run_id
    }

    pub(super) fn experiment_id(&self) -> &str {
        &self.info.experiment_id
    }

    pub(super) fn artifact_uri(&self) -> &str {
        &self.info.artifact_uri
    }

    pub(super) fn is_deleted(&self) -> bool {
        self.info.lifecycle_stage == "deleted"
    }

    pub(super) fn is_running(&self) -> bool {
        self.info.status == "RUNNING"
    }

    /// Final status, or `None` while the run is active.
    pub(super) fn status(&self) -> Option<RunStatus> {
        serde_json::from_value(json!(self.info.status)).ok()
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.info.run_name.as_deref().filter(|name| !name.is_empty())
    }

    pub(super) fn start_time_ms(&self) -> Option<i64> {
        self.info.start_time
    }

    pub(super) fn started_before(&self, at_ms: i64) -> bool {
        self.info.start_time.is_some_and(|start| start < at_ms)
    }

    pub(super) fn end_time_ms(&self) -> i64 {
        self.info.end_time.unwrap_or_default()
    }

    pub(super) fn tag(&self, key: &str) -> Option<&str> {
        self.data.tags.iter().find(|tag| tag.key == key).map(|tag| tag.value.as_str())
    }

    /// Params by name.
    pub(super) fn params(&self) -> impl Iterator<Item = (&str, &str)> {
        self.data.params.iter().map(|param| (param.key.as_str(), param.value.as_str()))
    }

    pub(super) fn key(&self) -> Option<&str> {
        self.tag(KEY_TAG)
    }

    /// Index of the replica in its job.
    pub(super) fn replica(&self) -> Option<usize> {
        self.tag(REPLICA_TAG)?.parse().ok()
    }
}

/// Artifact store of a run, as seen from this job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ArtifactStore {
    /// Behind the tracking server, at this path.
    Proxied(String),
    /// At a place that needs credentials or a disk that this job does not have.
    Elsewhere,
    /// At a path outside of the server's artifacts, to which credentials must not be sent.
    Astray,
}

impl ArtifactStore {
    /// Parses a run's `artifact_uri`. `mlflow-artifacts:/PATH` and `mlflow-artifacts:///PATH` name the tracking server
    /// itself; a form with a host could name another one, which must not receive these credentials.
    pub(super) fn of(artifact_uri: &str) -> Self {
        let path = artifact_uri.strip_prefix("mlflow-artifacts:").and_then(|rest| {
            // `//` with an empty host; behind a host there is no slash at once, and the URI names another server.
            let without_authority = rest.strip_prefix("//").unwrap_or(rest);
            without_authority.strip_prefix('/')
        });
        match path.map(|path| path.trim_end_matches('/')) {
            Some(path) if path.is_empty() || path.split('/').all(stays) => Self::Proxied(path.to_owned()),
            Some(_) => Self::Astray,
            None => Self::Elsewhere,
        }
    }
}

/// Returns whether a path component means the same to every reader: URL parsers remove `..` with the component before
/// it, also where dots or slashes are percent-encoded, and some servers decode repeatedly.
fn stays(component: &str) -> bool {
    let mut decoded = component.to_owned();
    // Decoded until nothing changes: `%252e` becomes `.` in two steps.
    while let Ok(further) = percent_decode_str(&decoded).decode_utf8()
        && further != decoded
    {
        decoded = further.into_owned();
    }
    // URL parsers remove tabs and line feeds before they look at the path.
    let bare: String = decoded.chars().filter(|character| !character.is_control()).collect();
    !bare.split(['/', '\\']).any(|part| matches!(part.trim(), "" | "." | ".."))
}

impl Client {
    /// Prepares a client for the server of `tracking`, without a request.
    pub fn open(tracking: &Tracking) -> Result<Self, Error> {
        let server = tracking.uri.as_str().trim_end_matches('/').to_owned();
        let wrong = |detail: String| Error::Settings { server: server.clone(), detail };
        let mut headers = HeaderMap::new();
        if let Some(workspace) = &tracking.workspace {
            let value = HeaderValue::from_str(workspace)
                .map_err(|_| wrong("MLFLOW_WORKSPACE holds a character that no header can carry".to_owned()))?;
            headers.insert("x-mlflow-workspace", value);
        }
        // Checked here, as reqwest would only fail with the first request.
        let carries = |secret: &str| HeaderValue::from_str(secret).is_ok();
        if let Credentials::Bearer(token) = &tracking.credentials
            && !carries(token.reveal())
        {
            return Err(wrong("MLFLOW_TRACKING_TOKEN holds a character that no header can carry".to_owned()));
        }
        let unusable = |why: String| match &tracking.server_cert_path {
            Some(path) => wrong(format!("MLFLOW_TRACKING_SERVER_CERT_PATH {}: {why}", path.display())),
            None => wrong(why),
        };
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("flashjob/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(CONNECT_TIMEOUT)
            // A followed redirect turns POST into GET, and the answer would be nonsense instead of advice.
            .redirect(redirect::Policy::none());
        if tracking.insecure_tls {
            builder = builder.danger_accept_invalid_certs(true);
        } else if let Some(path) = &tracking.server_cert_path {
            let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
            let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| unusable(causes(&error)))?;
            if certificates.is_empty() {
                return Err(unusable("it holds no PEM certificate".to_owned()));
            }
            // A custom certificate replaces the system's roots, as in MLflow's own client.
            builder = builder.tls_built_in_root_certs(false);
            for certificate in certificates {
                builder = builder.add_root_certificate(certificate);
            }
        }
        let http = builder.build().map_err(|error| unusable(causes(&error)))?;
        let host = match (tracking.uri.host_str().unwrap_or_default(), tracking.uri.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        let secrets = Redaction::new(&tracking.credentials.secrets());
        Ok(Self { http, server, host, credentials: tracking.credentials.clone(), secrets })
    }

    /// Base URL of the server.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// URL of a run for a browser.
    pub(super) fn link(&self, run: &Run) -> RunLink {
        let RunInfo { run_id, experiment_id, .. } = &run.info;
        RunLink {
            experiment_id: experiment_id.clone(),
            run_id: run_id.clone(),
            // Shown to people, unlike the IDs.
            run_url: self.hide(&format!("{}/#/experiments/{experiment_id}/runs/{run_id}?{VIEW}", self.server)),
        }
    }

    /// Looks up an experiment without creating it.
    pub(super) async fn find_experiment(&self, name: &str) -> Result<Option<Experiment>, Error> {
        #[derive(Deserialize)]
        struct FoundExperiment {
            experiment: Experiment,
        }
        let attempt = format!("look up the experiment `{name}`");
        let request = self.api(Method::GET, "experiments/get-by-name").query(&[("experiment_name", name)]);
        match self.call::<FoundExperiment>(&attempt, request).await {
            Ok(FoundExperiment { experiment }) if experiment.name.as_deref().is_some_and(|found| found != name) => {
                Err(self.failed(&attempt, Failure::NotMlflow("it has found an experiment of another name".to_owned())))
            }
            Ok(FoundExperiment { experiment }) if !is_id(&experiment.experiment_id) => {
                Err(self.failed(&attempt, no_id()))
            }
            Ok(FoundExperiment { experiment }) if experiment.lifecycle_stage == "deleted" => {
                Err(Error::ExperimentDeleted {
                    server: self.server.clone(),
                    name: name.to_owned(),
                    id: self.hide(&experiment.experiment_id),
                })
            }
            Ok(FoundExperiment { experiment }) => Ok(Some(experiment)),
            // MLflow answers a missing experiment with an error code, not with an empty result.
            Err(error) if error.has_code("RESOURCE_DOES_NOT_EXIST") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Finds or creates the experiment called `name`, also while other jobs create it.
    pub(super) async fn experiment(&self, name: &str) -> Result<Experiment, Error> {
        if let Some(found) = self.find_experiment(name).await? {
            return Ok(found);
        }
        let attempt = format!("create the experiment `{name}`");
        let (key, value) = EXPERIMENT_KIND;
        let tag = json!({ "key": key, "value": value });
        let request = self.api(Method::POST, "experiments/create").json(&json!({ "name": name, "tags": [tag] }));
        match self.call::<IgnoredAny>(&attempt, request).await {
            Ok(_) => {}
            // Another job was faster: its experiment is as good.
            Err(error) if error.has_code("RESOURCE_ALREADY_EXISTS") => {}
            Err(error) => return Err(error),
        }
        self.find_experiment(name).await?.ok_or_else(|| Error::Request {
            attempt,
            server: self.server.clone(),
            failure: Failure::NotMlflow("it says that the experiment exists and that it does not".to_owned()),
        })
    }

    /// All runs of the experiment with `key`, deleted ones included, in a stable order.
    pub(super) async fn find_runs(&self, experiment_id: &str, key: &RunKey) -> Result<Vec<Run>, Error> {
        self.find_tagged(experiment_id, KEY_TAG, key).await
    }

    /// All runs of the experiment whose `tag` is `value`, with deleted ones last. The server's filter is checked here,
    /// since the result is written to, and deleted where it exists twice.
    pub(super) async fn find_tagged(&self, experiment_id: &str, tag: &str, value: &RunKey) -> Result<Vec<Run>, Error> {
        let filter = format!("tags.`{tag}` = '{value}'");
        let found = self.search(experiment_id, &filter).await?;
        let count = found.len();
        // A proxy or an incompatible server may ignore the filter; runs of others must never be changed.
        let is_meant = |run: &Run| run.experiment_id() == experiment_id && run.tag(tag) == Some(value.as_str());
        let mut runs: Vec<Run> = found.into_iter().filter(is_meant).collect();
        let others = count - runs.len();
        if others > 0 {
            tracing::warn!(
                others,
                server = self.server,
                filter,
                "MLflow finds runs that it was not asked for; they are left alone"
            );
        }
        // Sorted, so that every process that looks makes the same choice.
        runs.sort_by(|a, b| (a.is_deleted(), a.id()).cmp(&(b.is_deleted(), b.id())));
        Ok(runs)
    }

    /// All runs that the server finds in the experiment with `filter`, deleted ones included.
    pub(super) async fn search(&self, experiment_id: &str, filter: &str) -> Result<Vec<Run>, Error> {
        #[derive(Deserialize)]
        struct FoundRuns {
            #[serde(default)]
            runs: Vec<Run>,
            next_page_token: Option<String>,
        }
        let attempt = format!("look for runs with {filter}");
        let mut runs = Vec::new();
        let mut page: Option<String> = None;
        let mut left_bytes = LONGEST_SEARCH_BYTES;
        // Bounded: a server that always gives a next page must not keep the job.
        for _ in 0..MOST_PAGES {
            let mut body = json!({
                "experiment_ids": [experiment_id],
                "filter": filter,
                "run_view_type": "ALL",
                "max_results": 1000,
            });
            if let Some(page) = &page {
                body["page_token"] = json!(page);
            }
            let request = self.api(Method::POST, "runs/search").json(&body);
            let (found, bytes): (FoundRuns, _) = self.call_within(&attempt, request, left_bytes).await?;
            // One limit for all pages: pages of the largest size each would fit one by one.
            left_bytes -= bytes;
            for run in found.runs {
                runs.push(self.checked(&attempt, run)?);
            }
            page = found.next_page_token.filter(|token| !token.is_empty());
            if page.is_none() {
                return Ok(runs);
            }
        }
        Err(self.failed(&attempt, Failure::NotMlflow(format!("its answer goes on after {MOST_PAGES} pages"))))
    }

    /// Creates a run. Not idempotent: search for `key` first.
    pub(super) async fn create_run(
        &self,
        experiment_id: &str,
        key: &RunKey,
        run_name: &str,
        start_time_ms: i64,
        tags: &[(&str, String)],
    ) -> Result<Run, Error> {
        #[derive(Deserialize)]
        struct Created {
            run: Run,
        }
        let own = [
            (KEY_TAG, key.to_string()),
            ("mlflow.source.name", "flashjob".to_owned()),
            ("mlflow.source.type", "JOB".to_owned()),
        ];
        let tags = own.iter().chain(tags).map(|(key, value)| json!({ "key": key, "value": value }));
        let mut body = json!({
            "experiment_id": experiment_id,
            // MLflow's default for the start time is 1970.
            "start_time": start_time_ms,
            "tags": tags.collect::<Vec<_>>(),
        });
        if !run_name.is_empty() {
            body["run_name"] = json!(run_name);
        }
        let request = self.api(Method::POST, "runs/create").json(&body);
        let attempt = format!("create the run `{run_name}`");
        let Created { run } = self.call(&attempt, request).await?;
        self.checked(&attempt, run)
    }

    /// Adds metrics, params and tags. Idempotent.
    pub(super) async fn log_batch(&self, run_id: &str, batch: &Batch) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            run_id: &'a str,
            #[serde(flatten)]
            batch: &'a Batch,
        }
        let request = self.api(Method::POST, "runs/log-batch").json(&Body { run_id, batch });
        self.call::<IgnoredAny>("add metrics, params and tags", request).await.map(drop)
    }

    /// Ends a run with `status`.
    pub(super) async fn end_run(&self, run_id: &str, status: RunStatus, end_time_ms: i64) -> Result<(), Error> {
        let body = json!({ "run_id": run_id, "status": status, "end_time": end_time_ms });
        let request = self.api(Method::POST, "runs/update").json(&body);
        self.call::<IgnoredAny>("end the run", request).await.map(drop)
    }

    /// Sets an ended run to running again.
    pub(super) async fn reopen_run(&self, run_id: &str) -> Result<(), Error> {
        let request = self.api(Method::POST, "runs/update").json(&json!({ "run_id": run_id, "status": "RUNNING" }));
        self.call::<IgnoredAny>("open the run again", request).await.map(drop)
    }

    /// Deletes a run; MLflow keeps it in its bin.
    pub(super) async fn delete_run(&self, run_id: &str) -> Result<(), Error> {
        let request = self.api(Method::POST, "runs/delete").json(&json!({ "run_id": run_id }));
        self.call::<IgnoredAny>("remove a run that was created twice", request).await.map(drop)
    }

    /// Uploads the file at `path` as the artifact `name` (with `/` between directories), replacing one of that name.
    /// `root` is the path in [`ArtifactStore::Proxied`].
    pub(super) async fn put_artifact(&self, root: &str, name: &str, path: &Path) -> Result<(), Error> {
        let unreadable = |source| Error::Spool { action: "read", path: path.to_owned(), source };
        let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
        let size_bytes = file.metadata().await.map_err(unreadable)?.len();
        let attempt = format!("upload the artifact `{name}`");
        let url = self.artifact_url(root, name).ok_or_else(|| self.failed(&attempt, Failure::Astray))?;
        let request = self
            .request(Method::PUT, &url)
            .header(CONTENT_LENGTH, size_bytes)
            // Proportional to the file, so that a slow but moving upload is not cut off.
            .timeout(REQUEST_TIMEOUT + Duration::from_secs(size_bytes / SLOWEST_UPLOAD_BYTES_PER_SECOND))
            .body(reqwest::Body::wrap_stream(ReaderStream::new(file)));
        self.send(&attempt, request).await.map(drop)
    }

    /// Content of the artifact `name`, of at most `limit` bytes.
    pub(super) async fn get_artifact(&self, run: &Run, name: &str, limit: usize) -> Result<Vec<u8>, Error> {
        let ArtifactStore::Proxied(root) = ArtifactStore::of(run.artifact_uri()) else {
            let kept = format!("artifacts are kept at {} and not behind the server", run.artifact_uri());
            return Err(self.unusable(&kept));
        };
        let attempt = format!("read the artifact `{name}` of the run {}", run.id());
        let url = self.artifact_url(&root, name).ok_or_else(|| self.failed(&attempt, Failure::Astray))?;
        let request = self.request(Method::GET, &url).timeout(READ_TIMEOUT);
        let response = self.send(&attempt, request).await?;
        body::whole(response, limit).await.map_err(|failure| self.failed(&attempt, failure))
    }

    /// URL of an artifact; `None` if its path leads out of the server's artifacts.
    fn artifact_url(&self, root: &str, name: &str) -> Option<String> {
        let parts = || root.split('/').filter(|_| !root.is_empty()).chain(name.split('/'));
        if !parts().all(stays) {
            return None;
        }
        let encoded: Vec<String> = parts().map(|part| utf8_percent_encode(part, PATH_SEGMENT).to_string()).collect();
        Some(format!("{}/api/2.0/mlflow-artifacts/artifacts/{}", self.server, encoded.join("/")))
    }

    /// `text` with credentials redacted that a server may repeat.
    pub(super) fn hide(&self, text: &str) -> String {
        self.secrets.apply(text).into_owned()
    }

    /// The error that the runs of a job cannot be aggregated.
    pub(super) fn unusable(&self, detail: &str) -> Error {
        Error::Aggregate { server: self.server.clone(), detail: self.hide(detail) }
    }

    /// The error that the artifact path leads out of the server's artifacts.
    pub(super) fn astray(&self) -> Error {
        self.failed("upload artifacts", Failure::Astray)
    }

    /// The error that the server contradicts itself.
    pub(super) fn contradiction(&self, attempt: &str) -> Error {
        self.failed(attempt, Failure::NotMlflow("it has not got what it just took".to_owned()))
    }

    fn api(&self, method: Method, endpoint: &str) -> RequestBuilder {
        self.request(method, &format!("{}/api/2.0/mlflow/{endpoint}", self.server)).timeout(REQUEST_TIMEOUT)
    }

    fn request(&self, method: Method, url: &str) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.credentials {
            Credentials::Anonymous => request,
            Credentials::Basic { username, password } => request.basic_auth(username, Some(password.reveal())),
            Credentials::Bearer(token) => request.bearer_auth(token.reveal()),
        }
    }

    async fn call<T: DeserializeOwned>(&self, attempt: &str, request: RequestBuilder) -> Result<T, Error> {
        Ok(self.call_within(attempt, request, body::LONGEST_ANSWER_BYTES).await?.0)
    }

    /// The parsed answer and its length; at most `limit` bytes.
    async fn call_within<T: DeserializeOwned>(
        &self,
        attempt: &str,
        request: RequestBuilder,
        limit: usize,
    ) -> Result<(T, usize), Error> {
        let response = self.send(attempt, request).await?;
        let body = body::whole(response, limit.min(body::LONGEST_ANSWER_BYTES)).await;
        let body = body.map_err(|failure| self.failed(attempt, failure))?;
        let answer = serde_json::from_slice(&body).map_err(|error| {
            // The parser's message quotes the answer, which may contain credentials.
            let why = quote(&self.hide(&error.to_string()));
            self.failed(attempt, Failure::NotMlflow(format!("its answer is not what MLflow's API gives ({why})")))
        })?;
        Ok((answer, body.len()))
    }

    /// `run`, unless its IDs cannot be shown or be part of a URL.
    fn checked(&self, attempt: &str, run: Run) -> Result<Run, Error> {
        let RunInfo { run_id, experiment_id, artifact_uri, .. } = &run.info;
        match is_id(run_id) && is_id(experiment_id) && artifact_uri.len() <= LONGEST_ARTIFACT_URI_BYTES {
            true => Ok(run),
            false => Err(self.failed(attempt, no_id())),
        }
    }

    async fn send(&self, attempt: &str, request: RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(|error| self.failed(attempt, broken(&error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let headers = response.headers().clone();
        // Error bodies may be large pages of a proxy; their beginning says enough.
        let body = body::beginning(response).await;
        let signed_in = !matches!(self.credentials, Credentials::Anonymous);
        let body = String::from_utf8_lossy(&body);
        let failure = Failure::from_answer(status, &headers, &body, &self.host, signed_in, &self.secrets);
        Err(self.failed(attempt, failure))
    }

    fn failed(&self, attempt: &str, failure: Failure) -> Error {
        Error::Request { attempt: self.hide(attempt), server: self.server.clone(), failure }
    }
}

/// Returns whether `text` can be shown and be part of a URL.
fn is_id(text: &str) -> bool {
    text.len() <= LONGEST_ID_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn no_id() -> Failure {
    Failure::NotMlflow("its answer holds an id or an address that is too long, or no id at all".to_owned())
}

/// Failure of a request without a complete answer. The URL is left out: the error around it names the server.
pub(super) fn broken(error: &reqwest::Error) -> Failure {
    if error.is_timeout() {
        return Failure::TimedOut;
    }
    let mut causes = causes(error);
    if causes.contains("certificate") {
        causes.push_str("; MLFLOW_TRACKING_SERVER_CERT_PATH names a PEM file with the certificates to trust");
    }
    Failure::Unreachable(causes)
}

/// The innermost causes; the outer ones only repeat that a request failed.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let chain: Vec<String> =
        std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
    match chain.as_slice() {
        [.., outer, inner] if !outer.contains(inner.as_str()) && chain.len() > 2 => format!("{outer}: {inner}"),
        [.., inner] => inner.clone(),
        [] => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tracking_servers_own_artifact_store_is_written_to() {
        let proxied = |path: &str| ArtifactStore::Proxied(path.to_owned());
        for (uri, store) in [
            ("mlflow-artifacts:/3/abc/artifacts", proxied("3/abc/artifacts")),
            ("mlflow-artifacts:///3/abc/artifacts/", proxied("3/abc/artifacts")),
            ("mlflow-artifacts://elsewhere:5000/3/abc/artifacts", ArtifactStore::Elsewhere),
            ("s3://bucket/3/abc", ArtifactStore::Elsewhere),
            ("/mlruns/3/abc", ArtifactStore::Elsewhere),
            ("", ArtifactStore::Elsewhere),
            ("mlflow-artifacts:/", proxied("")),
            ("mlflow-artifacts:/a b/%41", proxied("a b/%41")),
            ("mlflow-artifacts:/..", ArtifactStore::Astray),
            ("mlflow-artifacts:/3/../../../../admin", ArtifactStore::Astray),
            ("mlflow-artifacts:/3/./x", ArtifactStore::Astray),
            ("mlflow-artifacts:////elsewhere/x", ArtifactStore::Astray),
            ("mlflow-artifacts:/3//x", ArtifactStore::Astray),
            ("mlflow-artifacts:/3/%2e%2E/x", ArtifactStore::Astray),
            ("mlflow-artifacts:/3/%252e%252e/x", ArtifactStore::Astray),
            ("mlflow-artifacts:/3/..%2f..%2fx", ArtifactStore::Astray),
            ("mlflow-artifacts:/3/..\\..\\x", ArtifactStore::Astray),
            ("mlflow-artifacts:/3/.\t./x", ArtifactStore::Astray),
            ("mlflow-artifacts:/3/.. /x", ArtifactStore::Astray),
        ] {
            assert_eq!(ArtifactStore::of(uri), store, "{uri}");
        }
    }
}
