//! Figures of a run for a comparison: those of its result, those that follow from them, and the order in which they are shown.

use flashjob_results::{Metrics, RunResult};

/// Importance of a figure, by which formats choose what they show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Shown where there is room for a few columns only.
    Headline,
    /// Shown in every table.
    Main,
    /// Shown where everything is.
    Detail,
}

/// Output tokens per second, by which runs are judged.
pub(super) const THROUGHPUT: &str = "output_tokens_per_second";

const PER_GPU: &str = "output_tokens_per_second_per_gpu";
const PER_WATT: &str = "output_tokens_per_second_per_watt";
const PER_CURRENCY_UNIT: &str = "output_tokens_per_currency_unit";
const COST: &str = "cost_per_million_output_tokens";

/// Figures in the order of a table, with their rank; others follow as details in the order of the result.
const ORDER: [(&str, Rank); 27] = [
    (THROUGHPUT, Rank::Headline),
    ("total_tokens_per_second", Rank::Headline),
    ("steady_output_tokens_per_second", Rank::Main),
    ("requests_per_second", Rank::Main),
    ("elapsed_time", Rank::Main),
    ("ttft_seconds_p50", Rank::Headline),
    ("ttft_seconds_p99", Rank::Main),
    ("tpot_seconds_p50", Rank::Headline),
    ("tpot_seconds_p99", Rank::Main),
    ("itl_seconds_p99", Rank::Main),
    ("e2e_seconds_p50", Rank::Main),
    ("e2e_seconds_p99", Rank::Headline),
    (PER_GPU, Rank::Main),
    (PER_WATT, Rank::Headline),
    (PER_CURRENCY_UNIT, Rank::Main),
    (COST, Rank::Headline),
    ("energy_joules", Rank::Main),
    ("energy_joules_per_output_token", Rank::Main),
    ("mean_power_watts", Rank::Main),
    ("accuracy", Rank::Headline),
    ("roofline_fraction", Rank::Main),
    ("roofline_serial_fraction", Rank::Main),
    ("mfu", Rank::Main),
    ("mbu", Rank::Main),
    ("prefix_cache_hit_rate", Rank::Main),
    ("preemptions", Rank::Main),
    ("failed_requests", Rank::Main),
];

/// Rank of the figure `key`.
pub(super) fn rank(key: &str) -> Rank {
    ORDER.iter().find(|(known, _)| *known == key).map_or(Rank::Detail, |(_, rank)| *rank)
}

/// Place of the figure `key` in a table; figures of equal places keep their order.
pub(super) fn place(key: &str) -> usize {
    ORDER.iter().position(|(known, _)| *known == key).unwrap_or(ORDER.len())
}

/// One figure of one run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RunFigure {
    pub(super) key: String,
    /// The mean over the regions, where there are several.
    pub(super) value: f64,
    /// One value for each region; empty where there was one region.
    pub(super) regions: Vec<f64>,
}

/// All figures of `result`.
pub(super) fn of(result: &RunResult) -> Vec<RunFigure> {
    let gpus = result.backend.as_ref().map_or(0, |backend| backend.gpus());
    // Ratios are made for each region, too: otherwise they would have no spread.
    let regions: Vec<Metrics> = result
        .repeats
        .iter()
        .flat_map(|repeats| &repeats.regions)
        .map(|region| with_ratios(&region.metrics, gpus))
        .collect();
    let values = |key: &str| -> Vec<f64> { regions.iter().filter_map(|metrics| metrics.get(key)).collect() };
    let all = with_ratios(&result.metrics, gpus);
    all.iter()
        .map(|(key, value)| {
            // A figure that only some regions have is no sample of all of them.
            let regions = Some(values(key)).filter(|values| values.len() == regions.len()).unwrap_or_default();
            // The mean that its interval and the test are about; the figure of the result is over all regions as one.
            let mean = regions.iter().sum::<f64>() / regions.len() as f64;
            let value = if regions.is_empty() { value } else { mean };
            RunFigure { key: key.to_owned(), value, regions }
        })
        .collect()
}

/// `metrics` and the throughput for each GPU, watt and currency unit, unless the result has them.
fn with_ratios(metrics: &Metrics, gpus: u64) -> Metrics {
    let throughput = metrics.output_tokens_per_second();
    let derived = [
        (PER_GPU, throughput.filter(|_| gpus > 0).map(|rate| rate / gpus as f64)),
        (PER_WATT, throughput.zip(metrics.mean_power_watts()).map(|(rate, watts)| rate / watts)),
        (PER_CURRENCY_UNIT, metrics.get(COST).map(|cost| 1e6 / cost)),
    ];
    let missing = derived.into_iter().filter(|(key, _)| metrics.get(key).is_none());
    // A power or a price of zero gives no ratio.
    let found = missing.filter_map(|(key, value)| Some((key.to_owned(), value.filter(|value| value.is_finite())?)));
    metrics.iter().map(|(key, value)| (key.to_owned(), value)).chain(found).collect()
}
