//! The MLflow server that records a run, and its credentials.

use std::path::PathBuf;

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
    /// Credentials for the server.
    pub credentials: Credentials,
    /// `MLFLOW_TRACKING_INSECURE_TLS`.
    pub insecure_tls: bool,
    /// `MLFLOW_TRACKING_SERVER_CERT_PATH`.
    pub server_cert_path: Option<PathBuf>,
    /// `MLFLOW_WORKSPACE`: sent as `X-MLFLOW-WORKSPACE`.
    pub workspace: Option<String>,
}

/// Credentials for the tracking server. Basic beats token, as in MLflow's own client.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// No credentials.
    Anonymous,
    /// `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD`.
    Basic {
        /// Name of the user.
        username: String,
        /// Password of the user.
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
                // No client sends the other alphabet, but some tools show it.
                let shown = sent.replace('+', "-").replace('/', "_");
                vec![password.clone(), Secret::new(sent), Secret::new(shown)]
            }
            Self::Bearer(token) => vec![token.clone()],
        }
    }
}
