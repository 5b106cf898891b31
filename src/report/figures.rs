//! The named figures of a run, the same in `result.json`, MLflow and the termination message.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use flashjob_results::{Distribution, Percentiles, PhaseSeconds};

use crate::bench::{Latencies, Measurement, RooflineFigures};

/// Every figure of a run, in the order in which a person reads them. The names of the fields are keys of `result.json` and of
/// metrics in MLflow. Rates are over the measured region.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The blueprint's seven.
    #[serde(flatten)]
    pub throughput: Throughput,
    /// Latencies over requests and pairs of tokens.
    #[serde(flatten)]
    pub latencies: LatencyFigures,
    /// Requests that ended with an error.
    pub failed_requests: f64,
    /// Times that a running request lost its blocks.
    pub preemptions: f64,
    /// Forward passes.
    pub steps: f64,
    /// Operations and bytes beside the machine's limits; `None` where nothing was computed.
    #[serde(flatten)]
    pub roofline: Option<RooflineFigures>,
    /// Prompt tokens found in the prefix cache; `None` where none were looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_cache_hit_tokens: Option<f64>,
    /// The same as a share of all prompt tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_cache_hit_rate: Option<f64>,
    /// Energy of the GPUs; `None` where it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<f64>,
    /// Energy divided by output tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_joules_per_output_token: Option<f64>,
    /// Energy divided by elapsed time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_power_watts: Option<f64>,
    /// Seconds by phase, under keys such as `phase_load_seconds`.
    #[serde(flatten, serialize_with = "under_phase_keys")]
    pub phases: Vec<PhaseSeconds>,
    /// Price of the elapsed time for each million output tokens; `None` where no price is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_per_million_output_tokens: Option<f64>,
}

/// The seven figures of the blueprint, under its names.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Throughput {
    /// Answered requests per second.
    pub requests_per_second: f64,
    /// Prompt tokens per second.
    pub input_tokens_per_second: f64,
    /// Generated tokens per second.
    pub output_tokens_per_second: f64,
    /// Prompt and generated tokens per second.
    pub total_tokens_per_second: f64,
    /// Seconds of the measured region.
    pub elapsed_time: f64,
    /// Prompt tokens of finished requests.
    pub total_input_tokens: f64,
    /// Generated tokens of all requests.
    pub total_output_tokens: f64,
}

/// Mean and percentiles of each latency in seconds, under keys such as `ttft_seconds_p50`.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LatencyFigures {
    /// Time to first token.
    #[serde(flatten)]
    pub ttft: Option<LatencyPercentiles>,
    /// Time per output token.
    #[serde(flatten)]
    pub tpot: Option<LatencyPercentiles>,
    /// Inter-token latency.
    #[serde(flatten)]
    pub itl: Option<LatencyPercentiles>,
    /// End-to-end latency.
    #[serde(flatten)]
    pub e2e: Option<LatencyPercentiles>,
    /// Time in the queue.
    #[serde(flatten)]
    pub queue: Option<LatencyPercentiles>,
}

/// Percentiles of one latency, serialised under keys that begin with its name.
#[derive(Clone, Copy, Debug)]
pub struct LatencyPercentiles {
    name: &'static str,
    /// Values in seconds.
    pub seconds: Percentiles,
}

impl Figures {
    /// The figures of `measurement`, a run whose machine costs `price_per_hour`.
    pub fn new(measurement: &Measurement, phases: &[PhaseSeconds], price_per_hour: Option<f64>) -> Self {
        let elapsed = measurement.elapsed_seconds;
        let (input, output) = (measurement.total_input_tokens(), measurement.total_output_tokens());
        let output_tokens = output as f64;
        let (cache, energy) = (measurement.prefix_cache, measurement.energy_joules);
        Self {
            throughput: Throughput::over(elapsed, measurement.answered_requests(), input, output),
            latencies: LatencyFigures::of(&measurement.latencies),
            failed_requests: measurement.failed_requests() as f64,
            preemptions: measurement.preemptions as f64,
            steps: measurement.steps as f64,
            roofline: measurement.roofline.figures(elapsed),
            prefix_cache_hit_tokens: cache.map(|hits| hits.hit_tokens as f64),
            prefix_cache_hit_rate: cache
                .filter(|hits| hits.prompt_tokens > 0)
                .map(|hits| hits.hit_tokens as f64 / hits.prompt_tokens as f64),
            energy_joules: energy,
            energy_joules_per_output_token: energy.filter(|_| output > 0).map(|joules| joules / output_tokens),
            mean_power_watts: energy.filter(|_| elapsed > 0.0).map(|joules| joules / elapsed),
            phases: phases.to_vec(),
            cost_per_million_output_tokens: price_per_hour
                .filter(|_| output > 0)
                .map(|price| price / 3600.0 * elapsed / output_tokens * 1e6),
        }
    }
}

