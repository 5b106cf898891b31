//! The few lines that a person reads at the end of a run.

use std::fmt::Write;

use flashjob_config::escape_controls;

use super::figures::Figures;
use super::prefix_caching::PrefixCaching;
use super::result::JobResult;
use crate::bench::Measurement;

/// The result as text: what ran, the seven figures, latencies, phases, and where to find more. A
/// file's name or a server's words start no line of their own.
pub fn summary(result: &JobResult, results_dir: &str, run_url: Option<&str>) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<26} {}", escape_controls(value));
    };
    line("status", result.status.name());
    if let Some(error) = &result.error {
        line("error", error);
    }
    if result.skipped_inputs > 0 {
        line("skipped inputs", &result.skipped_inputs.to_string());
    }
    if let Some(failed) = result.measurement.as_ref().map(Measurement::failed_requests).filter(|&failed| failed > 0) {
        line("failed requests", &failed.to_string());
    }
    for disturbance in &result.disturbances {
        line("disturbed", disturbance);
    }
    for warning in &result.warnings {
        line("warning", warning);
    }
    let PrefixCaching { enabled, reason } = &result.prefix_caching;
    line("prefix caching", &format!("{}, {reason}", if *enabled { "on" } else { "off" }));
    if let Some(figures) = &result.figures {
        figure_lines(figures, result.measurement.as_ref(), &mut line);
    }
    // The job's own overhead stands beside what was measured.
    let phases: Vec<String> =
        result.phases.iter().map(|phase| format!("{} {:.2} s", phase.phase.name(), phase.seconds)).collect();
    if !phases.is_empty() {
        line("phases", &phases.join(", "));
    }
    line("results", results_dir);
    if let Some(url) = run_url {
        line("MLflow run", url);
    }
    text
}

/// The lines of the seven figures, latencies, the roofline and the prefix cache.
fn figure_lines(figures: &Figures, measurement: Option<&Measurement>, line: &mut impl FnMut(&str, &str)) {
    let throughput = &figures.throughput;
    line("requests per second", &format!("{:.2}", throughput.requests_per_second));
    line("input tokens per second", &format!("{:.2}", throughput.input_tokens_per_second));
    line("output tokens per second", &format!("{:.2}", throughput.output_tokens_per_second));
    if let Some(spread) = figures.spread {
        let (low, high) = (spread.output_tokens_per_second_low, spread.output_tokens_per_second_high);
        line("  of regions, 95 %", &format!("{low:.2} to {high:.2}, {:.0} regions", spread.regions));
    }
    line("total tokens per second", &format!("{:.2}", throughput.total_tokens_per_second));
    line("elapsed time", &format!("{:.2} s", throughput.elapsed_time));
    line("total input tokens", &format!("{:.0}", throughput.total_input_tokens));
    if let Some(steady) = figures.steady {
        line(
            "  in the steady window",
            &format!(
                "{:.2} over {:.2} s; ramp-up {:.2} s, tail {:.2} s",
                steady.steady_output_tokens_per_second,
                steady.steady_seconds,
                steady.ramp_up_seconds,
                steady.tail_seconds
            ),
        );
    }
    line("total output tokens", &format!("{:.0}", throughput.total_output_tokens));
    if let Some(accuracy) = figures.accuracy {
        line("correct answers", &format!("{:.2} %", accuracy * 100.0));
    }
    let latencies = &figures.latencies;
    for (label, latency) in [
        ("time to first token", latencies.ttft),
        ("time per output token", latencies.tpot),
        ("end to end", latencies.e2e),
    ] {
        if let Some(latency) = latency {
            let (p50, p99) = (latency.seconds.p50 * 1e3, latency.seconds.p99 * 1e3);
            line(label, &format!("p50 {p50:.1} ms, p99 {p99:.1} ms"));
        }
    }
    if let Some(bound) = figures.roofline.and_then(|roofline| roofline.bound) {
        let (fraction, share) = (bound.roofline_fraction, bound.roofline_compute_bound_share);
        line("roofline", &format!("{fraction:.2} of the machine's limit, {share:.2} of it bound by computing"));
        let serial = bound.roofline_serial_fraction;
        line("  serial limit", &format!("{serial:.2} of what operations take at the limits one after the other"));
    } else if let Some(reason) = measurement.and_then(|measurement| measurement.roofline.unknown_because) {
        line("roofline", &format!("unknown: {reason}"));
    }
    if let (Some(tokens), Some(rate)) = (figures.prefix_cache_hit_tokens, figures.prefix_cache_hit_rate) {
        // Beside the input tokens, which count these too.
        line("found in the prefix cache", &format!("{tokens:.0} input tokens, {:.1} %", rate * 100.0));
    }
}
