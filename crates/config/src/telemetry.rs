//! Settings of metrics, logs and the termination message.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of metrics, logs and the termination message.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// Address of `/metrics`, `/healthz` and `/readyz`. Default `0.0.0.0:8000`.
    pub metrics_address: SocketAddr,
    /// Time for which metrics stay up at the end for a last scrape, after which it ends early.
    pub metrics_linger: MetricsLinger,
    /// Format of log lines.
    pub log_format: LogFormat,
    /// File for the result or error for Kubernetes, of at most 4 KiB; `None` writes none.
    pub termination_message: Option<PathBuf>,
}

/// `metrics-linger-seconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsLinger {
    /// As long as a scraper may take to come, where one is to be expected.
    Auto,
    /// This long, whether or not it is scraped.
    For(Duration),
}

/// Values of the key `log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text for people.
    Text,
    /// For collectors.
    Json,
}