impl Throughput {
    /// Totals of a region of `elapsed_seconds`, and their rates; 0 where no time has passed.
    pub(super) fn over(elapsed_seconds: f64, answered: usize, input_tokens: u64, output_tokens: u64) -> Self {
        let (input, output) = (input_tokens as f64, output_tokens as f64);
        // A region in which nothing happened has no duration. JSON has no infinity, and 0 is what was done in it.
        let rate = |amount: f64| if elapsed_seconds > 0.0 { amount / elapsed_seconds } else { 0.0 };
        Self {
            requests_per_second: rate(answered as f64),
            input_tokens_per_second: rate(input),
            output_tokens_per_second: rate(output),
            total_tokens_per_second: rate(input + output),
            elapsed_time: elapsed_seconds,
            total_input_tokens: input,
            total_output_tokens: output,
        }
    }
}

impl LatencyFigures {
    /// The figures of those latencies that there are.
    pub(super) fn of(latencies: &Latencies) -> Self {
        let named = |name, distribution: Option<Distribution>| {
            distribution.map(|values| LatencyPercentiles::new(name, values.percentiles()))
        };
        Self {
            ttft: named("ttft", latencies.time_to_first_token_seconds),
            tpot: named("tpot", latencies.time_per_output_token_seconds),
            itl: named("itl", latencies.inter_token_latency_seconds),
            e2e: named("e2e", latencies.end_to_end_seconds),
            queue: named("queue", latencies.queue_seconds),
        }
    }
}

impl LatencyPercentiles {
    /// Percentiles of the latency that keys call `name`.
    pub(super) fn new(name: &'static str, seconds: Percentiles) -> Self {
        Self { name, seconds }
    }
}

impl Serialize for LatencyPercentiles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Percentiles { mean, p50, p90, p95, p99 } = self.seconds;
        let mut map = serializer.serialize_map(Some(5))?;
        for (percentile, value) in [("mean", mean), ("p50", p50), ("p90", p90), ("p95", p95), ("p99", p99)] {
            map.serialize_entry(&format!("{}_seconds_{percentile}", self.name), &value)?;
        }
        map.end()
    }
}

fn under_phase_keys<S: Serializer>(phases: &[PhaseSeconds], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(phases.len()))?;
    for PhaseSeconds { phase, seconds } in phases {
        map.serialize_entry(&format!("phase_{}_seconds", phase.name()), seconds)?;
    }
    map.end()
}

/// `figures` as the object that `result.json` has under `metrics`.
pub(super) fn to_object(figures: &impl Serialize) -> Map<String, Value> {
    // Structs of numbers under names that are texts: there is nothing that JSON cannot hold.
    match serde_json::to_value(figures) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

/// `figures` by name, as MLflow takes them; those that are no numbers (infinite, or not a number) are left out.
pub fn named(figures: &impl Serialize) -> Vec<(String, f64)> {
    let object = to_object(figures).into_iter();
    object.filter_map(|(name, value)| Some((name, value.as_f64()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Recorder;

    #[test]
    fn keys_are_those_that_dashboards_know_in_their_order() {
        let percentiles = Percentiles { mean: 1.0, p50: 2.0, p90: 3.0, p95: 4.0, p99: f64::NAN };
        let ttft = Some(LatencyPercentiles::new("ttft", percentiles));
        let mut figures = Figures::new(&Recorder::default().measurement(), &[], None);
        figures.latencies = LatencyFigures { ttft, ..LatencyFigures::default() };
        figures.phases = vec![PhaseSeconds { phase: flashjob_event::Phase::Load, seconds: 1.0 }];
        figures.cost_per_million_output_tokens = Some(1.0);
        let object = to_object(&figures);
        let keys: Vec<&str> = object.keys().map(String::as_str).collect();
        let expected = "requests_per_second input_tokens_per_second output_tokens_per_second total_tokens_per_second \
                        elapsed_time total_input_tokens total_output_tokens ttft_seconds_mean ttft_seconds_p50 \
                        ttft_seconds_p90 ttft_seconds_p95 ttft_seconds_p99 failed_requests preemptions steps \
                        phase_load_seconds cost_per_million_output_tokens";
        assert_eq!(keys, expected.split_whitespace().collect::<Vec<_>>());
        assert_eq!(object["ttft_seconds_p99"], Value::Null);
        assert_eq!(named(&figures).len(), keys.len() - 1, "MLflow takes numbers only");
    }
}
