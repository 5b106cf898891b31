//! Errors of recording, and whether a retry can help.
//!
//! MLflow answers with JSON `{error_code, message}`; what stands before it (authentication, proxies, its own
//! host check) answers in HTML or plain text. Both become one sentence here, with what to do next.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use serde::Deserialize;

use super::run::RunKey;
use flashjob_config::{Redaction, redact};
use flashjob_retry::retry_after;

/// Statuses that MLflow's own client retries (`mlflow/utils/request_utils.py`, 3.17).
const TRANSIENT: [u16; 6] = [408, 429, 500, 502, 503, 504];

/// Transient errors of MLflow's database, which it reports with status 400. Two requests wrote the same row at a time,
/// such as a request whose answer was not awaited and its repetition (SQLite and MySQL, then PostgreSQL, as SQLAlchemy
/// names their errors; true contradictions have another code), or all connections were in use.
const PASSING: [&str; 3] = ["IntegrityError", "UniqueViolation", "QueuePool limit"];

/// Longest part of a server's answer that a message repeats, in characters.
const LONGEST_QUOTE_CHARS: usize = 300;

/// Reasons why a run could not be recorded. None contains a password or a token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spool could not be read or written.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Spool {
        /// Attempted action, as a verb.
        action: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file of the spool does not hold what it should.
    #[error("{path} is not a run that this flashjob can send: {detail}", path = path.display())]
    BadSpool {
        /// Path of the file.
        path: PathBuf,
        /// Fault of its content.
        detail: String,
    },
    /// There is nothing to publish.
    #[error("{path} holds no run recorded for MLflow (there is no `mlflow` folder with one in it)", path = path.display())]
    NothingSpooled {
        /// The directory that was looked into.
        path: PathBuf,
    },
    /// The connection cannot even be attempted with these settings.
    #[error("cannot prepare a connection to MLflow at {server}: {detail}")]
    Settings {
        /// The tracking server.
        server: String,
        /// The setting and its fault.
        detail: String,
    },
    /// A request failed.
    #[error("cannot {attempt} at MLflow {server}: {failure}")]
    Request {
        /// Purpose of the request.
        attempt: String,
        /// The tracking server.
        server: String,
        /// Cause of the failure.
        failure: Failure,
    },
    /// The experiment is in MLflow's bin, where its name stays taken.
    #[error(
        "MLflow {server} holds a deleted experiment called `{name}` (id {id}): restore it with `mlflow experiments \
         restore --experiment-id {id}`, or choose another experiment-name"
    )]
    ExperimentDeleted {
        /// The tracking server.
        server: String,
        /// Name of the experiment.
        name: String,
        /// ID of the experiment.
        id: String,
    },
    /// Someone deleted the run before all of it was sent.
    #[error(
        "the run was deleted at MLflow {server} before all of it had arrived: restore it with `mlflow runs restore \
         --run-id {id}` and publish again"
    )]
    RunDeleted {
        /// The tracking server.
        server: String,
        /// The ID of the run.
        id: String,
    },
    /// The run above this one is not there yet.
    #[error("MLflow {server} does not have the run `{key}` yet, which this one is shown under; it has to arrive first")]
    NoParent {
        /// The tracking server.
        server: String,
        /// Key of the run above.
        key: RunKey,
    },
    /// The runs of one job are there, but cannot be counted together.
    #[error("the replicas' runs at MLflow {server} cannot be counted together: {detail}")]
    Aggregate {
        /// The tracking server.
        server: String,
        /// Reason, as a clause.
        detail: String,
    },
    /// An experiment whose runs were asked for is not there.
    #[error("MLflow {server} has no experiment `{name}`; name one that it has, or EXPERIMENT/RUN")]
    NoExperiment {
        /// The tracking server.
        server: String,
        /// Name that was asked for.
        name: String,
    },
    /// A run that was asked for is not there.
    #[error(
        "the experiment `{experiment}` of MLflow {server} has no run `{name}`; give the name or the id of one that it has"
    )]
    NoRun {
        /// The tracking server.
        server: String,
        /// Name of the experiment.
        experiment: String,
        /// Name or ID that was asked for.
        name: String,
    },
    /// A name that does not tell runs apart.
    #[error(
        "the experiment `{experiment}` of MLflow {server} has {count} runs called `{name}`; give the id of one of them"
    )]
    SeveralRuns {
        /// The tracking server.
        server: String,
        /// Name of the experiment.
        experiment: String,
        /// Name that was asked for.
        name: String,
        /// Number of runs.
        count: usize,
    },
    /// More runs than were asked for at most.
    #[error(
        "the experiment `{experiment}` of MLflow {server} has {count} finished runs, more than {most}; name runs as EXPERIMENT/RUN"
    )]
    TooManyRuns {
        /// The tracking server.
        server: String,
        /// Name of the experiment.
        experiment: String,
        /// Number of runs.
        count: usize,
        /// Runs that are read at most.
        most: usize,
    },
    /// Files of a run that the server does not hand out.
    #[error(
        "the artifacts of the run {id} are kept at {place} and not behind MLflow {server}; fetch its result.json and name that file"
    )]
    ArtifactsElsewhere {
        /// The tracking server.
        server: String,
        /// ID that the server gave the run.
        id: String,
        /// Address of the artifacts.
        place: String,
    },
    /// Time ran out while the server had not answered.
    #[error("MLflow {server} did not take it within {seconds:.0} s")]
    OutOfTime {
        /// The tracking server.
        server: String,
        /// The time limit, in seconds.
        seconds: f64,
    },
}

