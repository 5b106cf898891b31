//! The named figures of a run, the same in `result.json`, MLflow and the termination message.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use flashjob_results::{ConfidenceInterval, Distribution, Percentiles, PhaseSeconds};

use crate::bench::{Accuracy, Latencies, MeasuredRegion, Measurement, RooflineFigures, SteadyWindow};

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
    /// Output tokens that the requests asked for, beside those that were generated.
    pub requested_output_tokens: f64,
    /// The part of the region in which the batch was full; `None` where there was none.
    #[serde(flatten)]
    pub steady: Option<SteadyFigures>,
    /// Spread over regions; `None` for a single one.
    #[serde(flatten)]
    pub spread: Option<SpreadFigures>,
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
    /// Output tokens for one unit of the currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens_per_currency_unit: Option<f64>,
    /// Output tokens per second divided by the number of GPUs; `None` without GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens_per_second_per_gpu: Option<f64>,
    /// Output tokens per second divided by the mean power of the GPUs: output tokens per joule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens_per_second_per_watt: Option<f64>,
    /// Share of correct answers; `None` where no line has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

/// Everything that figures are made of.
#[derive(Clone, Copy, Debug)]
pub struct Basis<'a> {
    /// All regions as one.
    pub measurement: &'a Measurement,
    /// Each region that ran to its end; none where the measurement is partial.
    pub regions: &'a [MeasuredRegion],
    /// Phases of the job.
    pub phases: &'a [PhaseSeconds],
    /// Price of all machines of the job an hour.
    pub price_per_hour: Option<f64>,
    /// GPUs that computed.
    pub gpus: usize,
    /// Correct answers.
    pub accuracy: Option<Accuracy>,
}

/// The window in which the batch was full, per region.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SteadyFigures {
    /// Output tokens per second within it.
    pub steady_output_tokens_per_second: f64,
    /// Length of the window.
    pub steady_seconds: f64,
    /// From the beginning of the region to that of the window.
    pub ramp_up_seconds: f64,
    /// From the end of the window to that of the region.
    pub tail_seconds: f64,
    /// Highest concurrency of the region, in sequences.
    pub peak_running_requests: f64,
}

/// Spread of the throughput over regions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SpreadFigures {
    /// Number of regions.
    pub regions: f64,
    /// Standard deviation of `output_tokens_per_second`.
    pub output_tokens_per_second_standard_deviation: f64,
    /// Lower end of the 95 % interval of its mean.
    pub output_tokens_per_second_low: f64,
    /// Upper end of the 95 % interval of its mean.
    pub output_tokens_per_second_high: f64,
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
    /// The figures of a run. Amounts are those of one region, the mean where there are several; rates and latencies are over all of
    /// them.
    pub fn new(basis: &Basis<'_>) -> Self {
        let &Basis { measurement, regions, phases, price_per_hour, gpus, accuracy } = basis;
        let count = regions.len().max(1) as f64;
        let (elapsed, output) = (measurement.elapsed_seconds, measurement.total_output_tokens() as f64);
        let throughput = Throughput::of(measurement, count);
        let (cache, energy) = (measurement.prefix_cache, measurement.energy_joules);
        let price = price_per_hour.filter(|_| output > 0.0).map(|price| price / 3600.0 * elapsed);
        Self {
            throughput,
            latencies: LatencyFigures::of(&measurement.latencies),
            requested_output_tokens: measurement.requested_output_tokens as f64 / count,
            steady: measurement.steady_window.map(|window| SteadyFigures::of(window, count)),
            spread: SpreadFigures::of(regions),
            failed_requests: measurement.failed_requests() as f64 / count,
            preemptions: measurement.preemptions as f64 / count,
            steps: measurement.steps as f64 / count,
            roofline: measurement.roofline.figures(elapsed),
            prefix_cache_hit_tokens: cache.map(|hits| hits.hit_tokens as f64 / count),
            prefix_cache_hit_rate: cache
                .filter(|hits| hits.prompt_tokens > 0)
                .map(|hits| hits.hit_tokens as f64 / hits.prompt_tokens as f64),
            energy_joules: energy.map(|joules| joules / count),
            energy_joules_per_output_token: energy.filter(|_| output > 0.0).map(|joules| joules / output),
            mean_power_watts: energy.filter(|_| elapsed > 0.0).map(|joules| joules / elapsed),
            phases: phases.to_vec(),
            cost_per_million_output_tokens: price.map(|price| price / output * 1e6),
            output_tokens_per_currency_unit: price.filter(|&price| price > 0.0).map(|price| output / price),
            output_tokens_per_second_per_gpu: (gpus > 0).then_some(throughput.output_tokens_per_second / gpus as f64),
            output_tokens_per_second_per_watt: energy.filter(|&joules| joules > 0.0).map(|joules| output / joules),
            accuracy: accuracy.map(|accuracy| accuracy.share()),
        }
    }
}

impl SteadyFigures {
    fn of(window: SteadyWindow, regions: f64) -> Self {
        Self {
            steady_output_tokens_per_second: window.output_tokens_per_second(),
            steady_seconds: window.seconds / regions,
            ramp_up_seconds: window.ramp_up_seconds / regions,
            tail_seconds: window.tail_seconds / regions,
            peak_running_requests: f64::from(window.peak_running),
        }
    }
}

impl SpreadFigures {
    fn of(regions: &[MeasuredRegion]) -> Option<Self> {
        let rates: Vec<f64> = regions.iter().map(|region| region.measurement.output_tokens_per_second()).collect();
        let interval = ConfidenceInterval::of(&rates)?;
        Some(Self {
            regions: regions.len() as f64,
            output_tokens_per_second_standard_deviation: interval.standard_deviation,
            output_tokens_per_second_low: interval.low,
            output_tokens_per_second_high: interval.high,
        })
    }
}

impl Throughput {
    /// The seven of `measurement`, which has so many regions.
    fn of(measurement: &Measurement, regions: f64) -> Self {
        let (input, output) = (measurement.total_input_tokens(), measurement.total_output_tokens());
        let over_all = Self::over(measurement.elapsed_seconds, measurement.answered_requests(), input, output);
        Self {
            elapsed_time: over_all.elapsed_time / regions,
            total_input_tokens: over_all.total_input_tokens / regions,
            total_output_tokens: over_all.total_output_tokens / regions,
            ..over_all
        }
    }

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
        let measurement = Recorder::default().measurement();
        let mut figures = Figures::new(&Basis {
            measurement: &measurement,
            regions: &[],
            phases: &[],
            price_per_hour: None,
            gpus: 0,
            accuracy: None,
        });
        figures.latencies = LatencyFigures { ttft, ..LatencyFigures::default() };
        figures.phases = vec![PhaseSeconds { phase: flashjob_event::Phase::Load, seconds: 1.0 }];
        figures.cost_per_million_output_tokens = Some(1.0);
        let object = to_object(&figures);
        let keys: Vec<&str> = object.keys().map(String::as_str).collect();
        let expected = "requests_per_second input_tokens_per_second output_tokens_per_second total_tokens_per_second \
                        elapsed_time total_input_tokens total_output_tokens ttft_seconds_mean ttft_seconds_p50 \
                        ttft_seconds_p90 ttft_seconds_p95 ttft_seconds_p99 requested_output_tokens failed_requests preemptions steps \
                        phase_load_seconds cost_per_million_output_tokens";
        assert_eq!(keys, expected.split_whitespace().collect::<Vec<_>>());
        assert_eq!(object["ttft_seconds_p99"], Value::Null);
        assert_eq!(named(&figures).len(), keys.len() - 1, "MLflow takes numbers only");
    }
}
