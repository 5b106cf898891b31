//! Telemetry from outside: real `promtool`, real Prometheus, HTTP as probes and scrapers speak it.

pub(crate) mod job_story;
mod metrics_page;
mod prometheus;
mod promtool;
mod server;
