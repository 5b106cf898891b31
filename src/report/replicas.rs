//! The figures of a job that several replicas shared, from the files that each of them left.
//!
//! Two ways to count are both there, because neither is all of the truth. Over the whole job, from the first replica's first
//! request to the last one's last: the throughput of the job as its user sees it. And over the seconds in which all of them
//! measured: the throughput of the machines together, undisturbed by the order in which they started.

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use flashjob_results::{Bins, Distribution, RequestTiming, TokenClock};

use super::figures::{LatencyFigures, LatencyPercentiles, Throughput};
use crate::bench::Latencies;

/// Measurement of one replica.
#[derive(Clone, Debug)]
pub struct ReplicaResult {
    elapsed_seconds: f64,
    clock: TokenClock,
    inter_token_bins: Bins,
    requests: Vec<RequestTiming>,
}

impl ReplicaResult {
    /// The files that it is read from.
    pub const FILES: [&'static str; 2] = ["result.json", "requests.jsonl"];

    /// Reads the content of [`Self::FILES`].
    ///
    /// # Errors
    /// A sentence on the file that cannot be read.
    pub fn read(result: &[u8], requests: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct ResultFile {
            measurement: Measured,
        }
        #[derive(Deserialize)]
        struct Measured {
            elapsed_seconds: f64,
            token_clock: TokenClock,
            inter_token_bins: Bins,
        }
        let ResultFile { measurement } =
            serde_json::from_slice(result).map_err(|error| format!("its result.json cannot be read: {error}"))?;
        let lines = requests.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let requests = lines.map(serde_json::from_slice).collect::<Result<_, _>>();
        let requests = requests.map_err(|error| format!("its requests.jsonl cannot be read: {error}"))?;
        let Measured { elapsed_seconds, token_clock: clock, inter_token_bins } = measurement;
        Ok(Self { elapsed_seconds, clock, inter_token_bins, requests })
    }

    fn end_unix_seconds(&self) -> f64 {
        self.clock.started_unix_seconds + self.elapsed_seconds
    }

    fn output_tokens(&self) -> u64 {
        self.requests.iter().map(|request| u64::from(request.output_tokens)).sum()
    }

    fn output_tokens_per_second(&self) -> f64 {
        if self.elapsed_seconds > 0.0 { self.output_tokens() as f64 / self.elapsed_seconds } else { 0.0 }
    }
}

/// Figures of a whole job; the names of the fields are those of metrics in MLflow.
#[derive(Clone, Debug, Serialize)]
pub struct ReplicaFigures {
    /// The seven of a single run, over the whole job.
    #[serde(flatten)]
    throughput: Throughput,
    failed_requests: f64,
    replicas: f64,
    /// `None` where there is no second in which all replicas measured.
    #[serde(flatten)]
    common_window: Option<CommonWindow>,
    /// Latencies over all requests, without those between tokens.
    #[serde(flatten)]
    latencies: LatencyFigures,
    /// Times between tokens, known to 0.5 %: no file has each of them.
    #[serde(flatten)]
    inter_token: Option<LatencyPercentiles>,
    #[serde(flatten)]
    output_tokens_per_second: Option<Spread>,
    #[serde(flatten)]
    elapsed_seconds: Option<Spread>,
}

/// The seconds in which all replicas measured.
#[derive(Clone, Copy, Debug, Serialize)]
struct CommonWindow {
    common_window_seconds: f64,
    common_window_output_tokens_per_second: f64,
}

/// Distance of replicas from each other in one figure, serialised under keys that begin with `name`.
#[derive(Clone, Debug)]
struct Spread {
    name: &'static str,
    values: Distribution,
}

impl Spread {
    fn of(name: &'static str, values: Vec<f64>) -> Option<Self> {
        Distribution::of(values).map(|values| Self { name, values })
    }
}

impl Serialize for Spread {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Distribution { min, mean, max, standard_deviation, .. } = self.values;
        let mut map = serializer.serialize_map(Some(4))?;
        for (word, value) in [("min", min), ("mean", mean), ("max", max), ("standard_deviation", standard_deviation)] {
            map.serialize_entry(&format!("{}_{word}", self.name), &value)?;
        }
        map.end()
    }
}

impl ReplicaFigures {
    /// The figures of the job that `replicas` shared.
    pub fn new(replicas: &[ReplicaResult]) -> Self {
        let over = |figure: fn(&ReplicaResult) -> f64| replicas.iter().map(figure);
        let start = over(|replica| replica.clock.started_unix_seconds).fold(f64::INFINITY, f64::min);
        let end = over(ReplicaResult::end_unix_seconds).fold(f64::NEG_INFINITY, f64::max);
        let elapsed = (end - start).max(0.0);
        let requests: Vec<RequestTiming> =
            replicas.iter().flat_map(|replica| replica.requests.iter().cloned()).collect();
        let input: u64 = requests.iter().map(|request| u64::from(request.prompt_tokens)).sum();
        let output: u64 = replicas.iter().map(ReplicaResult::output_tokens).sum();
        let failed = requests.iter().filter(|request| request.failed()).count();
        let mut bins = Bins::default();
        replicas.iter().for_each(|replica| bins.merge(&replica.inter_token_bins));
        let rates = over(ReplicaResult::output_tokens_per_second).collect();
        Self {
            throughput: Throughput::over(elapsed, requests.len() - failed, input, output),
            failed_requests: failed as f64,
            replicas: replicas.len() as f64,
            common_window: common_window(replicas).map(|(seconds, tokens)| CommonWindow {
                common_window_seconds: seconds as f64,
                common_window_output_tokens_per_second: tokens as f64 / seconds as f64,
            }),
            latencies: LatencyFigures::of(&Latencies::of(&requests, Vec::new())),
            // Percentiles of replicas cannot be averaged; counts in bins add up.
            inter_token: bins.percentiles().map(|seconds| LatencyPercentiles::new("itl", seconds)),
            output_tokens_per_second: Spread::of("replica_output_tokens_per_second", rates),
            elapsed_seconds: Spread::of("replica_elapsed_seconds", over(|replica| replica.elapsed_seconds).collect()),
        }
    }
}

