//! Whatever goes wrong, in whatever mixture: the right bytes, or an error.

use std::cell::Cell;
use std::ops::Range;
use std::time::Duration;

use flashjob_bucket::RetryPolicy;
use flashjob_event::Events;
use futures_util::future::join_all;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Served, impatient, noise, open_with, shown};

const LENGTH: u64 = 400_000;

fn fault() -> impl Strategy<Value = Value> {
    let bytes = || prop_oneof![Just(0), 0..LENGTH];
    let kind = prop_oneof![
        prop::sample::select(vec![408, 429, 500, 503]).prop_map(|status| json!({"kind": "status", "status": status})),
        Just(json!({"kind": "status", "status": 429, "retry_after": "0"})),
        Just(json!({"kind": "status", "status": 401})),
        bytes().prop_map(|bytes| json!({"kind": "reset", "after_bytes": bytes})),
        bytes().prop_map(|bytes| json!({"kind": "short_body", "after_bytes": bytes})),
        bytes().prop_map(|bytes| json!({"kind": "stall", "after_bytes": bytes})),
        Just(json!({"kind": "lost_answer"})),
        Just(json!({"kind": "wrong_content_range"})),
        Just(json!({"kind": "wrong_length"})),
        Just(json!({"kind": "ignored_range"})),
        any::<bool>().prop_map(|ignores| json!({"kind": "changed_etag", "ignores_if_match": ignores})),
        Just(json!({"kind": "half_listing"})),
        Just(json!({"kind": "circular_listing"})),
    ];
    (kind, 0..3_u64, 1..4_u64, 0.3..1.0).prop_map(|(mut fault, after, count, probability)| {
        fault["after"] = json!(after);
        fault["count"] = json!(count);
        fault["probability"] = json!(probability);
        fault
    })
}

fn range() -> impl Strategy<Value = Range<u64>> {
    (0..=LENGTH, 0..=LENGTH).prop_map(|(a, b)| a.min(b)..a.max(b))
}

#[test]
fn random_faults_give_the_right_bytes_or_an_error() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let content = noise(LENGTH as usize);
    let served = Served::with(&[("a/model", &content), ("b", b"")]);
    let policy = RetryPolicy { progress_timeout: Duration::from_millis(100), ..impatient() };
    let faults = prop::collection::vec(fault(), 0..4);
    let ranges = prop::collection::vec(range(), 1..5);
    let (right, failed) = (Cell::new(0), Cell::new(0));
    proptest!(ProptestConfig::with_cases(96), |(faults in faults, ranges in ranges)| {
        let bucket = open_with(served.server.url(), policy.clone(), Events::default());
        served.server.no_faults();
        served.server.fault(Value::from(faults));
        runtime.block_on(async {
            match bucket.list("").await {
                Ok(objects) => prop_assert_eq!(objects.iter().map(|o| o.size_bytes).collect::<Vec<_>>(), [LENGTH, 0]),
                Err(error) => drop(shown(&error)),
            }
            let object = match bucket.head("a/model").await {
                Ok(object) => object,
                Err(error) => { shown(&error); return Ok(()); }
            };
            let (bucket, object) = (&bucket, &object);
            let reads = ranges.iter().map(|range| async move {
                let mut streamed = Vec::new();
                let done = bucket.get_into(object, range.clone(), &mut |piece| streamed.extend_from_slice(piece)).await;
                (range, streamed, done)
            });
            for (range, streamed, done) in join_all(reads).await {
                let expected = &content[range.start as usize..range.end as usize];
                // Also what was handed over before an error is right.
                prop_assert!(expected.starts_with(&streamed), "wrong bytes in {range:?}");
                match done {
                    Ok(()) => { right.set(right.get() + 1); prop_assert!(streamed.len() == expected.len(), "too few bytes in {range:?}") }
                    Err(error) => { failed.set(failed.get() + 1); shown(&error); }
                }
            }
            Ok(())
        })?;
    });
    let (right, failed) = (right.get(), failed.get());
    assert!(right > 20 && failed > 0, "{right} reads were right, {failed} failed: the faults are too many or too few");
}