impl Error {
    /// Returns whether the same attempt may succeed later without any change.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Request { failure, .. } => failure.is_transient(),
            Error::OutOfTime { .. } | Error::NoParent { .. } => true,
            _ => false,
        }
    }

    /// Wait that the server asked for.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Request { failure: Failure::Answer { retry_after, .. }, .. } => *retry_after,
            _ => None,
        }
    }

    /// Returns whether the server refused the content rather than this client.
    pub(super) fn refuses_content(&self) -> bool {
        !self.is_transient()
            && matches!(self, Error::Request { failure: Failure::Answer { status: 400 | 409 | 413 | 422, .. }, .. })
    }

    /// Returns whether the server answered with this HTTP status.
    pub(super) fn has_status(&self, wanted: u16) -> bool {
        matches!(self, Error::Request { failure: Failure::Answer { status, .. }, .. } if *status == wanted)
    }

    /// Returns whether the server answered with this MLflow error code.
    pub(super) fn has_code(&self, wanted: &str) -> bool {
        matches!(self, Error::Request { failure: Failure::Answer { code: Some(code), .. }, .. } if code == wanted)
    }
}

/// Causes of a failed request.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// No connection, or it broke.
    Unreachable(String),
    /// No answer within the timeout.
    TimedOut,
    /// An answer that is not success.
    Answer {
        /// The HTTP status.
        status: u16,
        /// MLflow's `error_code`, where the answer is MLflow's.
        code: Option<String>,
        /// Message of the answer, with advice.
        message: String,
        /// Wait that the server asks for.
        retry_after: Option<Duration>,
    },
    /// A success status with content that MLflow's API does not produce.
    NotMlflow(String),
    /// Not sent: the server's artifact path leads out of its artifacts.
    Astray,
}

impl Failure {
    /// The failure that an answer other than 2xx stands for. `host` is the Host header that was sent; `secrets` are
    /// redacted.
    pub(super) fn from_answer(
        status: StatusCode,
        headers: &HeaderMap,
        body: &str,
        host: &str,
        signed_in: bool,
        secrets: &Redaction,
    ) -> Self {
        #[derive(Deserialize)]
        struct ErrorBody {
            error_code: Option<String>,
            message: Option<String>,
        }
        // Redacted before it is truncated: half a secret would not be recognised.
        let (code, said) = match serde_json::from_str::<ErrorBody>(body) {
            Ok(ErrorBody { error_code, message }) if error_code.is_some() || message.is_some() => {
                (error_code.map(|code| quote(&secrets.apply(&code))), message.unwrap_or_default())
            }
            _ => (None, visible_text(body)),
        };
        let said = quote(&secrets.apply(&said));
        // A redirect usually means that the address lacks https or a path prefix: its target is the advice.
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.map(|location| redact(&secrets.apply(location)));
        let advice = advice(status, code.as_deref(), &said, location.as_deref(), host, signed_in);
        let message = [said, advice].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
        Failure::Answer { status: status.as_u16(), code, message, retry_after: wait(headers) }
    }

    fn is_transient(&self) -> bool {
        match self {
            Failure::Unreachable(_) | Failure::TimedOut => true,
            // MLflow answers FEATURE_DISABLED with 500, which retries do not change.
            Failure::Answer { code: Some(code), .. } if code == "FEATURE_DISABLED" => false,
            Failure::Answer { status, message, .. } => {
                // By message, since these errors share status and code with permanent ones.
                TRANSIENT.contains(status) || PASSING.iter().any(|trouble| message.contains(trouble))
            }
            Failure::NotMlflow(_) | Failure::Astray => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unreachable(detail) => write!(f, "it cannot be reached ({detail})"),
            Failure::TimedOut => f.write_str("it did not answer in time"),
            Failure::Answer { status, code, message, .. } => {
                write!(f, "it answered {status}")?;
                if let Some(code) = code {
                    write!(f, " {code}")?;
                }
                if message.is_empty() { Ok(()) } else { write!(f, ": {message}") }
            }
            Failure::NotMlflow(detail) => write!(f, "{detail}: is mlflow-uri the address of an MLflow server?"),
            Failure::Astray => f.write_str(
                "the path that it gives for the run's artifacts leads to other places of its host, to which neither files nor \
                 login are sent; is mlflow-uri the address of an MLflow server?",
            ),
        }
    }
}

