//! Latencies of a run: distributions as a plot, percentiles as a table.

use flashjob_charts::{DistributionChart, Figure, Sample, Unit, escape};
use flashjob_results::RequestTiming;

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

/// Plot of all latencies that there are.
pub(crate) fn latency_plot(run: &Run) -> Option<Figure> {
    let of =
        |seconds: fn(&RequestTiming) -> Option<f64>| -> Vec<f64> { run.requests.iter().filter_map(seconds).collect() };
    // Times between tokens are kept in bins: a list of all is as long as the run.
    let bins: Vec<(f64, u64)> =
        run.result.measurement.iter().flat_map(|measurement| measurement.inter_token_bins.ends()).collect();
    let sample = |(prefix, _): (&str, &str)| {
        let (name, summary) = (prefix.to_uppercase(), percentiles(run, prefix));
        match prefix {
            "ttft" => Sample::of(name, of(|request| request.time_to_first_token_seconds), summary),
            "tpot" => Sample::of(name, of(RequestTiming::time_per_output_token_seconds), summary),
            "e2e" => Sample::of(name, of(RequestTiming::answered_seconds), summary),
            "queue" => Sample::of("queue", of(|request| request.queue_seconds), summary),
            _ => Sample::of_bins(name, &bins, summary),
        }
    };
    let samples = LATENCIES.map(sample).into_iter().filter(|sample| !sample.shares.is_empty()).collect();
    let description =
        "Share of all values up to each duration. A steep curve means that all requests, or all tokens, took about as \
                       long; a curve further to the left is faster."
            .to_owned();
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
