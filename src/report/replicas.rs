//! The figures of a job that several replicas shared, from the files that each of them left.
//!
//! Two ways to count are both there, because neither is all of the truth. Over the whole job, from the first replica's first
//! request to the last one's last: the throughput of the job as its user sees it. And over the seconds in which all of them
//! measured: the throughput of the machines together, undisturbed by the order in which they started.
//!
//! An attempt that goes on with a batch measures its own part, or nothing where all was answered. Answers of the whole batch are counted
//! beside that, those of attempts that were killed included.

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use flashjob_batch::AnswerCounts;
use flashjob_results::{Bins, Distribution, LatencyBins, RequestTiming, RequestTotals, TokenClock};

use super::figures::{LatencyFigures, LatencyPercentiles, Throughput};
use crate::bench::Latencies;

/// Result of one replica.
#[derive(Clone, Debug)]
pub struct ReplicaResult {
    /// `None` for an attempt that had nothing left to do.
    region: Option<MeasuredPart>,
    totals: RequestTotals,
    /// All of them, but for a batch.
    requests: Vec<RequestTiming>,
    /// Answers of a batch, those of earlier attempts included.
    batch: Option<AnswerCounts>,
}

/// The region that one replica measured.
#[derive(Clone, Debug, Deserialize)]
struct MeasuredPart {
    elapsed_seconds: f64,
    #[serde(rename = "token_clock")]
    clock: TokenClock,
    inter_token_bins: Bins,
    /// Latencies of a batch.
    #[serde(default)]
    latency_bins: Option<LatencyBins>,
    /// Missing where an older version wrote the file.
    totals: Option<RequestTotals>,
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
            #[serde(default)]
            measurement: Option<MeasuredPart>,
            #[serde(default)]
            batch: Option<AnswerCounts>,
        }
        let ResultFile { measurement: region, batch } =
            serde_json::from_slice(result).map_err(|error| format!("its result.json cannot be read: {error}"))?;
        if region.is_none() && batch.is_none() {
            return Err("its result.json has neither a measurement nor answers of a batch".to_owned());
        }
        let lines = requests.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let requests = lines.map(serde_json::from_slice).collect::<Result<Vec<RequestTiming>, _>>();
        let requests = requests.map_err(|error| format!("its requests.jsonl cannot be read: {error}"))?;
        let totals = region.as_ref().and_then(|region| region.totals).unwrap_or_else(|| requests.iter().collect());
        Ok(Self { region, totals, requests, batch })
    }

    fn output_tokens(&self) -> u64 {
        self.totals.output_tokens
    }

    /// Output tokens per second and seconds of the region.
    fn rate_and_seconds(&self) -> Option<(f64, f64)> {
        let seconds = self.region.as_ref()?.elapsed_seconds;
        Some((if seconds > 0.0 { self.output_tokens() as f64 / seconds } else { 0.0 }, seconds))
    }
}