/// Advice to the user; empty where the answer needs none.
fn advice(
    status: StatusCode,
    code: Option<&str>,
    said: &str,
    location: Option<&str>,
    host: &str,
    signed_in: bool,
) -> String {
    match status.as_u16() {
        301 | 302 | 303 | 307 | 308 => match location {
            Some(location) => {
                format!("it redirects to {}, so use that server's address as mlflow-uri", quote(location))
            }
            None => "it redirects to nowhere".to_owned(),
        },
        401 if signed_in => "the MLflow user name, password or token is not accepted".to_owned(),
        401 => "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN".to_owned(),
        403 if code.is_none() && said.contains("Host header") => {
            format!("start the MLflow server with `--allowed-hosts '{host},localhost:*,127.0.0.1:*'`")
        }
        403 => "the server, or a proxy before it, does not allow this".to_owned(),
        404 | 405 if code.is_none() => "is mlflow-uri the address of an MLflow server?".to_owned(),
        413 => "a proxy before MLflow limits the size of requests".to_owned(),
        _ => String::new(),
    }
}

/// Wait in the header `Retry-After`.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, SystemTime::now())
}

/// Text of an HTML page without its markup; other text unchanged.
fn visible_text(body: &str) -> String {
    if !body.trim_start().starts_with('<') {
        return body.to_owned();
    }
    let mut text = String::new();
    let mut rest = body;
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        text.push(' ');
        let name = tag.trim_start().to_ascii_lowercase();
        // The contents of style and script elements are no text.
        let end = match ["style", "script"].into_iter().find(|skipped| name.starts_with(skipped)) {
            Some(skipped) => tag.find(&format!("</{skipped}")).map(|at| at + skipped.len() + 2),
            None => Some(0),
        };
        rest = end.and_then(|end| tag[end..].split_once('>')).map_or("", |(_, after)| after);
    }
    text.push_str(rest);
    text
}

/// One line of limited length.
pub(super) fn quote(text: &str) -> String {
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = words.char_indices().nth(LONGEST_QUOTE_CHARS) {
        words.truncate(end);
        words.push('…');
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Failure {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        Failure::from_answer(
            StatusCode::from_u16(status).unwrap(),
            &headers,
            body,
            "mlflow:5000",
            false,
            &Redaction::new(&[]),
        )
    }

    #[test]
    fn answers_become_one_sentence_with_what_to_do() {
        let long = "x".repeat(5000);
        for (status, headers, body, sentence) in [
            (
                400,
                &[][..],
                r#"{"error_code": "INVALID_PARAMETER_VALUE", "message": "no\nname"}"#,
                "it answered 400 INVALID_PARAMETER_VALUE: no name",
            ),
            (
                502,
                &[],
                "<html><head><title>502 Bad Gateway</title><style>a{b:c}</style></head><body>nginx</body>",
                "it answered 502: 502 Bad Gateway nginx",
            ),
            (
                403,
                &[],
                "Invalid Host header - possible DNS rebinding attack detected",
                "it answered 403: Invalid Host header - possible DNS rebinding attack detected; start the MLflow server with \
              `--allowed-hosts 'mlflow:5000,localhost:*,127.0.0.1:*'`",
            ),
            (
                403,
                &[],
                "Permission denied",
                "it answered 403: Permission denied; the server, or a proxy before it, does not allow this",
            ),
            (
                401,
                &[],
                "",
                "it answered 401: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
            ),
            (
                301,
                &[("location", "https://mlflow.example/")],
                "",
                "it answered 301: it redirects to https://mlflow.example/, so use that server's address as mlflow-uri",
            ),
            (
                404,
                &[],
                "<!doctype html><script>if (a < b) {}</script><h1>Not Found</h1>",
                "it answered 404: Not Found; is mlflow-uri the address of an MLflow server?",
            ),
            (500, &[], "{}", "it answered 500: {}"),
            (500, &[], "<unclosed", "it answered 500"),
            (500, &[], "[1, 2", "it answered 500: [1, 2"),
            (503, &[], "", "it answered 503"),
        ] {
            assert_eq!(answer(status, headers, body).to_string(), sentence, "{body}");
        }
        assert!(answer(500, &[], &long).to_string().chars().count() < 400);
    }

    #[test]
    fn only_what_can_pass_by_itself_is_tried_again() {
        for (status, body, transient) in [
            (408, "", true),
            (429, "", true),
            (500, r#"{"error_code": "INTERNAL_ERROR", "message": ""}"#, true),
            (500, r#"{"error_code": "FEATURE_DISABLED", "message": ""}"#, false),
            (501, "", false),
            (502, "<html>", true),
            (503, r#"{"error_code": "TEMPORARILY_UNAVAILABLE"}"#, true),
            (504, "", true),
            (400, "", false),
            (401, "", false),
            (403, "", false),
            (404, "", false),
        ] {
            assert_eq!(answer(status, &[], body).is_transient(), transient, "{status} {body}");
        }
        assert!(Failure::TimedOut.is_transient() && Failure::Unreachable(String::new()).is_transient());
        assert!(!Failure::NotMlflow(String::new()).is_transient());
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_date() {
        let wait = |value: &str| match answer(429, &[("retry-after", value)], "") {
            Failure::Answer { retry_after, .. } => retry_after,
            other => panic!("{other}"),
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("-1"), None);
        assert_eq!(wait("Mon, 01 Jan 2001 00:00:00 GMT"), Some(Duration::ZERO));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!((90..=100).contains(&wait(&date).unwrap().as_secs()));
    }
}
