//! What a job says of those who watch it: the tracking server, metrics, logs.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Origin;
use super::Secret;
use super::keys::Raw;
use super::parsing;
use super::resolver::Resolver;

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

/// How the job is watched.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// Where `/metrics`, `/healthz` and `/readyz` listen. Default `0.0.0.0:8000`.
    pub metrics_address: SocketAddr,
    /// How long metrics stay up at the end for a last scrape; it ends early after one.
    pub metrics_linger: Duration,
    /// Log lines.
    pub log_format: LogFormat,
    /// Where the result or the error is left for Kubernetes, in at most 4 KiB; `None` writes none.
    pub termination_message: Option<PathBuf>,
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

/// The port where neither the user nor a blueprint gives one.
const METRICS_PORT: u16 = 8000;

/// Reads how the job is watched. `None`: an error was noted.
pub(super) fn resolve(resolver: &mut Resolver, raw: &Raw) -> Option<TelemetryConfig> {
    let parse_port = |text: &str| {
        let port = parsing::whole(text, 0, u64::from(u16::MAX))?;
        u16::try_from(port).map_err(|_| "it is too large".to_owned())
    };
    let blueprint_port = resolver.read_open(&raw.recipe_container_port, parse_port, u16::to_string);
    let port = match (&raw.metrics_port.given, blueprint_port) {
        (None, blueprint_port) => blueprint_port.map(|port| {
            let port = port.unwrap_or(METRICS_PORT);
            let origin = raw.recipe_container_port.given.as_ref().map(|given| given.origin.clone());
            resolver.note(&raw.metrics_port, port.to_string(), origin.unwrap_or(Origin::Default));
            port
        }),
        (Some(_), _) => resolver.read(&raw.metrics_port, parse_port, u16::to_string),
    };
    let address = resolver.read(
        &raw.metrics_address,
        |text| text.parse::<IpAddr>().map_err(|_| "it must be an IP address such as 0.0.0.0 or ::".to_owned()),
        IpAddr::to_string,
    );
    let metrics_linger = resolver.read(&raw.metrics_linger_seconds, parsing::duration, parsing::show_seconds);
    let log_format = resolver.choose(&raw.log_format);
    let termination_message = resolver.read(
        &raw.termination_message_path,
        |text| match text {
            "none" => Ok(None),
            _ => parsing::path(text).map(Some),
        },
        |path: &Option<PathBuf>| path.as_ref().map_or_else(|| "none".to_owned(), |path| path.display().to_string()),
    );
    Some(TelemetryConfig {
        metrics_address: SocketAddr::new(address?, port?),
        metrics_linger: metrics_linger?,
        log_format: log_format?,
        termination_message: termination_message?,
    })
}
