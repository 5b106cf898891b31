//! The named figures of a run, the same in `result.json`, MLflow and the termination message.

use super::result::PhaseSeconds;
use crate::bench::{Latencies, Measurement};

/// Every figure of a run by name, in the order in which a person reads them.
///
/// The first seven are the blueprint's and keep its names. Rates are over the measured region.
pub fn figures(measurement: &Measurement, phases: &[PhaseSeconds], price_per_hour: Option<f64>) -> Vec<(String, f64)> {
    let elapsed = measurement.elapsed_seconds;
    let input = measurement.total_input_tokens() as f64;
    let output = measurement.total_output_tokens() as f64;
    let rate = |amount: f64| if elapsed > 0.0 { amount / elapsed } else { 0.0 };
    let mut figures: Vec<(String, f64)> = vec![
        ("requests_per_second".to_owned(), rate(measurement.answered_requests() as f64)),
        ("input_tokens_per_second".to_owned(), rate(input)),
        ("output_tokens_per_second".to_owned(), rate(output)),
        ("total_tokens_per_second".to_owned(), rate(input + output)),
        ("elapsed_time".to_owned(), elapsed),
        ("total_input_tokens".to_owned(), input),
        ("total_output_tokens".to_owned(), output),
    ];
    figures.extend(of_latencies(&measurement.latencies));
    figures.push(("failed_requests".to_owned(), measurement.failed_requests() as f64));
    figures.push(("preemptions".to_owned(), measurement.preemptions as f64));
    figures.push(("steps".to_owned(), measurement.steps as f64));
    let roofline = measurement.roofline.named(elapsed);
    figures.extend(roofline.into_iter().map(|(name, value)| (name.to_owned(), value)));
    if let Some(hits) = measurement.prefix_cache {
        figures.push(("prefix_cache_hit_tokens".to_owned(), hits.hit_tokens as f64));
        if hits.prompt_tokens > 0 {
            figures.push(("prefix_cache_hit_rate".to_owned(), hits.hit_tokens as f64 / hits.prompt_tokens as f64));
        }
    }
    if let Some(joules) = measurement.energy_joules {
        figures.push(("energy_joules".to_owned(), joules));
        if output > 0.0 {
            figures.push(("energy_joules_per_output_token".to_owned(), joules / output));
        }
        if elapsed > 0.0 {
            figures.push(("mean_power_watts".to_owned(), joules / elapsed));
        }
    }
    for phase in phases {
        figures.push((format!("phase_{}_seconds", phase.phase.name()), phase.seconds));
    }
    if let Some(price) = price_per_hour
        && output > 0.0
    {
        figures.push(("cost_per_million_output_tokens".to_owned(), price / 3600.0 * elapsed / output * 1e6));
    }
    figures
}

/// Mean and percentiles of each latency that there is, by name.
pub(super) fn of_latencies(latencies: &Latencies) -> Vec<(String, f64)> {
    let there = latencies.named().into_iter().filter_map(|(name, distribution)| Some((name, distribution?)));
    let named = there.flat_map(|(name, distribution)| {
        [
            ("mean", distribution.mean),
            ("p50", distribution.p50),
            ("p90", distribution.p90),
            ("p95", distribution.p95),
            ("p99", distribution.p99),
        ]
        .map(|(percentile, value)| (format!("{name}_seconds_{percentile}"), value))
    });
    named.collect()
}
