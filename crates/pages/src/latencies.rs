//! Latencies of a run: distributions as a plot, percentiles as a table.

use flashjob_charts::{DistributionChart, Figure, Sample, Unit, escape};
use flashjob_results::{BinnedSample, LatencyBins, RequestTiming};

use crate::page::{table, value};
use crate::run::Run;

/// Latencies by the beginning of their keys, and as they are called in a table.
const LATENCIES: [(&str, &str); 5] = [
    ("ttft", "time to first token (TTFT)"),
    ("tpot", "time per output token (TPOT)"),
    ("itl", "inter-token latency (ITL)"),
    ("e2e", "end to end (E2E)"),
    ("queue", "time in the queue"),
];

const PERCENTILES: [&str; 5] = ["mean", "p50", "p90", "p95", "p99"];

/// Percentiles of the latency whose keys begin with `prefix`, as in the figures.
fn percentiles(run: &Run, prefix: &str) -> Vec<(&'static str, f64)> {
    let figure = |name: &'static str| Some((name, run.result.metrics.get(&format!("{prefix}_seconds_{name}"))?));
    PERCENTILES.into_iter().filter_map(figure).collect()
}

/// A latency of a request, and of the bins of a batch.
type OfRequests = (fn(&RequestTiming) -> Option<f64>, fn(&LatencyBins) -> &BinnedSample);

/// The latency whose keys begin with `prefix`; `None` for times between tokens.
fn of_requests(prefix: &str) -> Option<OfRequests> {
    Some(match prefix {
        "ttft" => (|request| request.time_to_first_token_seconds, |bins| &bins.time_to_first_token_seconds),
        "tpot" => (RequestTiming::time_per_output_token_seconds, |bins| &bins.time_per_output_token_seconds),
        "e2e" => (RequestTiming::answered_seconds, |bins| &bins.end_to_end_seconds),
        "queue" => (|request| request.queue_seconds, |bins| &bins.queue_seconds),
        _ => return None,
    })
}

/// Plot of all latencies that there are.
pub(crate) fn latency_plot(run: &Run) -> Option<Figure> {
    let measurement = run.result.measurement.as_ref();
    let binned = measurement.and_then(|measurement| measurement.latency_bins.as_ref());
    // Times between tokens are kept in bins: a list of all is as long as the run.
    let between_tokens: Vec<(f64, u64)> =
        measurement.iter().flat_map(|measurement| measurement.inter_token_bins.ends()).collect();
    let sample = |(prefix, _): (&str, &str)| {
        let (name, summary) =
            (if prefix == "queue" { "queue".to_owned() } else { prefix.to_uppercase() }, percentiles(run, prefix));
        let Some((seconds, bins)) = of_requests(prefix) else { return Sample::of_bins(name, &between_tokens, summary) };
        match binned {
            // Of a batch the list of requests is the beginning only.
            Some(binned) => Sample::of_bins(name, &bins(binned).bins().ends().collect::<Vec<_>>(), summary),
            None => Sample::of(name, run.requests.iter().filter_map(seconds).collect(), summary),
        }
    };
    let samples = LATENCIES.map(sample).into_iter().filter(|sample| !sample.shares.is_empty()).collect();
    let mut description =
        "Share of all values up to each duration. A steep curve means that all requests, or all tokens, took about as \
                       long; a curve further to the left is faster."
            .to_owned();
    if binned.is_some() {
        description += " Of a batch, values are known from their bins to 0.5 %.";
    }
    DistributionChart { id: "latencies", title: "Distribution of latencies", description, samples }.figure()
}

/// Table of all percentiles that the result has.
pub(crate) fn latency_table(run: &Run) -> String {
    let rows = LATENCIES.iter().filter_map(|(prefix, name)| {
        let found = percentiles(run, prefix);
        let cell = |wanted: &str| match found.iter().find(|(known, _)| *known == wanted) {
            Some((name, seconds)) => value(&format!("{prefix}_seconds_{name}"), Unit::Time, *seconds),
            None => "–".to_owned(),
        };
        (!found.is_empty()).then(|| [escape(name)].into_iter().chain(PERCENTILES.map(cell)).collect())
    });
    let head: Vec<&str> = ["latency"].into_iter().chain(PERCENTILES).collect();
    table(&head, rows)
}