/// The whole seconds in which every replica measured, and the tokens of all of them in these; `None` where there are none.
fn common_window(replicas: &[ReplicaResult]) -> Option<(u64, u64)> {
    // The second in which a region begins is not whole, nor is that in which it ends.
    let from = replicas.iter().map(|replica| replica.clock.first_second() + 1).max()?;
    let to = replicas.iter().map(|replica| replica.end_unix_seconds() as u64).min()?;
    let tokens = replicas.iter().map(|replica| replica.clock.tokens_between(from, to)).sum();
    (to > from).then(|| (to - from, tokens))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::figures::named;
    use super::*;

    /// Tokens by second, of one request for each of `ends` (its seconds until the end; four tokens).
    fn replica(started: f64, elapsed: f64, by_second: &[u64], ends: &[f64]) -> ReplicaResult {
        let result = json!({"measurement": {
            "elapsed_seconds": elapsed,
            "token_clock": {"started_unix_seconds": started, "output_tokens_by_second": by_second},
            "inter_token_bins": {"sum_seconds": elapsed, "counts": {"-100": 1, "0": 3}},
        }});
        let requests: Vec<String> = ends
            .iter()
            .map(|end| {
                json!({"request": 0, "prompt_tokens": 3, "output_tokens": 4, "queue_seconds": 0.0,
                    "time_to_first_token_seconds": end / 4.0, "last_token_seconds": end, "end_to_end_seconds": end,
                    "preemptions": 0, "finish_reason": "length"})
                .to_string()
            })
            .collect();
        ReplicaResult::read(result.to_string().as_bytes(), requests.join("\n").as_bytes()).unwrap()
    }

    #[test]
    fn the_whole_job_and_the_common_window_are_both_counted() {
        // One from 100.5 to 104.5, one from 102.2 to 106.2: both measured in all of the second 103.
        let replicas =
            [replica(100.5, 4.0, &[1, 2, 3, 4, 2], &[1.0, 2.0, 4.0]), replica(102.2, 4.0, &[1, 1, 1, 0, 1], &[4.0])];
        let figures = named(&ReplicaFigures::new(&replicas));
        let figure = |name: &str| figures.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        let near = |name: &str, expected: f64| {
            assert!(figure(name).is_some_and(|value| (value - expected).abs() < 1e-9), "{name}: {:?}", figure(name));
        };
        near("elapsed_time", 5.7);
        near("total_output_tokens", 16.0);
        near("total_input_tokens", 12.0);
        near("output_tokens_per_second", 16.0 / 5.7);
        near("common_window_seconds", 1.0);
        near("common_window_output_tokens_per_second", 5.0);
        near("e2e_seconds_p50", 3.0);
        near("ttft_seconds_p50", 0.75);
        near("replica_output_tokens_per_second_min", 1.0);
        near("replica_output_tokens_per_second_max", 3.0);
        near("replica_output_tokens_per_second_standard_deviation", 1.0);
        // Of both: two of 1.01^-100 and six of 1, eight seconds in all.
        near("itl_seconds_mean", 1.0);
        assert!(figure("itl_seconds_p50").is_some_and(|value| (value - 1.0).abs() < 0.006), "{figures:?}");
    }

    #[test]
    fn replicas_that_never_met_have_no_common_window() {
        let replicas = [replica(100.0, 2.0, &[2, 2], &[2.0]), replica(102.5, 2.0, &[2, 2, 0], &[2.0])];
        assert_eq!(common_window(&replicas), None);
        assert!(!named(&ReplicaFigures::new(&replicas)).iter().any(|(name, _)| name.starts_with("common_window")));
    }

    #[test]
    fn files_of_others_are_refused_in_words() {
        for (result, requests, expected) in [
            ("{}", "", "its result.json cannot be read: missing field `measurement`"),
            ("{\"measurement\": null}", "", "its result.json cannot be read"),
            (
                "{\"measurement\": {\"elapsed_seconds\": 1, \"token_clock\": {\"started_unix_seconds\": 1, \
              \"output_tokens_by_second\": []}, \"inter_token_bins\": {\"sum_seconds\": 0, \"counts\": {}}}}",
                "{}\n",
                "its requests.jsonl cannot be read: missing field `request`",
            ),
        ] {
            let error = ReplicaResult::read(result.as_bytes(), requests.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
