//! What a job says of those who watch it: the tracking server, metrics, logs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::Secret;

/// An MLflow tracking server and what to write there.
#[derive(Clone, Debug)]
pub struct Tracking {
    /// Base URL with scheme, without trailing slash and without user info.
    pub uri: url::Url,
    /// Experiment, made when missing. Default `flashjob`.
    pub experiment: String,
    /// Run name; `None` lets a name be made from model, device and time.
    pub run_name: Option<String>,
    /// How to log in.
    pub credentials: Credentials,
    /// `MLFLOW_TRACKING_INSECURE_TLS`.
    pub insecure_tls: bool,
    /// `MLFLOW_TRACKING_SERVER_CERT_PATH`.
    pub server_cert_path: Option<PathBuf>,
    /// `MLFLOW_WORKSPACE`: sent as `X-MLFLOW-WORKSPACE`.
    pub workspace: Option<String>,
}

/// How to log in at the tracking server. Basic beats token, as in MLflow's own client.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// None needed.
    Anonymous,
    /// `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD`.
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// `MLFLOW_TRACKING_TOKEN`.
    Bearer(Secret),
}

impl Credentials {
    /// Texts that give them away: what is sent, too, as a server may repeat it.
    pub fn secrets(&self) -> Vec<Secret> {
        match self {
            Self::Anonymous => Vec::new(),
            Self::Basic { username, password } => {
                let sent = STANDARD_NO_PAD.encode(format!("{username}:{}", password.reveal()));
                // The other alphabet is a spelling that nobody sends, and some show.
                let shown = sent.replace('+', "-").replace('/', "_");
                vec![password.clone(), Secret::new(sent), Secret::new(shown)]
            }
            Self::Bearer(token) => vec![token.clone()],
        }
    }
}

/// How the job is watched.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// Where `/metrics`, `/healthz` and `/readyz` listen. Default `0.0.0.0:8000`.
    pub metrics_address: SocketAddr,
    /// How long metrics stay up at the end for a last scrape; it ends early after one.
    pub metrics_linger: MetricsLinger,
    /// Log lines.
    pub log_format: LogFormat,
    /// Where the result or the error is left for Kubernetes, in at most 4 KiB; `None` writes none.
    pub termination_message: Option<PathBuf>,
}

/// `metrics-linger-seconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsLinger {
    /// As long as a scraper may take to come, where one is to be expected.
    Auto,
    /// So long, whoever watches.
    For(Duration),
}

/// `log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// For collectors.
    Json,
}
