//! Records become `runs/log-batch` requests within MLflow's limits.
//!
//! Values that MLflow would cut silently are cut here visibly, and kept whole for an artifact. Knows nothing of HTTP.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::names::Names;
use super::record::{Finite, Record};

/// MLflow's limits for one request (`mlflow/utils/validation.py`, 3.17).
const MOST_METRICS: usize = 1000;
const MOST_PARAMS: usize = 100;
const MOST_TAGS: usize = 100;
const MOST_ENTITIES: usize = 1000;
/// Most bytes of text in a request: common proxies refuse bodies above 1 MB.
const MOST_TEXT_BYTES: usize = 500_000;
/// Lengths at which MLflow truncates values, in characters.
const LONGEST_PARAM_CHARS: usize = 6000;
const LONGEST_TAG_CHARS: usize = 8000;
/// Width of the database column for run names, in characters.
const LONGEST_RUN_NAME_CHARS: usize = 250;

/// Artifact for values that are too long for a param or tag.
pub(super) const LONG_VALUES: &str = "long_values.json";

/// Body of one request, without the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Batch {
    pub(super) metrics: Vec<Point>,
    pub(super) params: Vec<KeyValue>,
    pub(super) tags: Vec<KeyValue>,
    #[serde(skip)]
    text_bytes: usize,
}

/// A data point of a metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Point {
    pub(super) key: String,
    pub(super) value: f64,
    pub(super) timestamp: i64,
    pub(super) step: i64,
}

/// A param or a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyValue {
    pub(super) key: String,
    pub(super) value: String,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.metrics.is_empty() && self.params.is_empty() && self.tags.is_empty()
    }

    fn has_room_for(&self, other: &Batch) -> bool {
        let sum = |count: fn(&Batch) -> usize| count(self) + count(other);
        let repeats =
            |ours: &[KeyValue], theirs: &[KeyValue]| ours.iter().any(|a| theirs.iter().any(|b| a.key == b.key));
        sum(|batch| batch.metrics.len()) <= MOST_METRICS
            && sum(|batch| batch.params.len()) <= MOST_PARAMS
            && sum(|batch| batch.tags.len()) <= MOST_TAGS
            && sum(|batch| batch.metrics.len() + batch.params.len() + batch.tags.len()) <= MOST_ENTITIES
            && sum(|batch| batch.text_bytes) <= MOST_TEXT_BYTES
            // MLflow refuses a request that has a key twice.
            && !repeats(&self.params, &other.params)
            && !repeats(&self.tags, &other.tags)
    }

    fn append(&mut self, mut other: Batch) {
        self.metrics.append(&mut other.metrics);
        self.params.append(&mut other.params);
        self.tags.append(&mut other.tags);
        self.text_bytes += other.text_bytes;
    }
}

/// Turns the records of one run into batches. Deterministic: the same records in the same order always give the same
/// batches, so that a run can be sent again; records seen before may be given again.
#[derive(Debug, Default)]
pub(super) struct Batcher {
    metrics: Names,
    params: Names,
    tags: Names,
    settled: HashMap<String, String>,
    newest: HashMap<String, (u64, i64)>,
    long_values: BTreeMap<String, String>,
    contradictions: BTreeMap<String, String>,
}

impl Batcher {
    /// As few batches as the limits allow, in the order of `records`.
    pub(super) fn batches(&mut self, records: impl IntoIterator<Item = Record>) -> Vec<Batch> {
        let records: Vec<Record> = records.into_iter().collect();
        for record in &records {
            if let Record::Metric { metric, step, timestamp_ms, .. } = record {
                let newest = self.newest.entry(metric.clone()).or_insert((*step, *timestamp_ms));
                *newest = (*newest).max((*step, *timestamp_ms));
            }
        }
        self.pack(records)
    }

    /// Batches of final values, each with a later time than every live point of its name, so that MLflow shows it as
    /// the metric's value.
    pub(super) fn final_batches(&mut self, metrics: &[(String, Finite)], end_ms: i64) -> Vec<Batch> {
        let last_point = |(metric, value): &(String, Finite)| {
            // MLflow shows the point with the greatest (step, time): the last step must be repeated, not exceeded.
            let (step, timestamp_ms) = match self.newest.get(metric) {
                Some((step, newest_ms)) => (*step, end_ms.max(newest_ms + 1)),
                None => (0, end_ms),
            };
            Record::Metric { metric: metric.clone(), value: *value, step, timestamp_ms }
        };
        let points: Vec<Record> = metrics.iter().map(last_point).collect();
        self.pack(points)
    }

