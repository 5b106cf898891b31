//! Settings of metrics, logs and the termination message from their keys.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use flashjob_config::{MetricsLinger, Origin, TelemetryConfig};

use super::keys::Raw;
use super::parsing;
use super::resolver::Resolver;

/// Default port of metrics.
const METRICS_PORT: u16 = 8000;

/// Reads all keys of metrics and logs. `None`: an error was noted.
pub(super) fn resolve(resolver: &mut Resolver, raw: &Raw) -> Option<TelemetryConfig> {
    let parse_port = |text: &str| {
        let port = parsing::whole(text, 0, u64::from(u16::MAX))?;
        u16::try_from(port).map_err(|_| "it is too large".to_owned())
    };
    // The platform forwards exactly this port, so that it is the better default.
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
    let metrics_linger = resolver.read(
        &raw.metrics_linger_seconds,
        |text| match text {
            // Decided at the end, when it is known who has scraped.
            "auto" => Ok(MetricsLinger::Auto),
            _ => parsing::duration(text).map(MetricsLinger::For).map_err(|reason| format!("{reason}, or auto")),
        },
        |linger| match linger {
            MetricsLinger::Auto => "auto".to_owned(),
            MetricsLinger::For(duration) => parsing::shown_seconds(duration),
        },
    );
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
