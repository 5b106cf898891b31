//! The few lines that a person reads at the end of a run.

use std::fmt::Write;

use super::result::JobResult;
use crate::bench::Measurement;
use flashjob_config::escape_controls;

/// The result as text: what ran, the seven figures, latencies, phases, and where to find more. A
/// file's name or a server's words start no line of their own.
pub fn summary(result: &JobResult, results_dir: &str, run_url: Option<&str>) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<26} {}", escape_controls(value));
    };
    let figure = |name: &str| result.figures.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
    line("status", &format!("{:?}", result.status).to_lowercase());
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
    for (label, name, unit) in [
        ("requests per second", "requests_per_second", ""),
        ("input tokens per second", "input_tokens_per_second", ""),
        ("output tokens per second", "output_tokens_per_second", ""),
        ("total tokens per second", "total_tokens_per_second", ""),
        ("elapsed time", "elapsed_time", " s"),
        ("total input tokens", "total_input_tokens", ""),
        ("total output tokens", "total_output_tokens", ""),
    ] {
        if let Some(value) = figure(name) {
            let digits = if name.starts_with("total_") && !name.ends_with("second") { 0 } else { 2 };
            line(label, &format!("{value:.digits$}{unit}"));
        }
    }
    for (label, name) in [("time to first token", "ttft"), ("time per output token", "tpot"), ("end to end", "e2e")] {
        let percentile = |p: &str| figure(&format!("{name}_seconds_{p}")).map(|seconds| seconds * 1e3);
        if let (Some(p50), Some(p99)) = (percentile("p50"), percentile("p99")) {
            line(label, &format!("p50 {p50:.1} ms, p99 {p99:.1} ms"));
        }
    }
    if let (Some(fraction), Some(share)) = (figure("roofline_fraction"), figure("roofline_compute_bound_share")) {
        line("roofline", &format!("{fraction:.2} of the machine's limit, {share:.2} of it bound by computing"));
    } else if let Some(reason) =
        result.measurement.as_ref().and_then(|measurement| measurement.roofline.unknown_because)
    {
        line("roofline", &format!("unknown: {reason}"));
    }
    if let (Some(tokens), Some(rate)) = (figure("prefix_cache_hit_tokens"), figure("prefix_cache_hit_rate")) {
        // Beside the input tokens, which count these too.
        line("found in the prefix cache", &format!("{tokens:.0} input tokens, {:.1} %", rate * 100.0));
    }
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