impl MeasuredPart {
    fn end_unix_seconds(&self) -> f64 {
        self.clock.started_unix_seconds + self.elapsed_seconds
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
    /// Answers of a batch by all attempts.
    #[serde(flatten)]
    batch: Option<BatchFigures>,
}

/// Answers of a batch.
#[derive(Clone, Copy, Debug, Serialize)]
struct BatchFigures {
    batch_lines_answered: f64,
    batch_lines_completed: f64,
    batch_input_tokens: f64,
    batch_output_tokens: f64,
}

impl BatchFigures {
    /// The sum over `replicas`, where each of them has answered a part of a batch.
    fn of(replicas: &[ReplicaResult]) -> Option<Self> {
        let mut counts = AnswerCounts::default();
        for replica in replicas {
            counts += replica.batch?;
        }
        Some(Self {
            batch_lines_answered: counts.answers() as f64,
            batch_lines_completed: (counts.answers() - counts.errors()) as f64,
            batch_input_tokens: counts.input_tokens as f64,
            batch_output_tokens: counts.output_tokens as f64,
        })
    }
}

/// Latencies of all requests: exact, unless they are those of a batch.
fn latencies(replicas: &[ReplicaResult]) -> Latencies {
    // Replicas of one job are all a batch, or none is.
    let mut bins = LatencyBins::default();
    let binned = replicas.iter().filter_map(|replica| replica.region.as_ref()?.latency_bins.as_ref());
    if binned.map(|replica| bins.merge(replica)).count() > 0 {
        return Latencies::of_bins(&bins, None);
    }
    let requests: Vec<RequestTiming> = replicas.iter().flat_map(|replica| replica.requests.iter().cloned()).collect();
    Latencies::of(&requests, Vec::new())
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
        let regions = || replicas.iter().filter_map(|replica| replica.region.as_ref());
        let start = regions().map(|region| region.clock.started_unix_seconds).fold(f64::INFINITY, f64::min);
        let end = regions().map(MeasuredPart::end_unix_seconds).fold(f64::NEG_INFINITY, f64::max);
        let elapsed = (end - start).max(0.0);
        let totals: RequestTotals = replicas.iter().map(|replica| replica.totals).sum();
        let mut bins = Bins::default();
        regions().for_each(|region| bins.merge(&region.inter_token_bins));
        let (rates, seconds) = replicas.iter().filter_map(ReplicaResult::rate_and_seconds).unzip();
        Self {
            throughput: Throughput::over(
                elapsed,
                (totals.finished - totals.failed) as usize,
                totals.input_tokens,
                totals.output_tokens,
            ),
            failed_requests: totals.failed as f64,
            replicas: replicas.len() as f64,
            common_window: common_window(replicas).map(|(seconds, tokens)| CommonWindow {
                common_window_seconds: seconds as f64,
                common_window_output_tokens_per_second: tokens as f64 / seconds as f64,
            }),
            latencies: LatencyFigures::of(&latencies(replicas)),
            // Percentiles of replicas cannot be averaged; counts in bins add up.
            inter_token: bins.percentiles().map(|seconds| LatencyPercentiles::new("itl", seconds)),
            output_tokens_per_second: Spread::of("replica_output_tokens_per_second", rates),
            elapsed_seconds: Spread::of("replica_elapsed_seconds", seconds),
            batch: BatchFigures::of(replicas),
        }
    }
}

/// The whole seconds in which every replica measured, and the tokens of all of them in these; `None` where there are none.
fn common_window(replicas: &[ReplicaResult]) -> Option<(u64, u64)> {
    let regions: Vec<&MeasuredPart> = replicas.iter().map(|replica| replica.region.as_ref()).collect::<Option<_>>()?;
    // The second in which a region begins is not whole, nor is that in which it ends.
    let from = regions.iter().map(|region| region.clock.first_second() + 1).max()?;
    let to = regions.iter().map(|region| region.end_unix_seconds() as u64).min()?;
    let tokens = regions.iter().map(|region| region.clock.tokens_between(from, to)).sum();
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
    fn a_batch_is_counted_over_all_attempts_and_an_attempt_may_have_had_nothing_to_do() {
        let counts = json!({"completed": 7, "invalid": 1, "too_long": 0, "unsupported": 0, "failed": 0,
            "input_tokens": 30, "output_tokens": 50, "is_complete": true, "found": {"on_disk": 2, "in_bucket": 0}});
        let idle = json!({"measurement": null, "batch": counts}).to_string();
        let idle = ReplicaResult::read(idle.as_bytes(), b"").unwrap();
        let busy = ReplicaResult { batch: idle.batch, ..replica(100.5, 4.0, &[1, 2, 3, 4, 2], &[1.0]) };
        let figures = named(&ReplicaFigures::new(&[busy.clone(), idle]));
        let figure = |name: &str| figures.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        assert_eq!(
            ["batch_lines_answered", "batch_lines_completed", "batch_output_tokens"].map(figure),
            [16.0, 14.0, 100.0].map(Some)
        );
        assert_eq!((figure("elapsed_time"), figure("total_output_tokens")), (Some(4.0), Some(4.0)));
        assert_eq!(figure("common_window_seconds"), None, "it measured in none");
        let mixed = named(&ReplicaFigures::new(&[busy, replica(100.5, 4.0, &[4], &[1.0])]));
        assert!(!mixed.iter().any(|(name, _)| name.starts_with("batch_")));
    }

    #[test]
    fn files_of_others_are_refused_in_words() {
        for (result, requests, expected) in [
            ("", "", "its result.json cannot be read"),
            ("{}", "", "its result.json has neither a measurement nor answers of a batch"),
            ("{\"measurement\": null}", "", "its result.json has neither"),
            ("{\"measurement\": 1}", "", "its result.json cannot be read"),
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
