//! Time for which metrics stay up at the end of a job, for the scrape that sees the final values.

use std::ffi::OsString;
use std::time::Duration;

use flashjob_config::MetricsLinger;

/// Time in which a scrape is to be expected: Prometheus comes every 15 or 30 seconds, and may be a little late.
const A_SCRAPERS_INTERVAL: Duration = Duration::from_secs(35);

/// Variables that orchestrators set in containers: Kubernetes, Nomad, and Amazon ECS.
const ORCHESTRATORS: [&str; 4] =
    ["KUBERNETES_SERVICE_HOST", "NOMAD_ALLOC_ID", "ECS_CONTAINER_METADATA_URI_V4", "ECS_CONTAINER_METADATA_URI"];

/// Signs of people and scrapers that watch a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watchers {
    /// A person waits for the end.
    pub at_a_terminal: bool,
    /// A scraper has come while the job worked.
    pub was_scraped: bool,
    /// Something else than a person started the container.
    pub orchestrated: bool,
}

/// Time to stay up, and the reason for it.
pub(super) fn decide(asked: MetricsLinger, watchers: Watchers) -> (Duration, &'static str) {
    let Watchers { at_a_terminal, was_scraped, orchestrated } = watchers;
    match asked {
        MetricsLinger::For(duration) => (duration, "metrics-linger-seconds says so"),
        // A person is never kept waiting. Elsewhere a scraper that came before will come again, and one may be configured
        // that has not.
        MetricsLinger::Auto if at_a_terminal => (Duration::ZERO, "standard error is a terminal"),
        MetricsLinger::Auto if was_scraped => (A_SCRAPERS_INTERVAL, "a scraper has come before"),
        MetricsLinger::Auto if orchestrated => (A_SCRAPERS_INTERVAL, "the job runs in a container orchestrator"),
        MetricsLinger::Auto => (Duration::ZERO, "no scrape has come, and no container orchestrator runs the job"),
    }
}

/// Tells that `variable` reads an orchestrator's variable that is not empty.
pub(super) fn is_orchestrated(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    ORCHESTRATORS.iter().any(|name| variable(name).is_some_and(|value| !value.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_waits_where_a_scraper_is_to_be_expected() {
        let seconds = |asked, [at_a_terminal, was_scraped, orchestrated]: [bool; 3]| {
            decide(asked, Watchers { at_a_terminal, was_scraped, orchestrated }).0.as_secs()
        };
        for (watchers, expected) in [
            ([false, false, false], 0),
            ([false, false, true], 35),
            ([false, true, false], 35),
            ([false, true, true], 35),
            ([true, false, false], 0),
            ([true, false, true], 0),
            ([true, true, true], 0),
        ] {
            assert_eq!(seconds(MetricsLinger::Auto, watchers), expected, "{watchers:?}");
            assert_eq!(seconds(MetricsLinger::For(Duration::from_secs(7)), watchers), 7);
        }
    }

    #[test]
    fn orchestrators_are_known_by_their_variables() {
        let set = |name: &'static str, value: &'static str| move |asked: &str| (asked == name).then(|| value.into());
        assert!(is_orchestrated(set("KUBERNETES_SERVICE_HOST", "10.0.0.1")));
        assert!(!is_orchestrated(set("KUBERNETES_SERVICE_HOST", "")));
        assert!(!is_orchestrated(set("HOSTNAME", "a")));
    }
}