    fn pack(&mut self, records: Vec<Record>) -> Vec<Batch> {
        // First fit in order: MLflow must see the points of a metric in the order of their time.
        let mut batches = vec![Batch::default()];
        for record in records {
            let Some(one) = self.single(record) else { continue };
            match batches.last_mut() {
                Some(last) if last.has_room_for(&one) => last.append(one),
                // A record that exceeds the limits by itself gets a batch of its own, which the server judges.
                _ => batches.push(one),
            }
        }
        batches.retain(|batch| !batch.is_empty());
        batches
    }

    /// Truncated values in full, by `param NAME` or `tag NAME`.
    pub(super) fn long_values(&self) -> &BTreeMap<String, String> {
        &self.long_values
    }

    /// Params that were set twice to different values, with the value that was not sent.
    pub(super) fn contradictions(&self) -> &BTreeMap<String, String> {
        &self.contradictions
    }

    fn single(&mut self, record: Record) -> Option<Batch> {
        let mut batch = Batch::default();
        match record {
            Record::Metric { metric, value, step, timestamp_ms } => {
                let step = i64::try_from(step).unwrap_or(i64::MAX);
                let key = self.metrics.key(&metric);
                // The constants are the JSON around key and value, in bytes.
                batch.text_bytes = key.len() + 80;
                batch.metrics.push(Point { key, value: value.get(), timestamp: timestamp_ms, step });
            }
            Record::Param { param, value } => {
                // MLflow refuses a changed param, and the whole request with it.
                let settled = self.settled.entry(param.clone()).or_insert_with(|| value.clone());
                if *settled != value {
                    self.contradictions.insert(param, value);
                    return None;
                }
                let key = self.params.key(&param);
                let value = self.shown(format!("param {param}"), value, LONGEST_PARAM_CHARS);
                batch.text_bytes = key.len() + value.len() + 40;
                batch.params.push(KeyValue { key, value });
            }
            Record::Tag { tag, value } => {
                let key = self.tags.key(&tag);
                let value = self.shown(format!("tag {tag}"), value, LONGEST_TAG_CHARS);
                batch.text_bytes = key.len() + value.len() + 40;
                batch.tags.push(KeyValue { key, value });
            }
        }
        Some(batch)
    }

    fn shown(&mut self, name: String, value: String, limit_chars: usize) -> String {
        // Bytes bound characters, so most values need no count.
        if value.len() <= limit_chars {
            return value;
        }
        let chars = value.chars().count();
        if chars <= limit_chars {
            return value;
        }
        let marker = format!("… [{chars} characters, whole in the artifact {LONG_VALUES}]");
        let kept: String = value.chars().take(limit_chars - marker.chars().count()).collect();
        self.long_values.insert(name, value);
        kept + &marker
    }
}

