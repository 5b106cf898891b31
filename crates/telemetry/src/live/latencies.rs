//! Latencies so far, from the histograms that scrapers see.

use flashjob_charts::{DistributionChart, Figure, Sample};

use crate::Registry;

/// Plot of the latencies of the measured region; `None` before the first token.
pub(super) fn figure(registry: &Registry) -> Option<Figure> {
    let samples: Vec<Sample> = registry
        .measured_latencies()
        .into_iter()
        // A latency that nothing has had yet is no curve.
        .filter(|(_, bins)| bins.iter().any(|(_, count)| *count > 0))
        .map(|(name, bins)| {
            let summary = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];
            let summary = summary.into_iter().filter_map(|(name, share)| Some((name, percentile(&bins, share)?)));
            Sample::of_bins(name, &bins, summary.collect())
        })
        .collect();
    let description =
        "Share of all values up to each duration, in three bins a decade. The report has exact percentiles.".to_owned();
    DistributionChart { id: "latencies", title: "Distribution of latencies", description, samples }.figure()
}

/// Upper end of the bin in which the `share` of all values is reached.
fn percentile(bins: &[(f64, u64)], share: f64) -> Option<f64> {
    let total: u64 = bins.iter().map(|(_, count)| count).sum();
    let mut below = 0;
    let bin = bins.iter().find(|(_, count)| {
        below += count;
        below as f64 >= share * total as f64
    });
    bin.map(|(end, _)| *end).filter(|end| end.is_finite())
}