/// The name of a run, truncated visibly to what the database can hold.
pub(super) fn run_name(name: &str) -> String {
    if name.chars().count() <= LONGEST_RUN_NAME_CHARS {
        return name.to_owned();
    }
    name.chars().take(LONGEST_RUN_NAME_CHARS - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn metric(name: &str, value: f64, step: u64, timestamp_ms: i64) -> Record {
        Record::Metric { metric: name.to_owned(), value: Finite::new(value).unwrap(), step, timestamp_ms }
    }

    fn param(name: &str, value: &str) -> Record {
        Record::Param { param: name.to_owned(), value: value.to_owned() }
    }

    fn tag(name: &str, value: &str) -> Record {
        Record::Tag { tag: name.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn a_final_value_is_newer_than_every_live_one() {
        let mut batcher = Batcher::default();
        batcher.batches([metric("m", 1.0, 5, 100), metric("m", 2.0, 4, 300), metric("m", 3.0, 5, 200)]);
        for (name, end_ms, last) in [("m", 150, (5, 201)), ("m", 400, (5, 400)), ("n", 400, (0, 400))] {
            // Asked again, it is the same point.
            for _ in 0..2 {
                let batches = batcher.final_batches(&[(name.to_owned(), Finite::new(9.0).unwrap())], end_ms);
                let [Batch { metrics, .. }] = &batches[..] else { panic!("{} batches", batches.len()) };
                assert_eq!((metrics[0].step, metrics[0].timestamp), last, "{name} {end_ms}");
            }
        }
    }

    #[test]
    fn a_param_keeps_its_first_value_and_says_so() {
        let mut batcher = Batcher::default();
        let batches = batcher.batches([param("a", "1"), param("a", "2"), param("b", "3"), param("a", "1")]);
        let sent: Vec<_> = batches.iter().flat_map(|batch| &batch.params).map(|p| (&*p.key, &*p.value)).collect();
        assert_eq!(sent, [("a", "1"), ("b", "3"), ("a", "1")]);
        assert_eq!(batcher.contradictions().iter().collect::<Vec<_>>(), [(&"a".to_owned(), &"2".to_owned())]);
    }

    #[test]
    fn what_is_too_long_is_cut_visibly_and_kept_whole() {
        let mut batcher = Batcher::default();
        let (fits, long) = ("ü".repeat(6000), "ü".repeat(8001));
        let batches = batcher.batches([param("fits", &fits), param("long", &long), tag("long", &long)]);
        let [batch] = &batches[..] else { panic!("{} batches", batches.len()) };
        assert_eq!(batch.params[0].value, fits);
        for (value, limit) in [(&batch.params[1].value, 6000), (&batch.tags[0].value, 8000)] {
            assert_eq!(value.chars().count(), limit);
            assert!(value.ends_with("ü… [8001 characters, whole in the artifact long_values.json]"), "{value}");
        }
        let whole: Vec<_> = batcher.long_values().iter().collect();
        assert_eq!(whole, [(&"param long".to_owned(), &long), (&"tag long".to_owned(), &long)]);
        assert_eq!(run_name(&"n".repeat(251)).chars().count(), 250);
    }

    fn record() -> impl Strategy<Value = Record> {
        let name = "[a-f]{1,2}";
        prop_oneof![
            8 => (name, any::<i32>(), 0..9u64, 0..9i64).prop_map(|(name, value, step, at)| metric(&name, value.into(), step, at)),
            2 => ("[a-z]{1,3}", "[ab]").prop_map(|(name, value)| param(&name, &value)),
            2 => ("[a-z]{1,2}", "[a-z]{0,3}").prop_map(|(name, value)| tag(&name, &value)),
            1 => ("[a-z]{3}", 1000..9000usize).prop_map(|(name, length)| tag(&name, &"x".repeat(length))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// The server as the model: what it holds after all batches is what the records say, in their order.
        #[test]
        fn batches_keep_the_limits_and_lose_nothing(records in proptest::collection::vec(record(), 0..2500)) {
            let mut batcher = Batcher::default();
            let batches = batcher.batches(records.clone());
            let (mut points, mut params, mut tags) = (Vec::new(), HashMap::new(), HashMap::new());
            for batch in &batches {
                let count = batch.metrics.len() + batch.params.len() + batch.tags.len();
                prop_assert!(batch.metrics.len() <= 1000 && batch.params.len() <= 100 && batch.tags.len() <= 100);
                prop_assert!((1..=1000).contains(&count));
                prop_assert!(serde_json::to_vec(batch).unwrap().len() <= 1_000_000);
                let mut keys: Vec<_> = batch.params.iter().map(|param| &param.key).collect();
                keys.sort();
                keys.dedup();
                prop_assert_eq!(keys.len(), batch.params.len());
                points.extend(batch.metrics.iter().map(|point| (point.key.clone(), point.value, point.step, point.timestamp)));
                for param in &batch.params {
                    let stored = params.entry(param.key.clone()).or_insert(param.value.clone());
                    prop_assert_eq!(stored, &param.value, "the server refuses a changed param");
                }
                tags.extend(batch.tags.iter().map(|tag| (tag.key.clone(), tag.value.clone())));
            }
            let (mut all_points, mut first_params, mut last_tags) = (Vec::new(), HashMap::new(), HashMap::new());
            for record in records.clone() {
                match record {
                    Record::Metric { metric, value, step, timestamp_ms } => {
                        all_points.push((metric, value.get(), step as i64, timestamp_ms));
                    }
                    Record::Param { param, value } => drop(first_params.entry(param).or_insert(value)),
                    Record::Tag { tag, value } => drop(last_tags.insert(tag, value)),
                }
            }
            prop_assert_eq!(points, all_points);
            prop_assert_eq!(params, first_params);
            prop_assert_eq!(tags.keys().collect::<std::collections::BTreeSet<_>>(), last_tags.keys().collect());
            for (key, value) in tags {
                prop_assert!(value.len() >= 8000 || value == last_tags[&key]);
            }
            prop_assert_eq!(batcher.batches(records), batches, "again gives the same");
        }
    }
}
